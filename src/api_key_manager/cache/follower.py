"""Follows the change feed, and prolongs the cache's lease each time it has seen all of it.

The lease runs from the *start* of the last successful reading for the revocation bound, on a
clock that counts suspension: whatever delays this task, a record is never answered from cache
later than the bound after its change was committed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from api_key_manager.cache.window import Window
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.ports import Feed
from api_key_manager.core.records import Records, boot_clock

__all__ = ["Follower"]

_log = logging.getLogger(__name__)
_MOST: Final = 10_000


class Follower:
    """Reads a feed into the record cache.

    Args:
        feed: where changes are announced.
        records: what they are about.
        bound: seconds that the cache may answer after a reading.
        max_stale: seconds that it may answer after that while the feed cannot be read, which
            waives the bound: ``ON_STORE_OUTAGE=serve-stale``.
        window: where the last changes are kept, for others to look at.
        lost: is told when the store has lost what was read of it before.
        clock: of the lease.

    Attributes:
        window: the last changes.
        problem: why this process should get no requests; ``None`` when it should.
    """

    def __init__(
        self,
        feed: Feed,
        records: Records,
        *,
        bound: float,
        max_stale: float = 0,
        window: Window | None = None,
        lost: Callable[[], Awaitable[None]] | None = None,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._feed = feed
        self._records = records
        self._bound = bound
        self._max_stale = max_stale
        self._lost = lost
        self._clock = clock
        self._behind = True
        self._seen_at: float | None = None
        self.window = Window() if window is None else window
        self.problem: str | None = "the change feed was not read yet"

    @property
    def revision(self) -> int:
        """The newest revision that the cache knows of; -1 before the first reading."""
        return -1 if self.window.newest is None else self.window.newest.revision

    async def catch_up(self) -> None:
        """Read what is new, once.

        Raises:
            StorageError: it cannot be read; the lease runs on to its end.
        """
        started = self._clock()
        # A reading that failed is owed, whether or not anything changes after it.
        self._behind = await self._feed.changed() or self._behind
        if self._behind:
            await self._read()
            self._behind = False
        self._seen_at = started
        self._records.cache.prolong(started + self._bound)

    async def _read(self) -> None:
        after = self.window.newest
        reading = await self._feed.read(after, _MOST + 1)
        if reading.complete and len(reading.changes) <= _MOST:
            self._records.changed([change.key_id for change in reading.changes])
            self.window.add(reading.changes)
            return
        if after is not None:
            if reading.revision < after.revision:
                _log.warning(
                    "the store's revision went back to %d: starting over", reading.revision
                )
            if reading.lost and self._lost is not None:
                await self._lost()
            reading = await self._feed.read(None, _MOST)
        # From the last changes it goes on; whatever is cached may be older.
        self._records.changed_all()
        self.window.start(reading)

    async def follow(self) -> None:
        """Catch up once, and note whether that was possible."""
        try:
            await self.catch_up()
        except StorageError as error:
            if self.problem is None:
                _log.error("the change feed cannot be read: %s", error)
            self.problem = f"the change feed cannot be read: {error}"
            self._serve_stale()
        else:
            if self._feed.problem not in (None, self.problem):
                _log.error("%s", self._feed.problem)
            elif self.problem is not None and self._feed.problem is None:
                _log.info("following changes from revision %d", self.revision)
            self.problem = self._feed.problem

    def _serve_stale(self) -> None:
        """Waive the bound for a while, if the operator chose so by name."""
        if self._max_stale and self._seen_at is not None:
            latest = self._seen_at + self._bound + self._max_stale
            self._records.cache.prolong(min(self._clock() + self._bound, latest))

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self.follow()
            await self._feed.wait()
