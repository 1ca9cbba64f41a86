"""What a call to Redis costs this process, with 64 requests in flight, client by client.

Needs redis-server; a client that is not installed is left out, and said so.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

from api_key_manager.connections.redis import LuaScript, Redis
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import Ask, Claim
from api_key_manager.ratelimit.limiter import RedisLimiter
from api_key_manager.ratelimit.nonces import RedisNonceStore
from benchmarks.table import Case, Work, measure, show

IN_FLIGHT = 64
EACH = 40
KEY = "benchmark"
LIMITS = (RateLimit("burst", 10**9, 1), RateLimit("hour", 10**9, 3600))
ASK = [Ask(KEY, LIMITS)]
Call = Callable[[], Awaitable[Any]]
Asked = tuple[tuple[Any, ...], asyncio.Future[Any]]


def in_flight(call: Call) -> Work:
    """64 callers, each with one call after the other."""

    async def caller() -> None:
        for _ in range(EACH):
            await call()

    async def work() -> None:
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))

    return work


class Pipelined:
    """redis-py with what the calls of one turn of the loop ask in one of its pipelines."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._asked: list[Asked] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._send)
        future = loop.create_future()
        self._asked.append((command, future))
        return future

    async def run(self, script: LuaScript, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        return await self.ask("EVALSHA", script.name, len(keys), *keys, *args)

    def _send(self) -> None:
        task = asyncio.get_running_loop().create_task(self._run(self._asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._asked = []

    async def _run(self, asked: list[Asked]) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for command, _ in asked:
                pipeline.execute_command(*command)
            for (_, future), answer in zip(asked, await pipeline.execute(), strict=True):
                future.set_result(answer)


def start(folder: Path) -> tuple[subprocess.Popen[bytes], int] | None:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        return None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    return server, port


def clients(port: int) -> tuple[list[Case], list[Callable[[], Awaitable[None]]]]:
    """What gets a value by redis-py, if it is there, and how to let go of it."""
    if importlib.util.find_spec("redis") is None:
        print("redis-py is not installed: left out")
        return [], []
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio import Redis as Client

    # A connection per request under way: with fewer they wait for each other.
    pool = BlockingConnectionPool(host="127.0.0.1", port=port, max_connections=IN_FLIGHT)
    client = Client.from_pool(pool)
    pipelined = Client(host="127.0.0.1", port=port)
    together = Pipelined(pipelined)
    # As far as the limiter sees, one connection is as good as another.
    limiter = RedisLimiter(cast("Redis", together), KEY)
    cases = [
        Case("GET, redis-py, one call at a time", in_flight(lambda: client.get(KEY)),
             IN_FLIGHT * EACH, cpu=True),
        Case("GET, redis-py, pipelines of one turn's calls",
             in_flight(lambda: together.ask("GET", KEY)), IN_FLIGHT * EACH, cpu=True),
        Case("two rate limits, redis-py, pipelines of one turn's calls",
             in_flight(lambda: limiter.take(ASK)), IN_FLIGHT * EACH, cpu=True),
    ]  # fmt: skip
    return cases, [client.aclose, pipelined.aclose]


async def run(folder: Path) -> bool:
    started = start(folder)
    if started is None:
        print("redis-server is not installed: nothing is measured")
        return True
    server, port = started
    redis = Redis(f"redis://127.0.0.1:{port}", timeout=5)
    limiter, nonces = RedisLimiter(redis, KEY), RedisNonceStore(redis, KEY)
    count = IN_FLIGHT * EACH
    serial, now = iter(range(10**9)), int(time.time())

    def claim() -> Awaitable[Any]:
        number = next(serial)
        one = Claim(f"key-{number % 1000}", f"nonce-{number:010d}", now, now + 420, now + 60)
        return nonces.claim([one], now, 60)

    closing: list[Callable[[], Awaitable[None]]] = []
    try:
        await redis.call("SET", KEY, "v" * 200)
        await nonces.prepare()
        await limiter.take(ASK)
        cases, closing = clients(port)
        cases += [
            Case("GET, our connection", in_flight(lambda: redis.call("GET", KEY)), count,
                 cpu=True, target_us=20),
            Case("two rate limits, our connection", in_flight(lambda: limiter.take(ASK)), count,
                 cpu=True, target_us=20),
            Case("a nonce, our connection", in_flight(claim), count, cpu=True, target_us=40),
            Case("two rate limits, time per call", in_flight(lambda: limiter.take(ASK)), count),
        ]  # fmt: skip
        await measure(cases)
        return show(f"Redis, {IN_FLIGHT} in flight, CPU of this process", cases)
    finally:
        for close in closing:
            await close()
        await redis.close()
        server.terminate()
        server.wait(10)
