"""What the store does, as scripts: the same text for every SQL database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
)

from api_key_manager.connections import Many, Rows, Script, Statement
from api_key_manager.connections.tables import (
    audit_events,
    changes,
    deployment,
    idempotency,
    key_uses,
    key_versions,
    keys,
)
from api_key_manager.core.exceptions import ConflictError, KeyExistsError, StorageError
from api_key_manager.core.models import (
    ApiKey,
    Change,
    KeyQuery,
    KeyVersion,
    Page,
)
from api_key_manager.core.ports import MOST_COUNTED, Receipt, Seal
from api_key_manager.core.sealed import Stamp
from api_key_manager.storage.events import append
from api_key_manager.storage.rows import (
    KEY_COLUMNS,
    VERSION_COLUMNS,
    key_from,
    key_values,
    version_from,
    version_values,
)

WAKE_CHANNEL: Final = "akm_changes"

_log = logging.getLogger(__name__)

_KEY: BindParameter[str] = bindparam("b_key_id")
_KEY_WIDTH = len(KEY_COLUMNS)
_MOST_IDS: Final = 256


def _or_update(table: Table) -> str:
    """The end of an insert that writes over the row that is there."""
    columns = ", ".join(f"{c.name} = excluded.{c.name}" for c in table.columns if not c.primary_key)
    return f" ON CONFLICT ({', '.join(c.name for c in table.primary_key)}) DO UPDATE SET {columns}"


# The literal lets the partial index answer: one look at its end.
_LOGGED = (
    select(audit_events.c.revision)
    .where(audit_events.c.key_id == keys.c.key_id, text("audit_events.revision IS NOT NULL"))
    .order_by(audit_events.c.revision.desc())
    .limit(1)
    .scalar_subquery()
)
_RECORDS = (
    select(*KEY_COLUMNS, _LOGGED, *VERSION_COLUMNS)
    .outerjoin_from(keys, key_uses, key_uses.c.key_id == keys.c.key_id)
    .outerjoin(
        key_versions,
        and_(key_versions.c.key_id == keys.c.key_id, key_versions.c.ended.is_(False)),
    )
)
# Hot: one indexed look-up for a key and its live versions. For an id that nobody has it finds the
# next key instead: reading and decoding a row is a fifth of what a refusal costs, and its time
# would tell outsiders which ids there are. Not always the same key, which would be at hand sooner.
_NEXT, _LAST = keys.alias("next_key"), keys.alias("last_key")
_LOAD = Statement(
    _RECORDS.where(
        keys.c.key_id
        == func.coalesce(
            select(func.min(_NEXT.c.key_id)).where(_NEXT.c.key_id >= _KEY).scalar_subquery(),
            select(func.max(_LAST.c.key_id)).scalar_subquery(),
        )
    ).order_by(key_versions.c.version.desc())
)
_TAKE_REVISIONS = Statement(
    deployment.update()
    .values(revision=deployment.c.revision + bindparam("b_count"))
    .returning(deployment.c.revision, deployment.c.least_pepper)
)
_DEPLOYMENT = Statement(
    select(deployment.c.origin, deployment.c.revision, deployment.c.nonce_birth)
)
_NOTIFY = Statement(select(func.pg_notify(WAKE_CHANNEL, "")), only="postgresql")
_INSERT_KEYS = Statement(keys.insert())
# Each in one statement for any number of rows, which no UPDATE of different values is.
_UPDATE_KEYS = Statement(keys.insert(), tail=_or_update(keys))
_PUT_VERSIONS = Statement(key_versions.insert(), tail=_or_update(key_versions))
_VERSIONS = Statement(
    select(*VERSION_COLUMNS)
    .where(key_versions.c.key_id == _KEY)
    .order_by(key_versions.c.version.desc())
)
_INSERT_CHANGES = Statement(changes.insert())
_KEEP_ANSWER = Statement(
    idempotency.update()
    .where(
        idempotency.c.scope == bindparam("b_scope"),
        idempotency.c.key == bindparam("b_key"),
        idempotency.c.fingerprint == bindparam("b_fingerprint"),
        idempotency.c.answer.is_(None),
    )
    .values(answer=bindparam("b_answer"), expires_at=bindparam("b_expires_at"))
    .returning(idempotency.c.scope)
)
_COUNT_EVENTS = Statement(select(func.count()).select_from(audit_events))
_ANY_KEY = Statement(select(keys.c.key_id).limit(1))
# The literal lets the partial index answer.
_LIMITED = Statement(
    select(func.count(), func.min(keys.c.key_id)).where(
        text("keys.rate_limits <> '[]'"), keys.c.revoked.is_(False)
    )
)


@lru_cache(maxsize=16)
def _load_some(count: int) -> tuple[Statement, tuple[str, ...]]:
    """The same look-up of many keys, and the names of its parameters."""
    names, some = _any_of(count)
    newest_first = (keys.c.key_id, key_versions.c.version.desc())
    return Statement(_RECORDS.where(some).order_by(*newest_first)), names


@lru_cache(maxsize=16)
def _revisions_of_some(count: int) -> tuple[Statement, tuple[str, ...]]:
    """The revisions of many keys, tombstones too, then those that the log knows of them; and the
    names of the parameters."""
    names, some = _any_of(count)
    _, logged = _any_of(count, audit_events)
    revision = audit_events.c.revision
    # The literal lets the partial index answer.
    newest = (
        select(audit_events.c.key_id, func.max(revision), literal(1))
        .where(logged, text("audit_events.revision IS NOT NULL"))
        .group_by(audit_events.c.key_id)
    )
    stored = select(keys.c.key_id, keys.c.revision, literal(0)).where(some)
    return Statement(union_all(stored, newest)), names


def _any_of(count: int, table: Table = keys) -> tuple[tuple[str, ...], ColumnElement[bool]]:
    names = tuple(f"b_key_{i}" for i in range(count))
    return names, table.c.key_id.in_([bindparam(name) for name in names])


def _by_id(
    make: Callable[[int], tuple[Statement, tuple[str, ...]]], key_ids: Sequence[str]
) -> Script[Rows]:
    """The rows of many keys, by a statement that is made for a number of them."""
    rows: Rows = []
    for at in range(0, len(key_ids), _MOST_IDS):
        some = key_ids[at : at + _MOST_IDS]
        # In powers of two, so that few different statements are ever prepared.
        statement, names = make(1 << (len(some) - 1).bit_length())
        padded = chain(some, repeat(some[0]))
        rows += yield statement(**dict(zip(names, padded)))  # noqa: B905 - one is endless
    return rows


def load(key_id: str) -> Script[ApiKey | None]:
    """A record with its live versions, ``None`` when unknown or deleted."""
    record = _record((yield _LOAD(b_key_id=key_id)))
    return record if record is not None and record.key_id == key_id else None


def load_many(key_ids: Sequence[str]) -> Script[list[ApiKey | None]]:
    """Records in the order of their ids."""
    if len(key_ids) == 1:
        return [(yield from load(key_ids[0]))]
    rows: dict[str, Rows] = {}
    for row in (yield from _by_id(_load_some, key_ids)):
        rows.setdefault(row[0], []).append(row)
    return [_record(rows.get(key_id, [])) for key_id in key_ids]


def _record(rows: Rows) -> ApiKey | None:
    if not rows:
        return None
    versions = tuple(
        version_from(r[_KEY_WIDTH + 1 :]) for r in rows if r[_KEY_WIDTH + 1] is not None
    )
    record = key_from(rows[0][:_KEY_WIDTH], versions)
    logged = rows[0][_KEY_WIDTH]
    if logged is not None and _is_older(record.revision, logged):
        record = replace(record, mac=b"")  # so that nobody believes it
    return None if record.deleted_at is not None else record


def _is_older(revision: object, logged: int) -> bool:
    """Whether a row is of before the last change that the log knows of. An edited one may hold
    anything: the MAC refuses it."""
    return isinstance(revision, int) and revision < logged


def apply(
    wanted: Sequence[Change], seal: Seal, receipt: Receipt | None, stamp: Stamp
) -> Script[list[ApiKey]]:
    """All changes with their revisions, feed rows, events and receipt.

    In a dozen statements however many changes there are: whoever else writes waits meanwhile.
    """
    # Taking the revisions first also puts writers in a line until commit.
    last, least_pepper = (yield _TAKE_REVISIONS(b_count=len(wanted)))[0]
    _refuse_retired(wanted, least_pepper)
    key_ids = list(dict.fromkeys(change.record.key_id for change in wanted))
    rows = yield from _by_id(_revisions_of_some, key_ids)
    stored: dict[str, int] = {row[0]: row[1] for row in rows if not row[2]}
    _refuse_rolled_back(wanted, stored, {row[0]: row[1] for row in rows if row[2]})
    done = _decide(wanted, stored, last - len(wanted) + 1, seal)
    yield from _put(wanted, done, stored, stamp)
    yield _NOTIFY()
    if receipt is not None:
        yield from keep_answer(receipt)
    return done


def _refuse_retired(wanted: Sequence[Change], least_pepper: int) -> None:
    """A process that has not heard that its pepper was retired must hand out no token under it."""
    for change in wanted:
        for version in change.record.versions:
            if not version.ended and (version.pepper or least_pepper) < least_pepper:
                raise StorageError(
                    f"pepper {version.pepper} was retired, and this process does not know the"
                    " newest one yet: try again in a few seconds"
                )


def _refuse_rolled_back(
    wanted: Sequence[Change], stored: Mapping[str, int], logged: Mapping[str, int]
) -> None:
    """A record that somebody put back to an earlier state of itself, or took away, must not get a
    new seal: nothing would show any more that it lost what came after."""
    for change in wanted:
        record = change.record
        found = stored.get(record.key_id)
        if found is None and record.key_id in logged:
            raise KeyExistsError("key_id: this id is taken")
        older = _is_older(found, logged.get(record.key_id, 0))
        if older and not record.revoked and record.deleted_at is None:
            told = f"the stored record of key {record.key_id} was rolled back"
            _log.error("%s", told)
            raise ConflictError(f"{told}: it can only be deleted")


def keep_answer(receipt: Receipt) -> Script[None]:
    """Keep the answer of a request with the change that it made."""
    kept = yield _KEEP_ANSWER(
        b_scope=receipt.scope, b_key=receipt.key, b_fingerprint=receipt.fingerprint,
        b_answer=receipt.answer, b_expires_at=receipt.expires_at,
    )  # fmt: skip
    if not kept:
        raise ConflictError("the request was not begun, or took too long")


def _decide(
    wanted: Sequence[Change], stored: Mapping[str, int], first: int, seal: Seal
) -> list[ApiKey]:
    """The records that are to be, if each change was made of what is there."""
    done, revisions = [], dict(stored)
    for revision, change in enumerate(wanted, first):
        key_id = change.record.key_id
        found = revisions.get(key_id)
        if change.expected_revision is None:
            if found is not None:
                raise KeyExistsError("key_id: this id is taken")
        elif found != change.expected_revision:
            raise ConflictError("the key was changed by somebody else meanwhile")
        live = tuple(version for version in change.record.versions if not version.ended)
        record = replace(change.record, revision=revision, versions=live)
        done.append(replace(record, mac=seal(record)))
        revisions[key_id] = revision
    return done


def _put(
    wanted: Sequence[Change], done: Sequence[ApiKey], stored: Mapping[str, int], stamp: Stamp
) -> Script[None]:
    # Of a key that is changed twice here, what it is in the end.
    records = {record.key_id: _row(keys, key_values(record)) for record in done}
    versions = {
        (change.record.key_id, version.version): _row(
            key_versions, version_values(change.record.key_id, version)
        )
        for change in wanted
        for version in change.record.versions
    }
    yield Many(_INSERT_KEYS, [row for key_id, row in records.items() if key_id not in stored])
    yield Many(_UPDATE_KEYS, [row for key_id, row in records.items() if key_id in stored])
    yield Many(_PUT_VERSIONS, list(versions.values()))
    yield Many(_INSERT_CHANGES, [(r.revision, r.key_id, r.updated_at) for r in done])
    events = [
        (event, r.revision)
        for change, r in zip(wanted, done, strict=True)
        for event in change.events
    ]
    yield from append(events, stamp)


def _row(table: Table, values: Mapping[str, Any]) -> list[Any]:
    return [values[column.name] for column in table.columns]


def versions_of(key_id: str) -> Script[list[KeyVersion]]:
    """Every version of a key, newest first, without secrets."""
    rows = yield _VERSIONS(b_key_id=key_id)
    return [replace(version_from(row), sealed=None, digest=None) for row in rows]


def find(query: KeyQuery) -> Script[Page[ApiKey]]:
    """Keys in the order of their ids."""
    statement = (
        _keys(query.after).where(*_key_filters(query)).order_by(keys.c.key_id)
        .limit(query.limit + 1)
    )  # fmt: skip
    records = yield from _with_versions(statement)
    page = records[: query.limit]
    return Page(page, page[-1].key_id if len(records) > query.limit else None)


def every(after: str, limit: int) -> Script[list[ApiKey]]:
    """Keys of every realm, tombstones too, in the order of their ids: for who checks them all."""
    some = _keys(after).where(keys.c.key_id > after).order_by(keys.c.key_id).limit(limit)
    found = yield from _with_versions(some)
    return found


def ending(before: int, limit: int) -> Script[list[ApiKey]]:
    """Keys with an end at or before ``before`` that is not written down."""
    due = _keys().where(keys.c.next_end_at <= before).limit(limit)
    found = yield from _with_versions(due)
    return found


def _state(now: int) -> ColumnElement[str]:
    # _state_filters() names a state's own condition last; case() takes the first that is true.
    states = ("revoked", "disabled", "expired")
    return case(*((_state_filters(s, now)[-1], s) for s in states), else_="active")


def count(realm: str, now: int) -> Script[dict[str, int]]:
    """How many keys are in each state, in one pass."""
    c, state = keys.c, _state(now)
    living = (c.realm == realm, c.deleted_at.is_(None))
    rows = yield Statement(select(state, func.count()).where(*living).group_by(state))()
    return {row[0]: row[1] for row in rows}


def census(
    realm: str, now: int, environment: str | None
) -> Script[dict[str | None, dict[str, int]]]:
    """How many keys of each environment, or of one, are in each state."""
    c, state = keys.c, _state(now)
    living = [c.realm == realm, c.deleted_at.is_(None)]
    named = (
        select(c.environment)
        .where(*living, c.environment.is_not(None))
        .distinct()
        .order_by(c.environment)
        .limit(MOST_COUNTED)
    )
    counted: dict[str | None, dict[str, int]] = {}
    for wanted in (
        [c.environment == environment]
        if environment is not None
        else [c.environment.is_(None), c.environment.in_(named)]
    ):
        statement = (
            select(c.environment, state, func.count())
            .where(*living, wanted)
            .group_by(c.environment, state)
            .order_by(c.environment)
        )
        for name, of, number in (yield Statement(statement)()):
            counted.setdefault(name, {})[of] = number
    return counted


def _keys(after: str | None = None) -> Select[Any]:
    """Keys with their last uses. Of the uses too only those behind ``after``, or PostgreSQL would
    read along with the keys all that come before."""
    mine = key_uses.c.key_id == keys.c.key_id
    if after is not None:
        mine = and_(mine, key_uses.c.key_id > after)
    return select(*KEY_COLUMNS).outerjoin_from(keys, key_uses, mine)


def _with_versions(statement: Select[Any]) -> Script[list[ApiKey]]:
    rows = yield Statement(statement)()
    found: dict[str, list[KeyVersion]] = {row[0]: [] for row in rows}
    if found:
        live = (
            select(key_versions.c.key_id, *VERSION_COLUMNS)
            .where(key_versions.c.key_id.in_(list(found)), key_versions.c.ended.is_(False))
            .order_by(key_versions.c.version.desc())
        )
        for key_id, *version in (yield Statement(live)()):
            found[key_id].append(version_from(tuple(version)))
    return [key_from(row, tuple(found[row[0]])) for row in rows]


def _key_filters(query: KeyQuery) -> list[ColumnElement[bool]]:
    c = keys.c
    filters = [c.realm == query.realm, c.deleted_at.is_(None)]
    for column, value in (
        (c.kind, query.kind),
        (c.owner, query.owner),
        (c.environment, query.environment),
        (c.environment, query.within),
        (c.prefix, query.prefix),
    ):
        if value is not None:
            filters.append(column == value)
    if query.created_before is not None:
        filters.append(c.created_at < query.created_before)
    if query.after is not None:
        filters.append(c.key_id > query.after)
    if query.state is not None:
        filters.extend(_state_filters(query.state, query.now))
    return filters


def _state_filters(state: str, now: int) -> list[ColumnElement[bool]]:
    """The order of precedence is :meth:`ApiKey.state`'s."""
    c = keys.c
    revoked = or_(c.revoked.is_(True), func.coalesce(c.revoked_at <= now, False))
    expired = or_(c.expired.is_(True), func.coalesce(c.expires_at <= now, False))
    disabled = c.disabled.is_(True)
    return {
        "revoked": [revoked],
        "disabled": [~revoked, disabled],
        "expired": [~revoked, ~disabled, expired],
        "active": [~revoked, ~disabled, ~expired],
    }[state]


def describe() -> Script[tuple[str, int, int]]:
    """Origin, revision and nonce birth (µs) of this database."""
    origin, revision, nonce_birth = (yield _DEPLOYMENT())[0]
    return origin, revision, nonce_birth


def rolled_back(limit: int) -> Script[list[tuple[str, int, int | None]]]:
    """Keys that the log knows at a later revision than their rows are: the id, the log's revision,
    and the row's, ``None`` where there is no row."""
    newest = (
        select(audit_events.c.key_id, func.max(audit_events.c.revision).label("revision"))
        .where(text("audit_events.revision IS NOT NULL"), audit_events.c.key_id.is_not(None))
        .group_by(audit_events.c.key_id)
        .subquery()
    )
    statement = (
        select(newest.c.key_id, newest.c.revision, keys.c.revision)
        .outerjoin_from(newest, keys, keys.c.key_id == newest.c.key_id)
        .where(func.coalesce(keys.c.revision, -1) < newest.c.revision)
        .order_by(newest.c.key_id)
        .limit(limit)
    )
    rows = yield Statement(statement)()
    return [(row[0], row[1], row[2]) for row in rows]


def count_events() -> Script[int]:
    """How many events there are."""
    return int((yield _COUNT_EVENTS())[0][0])


def is_empty() -> Script[bool]:
    """Whether there was never a key."""
    rows = yield _ANY_KEY()
    return not rows


def limited() -> Script[tuple[int, str | None]]:
    """How many keys have rate limits of their own, and one of them."""
    ((count, one),) = yield _LIMITED()
    return count, one
