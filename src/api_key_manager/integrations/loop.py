"""An async manager for threads: one event loop in one thread, which owns it."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Final

from api_key_manager.core.exceptions import ConfigurationError, StorageError
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import Verdict
from api_key_manager.core.presented import Presented

__all__ = ["ManagerThread"]

_PATIENCE_SECONDS: Final = 30

_log = logging.getLogger(__name__)


class ManagerThread:
    """Judges for any thread of one process.

    It starts with the first call: servers that fork do so before. A process that was forked
    off later gets no verdicts, as two processes must not share an open database.

    Args:
        source: a manager, or what opens and closes one.

    Raises:
        ConfigurationError: it is neither.
    """

    def __init__(self, source: KeyManager | AbstractAsyncContextManager[KeyManager]) -> None:
        if isinstance(source, KeyManager):
            self._source: AbstractAsyncContextManager[KeyManager] = nullcontext(source)
        elif isinstance(source, AbstractAsyncContextManager):
            self._source = source
        else:
            raise ConfigurationError("manager: a KeyManager, or what opens one, is allowed")
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._manager: KeyManager | None = None
        self._end: asyncio.Event | None = None
        self._closed = False

    def verify(self, presented: Presented) -> tuple[Verdict, int]:
        """The verdict, from any thread, and how long its sender has to wait, in seconds.

        Raises:
            StorageError: there is none: the manager could not be opened, or is closed.
        """
        loop, manager = self._running()
        asked = _verify(manager, presented)
        try:
            waiting = asyncio.run_coroutine_threadsafe(asked, loop)
        except RuntimeError:  # the loop has just ended
            asked.close()
            raise StorageError("the key manager is closed") from None
        try:
            return waiting.result(_PATIENCE_SECONDS)
        except (TimeoutError, concurrent.futures.CancelledError):
            waiting.cancel()
            raise StorageError("the key manager does not answer") from None

    def close(self) -> None:
        """End it for good, and wait for that."""
        with self._starting:
            self._closed = True
        if self._thread is None or self._pid != os.getpid():
            return
        self._ready.wait()
        if self._loop is not None and self._end is not None:
            with suppress(RuntimeError):  # it has ended before
                self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _running(self) -> tuple[asyncio.AbstractEventLoop, KeyManager]:
        self._start_once()
        if self._thread is not None and self._pid != os.getpid():
            _log.error("the key manager was started before this process was forked off")
        elif not self._closed and self._ready.wait(_PATIENCE_SECONDS):
            loop, manager = self._loop, self._manager
            if loop is not None and manager is not None:
                return loop, manager
        raise StorageError("the key manager is not open")

    def _start_once(self) -> None:
        with self._starting:
            if self._thread is None and not self._closed:
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="akm-manager", daemon=True)
        self._pid = os.getpid()
        _before_exit(self.close)
        thread.start()
        self._thread = thread

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception:
            _log.exception("the key manager ended")
        finally:
            self._manager = None
            self._ready.set()

    async def _live(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with self._source as manager:
            self._manager = manager
            self._ready.set()
            await self._end.wait()
            self._manager = None


async def _verify(manager: KeyManager, presented: Presented) -> tuple[Verdict, int]:
    verdict = await manager.verify_presented(presented)
    return verdict, manager.wait_after(presented, verdict)


def _before_exit(call: Callable[[], None]) -> None:
    """Have something called while the interpreter ends and threads can still be started.

    ``atexit`` alone comes too late: executors take no more work by then, and closing a store needs
    one. What :mod:`concurrent.futures.thread` itself uses is called newest first: before its own,
    which was registered when this module imported it.
    """
    getattr(threading, "_register_atexit", atexit.register)(call)
