"""Records that nodes share by Redis: read once, never believed past a change, never needed."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.cache import Window
from api_key_manager.config import Settings
from api_key_manager.core import ConfigurationError, Reason
from api_key_manager.core.ports import Changed
from api_key_manager.ratelimit import trouble
from api_key_manager.wiring import Deployment, open_deployment
from tests.integration.places import signed
from tests.integration.postgres_nodes import Proxy
from tests.integration.redis_servers import RedisServer, redis_server
from tests.services import Postgres

MASTER = base64.b64encode(bytes(range(32))).decode()

Open = Callable[..., AbstractAsyncContextManager[Deployment]]


@pytest.fixture(params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, tmp_path: Path, redis_at: RedisServer) -> Any:
    """Opens nodes of one deployment."""
    name = None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/akm.db"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        name = server.database("akm_empty")
        url = server.url(name)

    def open_node(**more: Any) -> AbstractAsyncContextManager[Deployment]:
        known = {"DATABASE_URL": url, "REDIS_URL": redis_at.url, "AKM_MASTER_KEY": MASTER}
        return open_deployment(Settings.load(**{**known, "AKM_ADMIN_TOKEN": "a" * 32, **more}))

    yield open_node
    if name is not None:
        server.drop(name)


def reads(deployment: Deployment) -> int:
    """How often records were asked for at the database."""
    return sum(
        taken.count
        for (_, operation), taken in deployment.observing.meter.store.items()
        if operation == "load"
    )


async def verdict(deployment: Deployment, key: dict[str, Any]) -> Reason:
    return (await deployment.manager.verify(**signed(deployment.manager, key))).reason


async def entries(server: RedisServer, wanted: int) -> list[str]:
    """The names of shared records, once there are so many."""
    deadline = time.monotonic() + 10
    while len(found := server("KEYS", "akm:*:record:*")) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)
    return list(found)


async def held(deployment: Deployment) -> Any:
    """Stop everything that runs by itself; what is left happens when the test says so."""
    await deployment.supervisor.stop()
    assert deployment.follower is not None
    await deployment.follower.catch_up()
    # However slow the machine is.
    deployment.follower._bound = deployment.manager.records.cache.bound = 60
    await deployment.follower.catch_up()
    return deployment.follower


async def test_one_read_however_many_ask(node: Open, redis_at: RedisServer):
    """Ten thousand requests for one cold key read it once, and the next node not at all."""
    async with node() as one, node() as other:
        key = await one.manager.create_key("k")
        await held(one)
        await held(other)
        found = await asyncio.gather(*(verdict(one, key) for _ in range(10_000)))
        assert set(found) == {Reason.VALID}
        assert reads(one) == 1
        await entries(redis_at, 1)
        found = await asyncio.gather(*(verdict(other, key) for _ in range(1000)))
        assert set(found) == {Reason.VALID}
        assert (reads(other), other.shared.records.hits) == (0, 1)


async def test_slow_reader(node: Open, redis_at: RedisServer, monkeypatch: pytest.MonkeyPatch):
    """Whoever read a record before it was revoked, and puts it into Redis after that, makes nobody
    believe it: neither itself, nor others, nor a node that starts later."""
    async with node() as slow, node() as other:
        key = await slow.manager.create_key("k")
        follower = await held(slow)
        await held(other)
        read, release, load = asyncio.Event(), asyncio.Event(), slow.shared.records._load

        async def paused(key_ids: Any) -> Any:
            found = await load(key_ids)
            read.set()
            await release.wait()
            return found

        monkeypatch.setattr(slow.shared.records, "_load", paused)
        call = asyncio.create_task(verdict(slow, key))
        await read.wait()
        monkeypatch.setattr(slow.shared.records, "_load", load)
        await other.manager.revoke_key("k")
        await other.follower.catch_up()
        await follower.catch_up()
        release.set()
        assert await call is Reason.REVOKED
        await entries(redis_at, 1)
        assert await verdict(other, key) is Reason.REVOKED
        async with node() as late:
            assert await verdict(late, key) is Reason.REVOKED


async def test_old_entry(node: Open, redis_at: RedisServer):
    """An old entry is refused by who knows of the change, and by who starts after it."""
    async with node() as one, node() as other:
        key = await one.manager.create_key("k")
        await held(one)
        await held(other)
        assert await verdict(one, key) is Reason.VALID
        await entries(redis_at, 1)
        await other.manager.revoke_key("k")
        await other.follower.catch_up()
        assert await verdict(other, key) is Reason.REVOKED
        assert other.shared.records.outdated == 1
        async with node() as late:
            assert await verdict(late, key) is Reason.REVOKED


async def test_newer_than_the_feed(node: Open, redis_at: RedisServer):
    """A record that is newer than what its reader knows of the feed is not shared: should that
    change be lost, what it was read as of would not show it."""
    async with node() as one, node() as other:
        follower = await held(one)
        key = await other.manager.create_key("k")
        assert await verdict(one, key) is Reason.VALID
        await one.shared.records.flushed()
        assert redis_at("KEYS", "akm:*:record:*") == []
        await follower.catch_up()
        one.manager.cache.map.clear()
        assert await verdict(one, key) is Reason.VALID
        await entries(redis_at, 1)


async def test_nothing_is_believed_without_a_lease(node: Open, redis_at: RedisServer):
    """A node that has not read the feed for the bound asks the database, not Redis: its window
    would not show a change."""
    async with node() as one, node() as other:
        key = await one.manager.create_key("k")
        await held(one)
        await held(other)
        assert await verdict(one, key) is Reason.VALID
        await entries(redis_at, 1)
        other.manager.cache.prolong(0)
        await one.manager.revoke_key("k")
        assert await verdict(other, key) is Reason.REVOKED
        assert other.shared.records.bypassed == 1


async def test_what_is_foreign_counts_as_missing(node: Open, redis_at: RedisServer):
    """Garbage, another key's entry, and an emptied Redis cost a read each, and nothing else."""
    async with node() as one, node() as other:
        keys = [await one.manager.create_key(name) for name in "abc"]
        await held(one)
        await held(other)
        for key in keys:
            assert await verdict(one, key) is Reason.VALID
        await entries(redis_at, 3)
        prefix = one.shared.records._prefix
        redis_at("SET", f"{prefix}a", "garbage")
        redis_at("COPY", f"{prefix}c", f"{prefix}b", "REPLACE")
        redis_at("DEL", f"{prefix}c")
        for key in keys:
            assert await verdict(other, key) is Reason.VALID
        assert (other.shared.records.misses, reads(other)) == (3, 3)


async def test_nothing_secret_is_in_redis(node: Open, redis_at: RedisServer):
    """Neither secrets nor tokens nor metadata can be read there."""
    async with node() as one:
        signed_key = await one.manager.create_key("k", metadata={"plan": "metadata-in-plain"})
        bearer = await one.manager.create_key(
            kind="bearer", rate_limits=[{"name": "hour", "limit": 5, "window_seconds": 3600}]
        )
        await held(one)
        assert await verdict(one, signed_key) is Reason.VALID
        assert (await one.manager.verify(token=bearer["token"])).valid
        nonce = signed(one.manager, signed_key, "n" * 16)
        await one.manager.verify(**nonce)
        await entries(redis_at, 2)
    assert redis_at("SAVE") == "OK"
    dumped = (redis_at.folder / "dump.rdb").read_bytes()
    for secret in (signed_key["secret"], bearer["token"], "metadata-in-plain", MASTER):
        assert secret.encode() not in dumped
    assert nonce["signature"].encode() not in dumped


@pytest.mark.parametrize("how", ["kill", "pause", "cut"])
async def test_redis_goes_away(
    node: Open,
    tmp_path: Path,
    how: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """Without Redis records come from the database, requests with a nonce are unavailable, limits
    do what is set; the node stays ready, says what is away, and needs no restart."""
    caplog.set_level(logging.INFO, "api_key_manager")
    monkeypatch.setattr(trouble, "_REMEMBERED_SECONDS", 1.0)
    limits = [{"name": "hour", "limit": 3, "window_seconds": 3600}]
    with redis_server(tmp_path / "redis", "--appendonly", "yes") as server:
        trouble_of = {
            "kill": (server.kill, server.start),
            "pause": (server.pause, server.resume),
            "cut": ((wire := Proxy(server.port)).cut, wire.mend),
        }
        begin, end = trouble_of[how]
        url = "redis://127.0.0.1:{}"
        async with (
            wire.running(),
            node(REDIS_URL=url.format(wire.port), ON_LIMITER_OUTAGE="deny") as one,
        ):
            key = await one.manager.create_key("k")
            limited = await one.manager.create_key("limited", rate_limits=limits)
            assert await verdict(one, limited) is Reason.VALID
            assert (one.problems(), one.degraded()) == ([], [])
            begin()
            started = time.monotonic()
            assert await verdict(one, key) is Reason.VALID
            for i in range(6):
                assert await verdict(one, limited) is Reason.UNAVAILABLE
                claimed = await one.manager.verify(**signed(one.manager, key, f"{i:020d}"))
                assert claimed.reason is Reason.UNAVAILABLE
            assert time.monotonic() - started < 10
            assert one.problems() == []
            assert any("Redis" in why for why in one.degraded())
            text = (await one.exposition.text()).decode()
            assert 'akm_redis_up{worker="1"} 0.0' in text
            end()
            deadline = time.monotonic() + 15
            while one.degraded() or await verdict(one, limited) is Reason.UNAVAILABLE:
                assert time.monotonic() < deadline, one.degraded()
                await asyncio.sleep(0.05)
    told = [r for r in caplog.records if "ON_LIMITER_OUTAGE=deny" in r.message]
    assert [r.levelname for r in told] == ["WARNING", "INFO"]


async def test_a_quiet_node_knows(node: Open, tmp_path: Path):
    """That Redis is away shows also where nobody asks anything of it."""
    with redis_server(tmp_path / "redis") as server:
        async with node(REDIS_URL=server.url) as one:
            server.kill()
            deadline = time.monotonic() + 20
            while not one.degraded():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            server.start()
            while one.degraded():
                assert time.monotonic() < deadline + 20
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("user", ["", ":wrong@"])
async def test_what_redis_will_never_take(node: Open, tmp_path: Path, user: str):
    """Without its password, or with another, nothing starts, and the line says why."""
    with redis_server(tmp_path / "redis", password="right-one") as server:
        url = f"redis://{user}127.0.0.1:{server.port}"
        with pytest.raises(ConfigurationError, match=r"^REDIS_URL: .*password") as error:
            async with node(REDIS_URL=url):
                pass
    assert "wrong@" not in str(error.value)


async def test_nodes_count_together(node: Open):
    """A limit is one limit, however many nodes count."""
    limits = [{"name": "hour", "limit": 50, "window_seconds": 3600}]
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node()) for _ in range(3)]
        key = await nodes[0].manager.create_key("k", rate_limits=limits)
        found = await asyncio.gather(*(verdict(one, key) for one in nodes for _ in range(100)))
        assert found.count(Reason.VALID) == 50
        assert found.count(Reason.RATE_LIMITED) == 250


async def test_a_nonce_is_taken_once_on_all_nodes(node: Open):
    """A replay is refused by every node, also at the same moment."""
    async with node() as one, node() as other:
        key = await one.manager.create_key("k")
        request = signed(one.manager, key, "n" * 20)
        found = await asyncio.gather(
            *(d.manager.verify(**request) for d in (one, other) for _ in range(5))
        )
        assert sorted(v.reason for v in found) == [Reason.REPLAYED] * 9 + [Reason.VALID]


async def test_memory_has_nothing_to_share():
    """Redis with keys in memory is refused, and the line says what to do."""
    settings = Settings.load(DATABASE_URL="memory://", REDIS_URL="redis://:hunter2@localhost:1/0")
    with pytest.raises(ConfigurationError, match=r"REDIS_URL .*memory://.*sqlite:///") as error:
        async with open_deployment(settings):
            pass
    assert "hunter2" not in str(error.value)


def test_as_of_another_past():
    """An entry from commits that the store has lost is not believed, although their revisions have
    been given again; nor one from before what the window holds, nor from a future."""
    window = Window(kept=3)
    window.add([Changed(n, f"k{n}", n) for n in range(1, 6)])
    assert window.holds("quiet", Changed(5, "k5", 5))
    assert window.holds("quiet", Changed(3, "k3", 3))
    assert window.holds("k3", Changed(3, "k3", 3))
    assert not window.holds("k5", Changed(4, "k4", 4))
    assert not window.holds("quiet", Changed(4, "lost", 4))
    assert not window.holds("quiet", Changed(5, "k5", 99))
    assert not window.holds("quiet", Changed(2, "k2", 2))
    assert not window.holds("quiet", Changed(6, "k6", 6))
    assert not Window().holds("quiet", Changed(0, "", 0))


async def test_each_entry_has_its_own_end(node: Open, redis_at: RedisServer):
    """80 to 100 % of CACHE_TTL_SECONDS, spread: what was read together ends at different times."""
    async with node(CACHE_TTL_SECONDS=1000) as one:
        keys = [await one.manager.create_key() for _ in range(60)]
        await held(one)
        await asyncio.gather(*(verdict(one, key) for key in keys))
        await one.shared.records.flushed()
    left = [redis_at("PTTL", name) / 1000 for name in await entries(redis_at, 60)]
    # What the machine took since then is not the entry's.
    assert all(790 < seconds <= 1000 for seconds in left), sorted(left)
    assert max(left) - min(left) > 100
    assert len({round(seconds) for seconds in left}) > 20


async def test_no_cache_at_all(node: Open, redis_at: RedisServer, caplog: Any):
    """CACHE_TTL_SECONDS=0: records are neither looked for in Redis nor put there."""
    async with node(CACHE_TTL_SECONDS=0) as one:
        key = await one.manager.create_key("k")
        await held(one)
        redis_at("CONFIG", "RESETSTAT")
        assert [await verdict(one, key) for _ in range(3)] == [Reason.VALID] * 3
        await one.shared.records.flushed()
        assert reads(one) == 3
        assert called(redis_at) == {}
        assert redis_at("INFO", "errorstats").split() == ["#", "Errorstats"]
        assert one.shared.records.bypassed == 3
    assert "record" not in caplog.text


async def test_a_bad_signature_asks_redis_nothing(node: Open, redis_at: RedisServer):
    """The limiter is asked only for who has proved the secret: nobody else can spend anything of
    Redis or of a key's limit."""
    async with node(RATE_LIMIT_ENABLED=True, RATE_LIMIT_PER_MINUTE=3) as one:
        manager = one.manager
        key = await manager.create_key("k")
        assert await verdict(one, key) is Reason.VALID
        await held(one)
        redis_at("CONFIG", "RESETSTAT")
        wrong = {**signed(manager, key), "signature": "0" * 64}
        for arguments in (wrong, {**wrong, "nonce": "n" * 20}, {**wrong, "key_id": "nobody"}):
            for _ in range(5):
                assert not await manager.verify(**arguments)
        # Whether a record is there, and putting it there.
        assert called(redis_at).keys() <= {"mget", "set"}
        # The count counts: a good one does ask.
        assert await verdict(one, key) is Reason.VALID
        assert "evalsha" in called(redis_at)


def called(server: RedisServer) -> dict[str, int]:
    """Which commands were sent since the statistics were reset, and how often."""
    found = {}
    for line in server("INFO", "commandstats").splitlines()[1:]:
        name, _, numbers = line.removeprefix("cmdstat_").partition(":calls=")
        if name not in ("config|resetstat", "info"):
            found[name] = int(numbers.partition(",")[0])
    return found
