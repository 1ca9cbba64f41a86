"""The audit log's events: how they are written, and how they are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, bindparam, select

from api_key_manager.connections import Many, Script, Statement
from api_key_manager.connections.tables import audit_batches, audit_events, audit_head, key_uses
from api_key_manager.core.models import AuditEvent, AuditQuery, Page, Use
from api_key_manager.core.sealed import Stamp
from api_key_manager.storage.rows import event_from, use_rows

__all__ = ["MOST_LEAVES", "append", "find_audit", "record_events", "unstamped"]

# Held to commit, so that the ids of events are in the order in which they become visible: a
# reader that follows the log by id misses none.
_TAKE_NUMBERS = Statement(
    audit_head.update()
    .values(written=audit_head.c.written + bindparam("b_count"))
    .returning(audit_head.c.written)
)
_INSERT_EVENT = Statement(
    audit_events.insert(),
    [name for name in audit_events.columns.keys() if name != "id"],  # noqa: SIM118 - no dict
)
_b = audit_batches.c
_BATCHES = Statement(
    select(_b.number, _b.count, _b.origin, _b.first).where(
        _b.number > bindparam("b_first"), _b.number <= bindparam("b_last")
    )
)
MOST_LEAVES: Final = 512
"""No batch has more."""
_NEAR: Final = 8
_NOTE_USE = Statement(
    key_uses.insert(),
    tail=(
        # Several processes write what they saw, in no order: the latest stays.
        " ON CONFLICT (key_id) DO UPDATE SET last_used_at ="
        " CASE WHEN excluded.last_used_at > key_uses.last_used_at"
        " THEN excluded.last_used_at ELSE key_uses.last_used_at END,"
        " static_used_at = coalesce(excluded.static_used_at, key_uses.static_used_at)"
    ),
)


def unstamped(
    first: int, events: Sequence[tuple[Sequence[Any], int | None]]
) -> list[tuple[Any, ...]]:
    """Rows without MACs: for a store that nobody keeps a log of."""
    return [
        (*columns[:10], revision, number, None)
        for number, (columns, revision) in enumerate(events, first)
    ]


def append(events: Sequence[tuple[AuditEvent, int | None]], stamp: Stamp) -> Script[None]:
    """Write events, each with the revision of its key; the last thing that a transaction does,
    since every other one that writes events waits for its end."""
    if events:
        ((written,),) = yield _TAKE_NUMBERS(b_count=len(events))
        yield Many(_INSERT_EVENT, stamp(written - len(events) + 1, events))


def record_events(
    events: Sequence[AuditEvent], used: Mapping[str, Use], stamp: Stamp
) -> Script[None]:
    """Events of validations, and when keys were last used."""
    yield Many(_NOTE_USE, use_rows(used))
    yield from append([(event, None) for event in events], stamp)


def find_audit(query: AuditQuery) -> Script[Page[AuditEvent]]:
    """Events by index."""
    c = audit_events.c
    filters: list[ColumnElement[bool]] = []
    if query.key_id is not None:
        filters.append(c.key_id == query.key_id)
    if query.action is not None:
        filters.append(c.action == query.action)
    if query.within is not None:
        filters.append(c.environment == query.within)
    if query.since is not None:
        filters.append(c.at >= query.since)
    if query.until is not None:
        filters.append(c.at < query.until)
    if query.after is not None:
        filters.append(c.id > query.after if query.ascending else c.id < query.after)
    statement = (
        select(audit_events).where(*filters)
        .order_by(c.id if query.ascending else c.id.desc()).limit(query.limit + 1)
    )  # fmt: skip
    rows = yield Statement(statement)()
    page = rows[: query.limit]
    cursor = str(page[-1][0]) if len(rows) > query.limit else None
    places = yield from _places([row[-2] if type(row[-2]) is int else row[0] for row in page])
    items = [
        event._replace(log=place[0], leaf=place[1]) if place is not None else event
        for event, place in zip(map(event_from, page), places, strict=True)
    ]
    return Page(items, cursor)


def _places(numbers: Sequence[int]) -> Script[list[tuple[int, int] | None]]:
    """In which log events are, and at which index; ``None`` for those that are not sealed yet."""
    if not numbers:
        return []
    first, last = min(numbers), max(numbers)
    batches: list[tuple[int, int, int, int]] = []
    if last - first <= _NEAR * len(numbers):
        batches = yield _BATCHES(b_first=first - MOST_LEAVES, b_last=last)
    else:
        for number in numbers:  # far apart: what lies between them is not read
            batches += yield _BATCHES(b_first=number - MOST_LEAVES, b_last=number)
    places: dict[int, tuple[int, int]] = {}
    wanted = set(numbers)
    for number, length, origin, at in sorted(batches):
        for here in range(max(number, first), min(number + length, last + 1)):
            if here in wanted:
                places[here] = max(places.get(here, (0, 0)), (origin, at + here - number))
    return [places.get(number) for number in numbers]
