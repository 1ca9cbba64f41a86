"""The transparency log's own tables: what is read to seal events, and how it is written.

Nothing here computes a hash: plain values come from the rooms that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import and_, bindparam, func, or_, select

from api_key_manager.connections import Many, Rows, Script, Statement
from api_key_manager.connections.tables import (
    audit_batches,
    audit_events,
    audit_head,
    audit_nodes,
    audit_origins,
)
from api_key_manager.core.models import AuditEvent
from api_key_manager.core.sealed import LogBatch, LogState, LogStretch, LogView, Stamp
from api_key_manager.storage.driver import Driver
from api_key_manager.storage.events import MOST_LEAVES, append

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
_INSERT_NODES = Statement(audit_nodes.insert())
_RAISE_HEAD = Statement(
    audit_head.update()
    .where(audit_head.c.written < bindparam("b_least"))
    .values(written=bindparam("b_least"))
)
_PUT_HEAD = Statement(audit_head.insert(), tail=" ON CONFLICT DO NOTHING")


_BATCHES = Statement(
    select(audit_batches)
    .where(_b.origin == bindparam("b_origin"), _b.first >= bindparam("b_first"))
    .order_by(_b.first)
    .limit(bindparam("b_limit"))
)
_STATE_OF = Statement(select(audit_origins).where(_o.origin == bindparam("b_origin")))
_ORIGINS = Statement(select(_o.origin).order_by(_o.origin))
_EVENTS_BETWEEN = Statement(
    select(audit_events)
    .where(audit_events.c.id > bindparam("b_after"), audit_events.c.id <= bindparam("b_last"))
    .order_by(audit_events.c.id)
    .limit(bindparam("b_limit"))
)
_NODES = Statement(
    select(audit_nodes.c.level, audit_nodes.c.position, audit_nodes.c.hash)
    .where(
        audit_nodes.c.origin == bindparam("b_origin"),
        audit_nodes.c.level == bindparam("b_level"),
        audit_nodes.c.position >= bindparam("b_first"),
        audit_nodes.c.position < bindparam("b_end"),
    )
    .order_by(audit_nodes.c.position)
)
_LEVELS = Statement(
    select(audit_nodes.c.level).where(audit_nodes.c.origin == bindparam("b_origin")).distinct()
)
# A batch is never longer than what is sealed at once, so this looks at no more than it needs.
_HASHES = Statement(
    select(_b.first, _b.count, _b.hashes)
    .where(
        _b.origin == bindparam("b_origin"),
        _b.first > bindparam("b_least"),
        _b.first < bindparam("b_end"),
    )
    .order_by(_b.first)
)
_HOLDS = Statement(
    select(audit_batches)
    .where(_b.origin == bindparam("b_origin"), _b.first <= bindparam("b_index"))
    .order_by(_b.first.desc())
    .limit(1)
)
_HOLDS_NUMBER = Statement(
    select(_b.origin, _b.first, _b.count, _b.number)
    .where(_b.number <= bindparam("b_number"))
    .order_by(_b.number.desc(), _b.origin.desc())
    .limit(1)
)
_EVENT = Statement(select(audit_events).where(audit_events.c.id == bindparam("b_id")))
_NOTES = Statement(
    select(_b.origin, _b.first + _b.count, _b.note)
    .where(
        or_(
            _b.origin > bindparam("b_origin"),
            and_(
                _b.origin == bindparam("b_origin"),
                _b.first + _b.count > bindparam("b_size"),
                # Says the same to the index.
                _b.first >= bindparam("b_least"),
            ),
        )
    )
    .order_by(_b.origin, _b.first)
    .limit(bindparam("b_limit"))
)
_NOTE_AT = Statement(
    select(_b.note).where(
        _b.origin == bindparam("b_origin"),
        _b.first + _b.count == bindparam("b_size"),
        _b.first >= bindparam("b_least"),
    )
)
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
_LAST_ID: Final = 2**63 - 1


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
    written, legacy_to = heads[0] if heads else (-1, 0)
    states = yield _STATE()
    if not states:
        return LogView(None, 0, None, written, legacy_to, [])
    state = LogState(*states[0])
    ends = yield _END(b_origin=state.origin)
    end, note = ends[0] if ends else (0, None)
    rows = yield _UNSEALED(b_after=state.row_id if after is None else after, b_limit=limit)
    return LogView(state, end, note, written, legacy_to, rows)


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
        limit: how many batches at most.
    """
    rows = yield _OLDEST(b_origin=origin, b_first=first, b_limit=limit)
    end: tuple[int, int] | None = None
    for start, length, last_id, sealed_at in rows:
        if sealed_at >= before:
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


def notes_after(origin: int, size: int, limit: int) -> Script[list[tuple[int, int, str]]]:
    """Checkpoints behind that of a log and size, in order, with their logs and sizes."""
    rows = yield _NOTES(b_origin=origin, b_size=size, b_limit=limit, b_least=size - MOST_LEAVES)
    return [(row[0], row[1], row[2]) for row in rows]


def note_at(origin: int, size: int) -> Script[str | None]:
    """The checkpoint of a log at a size."""
    rows = yield _NOTE_AT(b_origin=origin, b_size=size, b_least=size - MOST_LEAVES)
    return rows[0][0] if rows else None


def repair_head(written: int) -> Script[None]:
    """Put back the last number that was given, where it is gone or was turned back."""
    yield Many(_REPAIR_HEAD, [(1, written, 0)])


def origins() -> Script[list[int]]:
    """The numbers of all logs of this database."""
    rows = yield _ORIGINS()
    return [row[0] for row in rows]


def state_of(origin: int) -> Script[LogState | None]:
    """How far one log has come."""
    rows = yield _STATE_OF(b_origin=origin)
    return LogState(*rows[0]) if rows else None


def stretch(origin: int, first: int, after: int, limit: int) -> Script[LogStretch]:
    """Batches of a log from a leaf on, with their events.

    Args:
        origin: which log.
        first: the first leaf that is wanted.
        after: the last event before them.
        limit: how many batches.
    """
    state = yield from state_of(origin)
    rows = yield _BATCHES(b_origin=origin, b_first=first, b_limit=limit)
    batches = [LogBatch(*row) for row in rows]
    events: Rows = []
    if batches:
        last = max(batch.last_id for batch in batches)
        events = yield _EVENTS_BETWEEN(b_after=after, b_last=last, b_limit=_LAST_ID)
    return LogStretch(state, batches, events, len(batches) < limit)


def events_between(after: int, last: int, limit: int) -> Script[Rows]:
    """Rows of events by id, behind one up to another."""
    rows = yield _EVENTS_BETWEEN(b_after=after, b_last=last, b_limit=limit)
    return rows


def nodes_of(origin: int) -> Script[dict[tuple[int, int], bytes]]:
    """Every hash of a subtree that is kept of a log, by level and position."""
    found: dict[tuple[int, int], bytes] = {}
    for (level,) in (yield _LEVELS(b_origin=origin)):
        rows = yield _NODES(b_origin=origin, b_level=level, b_first=-_LAST_ID, b_end=_LAST_ID)
        found.update({(row[0], row[1]): row[2] for row in rows})
    return found


def hashes_of(
    origin: int, wanted: Sequence[tuple[int, int, int]]
) -> Script[dict[tuple[int, int], bytes]]:
    """Hashes of leaves and subtrees.

    Args:
        origin: of which log.
        wanted: level, first position and the one behind the last; level 0 are leaves.

    Returns:
        Those that are there, by level and position.
    """
    found: dict[tuple[int, int], bytes] = {}
    for level, first, end in wanted:
        if level:
            rows = yield _NODES(b_origin=origin, b_level=level, b_first=first, b_end=end)
            found.update({(row[0], row[1]): row[2] for row in rows})
            continue
        rows = yield _HASHES(b_origin=origin, b_least=first - MOST_LEAVES, b_end=end)
        for start, length, joined in rows:
            for at in range(max(first, start), min(end, start + length)):
                found[0, at] = joined[(at - start) * 32 : (at - start + 1) * 32]
    return found


def batch_of(origin: int, index: int) -> Script[LogBatch | None]:
    """The batch that holds a leaf."""
    rows = yield _HOLDS(b_origin=origin, b_index=index)
    batch = LogBatch(*rows[0]) if rows else None
    return batch if batch is not None and index < batch.first + batch.length else None


def event_of(row_id: int) -> Script[tuple[Any, ...] | None]:
    """The row of an event."""
    rows = yield _EVENT(b_id=row_id)
    return rows[0] if rows else None


def place_of(number: int) -> Script[tuple[int, int] | None]:
    """Which log holds the event of a number, and at which index; ``None`` until it is sealed."""
    rows = yield _HOLDS_NUMBER(b_number=number)
    if not rows:
        return None
    origin, first, length, start = rows[0]
    return (origin, first + number - start) if number < start + length else None


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
