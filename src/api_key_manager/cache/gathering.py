"""Loads of different requests, made together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.models import ApiKey
from api_key_manager.core.records import Load

__all__ = ["Gathering"]

_MOST_IDS: Final = 256
_UNDER_WAY: Final = 4

_Waiting = tuple[Sequence[str], "asyncio.Future[list[ApiKey | None]]"]


class Gathering:
    """In front of a store across the network, where a look-up costs a round trip, and one of many
    keys hardly more than one of one. What is asked for in one turn of the event loop goes out
    together; while a few look-ups are under way, what comes meanwhile waits and goes out as one.

    Args:
        load: asks the store.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._called = False

    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        """The records, in order.

        Raises:
            StorageError: the store cannot tell.
        """
        if len(key_ids) >= _MOST_IDS:
            return await self._load(key_ids)
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ApiKey | None]] = loop.create_future()
        self._waiting.append((key_ids, found))
        if not self._called:
            self._called = True
            loop.call_soon(self._send)
        return await found

    def _send(self) -> None:
        self._called = False
        while self._waiting and len(self._tasks) < _UNDER_WAY:
            batch: list[_Waiting] = []
            count = 0
            while self._waiting and count < _MOST_IDS:
                batch.append(self._waiting.pop(0))
                count += len(batch[-1][0])
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._send()

    async def _run(self, batch: list[_Waiting]) -> None:
        wanted = list(dict.fromkeys(key_id for key_ids, _ in batch for key_id in key_ids))
        try:
            known = dict(zip(wanted, await self._load(wanted), strict=True))
        except StorageError as error:
            for _, found in batch:
                if not found.done():
                    found.set_exception(StorageError(str(error)))
            return
        except BaseException:
            for _, found in batch:
                found.cancel()
            raise
        for key_ids, found in batch:
            # Who was cancelled meanwhile takes nothing from the others.
            if not found.done():
                found.set_result([known[key_id] for key_id in key_ids])

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
