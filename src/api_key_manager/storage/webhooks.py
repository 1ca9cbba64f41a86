"""Subscriptions to events and their deliveries, as scripts.

The audit log is the outbox: a change and its event are committed together, and ids are in the order
of commits. :func:`dispatch` follows the log and makes deliveries in the transaction that moves its
cursor, so that none is lost or made twice, whichever node does it and whenever it dies.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import and_, bindparam, exists, func, or_, select, text
from sqlalchemy.sql.elements import ColumnElement

from api_key_manager.connections import Many, Script, Statement
from api_key_manager.connections.tables import (
    NO_VALIDATION,
    audit_events,
    expiry_warnings,
    keys,
    webhook_cursor,
    webhook_deliveries,
    webhooks,
)
from api_key_manager.core.exceptions import ConflictError
from api_key_manager.core.models import KEY_REALM, AuditEvent, canonical_json, rfc3339
from api_key_manager.core.ports import Receipt
from api_key_manager.core.sealed import Stamp
from api_key_manager.storage.events import append
from api_key_manager.storage.scripts import keep_answer

__all__ = ["Delivery", "Logged", "Webhook"]

MOST_WEBHOOKS: Final = 100
_EVENTS_TOGETHER: Final = 100
_PRUNED_TOGETHER: Final = 1000
_WARNED_TOGETHER: Final = 200


class Webhook(NamedTuple):
    """A subscription; instants in µs. ``types`` is the JSON text of a list."""

    id: str
    url: str
    types: str
    environment: str | None
    description: str | None
    sealed: bytes
    previous_sealed: bytes | None
    previous_until: int | None
    disabled: bool
    disabled_reason: str | None
    created_at: int
    updated_at: int
    since: int = 0

    def __repr__(self) -> str:
        return f"Webhook({self.id!r})"


class Delivery(NamedTuple):
    """One event to one subscriber; ``state`` is ``pending``, ``done`` or ``dead``."""

    id: str
    webhook_id: str
    event_id: int | None
    type: str
    body: str
    created_at: int
    attempts: int
    next_at: int
    state: str
    status: int | None = None
    outcome: str | None = None
    finished_at: int | None = None
    mac: bytes = b""


class Logged(NamedTuple):
    """What the audit log says of an event, and whose key it is about."""

    id: int
    at: int
    action: str
    key_id: str | None
    actor: str | None
    reason: str | None
    detail: str | None
    environment: str | None
    owner: str | None


Wants = Callable[[Webhook, Logged], tuple[str, str] | None]
"""The type and body of what a subscriber is sent of an event, if anything."""
Vouch = Callable[[Delivery], bytes]
"""The MAC of what a delivery says to whom."""
Fits = Callable[[Sequence[Any]], bool]
"""Whether a row of the audit log is as it was written."""

_w, _d, _e = webhooks.c, webhook_deliveries.c, audit_events.c
_ID = _w.id == bindparam("b_id")
_ONE = Statement(select(webhooks).where(_ID))
_ALL = Statement(select(webhooks).order_by(_w.created_at, _w.id).limit(MOST_WEBHOOKS))
_LIVE = Statement(select(webhooks).where(_w.disabled.is_(False)).limit(MOST_WEBHOOKS))
_COUNT = Statement(select(func.count()).select_from(webhooks))
_INSERT = Statement(webhooks.insert())
_CHANGED = [name for name in webhooks.columns.keys() if name not in ("id", "created_at")]  # noqa: SIM118 - no dict
_UPDATE = Statement(
    webhooks.update()
    .where(_ID, _w.updated_at == bindparam("b_before"))
    .values({name: bindparam(f"b_{name}") for name in _CHANGED})
    .returning(_w.id)
)
_DELETE = Statement(webhooks.delete().where(_ID).returning(_w.id))
_DROP_DELIVERIES = Statement(webhook_deliveries.delete().where(_d.webhook_id == bindparam("b_id")))
_NEWEST = Statement(select(func.coalesce(func.max(_e.id), 0)))
# Who has the row dispatches; on PostgreSQL nobody waits for it.
_LOCK_CURSOR = Statement(select(webhook_cursor.c.position).with_for_update(skip_locked=True))
_CURSOR = Statement(select(webhook_cursor.c.position))
_MOVE = Statement(webhook_cursor.update().values(position=bindparam("b_position")))
_ANY_NEW = Statement(
    select(_e.id).where(_e.id > bindparam("b_after"), text(NO_VALIDATION)).order_by(_e.id).limit(1)
)
_NEW = Statement(
    select(
        _e.id, _e.at, _e.action, _e.key_id, _e.actor, _e.reason, _e.detail, _e.environment,
        keys.c.owner, *audit_events.columns,
    )
    .select_from(audit_events.outerjoin(keys, keys.c.key_id == _e.key_id))
    .where(_e.id > bindparam("b_after"), text(NO_VALIDATION))
    .order_by(_e.id)
    .limit(_EVENTS_TOGETHER)
)  # fmt: skip
_INSERT_DELIVERIES = Statement(webhook_deliveries.insert())
_PENDING = text("webhook_deliveries.state = 'pending'")
_IS_DUE = and_(_PENDING, _d.next_at <= bindparam("b_now"))
_DUE_WEBHOOKS = Statement(
    select(webhooks)
    .where(_w.disabled.is_(False), exists().where(_d.webhook_id == _w.id, _IS_DUE))
    .limit(MOST_WEBHOOKS)
)
_CLAIM = Statement(
    webhook_deliveries.update()
    .where(
        _d.id.in_(
            select(_d.id)
            .where(_d.webhook_id == bindparam("b_webhook"), _IS_DUE)
            .order_by(_d.next_at)
            .limit(bindparam("b_limit"))
            .with_for_update(skip_locked=True)
        )
    )
    .values(attempts=_d.attempts + 1, next_at=bindparam("b_until"))
    .returning(*webhook_deliveries.columns)
)
# Its number fences off a sender whose time was up.
_FINISH = Statement(
    webhook_deliveries.update()
    .where(_d.id == bindparam("b_id"), _d.attempts == bindparam("b_attempts"), _PENDING)
    .values(
        state=bindparam("b_state"), next_at=bindparam("b_next_at"), status=bindparam("b_status"),
        outcome=bindparam("b_outcome"), finished_at=bindparam("b_finished_at"),
    )
)  # fmt: skip
_GIVE_UP = Statement(
    webhook_deliveries.update()
    .where(_d.webhook_id == bindparam("b_id"), _PENDING)
    .values(state="dead", outcome="disabled", finished_at=bindparam("b_now"))
)
_DELIVERY = Statement(
    select(webhook_deliveries).where(
        _d.webhook_id == bindparam("b_webhook"), _d.id == bindparam("b_id")
    )
)
_again = {
    "state": "pending", "attempts": 0, "next_at": bindparam("b_now"), "finished_at": None,
}  # fmt: skip
_REPLAY = Statement(
    webhook_deliveries.update()
    .where(_d.webhook_id == bindparam("b_webhook"), _d.id == bindparam("b_id"))
    .where(_d.state != "pending")
    .values(_again)
    .returning(*webhook_deliveries.columns)
)
_REPLAY_DEAD = Statement(
    webhook_deliveries.update()
    .where(_d.webhook_id == bindparam("b_webhook"), _d.state == "dead")
    .values(_again)
    .returning(_d.id)
)
_PRUNE = Statement(
    webhook_deliveries.delete()
    .where(
        _d.id.in_(
            select(_d.id)
            .where(
                _d.finished_at.is_not(None),
                or_(
                    and_(_d.state == "done", _d.finished_at < bindparam("b_done")),
                    _d.finished_at < bindparam("b_dead"),
                ),
            )
            .limit(_PRUNED_TOGETHER)
        )
    )
    .returning(_d.id)
)
_DEPTH = Statement(
    select(_d.state, func.count()).where(_d.state.in_(("pending", "dead"))).group_by(_d.state)
)
_is_warned = exists().where(
    expiry_warnings.c.key_id == keys.c.key_id, expiry_warnings.c.expires_at == keys.c.expires_at
)
_EXPIRING = Statement(
    select(keys.c.key_id, keys.c.expires_at, keys.c.environment)
    .where(
        # Whose next end lies later has no nearer expiry; there is an index on it.
        keys.c.next_end_at <= bindparam("b_until"),
        keys.c.realm == KEY_REALM,
        keys.c.expires_at > bindparam("b_now"),
        keys.c.expires_at <= bindparam("b_until"),
        keys.c.revoked.is_(False),
        ~_is_warned,
    )
    .limit(_WARNED_TOGETHER)
)
_WARN = Statement(
    expiry_warnings.insert(),
    tail=" ON CONFLICT (key_id) DO UPDATE SET expires_at = excluded.expires_at",
)
_FORGET_WARNINGS = Statement(
    expiry_warnings.delete().where(expiry_warnings.c.expires_at < bindparam("b_before"))
)


def _webhook(row: tuple[Any, ...]) -> Webhook:
    return Webhook(*row)._replace(disabled=bool(row[8]))


def find(webhook_id: str) -> Script[Webhook | None]:
    """One subscription."""
    rows = yield _ONE(b_id=webhook_id)
    return _webhook(rows[0]) if rows else None


def every() -> Script[list[Webhook]]:
    """All of them, the oldest first."""
    return [_webhook(row) for row in (yield _ALL())]


def add(webhook: Webhook, event: AuditEvent, stamp: Stamp, receipt: Receipt | None) -> Script[None]:
    """A new subscription, to what happens from now on.

    Raises:
        ConflictError: there are as many as there may be.
    """
    # Whoever adds waits for the others here, so that the count holds.
    yield from append([(event, None)], stamp)
    if (yield _COUNT())[0][0] >= MOST_WEBHOOKS:
        raise ConflictError(f"there are {MOST_WEBHOOKS} webhooks: delete one first")
    since = (yield _NEWEST())[0][0]
    yield Many(_INSERT, [webhook._replace(since=since)])
    if receipt is not None:
        yield from keep_answer(receipt)


def change(
    webhook: Webhook,
    before: Webhook,
    event: AuditEvent,
    stamp: Stamp,
    receipt: Receipt | None = None,
) -> Script[None]:
    """Write a subscription that was read as ``before``.

    Raises:
        ConflictError: somebody else was faster.
    """
    if before.disabled and not webhook.disabled:
        webhook = webhook._replace(since=(yield _NEWEST())[0][0])
    # Two changes in one microsecond would be one for the comparison.
    at = max(webhook.updated_at, before.updated_at + 1)
    values = {f"b_{name}": getattr(webhook, name) for name in _CHANGED}
    values |= {"b_updated_at": at, "b_before": before.updated_at, "b_id": webhook.id}
    if not (yield _UPDATE(**values)):
        raise ConflictError("the webhook was changed by somebody else meanwhile")
    if webhook.disabled:
        yield _GIVE_UP(b_id=webhook.id, b_now=at)
    yield from append([(event, None)], stamp)
    if receipt is not None:
        yield from keep_answer(receipt)


def drop(webhook_id: str, event: AuditEvent, stamp: Stamp) -> Script[bool]:
    """Delete a subscription with its deliveries; says whether it was there."""
    if not (yield _DELETE(b_id=webhook_id)):
        return False
    yield _DROP_DELIVERIES(b_id=webhook_id)
    yield from append([(event, None)], stamp)
    return True


def is_behind() -> Script[bool]:
    """Whether there may be something to dispatch: two or three look-ups that write nothing."""
    live = [_webhook(row) for row in (yield _LIVE())]
    if not live:
        return False
    position = (yield _CURSOR())[0][0]
    after = max(position, min(webhook.since for webhook in live))
    return bool((yield _ANY_NEW(b_after=after)))


def dispatch(wants: Wants, fits: Fits, vouch: Vouch, now: int) -> Script[int]:
    """Make deliveries of the next events; how many events that was, 0 when there are none.

    Of an event that an editor of the database wrote nobody is told.
    """
    rows = yield _LOCK_CURSOR()
    if not rows:
        return 0  # another node is at it
    live = [_webhook(row) for row in (yield _LIVE())]
    if not live:
        return 0
    after = max(rows[0][0], min(webhook.since for webhook in live))
    found = yield _NEW(b_after=after)
    if not found:
        return 0
    width = len(Logged._fields)
    events = [Logged(*row[:width]) for row in found if fits(row[width:])]
    made = []
    for event in events:
        for webhook in live:
            wanted = None if event.id <= webhook.since else wants(webhook, event)
            if wanted is not None:
                made.append(_pending(webhook.id, event.id, *wanted, now, vouch))
    yield Many(_INSERT_DELIVERIES, made)
    yield _MOVE(b_position=found[-1][0])
    return len(found)


def _pending(
    webhook_id: str, event_id: int | None, kind: str, body: str, now: int, vouch: Vouch
) -> Delivery:
    # Never the same again, not even after a restore: receivers know what they had by it.
    message_id = f"msg_{now:014x}{secrets.token_hex(10)}"
    made = Delivery(message_id, webhook_id, event_id, kind, body, now, 0, now, "pending")
    return made._replace(mac=vouch(made))


def add_test(
    webhook_id: str, kind: str, body: str, now: int, until: int, vouch: Vouch
) -> Script[Delivery]:
    """A delivery without an event, claimed by whoever asks."""
    made = _pending(webhook_id, None, kind, body, now, vouch)
    made = made._replace(attempts=1, next_at=until)
    yield Many(_INSERT_DELIVERIES, [made])
    return made


def due(now: int) -> Script[list[Webhook]]:
    """The subscribers that have something to get."""
    return [_webhook(row) for row in (yield _DUE_WEBHOOKS(b_now=now))]


def claim(wanted: Mapping[str, int], now: int, until: int) -> Script[list[Delivery]]:
    """Take deliveries to try, at most so many of each subscriber; nobody else does until then."""
    taken: list[Delivery] = []
    for webhook_id, limit in wanted.items():
        rows = yield _CLAIM(b_webhook=webhook_id, b_limit=limit, b_now=now, b_until=until)
        taken += [Delivery(*row) for row in rows]
    return taken


def finish(results: Sequence[Delivery]) -> Script[None]:
    """Write what became of tries."""
    for r in results:
        yield _FINISH(
            b_id=r.id, b_attempts=r.attempts, b_state=r.state, b_next_at=r.next_at,
            b_status=r.status, b_outcome=r.outcome, b_finished_at=r.finished_at,
        )  # fmt: skip


def find_delivery(webhook_id: str, delivery_id: str) -> Script[Delivery | None]:
    """One delivery."""
    rows = yield _DELIVERY(b_webhook=webhook_id, b_id=delivery_id)
    return Delivery(*rows[0]) if rows else None


def deliveries(
    webhook_id: str, state: str | None, after: str | None, limit: int
) -> Script[list[Delivery]]:
    """Deliveries of a subscriber, the newest first."""
    wanted: list[ColumnElement[bool]] = [_d.webhook_id == webhook_id]
    if state is not None:
        wanted.append(_d.state == state)
    if after is not None:
        wanted.append(_d.id < after)
    some = select(webhook_deliveries).where(*wanted).order_by(_d.id.desc()).limit(limit)
    return [Delivery(*row) for row in (yield Statement(some)())]


def replay(
    webhook_id: str, delivery_id: str, now: int, event: AuditEvent, stamp: Stamp
) -> Script[Delivery | None]:
    """Try a finished delivery from the start; ``None`` when it is not finished, or not there."""
    rows = yield _REPLAY(b_webhook=webhook_id, b_id=delivery_id, b_now=now)
    if rows:
        yield from append([(event, None)], stamp)
    return Delivery(*rows[0]) if rows else None


def replay_dead(webhook_id: str, now: int, event: AuditEvent, stamp: Stamp) -> Script[int]:
    """The same for all that are dead; how many that is."""
    rows = yield _REPLAY_DEAD(b_webhook=webhook_id, b_now=now)
    if rows:
        yield from append([(event, None)], stamp)
    return len(rows)


def prune(done_before: int, dead_before: int) -> Script[int]:
    """Forget some of the deliveries that ended before (µs); how many, 0 once none is left."""
    rows = yield _PRUNE(b_done=done_before, b_dead=dead_before)
    return len(rows)


def depth() -> Script[dict[str, int]]:
    """How many deliveries wait, and how many are dead."""
    rows = yield _DEPTH()
    return {row[0]: row[1] for row in rows}


def is_any_expiring(now: int, until: int) -> Script[bool]:
    """Whether :func:`warn` would find something."""
    return bool((yield _EXPIRING(b_now=now, b_until=until)))


def warn(now: int, until: int, stamp: Stamp) -> Script[int]:
    """Note keys that expire until then (µs), each expiry once; how many that was.

    Nodes take turns at the cursor, so that the second sees what the first has noted.
    """
    if not (yield _LOCK_CURSOR()):
        return 0
    rows = yield _EXPIRING(b_now=now, b_until=until)
    yield Many(_WARN, [(key_id, expires_at) for key_id, expires_at, _ in rows])
    events = [
        AuditEvent(
            now, "key_expiring", key_id, "system",
            detail_json=canonical_json({"expires_at": rfc3339(expires_at)}),
            environment=environment,
        )
        for key_id, expires_at, environment in rows
    ]  # fmt: skip
    yield _FORGET_WARNINGS(b_before=now)
    yield from append([(event, None) for event in events], stamp)
    return len(rows)
