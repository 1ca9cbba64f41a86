"""Rate limits on a real Redis: the arithmetic of the core, exactly, for all nodes together."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_key_manager.connections.redis import Redis
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import Ask
from api_key_manager.ratelimit.limiter import RedisLimiter
from tests.redis_clock import TimedLimiter

SECOND = 1_000_000
YEAR = 31_536_000
NOW = 1_795_378_309_080_871
TEN = (RateLimit("ten", 10, 1),)
BOTH = (RateLimit("ten", 10, 1), RateLimit("hour", 20, 3600))

names = st.sampled_from(["a", "b-b", "c_9"])
sizes = st.one_of(
    st.integers(1, 20),
    st.integers(1, 10**9),
    st.sampled_from([10**9, 10**9 - 1, 999_999_937, 3, 7]),
)
windows = st.one_of(st.integers(1, 10), st.integers(1, YEAR), st.just(YEAR))
sets = st.lists(
    st.builds(RateLimit, names, sizes, windows), min_size=1, max_size=4, unique_by=lambda r: r.name
).map(tuple)
costs = st.one_of(st.integers(1, 3), st.integers(1, 1_000_000))
# Microseconds that pass; a negative one: as long as the last refusal said, and so many beside it.
steps = st.one_of(
    st.just(0), st.integers(0, 3 * SECOND), st.integers(0, 10**14), st.integers(-3, -1)
)
few = st.lists(
    st.builds(RateLimit, names, st.integers(1, 13), st.integers(1, 3)),
    min_size=1, max_size=3, unique_by=lambda r: r.name,
).map(tuple)  # fmt: skip


@pytest.fixture
async def redis(redis_at):
    connection = Redis(redis_at.url, timeout=10)
    yield connection
    await connection.close()


class Microseconds:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now / SECOND


class ExactLimiter(TimedLimiter):
    """Its clock is set in whole microseconds, which a float of seconds does not hold."""

    async def take(self, asked):
        await self._redis.call("SET", "test:clock", self.clock.now)
        return await RedisLimiter.take(self, asked)


def told(decision) -> tuple:
    return (
        decision.allowed, decision.states, decision.retry_after, decision.refused_by, decision.now,
        decision.never,
        [
            max(arrival, decision.now * rate.limit)
            for arrival, rate in zip(decision.arrivals, decision.limits, strict=True)
        ],
    )  # fmt: skip


@settings(max_examples=400)
@given(
    st.lists(st.one_of(few, sets), min_size=1, max_size=2),
    st.lists(
        st.tuples(steps, st.lists(st.tuples(st.sampled_from("xy"), st.booleans(), costs))),
        max_size=12,
    ),
)
def test_every_decision_is_the_cores(shared_redis, choices, schedule):
    """Whatever is asked, in batches, of limits up to 10^9 and windows up to a year that change
    on the way: the same decisions, remainders and waits as in memory."""
    asyncio.run(_compare(shared_redis, choices, schedule))


async def _compare(server, choices, schedule):
    server("FLUSHALL")
    clock = Microseconds()
    redis = Redis(server.url, timeout=10)
    memory = MemoryLimiter(clock=lambda: clock.now * 1000)
    limiter = ExactLimiter(redis, "akm", clock)
    try:
        wait = 0
        for step, batch in schedule:
            clock.now = min(clock.now + (step if step >= 0 else max(0, wait + step + 2)), 2**52)
            asked = [Ask(key, choices[other % len(choices)], cost) for key, other, cost in batch]
            found, expected = await limiter.take(asked), await memory.take(asked)
            assert list(map(told, found)) == list(map(told, expected))
            wait = max((round(d.retry_after * SECOND) for d in expected), default=0)
    finally:
        await redis.close()


async def test_nothing_drifts(redis):
    """7 a second are 7 million in a million seconds, though 1/7 s is no number of microseconds."""
    clock = Microseconds()
    limiter, limit = ExactLimiter(redis, "akm", clock), (RateLimit("a", 7, 1),)
    count = 0
    for _ in range(1500):
        clock.now += 100_003
        count += (await limiter.take([Ask("k", limit)]))[0].allowed
    assert count == 7 + 7 * 1499 * 100_003 // SECOND


async def test_not_a_microsecond_early(redis):
    """Of 3 a second a fourth passes after the third part of a second, rounded up, not before."""
    clock = Microseconds()
    limiter, limit = ExactLimiter(redis, "akm", clock), (RateLimit("a", 3, 1),)
    await limiter.take([Ask("k", limit)] * 3)
    clock.now += 333_333
    assert not (await limiter.take([Ask("k", limit)]))[0].allowed
    clock.now += 1
    assert (await limiter.take([Ask("k", limit)]))[0].allowed
    # Two thirds of a microsecond were too much: they count for the next.
    clock.now += 333_332
    assert not (await limiter.take([Ask("k", limit)]))[0].allowed
    clock.now += 1
    assert (await limiter.take([Ask("k", limit)]))[0].allowed


async def test_an_unchanged_limit_keeps_its_state(redis):
    """Adding a limit resets nothing; one whose numbers change is full; what is left out is
    forgotten, by a refusal too."""
    limiter = ExactLimiter(redis, "akm", Microseconds())

    async def passed(limits, times=1):
        return sum(d.allowed for d in await limiter.take([Ask("k", limits)] * times))

    assert await passed(TEN, 20) == 10
    assert await passed(BOTH) == 0
    assert await passed(tuple(reversed(BOTH))) == 0
    assert await passed((RateLimit("ten", 11, 1),), 20) == 11
    assert await passed(TEN, 20) == 10


async def test_a_full_limit_needs_no_entry(redis, redis_at):
    """An entry ends when everything has come back, and not before."""
    limiter, key = RedisLimiter(redis, "akm"), "akm:limits:k"
    for limits, least, most in ((TEN, 50, 102), (BOTH, 180_000, 180_102)):
        redis_at("DEL", key)
        await limiter.take([Ask("k", limits)])
        assert least < redis_at("PTTL", key) <= most
    redis_at("DEL", key)
    refused = await limiter.take([Ask("k", TEN, 11)])
    assert (refused[0].allowed, redis_at("EXISTS", key)) == (False, 0)


async def test_a_clock_that_steps_back_costs_a_window_at_most(redis):
    """After the server's clock went back a day nobody is locked out for a day."""
    clock = Microseconds()
    limiter = ExactLimiter(redis, "akm", clock)
    await limiter.take([Ask("k", TEN)] * 10)
    clock.now -= 86_400 * SECOND
    refused = (await limiter.take([Ask("k", TEN)]))[0]
    assert not refused.allowed
    clock.now += SECOND
    assert (await limiter.take([Ask("k", TEN)] * 11))[9].allowed


async def test_deployments_and_keys_are_apart(redis):
    """Prefix and key together name an entry, and no pair runs into another."""
    for prefix, key in [("a", "k"), ("b", "k"), ("a", "l"), ("a:limits", "k"), ("a", "}k")]:
        decisions = await RedisLimiter(redis, prefix).take([Ask(key, BOTH)] * 11)
        assert sum(d.allowed for d in decisions) == 10
    for prefix in ("", "a b", "a{b}", "é", "a" * 129):
        with pytest.raises(ValueError, match="prefix"):
            RedisLimiter(redis, prefix)


async def test_batches_of_any_size(redis):
    """None is nothing; what does not fit one call is decided in order over several."""
    limiter = ExactLimiter(redis, "akm", Microseconds())
    assert await limiter.take([]) == []
    limit = (RateLimit("many", 2100, 3600),)
    decisions = await limiter.take([Ask("k", limit)] * 2500)
    assert [d.allowed for d in decisions] == [True] * 2100 + [False] * 400


async def test_the_server_forgets_scripts(redis, redis_at):
    """Scripts that are gone (a restart, SCRIPT FLUSH) are sent again."""
    limiter = RedisLimiter(redis, "akm")
    for _ in range(3):
        redis_at("SCRIPT", "FLUSH")
        decisions = await asyncio.gather(*(limiter.take([Ask("k", BOTH)]) for _ in range(3)))
        assert all(d.allowed for (d,) in decisions)


NODE = """
import asyncio, sys
from api_key_manager.connections.redis import Redis
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import Ask
from api_key_manager.ratelimit.limiter import RedisLimiter

async def main():
    redis = Redis(sys.argv[1], timeout=30)
    limiter = RedisLimiter(redis, "akm")
    limit = (RateLimit("hour", 100, 3600),)
    await redis.call("PING")
    print("ready", flush=True)
    for key in sys.stdin:
        asked = [Ask(key.strip(), limit)]
        decisions = await asyncio.gather(*(limiter.take(asked) for _ in range(1000)))
        print(sum(d.allowed for (d,) in decisions), flush=True)
    await redis.close()

asyncio.run(main())
"""


async def test_exact_across_processes(redis_at):
    """3 processes, 3000 attempts at once on 100 an hour, 20 rounds: 100 each, and what came back
    meanwhile by the server's time."""
    nodes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", NODE, redis_at.url, cwd=Path.cwd(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    try:
        for node in nodes:
            assert await node.stdout.readline() == b"ready\n"
        for number in range(20):
            before = int(redis_at("TIME")[0])
            for node in nodes:
                node.stdin.write(b"round-%d\n" % number)
            accepted = [int(await node.stdout.readline()) for node in nodes]
            seconds = int(redis_at("TIME")[0]) + 1 - before
            assert 100 <= sum(accepted) <= 100 + seconds // 36, accepted
    finally:
        for node in nodes:
            node.stdin.close()
            await node.wait()
