"""What the transparency log keeps, as plain values: for who computes it and for who stores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ["LogBatch", "LogState", "LogStretch", "LogView", "Stamp"]

Stamp = Callable[[int, Sequence[tuple[Sequence[Any], int | None]]], list[tuple[Any, ...]]]
"""Makes rows of events from the number of the first one, and from the columns of each with the
revision of its key."""


class LogState(NamedTuple):
    """How far one log has come.

    ``number`` and ``row_id`` are of its last event; ``legacy_to`` is the id of the last event that
    was written before there were MACs; ``kept_from`` the first leaf that still has its bytes.
    """

    origin: int
    name: str
    size: int
    number: int
    row_id: int
    legacy_to: int
    kept_from: int
    peaks: bytes
    mac: bytes = b""


class LogBatch(NamedTuple):
    """Leaves that are sealed at once, and the checkpoint behind them. ``number`` is of the first
    leaf's event, if they are of events; ``leaves`` a line each."""

    origin: int
    first: int
    length: int
    number: int | None
    last_id: int
    sealed_at: int
    hashes: bytes
    note: str
    mac: bytes
    leaves: bytes | None


class LogView(NamedTuple):
    """What was seen of a log at one moment: its state, where its last batch ends and with which
    checkpoint, the last number that an event got, and some events behind the last one sealed."""

    state: LogState | None
    end: int
    note: str | None
    written: int
    legacy_to: int
    rows: list[tuple[Any, ...]]


class LogStretch(NamedTuple):
    """Some batches of a log with their events, all seen at one moment.

    ``state`` is the log's then. ``events`` are those behind ``after`` up to the last batch's last
    one; behind the last batch of all, ``whole``, all that there are.
    """

    state: LogState | None
    batches: list[LogBatch]
    events: list[tuple[Any, ...]]
    whole: bool
