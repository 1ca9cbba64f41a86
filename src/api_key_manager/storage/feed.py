"""The change feed: what was changed, in the order in which it was committed."""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy import bindparam, func, select, true

from api_key_manager.connections import Script, Statement
from api_key_manager.connections.tables import changes, deployment
from api_key_manager.core.ports import RESTORED, Changed, Reading
from api_key_manager.storage.driver import Driver
from api_key_manager.storage.sqlite import SqliteDriver

__all__ = ["PollingFeed", "SqliteFeed", "prune", "read"]

_POLL_SECONDS: Final = 0.05

_ROWS = (changes.c.revision, changes.c.key_id, changes.c.changed_at)
# One statement, and so one state. The row of the last revision that was read comes again: if it
# is another one now, the store has lost what was read.
_FEED = Statement(
    select(deployment.c.revision, *_ROWS)
    .select_from(deployment.outerjoin(changes, changes.c.revision >= bindparam("b_after")))
    .order_by(changes.c.revision)
    .limit(bindparam("b_limit"))
)
# Limited before it is joined, or all of the feed would be sorted.
_NEWEST = select(*_ROWS).order_by(changes.c.revision.desc()).limit(bindparam("b_limit")).subquery()
_LAST = Statement(
    select(deployment.c.revision, *_NEWEST.c)
    .select_from(deployment.outerjoin(_NEWEST, true()))
    .order_by(_NEWEST.c.revision.desc())
)
# The newest row stays: it is what the next reading is compared with.
_PRUNE = Statement(
    changes.delete().where(
        changes.c.changed_at < bindparam("b_before"),
        changes.c.revision < select(func.max(deployment.c.revision)).scalar_subquery(),
    )
)


def read(after: Changed | None, limit: int) -> Script[Reading]:
    """The changes after one that was read before, or the last ones of all.

    Args:
        after: the newest change that is known; ``None`` to get the last ones and start from there.
        limit: how many changes at most.
    """
    if after is None:
        rows = yield _LAST(b_limit=limit)
        last = [Changed(*row[1:]) for row in reversed(rows) if row[1] is not None]
        return Reading(rows[0][0], last, complete=False)
    rows = yield _FEED(b_after=after.revision, b_limit=limit + 1)
    revision = rows[0][0]
    found = [Changed(*row[1:]) for row in rows if row[1] is not None]
    restored = any(change.key_id == RESTORED and change != after for change in found)
    # Before the first change of all there is nothing that could come again.
    known = found.pop(0) if found and after.revision > 0 else Changed(0, "", 0)
    unbroken = [c.revision for c in found] == list(
        range(after.revision + 1, after.revision + 1 + len(found))
    )
    reached = found[-1].revision if found else after.revision
    if restored or known != after or not unbroken or (reached != revision and len(found) < limit):
        # A row that is gone may have been pruned, but not the newest, nor is another in its place.
        lost = (
            restored
            or revision < after.revision
            or (known != after and after.revision in (revision, known.revision))
        )
        return Reading(revision, [], complete=False, lost=lost)
    return Reading(reached, found, complete=True)


def prune(before: int) -> Script[None]:
    """Drop rows that are older than an instant (µs) and that every follower has long read."""
    yield _PRUNE(b_before=before)


class PollingFeed:
    """The feed of a database that does not tell by itself when it changes.

    Args:
        driver: of the database.
        poll: seconds between readings.
    """

    def __init__(self, driver: Driver, poll: float = _POLL_SECONDS) -> None:
        self._driver = driver
        self._poll = poll
        self.problem: str | None = None

    async def changed(self) -> bool:
        return True

    async def read(self, after: Changed | None, limit: int) -> Reading:
        return await self._driver.read(read, after, limit)

    async def wait(self) -> None:
        await asyncio.sleep(self._poll)


class SqliteFeed(PollingFeed):
    """That of a SQLite file, where ``PRAGMA data_version`` says in 4 µs whether any connection has
    changed anything.

    Args:
        driver: of the file.
    """

    def __init__(self, driver: SqliteDriver) -> None:
        super().__init__(driver)
        self._version = driver.data_version
        self._seen: int | None = None

    async def changed(self) -> bool:
        version = self._version()
        changed, self._seen = version != self._seen, version
        return changed
