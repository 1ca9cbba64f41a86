"""The change feed of PostgreSQL: asked again and again, and at once when somebody knocks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import BigInteger, cast, func, select

from api_key_manager.connections import Script, Statement
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import Changed, Reading
from api_key_manager.storage import feed
from api_key_manager.storage.postgres import PostgresDriver

__all__ = ["PostgresFeed"]

_CLOCK: Final = Statement(
    select(cast(func.extract("epoch", func.clock_timestamp()) * MICROSECONDS, BigInteger)),
    only="postgresql",
)


def _read(after: Changed | None, limit: int) -> Script[tuple[Reading, int]]:
    """The changes, and the server's clock (µs)."""
    clock = (yield _CLOCK())[0][0]
    reading = yield from feed.read(after, limit)
    return reading, clock


class PostgresFeed:
    """The feed, and whether this machine's clock agrees with the server's: ends are judged by the
    clock of the node.

    Args:
        driver: with a connection that nothing else uses, so that nothing else delays it.
        poll: seconds between readings when nobody knocks.
        skew: seconds that the clocks may differ.
        clock: Unix seconds.
    """

    def __init__(
        self,
        driver: PostgresDriver,
        *,
        poll: float,
        skew: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._driver = driver
        self._poll = poll
        self._skew = skew
        self._clock = clock
        self._knocked = asyncio.Event()
        self.problem: str | None = None

    def knock(self) -> None:
        """Somebody says that there is something to read. It need not be true."""
        self._knocked.set()

    async def changed(self) -> bool:
        return True

    async def read(self, after: Changed | None, limit: int) -> Reading:
        before = self._clock()
        reading, server = await self._driver.read(_read, after, limit)
        # The server looked at its clock somewhere between.
        apart = max(before - server / MICROSECONDS, server / MICROSECONDS - self._clock())
        self.problem = (
            f"this machine's clock differs from the database's by {apart:.0f} seconds,"
            f" more than CLOCK_SKEW_TOLERANCE_SECONDS allows"
            if apart > self._skew
            else None
        )
        return reading

    async def wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll):
                await self._knocked.wait()
        self._knocked.clear()
