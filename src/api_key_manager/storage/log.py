"""The transparency log's own tables: what is read to seal events, and how it is written.

Nothing here computes a hash: plain values come from the rooms that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import bindparam, func, select

from api_key_manager.connections import Many, Script, Statement
from api_key_manager.connections.tables import (
    audit_batches,
    audit_events,
    audit_head,
    audit_nodes,
    audit_origins,
)
from api_key_manager.core.models import AuditEvent
from api_key_manager.core.sealed import LogBatch, LogState, LogView, Stamp
from api_key_manager.storage.driver import Driver
from api_key_manager.storage.events import append
from api_key_manager.storage.log_reading import (
    batch_of,
    note_at,
    notes_after,
    origins,
    state_of,
)
from api_key_manager.storage.log_rows import state_from, whole

__all__ = ["SqlLog", "begin", "glance", "publish", "view"]

_SEAL_LOCK: Final = 0x616B6D_7365616C
"""Advisory lock of PostgreSQL, in whose database ours may not be the only tables."""

_o, _b = audit_origins.c, audit_batches.c

_TRY_LOCK = Statement(select(func.pg_try_advisory_xact_lock(_SEAL_LOCK)), only="postgresql")
_GLANCE = Statement(
    select(
        select(func.max(audit_head.c.written)).scalar_subquery(),
        select(func.max(audit_events.c.id)).scalar_subquery(),
        select(_o.mac).order_by(_o.origin.desc()).limit(1).scalar_subquery(),
    )
)
_HEAD = Statement(select(audit_head.c.written, audit_head.c.legacy_to))
_STATE = Statement(select(audit_origins).order_by(_o.origin.desc()).limit(1))
_END = Statement(
    select(_b.first + _b.count, _b.note)
    .where(_b.origin == bindparam("b_origin"))
    .order_by(_b.first.desc())
    .limit(1)
)
_UNSEALED = Statement(
    select(audit_events)
    .where(audit_events.c.id > bindparam("b_after"))
    .order_by(audit_events.c.id)
    .limit(bindparam("b_limit"))
)
_ADVANCE = Statement(
    audit_origins.update()
    .where(_o.origin == bindparam("b_origin"), _o.mac == bindparam("b_from"))
    .values(
        size=bindparam("b_size"), number=bindparam("b_number"), row_id=bindparam("b_row_id"),
        kept_from=bindparam("b_kept_from"), peaks=bindparam("b_peaks"), mac=bindparam("b_mac"),
    )
    .returning(_o.origin)
)  # fmt: skip
_INSERT_STATE = Statement(audit_origins.insert(), tail=" ON CONFLICT DO NOTHING RETURNING origin")
_INSERT_BATCH = Statement(audit_batches.insert())
_INSERT_NODES = Statement(
    audit_nodes.insert(),
    # What an editor put there beforehand must not stop the log.
    tail=" ON CONFLICT (origin, level, position) DO UPDATE SET hash = excluded.hash",
)
_RAISE_HEAD = Statement(
    audit_head.update()
    .where(audit_head.c.written < bindparam("b_least"))
    .values(written=bindparam("b_least"))
)
_PUT_HEAD = Statement(audit_head.insert(), tail=" ON CONFLICT DO NOTHING")


_REPAIR_HEAD = Statement(
    audit_head.insert(),
    tail=(
        " ON CONFLICT (id) DO UPDATE SET written = CASE WHEN excluded.written > audit_head.written"
        " THEN excluded.written ELSE audit_head.written END"
    ),
)
_OLDEST = Statement(
    select(_b.first, _b.count, _b.last_id, _b.sealed_at)
    .where(_b.origin == bindparam("b_origin"), _b.first >= bindparam("b_first"))
    .order_by(_b.first)
    .limit(bindparam("b_limit"))
)
# What says where a log began, and that events are missing, stays.
_DROP_LEAVES = Statement(
    audit_batches.update()
    .where(
        _b.origin == bindparam("b_origin"),
        _b.first >= bindparam("b_first"),
        _b.first < bindparam("b_end"),
        _b.number.is_not(None),
    )
    .values(leaves=None)
)
_DROP_EVENTS = Statement(audit_events.delete().where(audit_events.c.id <= bindparam("b_last")))


def glance() -> Script[tuple[Any, ...]]:
    """What changes whenever there may be something to seal, or to be worried about."""
    (row,) = yield _GLANCE()
    return row


def view(after: int | None, limit: int) -> Script[LogView]:
    """The log's end, and some events behind the last one that is sealed.

    Args:
        after: take events behind this id instead.
        limit: how many.
    """
    heads = yield _HEAD()
    written, legacy_to = map(whole, heads[0]) if heads else (-1, 0)
    states = yield _STATE()
    if not states:
        return LogView(None, 0, None, written, legacy_to, [])
    state = state_from(states[0])
    ends = yield _END(b_origin=state.origin)
    end, note = ends[0] if ends else (0, None)
    rows = yield _UNSEALED(b_after=state.row_id if after is None else after, b_limit=limit)
    return LogView(state, whole(end), note, written, legacy_to, rows)


def begin(
    state: LogState, batch: LogBatch, event: AuditEvent | None, stamp: Stamp, written: int
) -> Script[bool]:
    """Start a log, with its first leaf; says whether nobody was faster.

    Args:
        state: behind its first batch.
        batch: the first.
        event: what to write about it.
        stamp: makes the event's row.
        written: numbers up to this one are taken.
    """
    began = yield _INSERT_STATE(**dict(zip(LogState._fields, state, strict=True)))
    if not began:
        return False
    yield Many(_INSERT_BATCH, [batch])
    yield Many(_PUT_HEAD, [(1, written, 0)])
    yield _RAISE_HEAD(b_least=written)
    if event is not None:
        yield from append([(event, None)], stamp)
    return True


def publish(
    old: LogState, new: LogState, batch: LogBatch, nodes: Sequence[tuple[int, int, bytes]]
) -> Script[bool]:
    """Add a batch to the log, if that is still as it was; says whether it was.

    Of several nodes with the same idea the one that holds the lock goes first, and the state that
    the others have seen is no more.
    """
    held = yield _TRY_LOCK()
    if held and not held[0][0]:
        return False
    if not (yield from _advance(old, new)):
        return False
    yield Many(_INSERT_BATCH, [batch])
    yield Many(_INSERT_NODES, [(new.origin, *node) for node in nodes])
    # An editor may have turned it back: what comes now must not get numbers that are taken.
    yield _RAISE_HEAD(b_least=new.number)
    return True


def oldest(origin: int, first: int, before: int, limit: int) -> Script[tuple[int, int] | None]:
    """Up to which leaf, and which event, a log was sealed before an instant (µs).

    Args:
        origin: which log.
        first: the first leaf that is looked at.
        before: the instant.
        limit: how many leaves, up to the end of a batch.
    """
    rows = yield _OLDEST(b_origin=origin, b_first=first, b_limit=limit)
    end: tuple[int, int] | None = None
    for start, length, last_id, sealed_at in rows:
        if sealed_at >= before or start - first >= limit:
            break
        end = (start + length, last_id)
    return end


def drop(
    old: LogState, new: LogState, last_id: int, event: AuditEvent, stamp: Stamp
) -> Script[bool]:
    """Drop events and the bytes of their leaves, and say so in the log, if it is still as it was.

    Args:
        old: the log's state as it was seen.
        new: the same with another first leaf that is kept.
        last_id: the last event to drop.
        event: that says so.
        stamp: makes its row.
    """
    advanced = yield from _advance(old, new)
    if advanced:
        yield _DROP_LEAVES(b_origin=new.origin, b_first=old.kept_from, b_end=new.kept_from)
        yield _DROP_EVENTS(b_last=last_id)
        yield from append([(event, None)], stamp)
    return advanced


def _advance(old: LogState, new: LogState) -> Script[bool]:
    rows = yield _ADVANCE(
        b_origin=old.origin, b_from=old.mac, b_size=new.size, b_number=new.number,
        b_row_id=new.row_id, b_kept_from=new.kept_from, b_peaks=new.peaks, b_mac=new.mac,
    )  # fmt: skip
    return bool(rows)


def repair_head(written: int) -> Script[None]:
    """Put back the last number that was given, where it is gone or was turned back."""
    yield Many(_REPAIR_HEAD, [(1, written, 0)])


class SqlLog:
    """The tables of the log in one database.

    Args:
        driver: of the database.
        stamp: makes rows of events.
    """

    def __init__(self, driver: Driver, stamp: Stamp) -> None:
        self.driver = driver
        self._stamp = stamp

    async def glance(self) -> tuple[Any, ...]:
        """See :func:`glance`."""
        return await self.driver.read(glance)

    async def view(self, after: int | None, limit: int) -> LogView:
        """See :func:`view`."""
        return await self.driver.read_aside(view, after, limit)

    async def begin(
        self, state: LogState, batch: LogBatch, event: AuditEvent | None, written: int
    ) -> bool:
        """See :func:`begin`."""
        return await self.driver.write(begin, state, batch, event, self._stamp, written)

    async def publish(
        self, old: LogState, new: LogState, batch: LogBatch, nodes: Sequence[tuple[int, int, bytes]]
    ) -> bool:
        """See :func:`publish`."""
        return await self.driver.write(publish, old, new, batch, nodes)

    async def repair_head(self, written: int) -> None:
        """See :func:`repair_head`."""
        await self.driver.write(repair_head, written)

    async def origins(self) -> list[int]:
        """See :func:`origins`."""
        return await self.driver.read(origins)

    async def state_of(self, origin: int) -> LogState | None:
        """See :func:`state_of`."""
        return await self.driver.read(state_of, origin)

    async def oldest(
        self, origin: int, first: int, before: int, limit: int
    ) -> tuple[int, int] | None:
        """See :func:`oldest`."""
        return await self.driver.read_aside(oldest, origin, first, before, limit)

    async def drop(self, old: LogState, new: LogState, last_id: int, event: AuditEvent) -> bool:
        """See :func:`drop`."""
        return await self.driver.write(drop, old, new, last_id, event, self._stamp)

    async def note_at(self, origin: int, size: int) -> str | None:
        """See :func:`note_at`."""
        return await self.driver.read_aside(note_at, origin, size)

    async def batch_of(self, origin: int, index: int) -> LogBatch | None:
        """See :func:`batch_of`."""
        return await self.driver.read_aside(batch_of, origin, index)

    async def notes_after(self, origin: int, size: int, limit: int) -> list[tuple[int, int, str]]:
        """See :func:`notes_after`."""
        return await self.driver.read_aside(notes_after, origin, size, limit)
