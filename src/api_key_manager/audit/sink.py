"""Where checkpoints go besides the database, so that a database that lost its end shows.

A sink is a file, to which each checkpoint is appended, or an HTTP endpoint, which gets each by
``POST`` and may answer ``GET`` with the newest that it has. Every node sends every checkpoint, in
order and at least once: who takes them by HTTP can tell them apart by log and size.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import httpx

from api_key_manager.core.exceptions import StorageError

if sys.platform != "win32":
    import fcntl

__all__ = ["Courier", "FileSink", "HttpSink", "Sink", "notes_in", "open_sink"]

_log = logging.getLogger(__name__)

_NOTE: Final = re.compile(
    r"[^\n]+\n[0-9]{1,19}\n[A-Za-z0-9+/]{43}=\n(?:[^\n]+\n)*\n(?:\u2014 [^\n]+\n)+"
)
_SECONDS: Final = 5.0
_TAIL_BYTES: Final = 65_536
_MOST_BYTES: Final = 65_536
_AT_ONCE: Final = 500
_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0

Read = Callable[[str], tuple[int, int] | None]
"""Which log of this database a checkpoint is of, and its size."""


class Sink(Protocol):
    """Takes checkpoints. Raises ``StorageError`` when it cannot."""

    async def newest(self) -> str | None:
        """The newest checkpoint that it has, if it can say."""
        ...

    async def put(self, notes: list[str]) -> None:
        """Take some that come next."""
        ...


def notes_in(text: str) -> list[str]:
    """The checkpoints in a file, also where a crash left one unfinished."""
    return _NOTE.findall(text)


def _claim(note: str) -> tuple[int, int]:
    """Which log a checkpoint says it is of, and which size, true or not."""
    name, size, _ = note.split("\n", 2)
    number = name.rpartition("/")[2]
    return (int(number) if re.fullmatch("[0-9]{1,19}", number) else 0, int(size))


class FileSink:
    """A file that grows. Each checkpoint is on disk before it counts as sent.

    Args:
        path: of the file; its folder must exist.
        read: tells which checkpoints are of this database.
    """

    def __init__(self, path: Path, read: Read) -> None:
        self._path = path
        self._read = read

    async def newest(self) -> str | None:
        return await asyncio.to_thread(self._newest)

    async def put(self, notes: list[str]) -> None:
        await asyncio.to_thread(self._put, notes)

    def _newest(self) -> str | None:
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}") from None
        # A signature takes long to check: one, where the file is as it should be.
        largest_first = sorted(notes_in(text), key=_claim, reverse=True)
        return next((note for note in largest_first if self._read(note) is not None), None)

    def _put(self, notes: list[str]) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                if sys.platform != "win32":
                    fcntl.flock(file, fcntl.LOCK_EX)  # of several workers one writes at a time
                newest = self._newest()
                there = self._read(newest) if newest is not None else None
                fresh = [n for n in notes if there is None or (self._read(n) or there) > there]
                if not fresh:
                    return
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                    if file.read(1) != b"\n":
                        file.write(b"\n\n")  # behind what a crash left
                file.write("".join(f"{note}\n" for note in fresh).encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from None


class HttpSink:
    """An endpoint that takes each checkpoint by ``POST``, as ``text/plain``.

    Args:
        url: of the endpoint. Redirects and the environment's proxies are not followed.
        read: tells which checkpoints are of this database.
    """

    def __init__(self, url: str, read: Read) -> None:
        self._url = url
        self._read = read

    async def newest(self) -> str | None:
        async with self._client() as client:
            status, text = await self._ask(client, "GET")
        if status in (204, 404, 405, 501):
            return None
        if status != 200:
            raise StorageError(f"AUDIT_SINK answered {status} to GET")
        # A signature takes long to check: one, where the file is as it should be.
        largest_first = sorted(notes_in(text), key=_claim, reverse=True)
        return next((note for note in largest_first if self._read(note) is not None), None)

    async def put(self, notes: list[str]) -> None:
        async with self._client() as client:
            for note in notes:
                status, _ = await self._ask(client, "POST", note)
                if not 200 <= status < 300:
                    raise StorageError(f"AUDIT_SINK answered {status} to POST")

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=_SECONDS, follow_redirects=False, trust_env=False)

    async def _ask(
        self, client: httpx.AsyncClient, method: str, note: str | None = None
    ) -> tuple[int, str]:
        headers = {"Content-Type": "text/plain; charset=utf-8"} if note is not None else {}
        content = None if note is None else note.encode()
        try:
            async with (
                asyncio.timeout(2 * _SECONDS),
                client.stream(method, self._url, content=content, headers=headers) as answer,
            ):
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise StorageError("AUDIT_SINK answered with more than 64 KiB")
                return answer.status_code, body.decode(errors="replace")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise StorageError(f"AUDIT_SINK cannot be reached ({type(error).__name__})") from None


def open_sink(where: str, read: Read) -> Sink:
    """The sink at a path or a URL."""
    if where.startswith(("http://", "https://")):
        return HttpSink(where, read)
    return FileSink(Path(where).absolute(), read)


class Courier:
    """Brings checkpoints from the log to its sink, after they are committed.

    Args:
        sink: where to.
        notes_after: checkpoints behind that of a log and size, with their logs and sizes.
        read: tells which log a checkpoint is of, and its size.
    """

    def __init__(
        self,
        sink: Sink,
        notes_after: Callable[[int, int, int], Awaitable[list[tuple[int, int, str]]]],
        read: Read,
    ) -> None:
        self._sink = sink
        self._notes_after = notes_after
        self._read = read
        self._at: tuple[int, int] | None = None
        self.problem: str | None = None

    async def newest(self) -> str | None:
        """The newest checkpoint outside of the database.

        Raises:
            StorageError: the sink cannot say right now.
        """
        try:
            note = await self._sink.newest()
        except StorageError as error:
            raise StorageError(f"the last checkpoint is not known: {error}") from None
        self._at = self._read(note) if note is not None else (0, 0)
        return note

    async def run(self) -> None:
        """Bring what comes, until cancelled."""
        pause = _PAUSE_SECONDS
        while True:
            try:
                await self.bring()
            except StorageError as error:
                if self.problem is None:
                    _log.warning("the sink of checkpoints is behind: %s", error)
                self.problem = f"the sink of checkpoints is behind: {error}"
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                if self.problem is not None:
                    _log.info("the sink of checkpoints has them all")
                self.problem, pause = None, _PAUSE_SECONDS
            await asyncio.sleep(pause)

    async def bring(self) -> None:
        """Bring all that there are.

        Raises:
            StorageError: some are left.
        """
        if self._at is None:
            await self.newest()
        while True:
            at = self._at or (0, 0)
            found = await self._notes_after(*at, _AT_ONCE)
            if not found:
                return
            await self._sink.put([note for _, _, note in found])
            self._at = found[-1][:2]
