"""Follows the change feed, and prolongs the cache's lease each time it has seen all of it.

The lease runs from the *start* of the last successful reading for the revocation bound, on a
clock that counts suspension: whatever delays this task, a record is never answered from cache
later than the bound after its change was committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.records import Records, boot_clock

__all__ = ["Feed", "Follower"]

_log = logging.getLogger(__name__)
_BATCH = 10_000


class Feed(Protocol):
    """Where changes are announced, in the order of their revisions."""

    def changed(self) -> bool:
        """Whether anything may have been written since the last call; cheap."""
        ...

    def read(self, after: int, limit: int) -> tuple[int, list[str] | None]:
        """The revision reached, and whose changes led there from ``after``.

        ``None`` instead of ids: too many, pruned, or the revision went backwards. Raises
        ``StorageError``.
        """
        ...


class Follower:
    """Reads a feed into the record cache.

    Args:
        feed: where changes are announced.
        records: what they are about.
        bound: seconds that the cache may answer after a reading.
        poll: seconds between readings.
        clock: of the lease.
    """

    def __init__(
        self,
        feed: Feed,
        records: Records,
        *,
        bound: float,
        poll: float = 0.05,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._feed = feed
        self._records = records
        self._bound = bound
        self._poll = poll
        self._clock = clock
        self._revision = -1
        self._behind = True
        self.problem: str | None = "the change feed was not read yet"

    @property
    def revision(self) -> int:
        """The newest revision that the cache knows of; -1 before the first reading."""
        return self._revision

    def catch_up(self) -> None:
        """Read what is new, once.

        Raises:
            StorageError: it cannot be read; the lease runs on to its end.
        """
        started = self._clock()
        # A reading that failed is owed, whether or not anything changes after it.
        self._behind = self._feed.changed() or self._behind
        if self._behind:
            self._read()
            self._behind = False
        self._records.cache.prolong(started + self._bound)

    def _read(self) -> None:
        while True:
            revision, key_ids = self._feed.read(self._revision, _BATCH)
            if key_ids is None:
                if revision < self._revision:
                    _log.warning("the store's revision went back to %d: starting over", revision)
                self._records.changed_all()
            else:
                self._records.changed(key_ids)
            self._revision = revision
            if key_ids is None or len(key_ids) < _BATCH:
                return

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                self.catch_up()
            except StorageError as error:
                if self.problem is None:
                    _log.error("the change feed cannot be read: %s", error)
                self.problem = f"the change feed cannot be read: {error}"
            else:
                if self.problem is not None and self._revision > 0:
                    _log.debug("following changes from revision %d", self._revision)
                self.problem = None
            await asyncio.sleep(self._poll)
