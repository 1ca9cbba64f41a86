"""Nonces on a real Redis: one winner on all nodes, held by the server's clock, never believed
after a loss."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from pathlib import Path

import pytest

from api_key_manager.connections.redis import Redis
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import Ask, Claim, ClaimResult
from api_key_manager.ratelimit.limiter import RedisLimiter
from api_key_manager.ratelimit.nonces import RedisNonceStore
from tests.integration.redis_servers import redis_server
from tests.redis_clock import TimedNonceStore, set_time
from tests.services import free_port

TAKEN, REPLAYED, REFUSED = ClaimResult.TAKEN, ClaimResult.REPLAYED, ClaimResult.REFUSED
SKEW = 60
serial = itertools.count()


def claim(key: str = "k", *, at: float | None = None, since: float | None = None) -> Claim:
    """Of a key that is a year younger than any store, unless said otherwise."""
    now = time.time() if at is None else at
    made = now + 31_536_000 if since is None else since
    return Claim(key, f"nonce-{next(serial):012d}", int(now), int(now) + 420, made)


@pytest.fixture
async def redis(redis_at):
    connection = Redis(redis_at.url, timeout=5)
    yield connection
    await connection.close()


@pytest.fixture
async def store(redis):
    made = RedisNonceStore(redis, "akm")
    await made.prepare()
    return made


async def test_one_winner_on_all_nodes(redis_at, store):
    """Of 50 claims on each of 3 connections at the same moment exactly one is taken."""
    connections = [Redis(redis_at.url, timeout=5) for _ in range(3)]
    stores = [RedisNonceStore(connection, "akm") for connection in connections]
    for _ in range(5):
        one = claim()
        found = await asyncio.gather(*(s.claim([one], 0, SKEW) for s in stores for _ in range(50)))
        assert Counter(r for (r,) in found) == {TAKEN: 1, REPLAYED: 149}
    for connection in connections:
        await connection.close()


async def test_the_nodes_clock_does_not_count(store):
    """Whatever time a node believes it is, a nonce is held; what has ended by the server's clock
    cannot be, and is refused."""
    one, now = claim(), time.time()
    assert await store.claim([one], now, SKEW) == [TAKEN]
    for believed in (now + 10**6, now - 10**6, 0, 2**40):
        assert await store.claim([one], believed, SKEW) == [REPLAYED]
    slow = claim(at=now - 3600)
    assert await store.claim([slow, slow], now - 3600, SKEW) == [REFUSED, REFUSED]


async def test_held_to_the_second(redis, redis_at):
    """A nonce is known up to the second in which it ends, and refused from then on."""
    now = 1_795_000_000
    store = TimedNonceStore(redis, "akm", lambda: now)
    await store.prepare()
    one = claim(at=now)
    assert await store.claim([one], now, SKEW) == [TAKEN]
    for later, expected in ((419, REPLAYED), (420, REPLAYED), (420.9, REPLAYED), (421, REFUSED)):
        assert await store.claim([one], now + later, SKEW) == [expected]
    # Also should the server's clock come back; and it is no longer stored.
    assert await store.claim([one], now, SKEW) == [REFUSED]


@pytest.mark.parametrize("back", [10, 3500, 10**6])
async def test_the_servers_clock_steps_back(redis, back):
    """What was forgotten while the clock was ahead is not taken for new."""
    now = 1_795_000_000
    store = TimedNonceStore(redis, "akm", lambda: now)
    await store.prepare()
    one = claim(at=now)
    await store.claim([one], now, SKEW)
    await store.claim([claim(at=now + 430)], now + 430, SKEW)
    assert await store.claim([one], now + 430 - back, SKEW) == [REFUSED]


async def test_entries_end_by_themselves(store, redis_at):
    """A key that is not used any more leaves nothing behind; one with a sooner end does not
    shorten the others'."""
    late = claim()
    await store.claim([late, claim()._replace(expires_at=late.expires_at - 300)], 0, SKEW)
    left = redis_at("TTL", "{akm}:nonces:k")
    assert 4015 < left <= 4020
    assert redis_at("TTL", "{akm}:nonces") == -1


async def test_room_does_not_leak(redis):
    """The cap counts live nonces: those that ended make room, however many there were."""
    now = 1_795_000_000.0
    store = TimedNonceStore(redis, "akm", lambda: now, 10)
    await store.prepare()
    for _ in range(5):
        found = await store.claim([claim(at=now) for _ in range(12)], now, SKEW)
        assert found == [TAKEN] * 10 + [REFUSED] * 2
        assert await store.claim([claim("other", at=now)], now, SKEW) == [TAKEN]
        now += 421


OLD = 1_000_000_000.0


@pytest.mark.parametrize("loss", ["flush", "marker", "restart", "kill"])
async def test_after_a_loss(tmp_path, loss):
    """Flushed, the marker dropped, restarted with and without what was kept: nothing that may
    have been claimed before is accepted, and younger keys go on."""
    kept = ["--appendonly", "yes", "--appendfsync", "always"] if loss == "restart" else []
    with redis_server(tmp_path, *kept) as server:
        redis = Redis(server.url, timeout=2)
        store = RedisNonceStore(redis, "akm")
        await store.prepare()
        first = store.birth
        # A store as old as the deployment: what is dated past its first minute is accepted.
        then = first + SKEW + 1
        one = claim(at=then, since=OLD)
        assert await store.claim([one], then, SKEW) == [TAKEN]
        assert await store.claim([claim(at=first, since=OLD)], first, SKEW) == [REFUSED]
        if loss == "flush":
            server("FLUSHALL")
        elif loss == "marker":
            server("DEL", "{akm}:nonces")
        else:
            server.kill()
            server.start()
        # The marker says who ran in which second; a restart takes longer than what is left of it.
        await asyncio.sleep(1.1)
        again = one._replace(timestamp=int(time.time()), expires_at=int(time.time()) + 420)
        for _ in range(2):
            (found,) = await _patiently(store, [again])
            assert found is REFUSED
        assert await store.claim([claim()], 0, SKEW) == [TAKEN]
        assert store.birth > first
        later = claim(at=store.birth + SKEW + 1, since=OLD)
        assert await store.claim([later], 0, SKEW) == [TAKEN]
        await redis.close()


async def _patiently(store, claims):
    """The first calls after a loss of the connection may fail."""
    for _ in range(100):
        try:
            return await store.claim(claims, 0, SKEW)
        except StorageError:
            await asyncio.sleep(0.05)
    raise AssertionError("it stays away")


async def test_another_process_with_the_same_data(redis, redis_at):
    """A marker that another process of the server has written, as after a failover, is not
    believed, in the first claim of the next second at the latest."""
    now = 1_795_000_000
    store = TimedNonceStore(redis, "akm", lambda: now)
    await store.prepare()
    assert await store.claim([claim(at=now + 61, since=OLD)], now + 100, SKEW) == [TAKEN]
    redis_at("HSET", "{akm}:nonces", "run", "another")
    assert await store.claim([claim(at=now + 61, since=OLD)], now + 101, SKEW) == [REFUSED]
    assert store.birth == now + 101


async def test_away(tmp_path, caplog):
    """A paused server: an error, never an acceptance, said once; afterwards all is as before."""
    with redis_server(tmp_path) as server:
        redis = Redis(server.url, timeout=0.2)
        store = RedisNonceStore(redis, "akm")
        await store.prepare()
        one = claim()
        await store.claim([one], 0, SKEW)
        server.pause()
        with caplog.at_level(logging.INFO, logger="api_key_manager.ratelimit"):
            tries = (store.claim([claim()], 0, SKEW) for _ in range(20))
            found = await asyncio.gather(*tries, return_exceptions=True)
            assert all(isinstance(e, StorageError) for e in found)
            assert store.problem is not None
            assert store.failures == 20
            server.resume()
            assert await _patiently(store, [one]) == [REPLAYED]
        assert store.problem is None
        levels = [r.levelname for r in caplog.records if "ratelimit" in r.name]
        assert levels == ["WARNING", "INFO"]
        await redis.close()


async def test_a_replica_takes_nothing(tmp_path):
    """On a replica nothing can be written down, so nothing is accepted."""
    with redis_server(tmp_path) as server:
        redis = Redis(server.url, timeout=2)
        store = RedisNonceStore(redis, "akm")
        await store.prepare()
        server("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(StorageError, match="READONLY"):
            await store.claim([claim()], 0, SKEW)
        await redis.close()


async def test_a_full_server_takes_nothing(tmp_path):
    """With noeviction and no memory left: an error, and no acceptance."""
    with redis_server(tmp_path, "--maxmemory", "1") as server:
        redis = Redis(server.url, timeout=2)
        store = RedisNonceStore(redis, "akm")
        with pytest.raises(StorageError, match="OOM"):
            await store.claim([claim()], 0, SKEW)
        await redis.close()


@pytest.mark.parametrize(
    ("most", "policy", "warned"),
    [("0", "allkeys-lru", False), ("100mb", "noeviction", False), ("100mb", "allkeys-lru", True),
     ("100mb", "volatile-ttl", True)],
)  # fmt: skip
async def test_eviction_is_warned_of(store, redis_at, most, policy, warned):
    """A server that may throw nonces away is told of at the start, with what to set."""
    redis_at("CONFIG", "SET", "maxmemory", most)
    redis_at("CONFIG", "SET", "maxmemory-policy", policy)
    try:
        found = await store.prepare()
        assert (found is not None) is warned
        assert found is None or (policy in found and "noeviction" in found)
    finally:
        redis_at("CONFIG", "SET", "maxmemory", "0")
        redis_at("CONFIG", "SET", "maxmemory-policy", "noeviction")


RIGHTS = [
    "+evalsha", "+eval", "+ping", "+info", "+time", "+get", "+set", "+del", "+hmget", "+hset",
    "+zremrangebyscore", "+zscore", "+zcard", "+zadd", "+ttl", "+expire", "+publish", "+subscribe",
    "+mget",
]  # fmt: skip


async def test_the_rights_it_needs(tmp_path):
    """With the rights that the docs name all works; without one of a script's, nothing does."""
    told = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    assert " ".join(RIGHTS) in " ".join(told.split())
    user = ["--user", "akm", "on", ">pw", "~akm:*", "~{akm:*", "&akm:*", *RIGHTS]
    with redis_server(tmp_path, *user) as server:
        url = f"redis://akm:pw@127.0.0.1:{server.port}"
        redis = Redis(url, timeout=2)
        store = RedisNonceStore(redis, "akm:test")
        assert await store.prepare() is None
        assert await store.claim([claim()], 0, SKEW) == [TAKEN]
        decisions = await RedisLimiter(redis, "akm:test").take(
            [Ask("k", (RateLimit("a", 1, 1),))] * 2
        )
        assert [d.allowed for d in decisions] == [True, False]
        heard: list[bytes] = []
        task = asyncio.ensure_future(redis.subscribe("akm:test:changes", heard.append))
        await asyncio.sleep(0.2)
        await redis.publish("akm:test:changes", "x")
        await asyncio.sleep(0.1)
        assert heard == [b"", b"x"]
        task.cancel()
        await asyncio.wait([task])
        server("ACL", "SETUSER", "akm", "-zadd")
        with pytest.raises(StorageError, match="NOPERM"):
            await store.claim([claim()], 0, SKEW)
        await redis.close()


async def test_batches_of_any_size(store):
    """None is nothing; what does not fit one call is claimed in order over several."""
    assert await store.claim([], 0, SKEW) == []
    many = [claim(f"k{i % 7}") for i in range(1500)]
    found = await store.claim([*many, *many], 0, SKEW)
    assert found == [TAKEN] * 1500 + [REPLAYED] * 1500


async def test_time_is_the_servers(redis, redis_at):
    """Without a test's clock the scripts ask the server's."""
    await set_time(redis, 1)
    store = RedisNonceStore(redis, "akm")
    await store.prepare()
    assert abs(store.birth - int(redis_at("TIME")[0])) <= 2
