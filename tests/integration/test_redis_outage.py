"""Rate limits while a real Redis is paused, killed or refuses: what the policy's name says, and
the shared count again afterwards, without a restart."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from api_key_manager.connections.redis import Redis
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import Ask
from api_key_manager.ratelimit.limiter import RedisLimiter
from api_key_manager.ratelimit.outage import OutageLimiter
from tests.integration.redis_servers import redis_server
from tests.services import free_port

FIVE = [Ask("k", (RateLimit("five", 5, 3600),))]
POLICIES = ["local", "deny", "allow"]


@pytest.fixture
def server(tmp_path):
    with redis_server(tmp_path, "--appendonly", "yes") as started:
        yield started


@pytest.fixture(params=POLICIES)
async def limiter(request, server):
    redis = Redis(server.url, timeout=0.2)
    yield OutageLimiter(RedisLimiter(redis, "akm"), request.param, MemoryLimiter())
    await redis.close()


async def attempts(limiter, times: int) -> list:
    """What became of so many requests: passed, refused or `unavailable`."""
    found = await asyncio.gather(
        *(limiter.take(FIVE) for _ in range(times)), return_exceptions=True
    )
    return ["unavailable" if isinstance(d, StorageError) else d[0].allowed for d in found]


OUTCOME = {
    "local": [True] * 5 + [False] * 3,
    "deny": ["unavailable"] * 8,
    "allow": [True] * 8,
}


def pause(server):
    server.pause()
    return server.resume


def kill(server):
    server.kill()
    return server.start


def demote(server):
    server("REPLICAOF", "127.0.0.1", free_port())
    return lambda: server("REPLICAOF", "NO", "ONE")


def starve(server):
    server("CONFIG", "SET", "maxmemory", "1")
    return lambda: server("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize("trouble", [pause, kill, demote, starve])
async def test_policies(server, limiter, trouble, caplog):
    """Three of five taken; then, while Redis is out of order, what the policy says; then two."""
    assert await attempts(limiter, 3) == [True] * 3
    with caplog.at_level(logging.INFO, logger="api_key_manager.ratelimit"):
        mend = trouble(server)
        assert await attempts(limiter, 8) == OUTCOME[limiter.policy]
        assert limiter.problem is not None
        assert limiter.undecided == 8
        # However often it is asked: no request waits for long, and the log has one line.
        started = time.monotonic()
        await attempts(limiter, 100)
        for _ in range(20):
            await attempts(limiter, 1)
        assert time.monotonic() - started < 2
        mend()
        await asyncio.to_thread(_answers, server)
        await _shared_again(limiter)
    lines = [r for r in caplog.records if r.name.startswith("api_key_manager.ratelimit")]
    assert [r.levelname for r in lines] == ["WARNING", "INFO"]
    assert all(f"ON_LIMITER_OUTAGE={limiter.policy}" in r.message for r in lines)
    # Redis has kept the three, and one that showed that it is back. One that was paused finds what
    # was sent to it meanwhile, and charges it: nothing is ever given that way.
    left = [False] * 3 if trouble is pause else [True, False, False]
    assert await attempts(limiter, 3) == left


def _answers(server) -> None:
    assert server("PING") == "PONG"


async def _shared_again(limiter) -> None:
    deadline = time.monotonic() + 10
    before = limiter.undecided
    while True:
        await attempts(limiter, 1)
        if limiter.undecided == before:
            assert limiter.problem is None
            return
        before = limiter.undecided
        assert time.monotonic() < deadline, "it does not come back"
        await asyncio.sleep(0.05)
