"""Many callers at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import NamedTuple

from benchmarks.cluster.wire import Connection, request

__all__ = ["Crowd", "Outcome", "under_load"]

_PROCESSES = get_context("spawn")


class Outcome(NamedTuple):
    """What became of many questions."""

    seconds: float
    valid: int
    refused: int
    errors: int
    """Answers other than 200, and questions without an answer."""
    latencies: list[float]
    """Seconds, in no order."""

    def with_more(self, other: Outcome) -> Outcome:
        return Outcome(
            self.seconds + other.seconds,
            self.valid + other.valid,
            self.refused + other.refused,
            self.errors + other.errors,
            self.latencies + other.latencies,
        )


class Crowd:
    """Connections to the nodes, in turn; each stays with the worker that took it."""

    def __init__(self, urls: Sequence[str], admin: str, connections: int) -> None:
        self._urls = [urls[number % len(urls)] for number in range(connections)]
        self._admin = admin
        self._open: dict[int, Connection] = {}

    async def ask(self, tokens: Sequence[str]) -> Outcome:
        """Validate each token once, all as fast as the answers come.

        Asked the same twice, each token goes to the same worker twice.
        """
        outcome = Outcome(0.0, 0, 0, 0, [])
        start = time.perf_counter()
        count = len(self._urls)
        lanes = await asyncio.gather(*(self._lane(n, tokens[n::count]) for n in range(count)))
        for lane in lanes:
            outcome = outcome.with_more(lane)
        return outcome._replace(seconds=time.perf_counter() - start)

    async def _lane(self, number: int, tokens: Sequence[str]) -> Outcome:
        counts: Counter[str] = Counter()
        latencies: list[float] = []
        for token in tokens:
            raw = request("POST", "/v1/validate", self._admin, {"token": token})
            try:
                if number not in self._open:
                    self._open[number] = await Connection.open(self._urls[number])
                answer = await asyncio.wait_for(self._open[number].ask(raw), 60)
            except (OSError, TimeoutError):  # a ConnectionError is the former
                counts["errors"] += 1
                if broken := self._open.pop(number, None):
                    broken.close()
                continue
            latencies.append(answer.at - answer.asked)
            valid = b'"valid":true' in answer.body
            counts["errors" if answer.status != 200 else "valid" if valid else "refused"] += 1
        return Outcome(0.0, counts["valid"], counts["refused"], counts["errors"], latencies)

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
        self._open.clear()


@contextmanager
def under_load(
    urls: Sequence[str], admin: str, tokens: Sequence[str], per_second: int
) -> Iterator[None]:
    """Validations at a steady rate, spread over the nodes, for as long as the block takes.

    From a process of its own, so that measuring takes no turn of its loop.
    """
    stop = _PROCESSES.Event()
    process = _PROCESSES.Process(
        target=_keep_asking, args=(list(urls), admin, list(tokens), per_second, stop), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _keep_asking(
    urls: list[str], admin: str, tokens: list[str], per_second: int, stop: Event
) -> None:
    with suppress(KeyboardInterrupt):
        asyncio.run(_paced(urls, admin, tokens, per_second, stop))


_LANES = 24


async def _paced(
    urls: list[str], admin: str, tokens: list[str], per_second: int, stop: Event
) -> None:
    async def lane(number: int) -> None:
        url, pause = urls[number % len(urls)], _LANES / per_second
        connection = await Connection.open(url)
        due = time.monotonic() + pause * number / _LANES
        asked = 0
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + pause, time.monotonic() - 1)  # what is late is not made up for
            token = tokens[(number + asked * _LANES) % len(tokens)]
            asked += 1
            try:
                await connection.ask(request("POST", "/v1/validate", admin, {"token": token}))
            except ConnectionError:
                await asyncio.sleep(0.1)
                with suppress(OSError):
                    connection = await Connection.open(url)

    await asyncio.gather(*(lane(number) for number in range(_LANES)))
