"""The parent of several workers: starts them, replaces one that dies, stops all together.

It serves nothing itself. A worker that dies again and again is replaced ever more slowly, and when
none of them can be kept alive, the parent gives up. A worker needs it only to be replaced, and ends
with it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from api_key_manager.server.binding import for_worker
from api_key_manager.server.worker import FORCE, LISTENING, STOP, start_line
from api_key_manager.wiring import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from api_key_manager.config.settings import Settings

__all__ = ["Workers"]

_log = logging.getLogger(__name__)

# Who served that long died of something that came later, not of its start.
_STEADY_SECONDS: Final = 5.0
_QUICK_DEATHS: Final = 5
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 10.0
# What a worker has for its requests (10 s) and for what it still writes.
_STOP_SECONDS: Final = 20.0
_FORCE_SECONDS: Final = 5.0


class _Child:
    """A worker's process, and the channel to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, settings: Settings, worker: Worker, bound: socket.socket) -> _Child:
        """Start one.

        Raises:
            OSError: the system gives no process or socket.
        """
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            with theirs, for_worker(bound) as listener:
                writer.write(start_line(settings, worker, listener.fileno()))
                process = await asyncio.create_subprocess_exec(
                    # Without -P a file in the working directory could pass for a module.
                    sys.executable, "-P", "-m", "api_key_manager.server.worker",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), listener.fileno()),
                    # Ctrl-C is for the parent, which passes it on.
                    process_group=0,
                )  # fmt: skip
        except BaseException:
            writer.close()
            raise
        return cls(process, reader, writer)

    async def listens(self) -> bool:
        """Wait until it listens; ``False`` when it died before."""
        try:
            return await self._reader.readline() == LISTENING
        except ConnectionError:
            return False

    async def end(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        code = await self.process.wait()
        self._writer.close()
        return code

    def tell(self, order: bytes) -> None:
        self._writer.write(order)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()


class Workers:
    """Keeps ``WORKERS`` processes running on one port.

    Args:
        settings: checked settings; each worker gets these.
        bound: the port, taken.
        folder: private, for what the workers tell each other.
        greet: called once all listen for the first time.
    """

    def __init__(
        self, settings: Settings, bound: socket.socket, folder: Path, greet: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._bound = bound
        self._folder = folder
        self._greet = greet
        self._greeted = False
        self._children: dict[int, _Child] = {}
        self._listening: set[int] = set()
        self._stopping = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Run until told to stop by SIGTERM or SIGINT; a second SIGINT waits for no request.

        Returns:
            The exit code of the whole: 1 when it had to give up, or to kill a worker that would not
            stop.
        """
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._on_signal, sig)
        numbers = range(1, self._settings.WORKERS + 1)
        places = [asyncio.create_task(self._keep(number)) for number in numbers]
        try:
            await asyncio.gather(*places)
        except BaseException:  # as when nobody reads the greeting
            for place in places:
                place.cancel()
            await asyncio.gather(*places, return_exceptions=True)
            self._stop()
            for child in self._children.values():
                await child.end()
            raise
        return self._code

    async def _keep(self, number: int) -> None:
        """Fill one place, again and again."""
        deaths = 0
        while not self._stopping.is_set():
            deaths = 0 if await self._live(number) else deaths + 1
            if self._stopping.is_set():
                return
            serving = self._greeted and self._listening
            if deaths >= _QUICK_DEATHS and not serving:
                _log.critical("workers do not stay alive: giving up; the lines above say why")
                self._code = 1
                self._stop()
                return
            if deaths:
                pause = min(_FIRST_PAUSE * 2 ** (deaths - 1), _LONGEST_PAUSE)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)

    async def _live(self, number: int) -> bool:
        """One life of one worker; whether it served for a while, or ended as it should."""
        worker = Worker(number, self._settings.WORKERS, self._folder)
        try:
            child = await _Child.start(self._settings, worker, self._bound)
        except OSError as error:
            if not self._stopping.is_set():
                _log.error("worker %d cannot be started: %s", number, error.strerror)
            return False
        self._children[number] = child
        if self._stopping.is_set():
            child.tell(STOP)
        since = None
        if await child.listens():
            since = time.monotonic()
            self._listening.add(number)
            _log.info("worker %d listens (process %d)", number, child.process.pid)
            self._greet_once()
        code = await child.end()
        self._listening.discard(number)
        del self._children[number]
        if code:
            _log.error("worker %d ended: %s", number, _cause(code))
        served = 0.0 if since is None else time.monotonic() - since
        return served >= _STEADY_SECONDS or (code == 0 and since is not None)

    def _greet_once(self) -> None:
        everybody = len(self._listening) == self._settings.WORKERS
        if everybody and not self._greeted and not self._stopping.is_set():
            self._greeted = True
            self._greet()

    def _on_signal(self, sig: signal.Signals) -> None:
        if not self._stopping.is_set():
            self._stop()
        elif sig == signal.SIGINT:
            self._tell_all(FORCE, _FORCE_SECONDS)

    def _stop(self) -> None:
        self._stopping.set()
        # Where all listen on this one, connections would be taken for as long as it is open.
        self._bound.close()
        self._tell_all(STOP, _STOP_SECONDS)

    def _tell_all(self, order: bytes, patience: float) -> None:
        for child in self._children.values():
            child.tell(order)
        asyncio.get_running_loop().call_later(patience, self._kill_all)

    def _kill_all(self) -> None:
        for number, child in self._children.items():
            _log.error("worker %d does not stop: killing it", number)
            self._code = 1
            child.kill()


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
