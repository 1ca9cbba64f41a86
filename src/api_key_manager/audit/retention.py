"""Drops events that are old enough, and keeps what proves the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from api_key_manager.audit.sealing import Notary
from api_key_manager.core.models import MICROSECONDS, AuditEvent, canonical_json
from api_key_manager.core.sealed import LogState

__all__ = ["Retention"]

_AT_ONCE: Final = 4096
"""Leaves. Each piece is an event itself, so of many small batches it takes many."""
_DAY: Final = 86_400


class Droppable(Protocol):
    """A log whose events may be dropped."""

    async def origins(self) -> list[int]: ...

    async def state_of(self, origin: int) -> LogState | None: ...

    async def oldest(
        self, origin: int, first: int, before: int, limit: int
    ) -> tuple[int, int] | None: ...

    async def drop(self, old: LogState, new: LogState, last_id: int, event: AuditEvent) -> bool: ...


class Retention:
    """Drops events that were sealed more than some days ago: their rows and their leaves' bytes.

    Leaf hashes stay, so every root, checkpoint and proof stays what it was. Up to where was dropped
    stands in the log's state, under its MAC, and in an event of the same transaction.

    Args:
        tables: of the log.
        notary: vouches for it.
        clock: Unix seconds.
        days: 1 or more.
    """

    def __init__(
        self, tables: Droppable, notary: Notary, clock: Callable[[], float], days: int
    ) -> None:
        self._tables = tables
        self._notary = notary
        self._clock = clock
        self._seconds = days * _DAY

    async def drop(self) -> int:
        """Drop what is due, in pieces that hold up no other writer; of how many leaves.

        Raises:
            StorageError: the database cannot be used.
        """
        dropped = 0
        for origin in await self._tables.origins():
            while (gone := await self._drop_some(origin)) > 0:
                dropped += gone
        return dropped

    async def _drop_some(self, origin: int) -> int:
        now = self._clock()
        before = int((now - self._seconds) * MICROSECONDS)
        old = await self._tables.state_of(origin)
        if old is None or not self._notary.knows(old):
            return 0
        end = await self._tables.oldest(origin, old.kept_from, before, _AT_ONCE)
        if end is None:
            return 0
        new = self._notary.vouched(old._replace(kept_from=end[0]))
        detail = canonical_json({"log": old.name, "below": end[0], "last_id": end[1]})
        event = AuditEvent(
            int(now * MICROSECONDS), "log_pruned", actor="system", detail_json=detail
        )
        if not await self._tables.drop(old, new, end[1], event):
            return 0
        return end[0] - old.kept_from
