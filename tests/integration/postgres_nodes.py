"""A database on PostgreSQL that several nodes share, and a wire to it that a test can cut."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from api_key_manager.config import Settings
from api_key_manager.core import Verdict
from api_key_manager.wiring import Deployment
from tests.integration.places import Place, signed
from tests.services import Postgres

__all__ = ["Proxy", "Shared", "eventually", "warm"]

MASTER = base64.b64encode(bytes(range(32))).decode()


class Shared(Place):
    """A migrated database; its nodes are opened with :meth:`open` or started with ``akm``."""

    def __init__(self, folder: Path, server: Postgres, *, template: str = "akm_empty") -> None:
        super().__init__(folder)
        self.server = server
        self.name = server.database(template)
        self.url = server.url(self.name)

    def settings(self, **overrides: Any) -> Settings:
        return Settings.load(**{"DATABASE_URL": self.url, "AKM_MASTER_KEY": MASTER, **overrides})

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.server.sql(statement, *values, database=self.name)

    def environment(self, **more: str) -> dict[str, str]:
        mine = {**super().environment(), "DATABASE_URL": self.url, "AKM_MASTER_KEY": MASTER}
        del mine["AKM_MASTER_KEY_FILE"]
        return {**mine, **more}

    def kill_connections(self, of: str = "true") -> int:
        """End the connections to which an SQL condition on ``pg_stat_activity`` applies."""
        return len(
            self.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {of}"
            )
        )

    def drop(self) -> None:
        self.server.drop(self.name)


async def eventually(what: Callable[[], Any | Awaitable[Any]], seconds: float = 15) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


async def ask(deployment: Deployment, key: dict[str, Any]) -> Verdict:
    return await deployment.manager.verify(**signed(deployment.manager, key))


async def warm(deployment: Deployment, *keys: dict[str, Any]) -> None:
    """Ask until each key is answered from the cache."""
    for key in keys:

        async def is_warm(key: dict[str, Any] = key) -> bool:
            verdict = await ask(deployment, key)
            return verdict.valid and verdict.cached

        await eventually(is_warm)


Fate = Literal["lost before", "lost after", "silence", "crash"]

# What a server says to everybody when one of its processes crashed, also to whom it owes a "done".
_CRASH_FIELDS = b"SFATAL\0VFATAL\0C57P02\0Mterminating connection\0\0"
_CRASH = b"E" + (len(_CRASH_FIELDS) + 4).to_bytes(4, "big") + _CRASH_FIELDS


class Proxy:
    """A wire to a server. :meth:`cut` makes it lose everything, in silence; :meth:`doom` decides
    what becomes of one commit."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self._is_cut = False
        self._doomed: tuple[bytes, Fate] | None = None
        self.struck = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                writer.close()

    def cut(self) -> None:
        """From now on nothing arrives, on old connections never again."""
        self._is_cut = True
        for task in self._tasks:
            task.cancel()

    def mend(self) -> None:
        """New connections work."""
        self._is_cut = False

    def doom(self, mark: bytes, fate: Fate) -> None:
        """What becomes of the next commit of a transaction in which the mark was sent.

        ``lost before``: it does not reach the server; ``lost after``: its answer does not come
        back, and the connection ends; ``silence``: the same, and the connection stays;
        ``crash``: it is done, and the answer is that the server crashed.
        """
        self._doomed = (mark, fate)
        self.struck.clear()

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._writers.append(back)
        if self._is_cut:
            return
        far, forth = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers.append(forth)
        silenced = asyncio.Event()
        for work in (self._up(near, forth, back, silenced), self._down(far, back, silenced)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _up(
        self,
        near: asyncio.StreamReader,
        forth: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        silenced: asyncio.Event,
    ) -> None:
        said = b""
        while data := await _read(near):
            said += data
            ends = data.endswith(b"COMMIT;\0")
            if self._doomed is not None and ends and self._doomed[0] in said:
                fate, self._doomed = self._doomed[1], None
                await self._strike(fate, data, forth, back, silenced)
                return
            said = b"" if ends else said[-100_000:]
            forth.write(data)
            await forth.drain()
        forth.close()

    async def _strike(
        self,
        fate: Fate,
        data: bytes,
        forth: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        silenced: asyncio.Event,
    ) -> None:
        silenced.set()
        if fate != "lost before":
            forth.write(data)
            await forth.drain()
            await asyncio.sleep(0.1)  # so that it is done when the client learns of nothing
        if fate == "crash":
            back.write(_CRASH)
            await back.drain()
        forth.close()
        if fate != "silence":
            back.close()
        self.struck.set()

    async def _down(
        self, far: asyncio.StreamReader, back: asyncio.StreamWriter, silenced: asyncio.Event
    ) -> None:
        while data := await _read(far):
            if not silenced.is_set():
                back.write(data)
        if not silenced.is_set():
            back.close()


async def _read(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.read(65_536)
    except ConnectionError:
        return b""
