"""Changes reach every node that shares a PostgreSQL: at once when they are announced, within the
bound when they are not, and nothing from a past that was lost is believed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_key_manager.core import Reason, records
from api_key_manager.core.presented import present
from api_key_manager.storage import feed, scripts
from api_key_manager.wiring import Deployment
from api_key_manager.wiring import postgres as wired
from tests.integration.conftest import signed as signed_body
from tests.integration.places import signed
from tests.integration.postgres_nodes import MASTER, Proxy, Shared, ask, eventually, warm
from tests.integration.servers import TOKEN, started
from tests.services import Postgres

BOUND = 0.8
LISTENING = "query LIKE 'LISTEN%'"


@pytest.fixture
def shared(tmp_path: Path, postgres: Postgres) -> Iterator[Shared]:
    place = Shared(tmp_path, postgres)
    yield place
    place.drop()


async def refused_within(deployment: Deployment, key: dict[str, Any], since: float, most: float):
    """Ask until the key is refused; nothing that is asked later than ``most`` seconds after
    ``since`` may be answered with a yes."""
    while True:
        asked = time.monotonic()
        verdict = await ask(deployment, key)
        if not verdict:
            return verdict
        assert asked - since <= most
        await asyncio.sleep(0.005)


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a node that polls so rarely that only an announcement is quick."""
    monkeypatch.setattr(wired, "_POLL_SECONDS", 15.0)
    return {"REVOCATION_BOUND_SECONDS": 60, "CACHE_TTL_SECONDS": 300}


async def held(deployment: Deployment) -> Any:
    """Stop everything that runs by itself; what is left happens when the test says so."""
    await deployment.supervisor.stop()
    assert deployment.follower is not None
    await deployment.follower.catch_up()
    return deployment.follower


async def test_a_revocation_is_announced(shared, rarely):
    """A revocation on one node is seen by another at once, long before it would look by itself."""
    async with shared.open(**rarely) as first, shared.open(**rarely) as second:
        keys = [await first.manager.create_key() for _ in range(3)]
        await warm(second, *keys)
        for key in keys:
            await first.manager.revoke_key(key["key_id"])
            verdict = await refused_within(second, key, time.monotonic(), 3)
            assert verdict.reason is Reason.REVOKED


async def test_the_listener_comes_back(shared, rarely, caplog):
    """A LISTEN connection that is killed is replaced: what was announced meanwhile is found then,
    and what comes later is announced again. The node stays ready, and the log says so once."""
    caplog.set_level(logging.INFO, "api_key_manager")
    async with shared.open(**rarely) as first, shared.open(**rarely) as second:
        keys = [await first.manager.create_key() for _ in range(2)]
        await warm(second, *keys)
        pids = shared.sql(f"SELECT pid FROM pg_stat_activity WHERE {LISTENING}")
        assert shared.kill_connections(LISTENING) == 2
        await first.manager.revoke_key(keys[0]["key_id"])
        await refused_within(second, keys[0], time.monotonic(), 6)
        assert second.problems() == []
        again = f"SELECT pid FROM pg_stat_activity WHERE {LISTENING}"
        await eventually(lambda: len(found := shared.sql(again)) == 2 and found != pids)
        await first.manager.revoke_key(keys[1]["key_id"])
        await refused_within(second, keys[1], time.monotonic(), 3)
    told = [r.getMessage() for r in caplog.records if "changes are" in r.getMessage()]
    assert [line.startswith("changes are found by polling") for line in told] == [
        True,
        True,
        False,
        False,
    ]


async def test_a_lost_wake_up_is_a_delay(shared, monkeypatch):
    """With nobody listening, a revocation is seen within the bound, and never denied after it."""
    monkeypatch.setattr(wired, "_LISTEN_AGAIN_SECONDS", 60.0)
    options = {"REVOCATION_BOUND_SECONDS": BOUND}
    async with shared.open(**options) as first, shared.open(**options) as second:
        keys = [await first.manager.create_key() for _ in range(8)]
        await warm(second, *keys)
        shared.kill_connections(LISTENING)
        for key in keys:
            await first.manager.revoke_key(key["key_id"])
            await refused_within(second, key, time.monotonic(), BOUND)
        assert shared.sql(f"SELECT pid FROM pg_stat_activity WHERE {LISTENING}") == []


async def test_a_cut_listener_is_noticed(shared, monkeypatch):
    """A LISTEN connection that no longer carries anything, without having been closed, is given up
    and replaced."""
    monkeypatch.setattr("api_key_manager.storage.postgres._ALIVE_SECONDS", 0.2)
    async with Proxy(shared.server.port).running() as proxy:
        url = shared.url.replace(str(shared.server.port), str(proxy.port))
        async with shared.open(DATABASE_URL=url, REVOCATION_BOUND_SECONDS=BOUND):
            listening = f"SELECT pid FROM pg_stat_activity WHERE {LISTENING}"
            before = await eventually(lambda: shared.sql(listening))
            proxy.cut()
            await asyncio.sleep(0.3)
            proxy.mend()
            await eventually(lambda: set(shared.sql(listening)) - set(before))


def test_processes_see_each_other(shared, tmp_path):
    """Two `akm serve` with two workers each: a key revoked through one is refused by the other
    within the bound, and never accepted again."""
    node = {"DATABASE_URL": shared.url, "AKM_MASTER_KEY": MASTER, "AKM_ADMIN_TOKEN": TOKEN,
            "WORKERS": "2"}  # fmt: skip
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        started(tmp_path, **node) as one,
        started(tmp_path, **node) as other,
        httpx.Client(headers=headers, timeout=10) as client,
    ):
        key = client.post(f"{one.url}/v1/keys", json={}).raise_for_status().json()
        for _ in range(20):
            answer = client.post(f"{other.url}/v1/validate", json=signed_body(key))
            assert answer.json()["valid"]
        client.post(f"{one.url}/v1/keys/{key['key_id']}/revoke", json={}).raise_for_status()
        committed = time.monotonic()
        refusals = 0
        while refusals < 20:
            asked = time.monotonic()
            # A connection each, so that both workers are asked.
            answer = httpx.post(
                f"{other.url}/v1/validate", json=signed_body(key), headers=headers
            ).json()
            if answer["valid"]:
                assert asked - committed < 2
                refusals = 0
            else:
                assert answer["reason"] == "revoked"
                refusals += 1


TABLES = ("deployment", "keys", "key_versions", "changes", "audit_events")


def save(shared: Shared) -> None:
    shared.sql("CREATE SCHEMA IF NOT EXISTS saved")
    for table in TABLES:
        shared.sql(f"DROP TABLE IF EXISTS saved.{table}")
        shared.sql(f"CREATE TABLE saved.{table} AS TABLE public.{table}")


def restore(shared: Shared) -> None:
    """What a fail-over to a copy does that lags behind."""
    copies = "; ".join(f"INSERT INTO public.{t} SELECT * FROM saved.{t}" for t in TABLES)
    shared.sql(
        f"DO $$ BEGIN TRUNCATE {', '.join(f'public.{t}' for t in TABLES)} CASCADE; {copies}; END $$"
    )


@pytest.mark.parametrize("changes_since", [0, 3, 7], ids=["back", "equal", "passed"])
async def test_another_past(shared, changes_since):
    """After a fail-over that lost commits, whether the revision is lower now, the same as before,
    or has passed it: keys from the lost future are refused, and what was taken back holds again."""
    async with shared.open() as node, shared.open(background=False) as other:
        manager = node.manager
        kept = await manager.create_key("kept")
        follower = await held(node)
        save(shared)
        never = await manager.create_key("never")
        rotated = await manager.rotate_key("kept")
        await manager.create_key("noise")
        await follower.catch_up()
        await warm(node, rotated, never)
        ahead = follower.revision
        restore(shared)
        for n in range(changes_since):
            await other.manager.create_key(f"other-{n}")
        revision = shared.sql("SELECT revision FROM deployment")[0][0]
        assert (revision > ahead) - (revision < ahead) == {0: -1, 3: 0, 7: 1}[changes_since]
        await follower.catch_up()
        assert follower.revision == revision
        assert (await ask(node, kept)).valid
        assert (await ask(node, never)).reason is Reason.NOT_FOUND
        assert (await ask(node, rotated)).reason is Reason.BAD_SIGNATURE
        # And a revision that comes again is not taken for the one that was read.
        again = await other.manager.rotate_key("kept")
        await follower.catch_up()
        assert (await ask(node, again)).valid
        assert not await ask(node, kept)


async def test_slept_past_the_pruning(shared):
    """A node that slept until the feed no longer reaches back to what it knows drops its cache."""
    async with shared.open() as node, shared.open(background=False) as other:
        key, bystander = [await node.manager.create_key() for _ in range(2)]
        follower = await held(node)
        await warm(node, key, bystander)
        await other.manager.revoke_key(key["key_id"])
        await other.manager.create_key("later")
        await other.manager.store.driver.write(feed.prune, 2**62)
        await follower.catch_up()
        assert (await ask(node, key)).reason is Reason.REVOKED
        assert not (await ask(node, bystander)).cached


async def test_record_overtaken_while_being_read(shared, monkeypatch):
    """A record that was read before a change and arrives after it is neither believed nor kept."""
    async with shared.open() as node, shared.open(background=False) as other:
        key = await node.manager.create_key("k")
        follower = await held(node)
        read, release, load = asyncio.Event(), asyncio.Event(), node.manager.store.load

        async def paused(key_ids):
            found = await load(key_ids)
            if not read.is_set():
                read.set()
                await release.wait()
            return found

        monkeypatch.setattr(node.manager.store, "load", paused)
        call = asyncio.create_task(ask(node, key))
        await read.wait()
        await other.manager.revoke_key("k")
        await follower.catch_up()
        release.set()
        assert (await call).reason is Reason.REVOKED
        assert (await ask(node, key)).reason is Reason.REVOKED


@pytest.mark.parametrize("hours", [-5, 5])
async def test_a_clock_that_differs_is_no_node(shared, hours):
    """A node whose clock differs from the server's by more than the skew is unready and says so,
    and is ready again once it is right."""
    async with shared.open(REVOCATION_BOUND_SECONDS=BOUND) as node:
        await eventually(lambda: node.problems() == [])
        node.backend.feed._clock = lambda: time.time() + hours * 3600
        told = "this machine's clock differs from the database's by 18000 seconds"
        await eventually(lambda: any(told in problem for problem in node.problems()))
        assert "CLOCK_SKEW_TOLERANCE_SECONDS" in str(node.problems())
        node.backend.feed._clock = lambda: time.time() + 50
        await eventually(lambda: node.problems() == [])


async def test_a_stepping_clock_revives_nothing(shared):
    """A clock that goes hours ahead and hours back ends what it passes for good, on every node, and
    lets no nonce be used twice."""
    async with shared.open() as node, shared.open() as other:
        manager, real = node.manager, node.manager.clock
        ends = await manager.create_key("ends", expires_at=real() + 3600)
        overlap = await manager.create_key("overlap")
        await manager.rotate_key("overlap", 3600)
        scheduled = await manager.create_key("scheduled")
        await manager.revoke_key("scheduled", at=real() + 3600)
        proof = signed(manager, await manager.create_key("nonce"), "n" * 20)
        assert (await manager.verify(**proof)).valid
        await warm(other, ends, overlap, scheduled)
        for ahead in (2, -3, 0):
            manager.clock = lambda ahead=ahead: real() + ahead * 3600
            assert (await ask(node, ends)).reason is Reason.EXPIRED
            assert (await ask(node, overlap)).reason is Reason.BAD_SIGNATURE
            assert (await ask(node, scheduled)).reason is Reason.REVOKED
            await manager.sweep()
            assert not await manager.verify(**proof)
            while await node.backend.nonces.prune(manager.clock()):
                pass
        assert (await manager.verify(**proof)).reason in (Reason.REPLAYED, Reason.UNAVAILABLE)
        since = time.monotonic()
        for key in (ends, overlap, scheduled):
            await refused_within(other, key, since, 3)


async def test_revision_is_of_every_change(shared):
    """Two nodes that change things at once take revisions without a gap, and the feed has them
    all."""
    async with shared.open() as one, shared.open() as two:
        before = (await one.manager.store.driver.read(scripts.describe))[1]
        await asyncio.gather(
            *(node.manager.create_key(f"{name}-{i}")
              for name, node in (("one", one), ("two", two)) for i in range(25))
        )  # fmt: skip
        rows = shared.sql("SELECT revision FROM changes WHERE revision > $1 ORDER BY 1", before)
        assert [row[0] for row in rows] == list(range(before + 1, before + 51))
        for node in (one, two):
            await eventually(lambda node=node: node.follower.revision == before + 50)


async def test_a_batch_waits_for_another_reader(shared, monkeypatch):
    """A key of a batch that was read, and is revoked while the batch waits for its other keys, is
    judged as it is then; it is not kept as it was."""
    async with shared.open() as node, shared.open() as other:
        one, two = [await node.manager.create_key(name) for name in ("one", "two")]
        await eventually(lambda: node.follower.revision >= 2)
        load, waiting, let = node.manager.store.load, asyncio.Event(), asyncio.Event()

        async def slow(key_ids):
            found = await load(key_ids)
            if "two" in key_ids:
                waiting.set()
                await let.wait()
            return found

        monkeypatch.setattr(node.manager.store, "load", slow)
        first = asyncio.create_task(node.manager.verify(**signed(node.manager, two)))
        await waiting.wait()
        batch = [present(**signed(node.manager, key)) for key in (one, two)]
        both = asyncio.create_task(node.manager.verify_batch(batch))
        await eventually(lambda: node.manager.records._flights.keys() == {"two"})
        await other.manager.revoke_key("one")
        await eventually(lambda: node.follower.revision >= 3)
        let.set()
        assert [v.reason for v in await both] == [Reason.REVOKED, Reason.VALID]
        await first
        assert (await node.manager.verify(**signed(node.manager, one))).reason is Reason.REVOKED


async def test_a_reader_that_stood_still(shared, monkeypatch):
    """What was read longer ago than the bound is read again before it is judged, whatever kept its
    reader."""
    async with shared.open(background=False) as node, shared.open(background=False) as other:
        key = await node.manager.create_key("k")
        clock, ahead = records.boot_clock, [0.0]
        monkeypatch.setattr(records, "boot_clock", lambda: clock() + ahead[0])
        load, calls = node.manager.store.load, []

        async def standing(key_ids):
            found = await load(key_ids)
            calls.append(key_ids)
            if len(calls) == 1:
                await other.manager.revoke_key("k")
                ahead[0] += 60
            return found

        monkeypatch.setattr(node.manager.store, "load", standing)
        assert (await node.manager.verify(**signed(node.manager, key))).reason is Reason.REVOKED
        assert len(calls) == 2
