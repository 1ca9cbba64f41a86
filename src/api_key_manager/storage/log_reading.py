"""What is read of the transparency log to check it, to prove it and to send its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import and_, bindparam, or_, select

from api_key_manager.connections import Rows, Script, Statement
from api_key_manager.connections.tables import (
    audit_batches,
    audit_events,
    audit_nodes,
    audit_origins,
)
from api_key_manager.core.sealed import LogBatch, LogState, LogStretch
from api_key_manager.storage.events import MOST_LEAVES
from api_key_manager.storage.log_rows import batch_from, state_from, whole

__all__ = [
    "batch_of",
    "event_of",
    "hashes_of",
    "nodes_beyond",
    "note_at",
    "notes_after",
    "origins",
    "place_of",
    "state_of",
    "stretch",
]

_HASH_BYTES: Final = 32
_LAST_ID: Final = 2**63 - 1
_o, _b = audit_origins.c, audit_batches.c

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
_ORIGINS = Statement(select(_o.origin).order_by(_o.origin))
_STATE_OF = Statement(select(audit_origins).where(_o.origin == bindparam("b_origin")))
_BATCHES = Statement(
    select(audit_batches)
    .where(_b.origin == bindparam("b_origin"), _b.first >= bindparam("b_first"))
    .order_by(_b.first)
    .limit(bindparam("b_limit"))
)
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


def notes_after(origin: int, size: int, limit: int) -> Script[list[tuple[int, int, str]]]:
    """Checkpoints behind that of a log and size, in order, with their logs and sizes."""
    rows = yield _NOTES(b_origin=origin, b_size=size, b_limit=limit, b_least=size - MOST_LEAVES)
    return [(row[0], row[1], row[2]) for row in rows]


def note_at(origin: int, size: int) -> Script[str | None]:
    """The checkpoint of a log at a size."""
    rows = yield _NOTE_AT(b_origin=origin, b_size=size, b_least=size - MOST_LEAVES)
    return rows[0][0] if rows else None


def origins() -> Script[list[int]]:
    """The numbers of all logs of this database."""
    rows = yield _ORIGINS()
    return [whole(row[0]) for row in rows]


def state_of(origin: int) -> Script[LogState | None]:
    """How far one log has come."""
    rows = yield _STATE_OF(b_origin=origin)
    return state_from(rows[0]) if rows else None


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
    batches = [batch_from(row) for row in rows]
    events: Rows = []
    if batches:
        last = max(batch.last_id for batch in batches)
        events = yield _EVENTS_BETWEEN(b_after=after, b_last=last, b_limit=_LAST_ID)
    return LogStretch(state, batches, events, len(batches) < limit)


def nodes_beyond(
    origin: int, levels: Sequence[int], limit: int
) -> Script[tuple[LogState | None, list[tuple[int, int]]]]:
    """Level and position of subtrees' hashes that a log of this size cannot have, and its state.

    Args:
        origin: which log.
        levels: of which subtrees are kept.
        limit: how many at most.
    """
    state = yield from state_of(origin)
    size, c = state.size if state is not None else 0, audit_nodes.c
    beyond = [and_(c.level == level, c.position >= size >> level) for level in levels]
    rows = yield Statement(
        select(c.level, c.position)
        .where(c.origin == origin, or_(c.level.not_in(levels), c.position < 0, *beyond))
        .order_by(c.level, c.position)
        .limit(limit)
    )()
    return state, [(whole(row[0]), whole(row[1])) for row in rows]


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
                found[0, at] = joined[(at - start) * _HASH_BYTES : (at - start + 1) * _HASH_BYTES]
    return found


def batch_of(origin: int, index: int) -> Script[LogBatch | None]:
    """The batch that holds a leaf."""
    rows = yield _HOLDS(b_origin=origin, b_index=index)
    batch = batch_from(rows[0]) if rows else None
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
