"""Nonces are claimed in one place at a time: beside the keys, or in one Redis. Whatever nodes are
told, no request with a nonce is accepted twice."""

from __future__ import annotations

import asyncio
import secrets
import time

import pytest

from api_key_manager.connections.redis import Redis
from api_key_manager.core import Reason
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.ports import NONCE_LEASE_SECONDS, Claim, ClaimResult, NonceStanding
from api_key_manager.ratelimit.nonces import RedisNonceStore
from tests.integration.places import Place, signed
from tests.integration.postgres_nodes import Shared, eventually
from tests.integration.redis_servers import redis_server

PLACE = "SELECT nonce_place FROM deployment"
BIRTH = "SELECT nonce_birth FROM deployment"
LONG_AGO = "UPDATE deployment SET nonce_birth = 0"
UNAVAILABLE, REPLAYED, VALID = Reason.UNAVAILABLE, Reason.REPLAYED, Reason.VALID


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    if request.param == "sqlite":
        yield Place(tmp_path)
        return
    shared = Shared(tmp_path, request.getfixturevalue("postgres"))
    yield shared
    shared.drop()


@pytest.fixture
def shared(tmp_path, postgres):
    made = Shared(tmp_path, postgres)
    yield made
    made.drop()


def fresh(deployment, key):
    return signed(deployment.manager, key, nonce=secrets.token_urlsafe(24))


async def ask(deployment, item):
    return (await deployment.manager.verify(**item)).reason


async def look(deployment):
    """Twice: the first may join one that began before."""
    for _ in range(2):
        await deployment.look_at_nonces()


async def test_redis_added_and_removed(place, redis_at, caplog):
    """What was accepted before REDIS_URL was set or left out is not accepted after it; the change
    costs a minute of nonces, and one line says so."""
    accepted = []
    with_redis = {"REDIS_URL": redis_at.url}
    for number, more in enumerate(({}, with_redis, {}, with_redis)):
        caplog.clear()
        started = time.time()
        async with place.open(**more) as node:
            if number == 0:
                key = await node.manager.create_key("k")
                assert caplog.records == []
            else:
                for item in (*accepted, fresh(node, key)):
                    assert await ask(node, item) is UNAVAILABLE
                told = [r.getMessage() for r in caplog.records if "nonces" in r.getMessage()]
                assert len(told) == 1
                assert "CLOCK_SKEW_TOLERANCE_SECONDS" in told[0]
                ((birth,),) = place.sql(BIRTH)
                assert started + 2 <= birth / 1e6 <= time.time() + 2
            assert node.degraded() == []
            # A minute later: nothing of what this place took itself is believed twice.
            place.sql(LONG_AGO)
            redis_at("HSET", f"{{akm:{node.backend.origin}}}:nonces", "birth", "0")
            if more:
                await look(node)
            item = fresh(node, key)
            assert [await ask(node, item) for _ in range(2)] == [VALID, REPLAYED]
            accepted.append(item)
    # With nothing changed a restart costs nothing.
    async with place.open(**with_redis) as node:
        assert await ask(node, accepted[-1]) is REPLAYED
        assert await ask(node, fresh(node, key)) is VALID


async def test_the_first_minute(place, redis_at):
    """A new deployment takes nonces from its first key on, beside the keys and in Redis."""
    async with place.open(REDIS_URL=redis_at.url) as node:
        item = fresh(node, await node.manager.create_key())
        assert [await ask(node, item) for _ in range(2)] == [VALID, REPLAYED]
        assert place.sql(PLACE) != [(None,)]


@pytest.mark.parametrize("later", ["sql", "another redis"])
async def test_nodes_that_differ(place, redis_at, tmp_path, later):
    """Of nodes that claim in different places the one that started later wins; the others refuse,
    say so, and do not take it back. Also when the first key is made just then."""
    (tmp_path / "another").mkdir()
    with redis_server(tmp_path / "another") as server:
        settings = {"REDIS_URL": server.url} if later == "another redis" else {}
        async with place.open(REDIS_URL=redis_at.url) as a, place.open(**settings) as b:
            key = await a.manager.create_key("k")
            now_in_force = place.sql(PLACE)
            for _ in range(30):
                item = fresh(a, key)
                reasons = [await ask(node, item) for node in (a, b)]
                assert reasons.count(VALID) <= 1
                assert reasons[1] is UNAVAILABLE
                await asyncio.sleep(0.1)
            place.sql(LONG_AGO)
            server("HSET", f"{{akm:{a.backend.origin}}}:nonces", "birth", "0")
            await look(b)
            assert "started later" in a.degraded()[0]
            assert b.degraded() == []
            item = fresh(a, key)
            answers = [await ask(a, item), await ask(b, item), await ask(b, item)]
            assert answers[::2] == [UNAVAILABLE, REPLAYED]
            assert place.sql(PLACE) == now_in_force
        # It is started again as it was: now it is the later one.
        async with place.open(REDIS_URL=redis_at.url) as a:
            assert await ask(a, item) is UNAVAILABLE
            assert place.sql(PLACE) != now_in_force


async def test_sql_node_is_told(place, redis_at):
    """A node without Redis refuses at once when another has taken over, and says why."""
    async with place.open() as a:
        key = await a.manager.create_key("k")
        item = fresh(a, key)
        assert await ask(a, item) is VALID
        async with place.open(REDIS_URL=redis_at.url) as b:
            place.sql(LONG_AGO)
            assert await ask(a, fresh(a, key)) is UNAVAILABLE
            assert "REDIS_URL" in a.degraded()[0]
            assert (await ask(a, signed(a.manager, key))) is VALID
            assert await ask(b, item) is UNAVAILABLE


async def test_commands_take_nothing_over(place, redis_at):
    """A command that runs with other settings than the server only has its own nonces refused."""
    async with place.open() as a:
        key = await a.manager.create_key("k")
        async with place.open(background=False, REDIS_URL=redis_at.url) as b:
            assert await ask(b, fresh(b, key)) is UNAVAILABLE
        assert await ask(a, fresh(a, key)) is VALID
        assert place.sql(PLACE) == [(None,)]


async def test_redis_is_flushed(shared, redis_at):
    """Nodes on one Redis that lost everything put it in force again together; nothing that was
    accepted before is accepted after it."""
    with_redis = {"REDIS_URL": redis_at.url}
    async with shared.open(**with_redis) as a, shared.open(**with_redis) as b:
        key = await a.manager.create_key("k")
        await eventually(lambda: b.follower.revision == a.follower.revision)
        before = shared.sql(PLACE)
        item = fresh(a, key)
        assert [await ask(node, item) for node in (a, b)] == [VALID, REPLAYED]
        redis_at("FLUSHALL")
        for _ in range(20):
            both = await asyncio.gather(*(ask(node, item) for node in (a, b)))
            assert set(both) == {UNAVAILABLE}
        after = shared.sql(PLACE)
        assert after != before
        assert (a.degraded(), b.degraded()) == ([], [])
        shared.sql(LONG_AGO)
        redis_at("HSET", f"{{akm:{a.backend.origin}}}:nonces", "birth", "0")
        for node in (a, b):
            await look(node)
        item = fresh(a, key)
        assert [await ask(node, item) for node in (b, a)] == [VALID, REPLAYED]
        assert shared.sql(PLACE) == after


async def test_a_database_that_lost_commits(shared):
    """When the feed shows that the last commits are gone, claims may be gone with them: what is
    dated before is refused, although no node was started again."""
    async with shared.open() as node:
        key = await node.manager.create_key("k")
        item = fresh(node, key)
        assert await ask(node, item) is VALID
        await eventually(lambda: node.follower.revision == 1)
        await node.manager.update_key(key["key_id"], metadata={"a": 1})
        await eventually(lambda: node.follower.revision == 2)
        shared.sql(
            "WITH a AS (DELETE FROM changes WHERE revision = 2), b AS (DELETE FROM nonces),"
            " c AS (DELETE FROM nonce_counts) UPDATE deployment SET revision = 1"
        )
        await eventually(lambda: node.follower.revision == 1)
        assert await ask(node, item) is UNAVAILABLE
        assert await ask(node, fresh(node, key)) is UNAVAILABLE
        assert shared.sql(BIRTH)[0][0] / 1e6 > time.time()


class Register:
    """One that a test sets."""

    def __init__(self) -> None:
        self.now: NonceStanding | None = NonceStanding(None, 0, 0)

    async def standing(self) -> NonceStanding:
        if self.now is None:
            raise StorageError("the database is away")
        return self.now

    async def move(self, expected, place) -> NonceStanding:
        found = await self.standing()
        if found.place == expected:
            self.now = found._replace(place=place)
        return await self.standing()


async def test_what_was_read_is_believed_for_so_long_only(redis_at):
    """Without word from the register a node goes on for the lease; after it, it takes nothing
    that the register does not confirm."""
    redis, register, now = Redis(redis_at.url), Register(), 100.0
    store = RedisNonceStore(redis, "akm", register=register, clock=lambda: now)
    await store.prepare()
    ours = register.now

    async def claim():
        instant = int(time.time())
        nonce = secrets.token_urlsafe(24)
        return (await store.claim([Claim("k", nonce, instant, instant + 420, 0)], 0, 60))[0]

    assert await claim() is ClaimResult.TAKEN
    register.now = None
    now += NONCE_LEASE_SECONDS
    assert await claim() is ClaimResult.TAKEN
    now += 0.001
    for _ in range(2):
        with pytest.raises(StorageError, match="away"):
            await claim()
    register.now = ours._replace(place="another")
    for _ in range(2):
        assert await claim() is ClaimResult.REFUSED
        assert register.now.place == "another"
        now += 10
    register.now = ours
    assert await claim() is ClaimResult.TAKEN
    register.now = ours._replace(birth=round((time.time() + 2) * 1e6))
    now += 10
    assert await claim() is ClaimResult.REFUSED
    # Another server under the same address: nothing is taken there before that is in force.
    register.now = ours
    now += 10
    assert await claim() is ClaimResult.TAKEN
    redis_at("HSET", "{akm}:nonces", "place", "another", "birth", "0")
    assert await claim() is ClaimResult.REFUSED
    assert register.now == ours
    assert await claim() is ClaimResult.TAKEN
    assert register.now.place == "another"
    await store.close()
    await redis.close()
