"""The follower and its lease: a change made elsewhere is seen in time, or not cached over."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from api_key_manager.core import Reason, records
from api_key_manager.core.ports import Changed, Reading
from api_key_manager.storage import feed, scripts
from api_key_manager.wiring import Deployment
from tests.integration.places import BOUND, Place, first_refusal, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class BootClock:
    """The real boot clock, moved by the test."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._real = records.boot_clock

    def __call__(self) -> float:
        return self._real() + self.ahead


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> BootClock:
    clock = BootClock()
    monkeypatch.setattr(records, "boot_clock", clock)
    return clock


async def held(deployment: Deployment, boot: BootClock | None = None):
    """Stop everything that runs by itself; what is left happens when the test says so."""
    await deployment.supervisor.stop()
    follower = deployment.follower
    assert follower is not None
    if boot is not None:
        follower._clock = boot
    await follower.catch_up()
    return follower


async def warm(deployment: Deployment, key: dict) -> None:
    for _ in range(2):
        verdict = await deployment.manager.verify(**signed(deployment.manager, key))
        assert verdict.valid
    assert verdict.cached


async def test_change_by_another_manager_of_this_process(place):
    """A revocation by a second manager on the file is seen by a warm one within the bound."""
    async with place.open() as first, place.open() as second:
        keys = [await first.manager.create_key() for _ in range(5)]
        for key in keys:
            await warm(first, key)
            await second.manager.revoke_key(key["key_id"])
            verdict = await first_refusal(first.manager, key, time.monotonic())
            assert verdict.reason is Reason.REVOKED


async def test_own_change_is_seen_at_once(place):
    """The manager that makes a change never answers from before it."""
    async with place.open() as deployment:
        manager = deployment.manager
        for _ in range(20):
            key = await manager.create_key()
            await warm(deployment, key)
            await manager.revoke_key(key["key_id"])
            assert not await manager.verify(**signed(manager, key))


async def test_lease_ends_with_the_bound(place, boot):
    """Once nobody follows any more, the cache answers up to the bound, then every record is
    read anew; following again ends that."""
    async with place.open() as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        follower = await held(deployment, boot)
        await warm(deployment, key)
        boot.ahead += BOUND - 0.5
        assert (await manager.verify(**signed(manager, key))).cached
        boot.ahead += 0.5
        for _ in range(3):
            verdict = await manager.verify(**signed(manager, key))
            assert verdict.valid
            assert not verdict.cached
        async with place.open(background=False) as other:
            await other.manager.revoke_key("k")
        assert (await manager.verify(**signed(manager, key))).reason is Reason.REVOKED
        await follower.catch_up()
        assert (await manager.verify(**signed(manager, key))).reason is Reason.REVOKED
        assert manager.cache.leased


@pytest.mark.parametrize("slow", ["changed", "read"])
async def test_lease_counts_from_the_start_of_the_reading(place, boot, monkeypatch, slow):
    """A reading that takes long buys no more time than one that does not."""
    async with place.open() as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        follower = await held(deployment, boot)
        method = getattr(follower._feed, slow)

        async def slowly(*arguments):
            result = await method(*arguments)
            boot.ahead += 1.5
            return result

        monkeypatch.setattr(follower._feed, slow, slowly)
        await manager.update_key("k", owner="o")  # so that there is something to read
        await follower.catch_up()
        await warm(deployment, key)
        boot.ahead += 0.6
        assert not (await manager.verify(**signed(manager, key))).cached


async def test_store_and_lease_gone(place, boot):
    """With the file unreadable, cached records serve out the lease, then the answer is
    `unavailable`; when it can be read again, so it is without a restart."""
    async with place.open() as deployment:
        manager = deployment.manager
        driver = manager.store.driver
        key = await manager.create_key("k")
        follower = await held(deployment, boot)
        await warm(deployment, key)
        driver._reader.close()
        assert (await manager.verify(**signed(manager, key))).valid
        boot.ahead += BOUND
        for _ in range(2):
            verdict = await manager.verify(**signed(manager, key))
            assert verdict.reason is Reason.UNAVAILABLE
        driver._reader = driver._connect(read_only=True)
        assert (await manager.verify(**signed(manager, key))).valid
        await follower.catch_up()
        await warm(deployment, key)


async def test_unreadable_feed_shows_and_heals(place, caplog):
    """While the feed cannot be read the node says so, and after that, by itself, no more; the
    change that it could not read then is not forgotten."""
    async with place.open() as deployment:
        manager = deployment.manager
        driver = manager.store.driver
        key = await manager.create_key("k")
        await warm(deployment, key)
        assert deployment.problems() == []
        driver._reader.close()
        async with place.open(background=False) as other:
            await other.manager.revoke_key("k")
        deadline = time.monotonic() + 10
        while not deployment.problems():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert "change feed cannot be read" in deployment.problems()[0]
        assert "change feed cannot be read" in caplog.text
        driver._reader = driver._connect(read_only=True)
        while deployment.problems():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        # Nothing was written meanwhile: the reading that failed is made up for.
        verdict = await manager.verify(**signed(manager, key))
        assert verdict.reason is Reason.REVOKED


async def test_revision_that_goes_back(place, caplog):
    """A restored file with an older revision empties the cache: nothing from the lost future is
    believed, and a revision that comes again is not taken for the one already read."""
    async with place.open() as deployment:
        manager = deployment.manager
        lost = await manager.create_key("k")
        with closing(sqlite3.connect(place.folder / "old.db")) as old:
            with closing(sqlite3.connect(place.file)) as live:
                live.backup(old)
            follower = await held(deployment)
            kept, lost = lost, await manager.rotate_key("k")
            never = await manager.create_key("never")
            await follower.catch_up()
            for key in (lost, never):
                await warm(deployment, key)
            ahead = follower.revision
            with closing(sqlite3.connect(place.file)) as live:
                old.backup(live)
        await follower.catch_up()
        assert follower.revision < ahead
        assert "went back" in caplog.text
        assert await manager.verify(**signed(manager, kept))
        for key in (lost, never):
            assert not await manager.verify(**signed(manager, key))
        again = await manager.rotate_key("k")
        assert follower.revision < manager.store.driver.read_now(scripts.describe)[1] <= ahead
        await follower.catch_up()
        assert await manager.verify(**signed(manager, again))
        assert not await manager.verify(**signed(manager, kept))


async def noise(place: Place, changes: int) -> None:
    """Announce changes of other keys."""
    if not changes:
        return
    place.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO changes SELECT revision + i, 'noise', 0 FROM n, deployment", changes,
    )  # fmt: skip
    place.sql("UPDATE deployment SET revision = revision + ?", changes)


@pytest.mark.parametrize("before", [0, 9_998, 9_999, 10_000, 12_000, 25_000])
async def test_many_changes_at_once(place, before):
    """However many changes there are between two readings, none is missed; up to 10,000 cost
    the other keys nothing."""
    async with place.open() as deployment, place.open(background=False) as other:
        manager = deployment.manager
        key, bystander = await manager.create_key("k"), await manager.create_key("bystander")
        follower = await held(deployment)
        await warm(deployment, key)
        await warm(deployment, bystander)
        await noise(place, before)
        await other.manager.revoke_key("k")
        await noise(place, 1)
        await follower.catch_up()
        assert follower.revision == manager.store.driver.read_now(scripts.describe)[1]
        assert (await manager.verify(**signed(manager, key))).reason is Reason.REVOKED
        still = await manager.verify(**signed(manager, bystander))
        assert still.valid
        assert still.cached == (before + 2 <= 10_000)


@pytest.mark.parametrize("left", [0, 1])
async def test_pruned_feed(place, left):
    """When rows that were not read yet are gone from the feed, the whole cache goes."""
    async with place.open() as deployment, place.open(background=False) as other:
        manager = deployment.manager
        key = await manager.create_key("k")
        follower = await held(deployment)
        await warm(deployment, key)
        await other.manager.revoke_key("k")
        await other.manager.store.driver.write(feed.prune, 2**62)
        if left:
            await noise(place, 1)
        await follower.catch_up()
        assert (await manager.verify(**signed(manager, key))).reason is Reason.REVOKED


@pytest.mark.parametrize(
    ("revision", "rows", "reached"),
    [
        (4, [(1, "a"), (2, "b"), (3, "c"), (4, "d")], 4),
        (1, [(1, "a")], 1),
        (4, [(2, "b"), (3, "c"), (4, "d")], None),
        (4, [(1, "a"), (3, "c"), (4, "d")], None),
        (5, [(1, "a"), (2, "b"), (3, "c")], None),
        (4, [(1, "lost"), (2, "b"), (3, "c"), (4, "d")], "lost"),
        (1, [(1, "lost")], "lost"),
        (0, [], "lost"),
        (1, [], "lost"),
    ],
    ids=[
        "all", "nothing new", "known one pruned", "one pruned", "last one missing",
        "another past", "another past, nothing new", "back", "back to the same",
    ],
)  # fmt: skip
def test_feed_is_all_or_nothing(revision, rows, reached):
    """Changes are complete only when no revision is missing behind the very one that was known; if
    that is no longer in the store's past, it has lost something."""
    script = feed.read(Changed(1, "a", 7), 100)
    next(script)
    with pytest.raises(StopIteration) as end:
        script.send([(revision, *row, 7) for row in rows] or [(revision, None, None, None)])
    found = end.value.value
    if reached in (None, "lost"):
        assert found == Reading(revision, [], complete=False, lost=reached == "lost")
    else:
        assert found == Reading(reached, [Changed(*row, 7) for row in rows[1:]], complete=True)


async def test_old_rows_of_the_feed_are_pruned(place):
    """The feed keeps an hour of changes; older rows go, and followers do not mind."""
    async with place.open() as deployment:
        manager = deployment.manager
        await manager.create_key("old")
        place.sql("UPDATE changes SET changed_at = changed_at - 3601000000")
        key = await manager.create_key("new")
        await warm(deployment, key)
    async with place.open() as deployment:
        deadline = time.monotonic() + 10
        while place.sql("SELECT key_id FROM changes") != [("new",)]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert deployment.problems() == []


async def test_record_overtaken_while_being_read(place, monkeypatch):
    """A record that was read before a change and arrives after it is never kept."""
    async with place.open() as deployment, place.open(background=False) as other:
        manager = deployment.manager
        key = await manager.create_key("k")
        follower = await held(deployment)
        read, release, load = asyncio.Event(), asyncio.Event(), manager.store.load

        async def paused(key_ids):
            found = await load(key_ids)
            if not read.is_set():
                read.set()
                await release.wait()
            return found

        monkeypatch.setattr(manager.store, "load", paused)
        call = asyncio.create_task(manager.verify(**signed(manager, key)))
        await read.wait()
        await other.manager.revoke_key("k")
        await follower.catch_up()
        release.set()
        assert (await call).reason is Reason.REVOKED
        assert (await manager.verify(**signed(manager, key))).reason is Reason.REVOKED


async def test_edits_without_a_revision_change_no_answer(place, caplog):
    """Somebody else's writes to the file that are no changes of keys cost the cache nothing."""
    caplog.set_level(logging.WARNING)
    async with place.open() as deployment:
        key = await deployment.manager.create_key("k")
        follower = await held(deployment)
        await warm(deployment, key)
        place.sql("INSERT INTO key_uses VALUES ('somebody', 1, NULL)")
        await follower.catch_up()
        assert (await deployment.manager.verify(**signed(deployment.manager, key))).cached
        assert not caplog.records
