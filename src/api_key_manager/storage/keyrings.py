"""The keyring as it is stored: scripts, for every SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, select

from api_key_manager.connections import Many, Script, Statement
from api_key_manager.connections.tables import deployment, key_versions, keyring
from api_key_manager.core.models import AuditEvent
from api_key_manager.core.sealed import Stamp
from api_key_manager.storage.events import append
from api_key_manager.storage.scripts import describe

__all__ = [
    "Row",
    "add_key",
    "count_digests",
    "found_keyring",
    "read_keyring",
    "retire_peppers",
    "rewrap_keys",
    "seed_keyring",
    "under_peppers",
]


class Row(NamedTuple):
    """One row, without the time when it was made."""

    kind: str
    number: int
    wrapped: bytes
    kek: str | None
    seal: bytes | None
    since: int


_COLUMNS: Final = Row._fields
_READ = Statement(select(*(keyring.c[name] for name in _COLUMNS)))
_INSERT = Statement(keyring.insert())
_PLACE = (keyring.c.kind == bindparam("b_kind"), keyring.c.number == bindparam("b_number"))
_SEAL = Statement(
    keyring.update()
    .where(*_PLACE)
    .values(kek=bindparam("b_kek"), seal=bindparam("b_seal"), since=bindparam("b_since"))
)
# Whoever changes the keyring holds this row to commit.
_HOLD = Statement(deployment.update().values(revision=deployment.c.revision))
_REWRAP = Statement(
    keyring.update()
    .where(*_PLACE, keyring.c.wrapped == bindparam("b_old"))
    .values(wrapped=bindparam("b_wrapped"), kek=bindparam("b_kek"), seal=bindparam("b_seal"))
    .returning(keyring.c.number)
)
_LIVE = (key_versions.c.ended.is_(False), key_versions.c.pepper.is_not(None))
_OLDER = (*_LIVE, key_versions.c.pepper < bindparam("b_least"))
_DIGESTS = Statement(
    select(key_versions.c.pepper, func.count()).where(*_LIVE).group_by(key_versions.c.pepper)
)
_UNDER = Statement(
    select(key_versions.c.key_id)
    .where(*_OLDER, key_versions.c.key_id > bindparam("b_after"))
    .distinct()
    .order_by(key_versions.c.key_id)
    .limit(bindparam("b_limit"))
)
_COUNT_UNDER = Statement(select(func.count()).select_from(key_versions).where(*_OLDER))
_SET_LEAST_PEPPER = Statement(
    deployment.update()
    .where(deployment.c.least_pepper < bindparam("b_least"))
    .values(least_pepper=bindparam("b_least"))
)
_REMOVE_PEPPERS = Statement(
    keyring.delete()
    .where(keyring.c.kind == "pepper", keyring.c.number < bindparam("b_least"))
    .returning(keyring.c.number)
)


def read_keyring() -> Script[list[Row]]:
    """Every key, in order."""
    rows = yield _READ()
    # As text: an edited row may hold anything.
    return sorted((Row(*row) for row in rows), key=lambda row: (str(row.kind), str(row.number)))


def found_keyring(minted: Sequence[Row], now: int) -> Script[list[Row]]:
    """Put in the first keys, unless somebody was faster; what is there then. ``now`` in µs."""
    yield _HOLD()
    known = yield from read_keyring()
    if known:
        return known
    yield _insert(minted, now)
    return list(minted)


def seed_keyring(rows: Sequence[Row], now: int) -> Script[list[Row]]:
    """Bring the keyring of an older schema up to date, unless somebody was faster.

    Args:
        rows: what is to be there: those that are there get their ``kek`` and ``seal``.
        now: in µs.

    Returns:
        What is there then.
    """
    yield _HOLD()
    known = yield from read_keyring()
    if any(row.seal is not None for row in known):
        return known
    # From now on: older code may still run beside this one, and would not open a next data key.
    _, revision, _ = yield from describe()
    there = {(row.kind, row.number) for row in known}
    for row in rows:
        if (row.kind, row.number) in there:
            yield _SEAL(
                b_kind=row.kind, b_number=row.number, b_kek=row.kek, b_seal=row.seal,
                b_since=revision,
            )  # fmt: skip
    yield _insert([row for row in rows if (row.kind, row.number) not in there], now)
    return (yield from read_keyring())


def _insert(rows: Sequence[Row], now: int) -> Many:
    """Values in the order of the table's columns."""
    return Many(_INSERT, [(*row[:3], now, *row[3:]) for row in rows])


def add_key(row: Row, event: AuditEvent | None, now: int, stamp: Stamp) -> Script[list[Row]]:
    """Put in a new key, unless its number is taken by now; what is there then.

    Args:
        row: ``since`` is filled in here.
        event: what the log is to say of it.
        now: in µs.
        stamp: numbers and vouches for the event.
    """
    yield _HOLD()
    known = yield from read_keyring()
    if any(row[:2] == other[:2] for other in known):
        return known
    _, revision, _ = yield from describe()
    yield _insert([row._replace(since=revision)], now)
    yield from append([] if event is None else [(event, None)], stamp)
    return (yield from read_keyring())


def rewrap_keys(
    changes: Sequence[tuple[Row, Row]], event: AuditEvent | None, stamp: Stamp
) -> Script[int]:
    """Replace rows by the same keys wrapped anew; how many were still as they had been read.

    Args:
        changes: what was read, and what is to be there.
        event: what the log is to say of it.
        stamp: numbers and vouches for it.
    """
    yield _HOLD()
    done = 0
    for old, new in changes:
        rows = yield _REWRAP(
            b_kind=old.kind, b_number=old.number, b_old=old.wrapped,
            b_wrapped=new.wrapped, b_kek=new.kek, b_seal=new.seal,
        )  # fmt: skip
        done += len(rows)
    yield from append([(event, None)] if event is not None and done else [], stamp)
    return done


def count_digests() -> Script[dict[int, int]]:
    """How many live digests are under each pepper, those of revoked keys included."""
    rows = yield _DIGESTS()
    return dict(rows)


def under_peppers(least: int, after: str, limit: int) -> Script[list[str]]:
    """The ids, in order, of keys with a live digest under a pepper older than ``least``."""
    rows = yield _UNDER(b_least=least, b_after=after, b_limit=limit)
    return [row[0] for row in rows]


def retire_peppers(least: int, event: AuditEvent, stamp: Stamp) -> Script[int]:
    """Remove the peppers older than ``least`` and forbid new digests under them, if no live digest
    is left under any; how many are."""
    yield _HOLD()
    ((left,),) = yield _COUNT_UNDER(b_least=least)
    if left == 0:
        yield _SET_LEAST_PEPPER(b_least=least)
        gone = yield _REMOVE_PEPPERS(b_least=least)
        yield from append([(event, None)] if gone else [], stamp)
    return int(left)
