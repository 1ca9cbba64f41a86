"""Starts, watches and stops everything that runs in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

__all__ = ["Supervisor", "every"]

_log = logging.getLogger(__name__)
_RESTART_SECONDS = 1.0

Work = Callable[[], Awaitable[None]]


class Supervisor:
    """Runs named tasks for as long as it lives; one that dies is started again."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._down: dict[str, str] = {}

    def start(self, name: str, work: Work) -> None:
        """Run ``work`` until :meth:`stop`."""
        self._tasks[name] = asyncio.create_task(self._keep(name, work), name=f"akm-{name}")

    async def _keep(self, name: str, work: Work) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                _log.exception("the %s task died, starting it again", name)
                self._down[name] = f"the {name} task died of {type(error).__name__}"
            await asyncio.sleep(_RESTART_SECONDS)
            self._down.pop(name, None)

    def problems(self) -> list[str]:
        """What is down right now."""
        return list(self._down.values())

    async def stop(self) -> None:
        """Cancel every task and wait for its end."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()


def every(seconds: float, step: Work) -> Work:
    """Work that takes one step, waits, and goes on."""

    async def run() -> None:
        while True:
            await step()
            await asyncio.sleep(seconds)

    return run
