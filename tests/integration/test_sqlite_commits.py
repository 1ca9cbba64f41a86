"""The writer: many callers, one commit; durable before it says so; each failure its own."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from api_key_manager.connections import Statement
from api_key_manager.connections.tables import changes
from api_key_manager.core import KeyExistsError, StorageError
from api_key_manager.storage import SqliteDriver
from tests.integration.places import Place, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def watch(driver: SqliteDriver) -> list[str]:
    """Every statement that the writer runs from now on."""
    statements: list[str] = []
    driver._writer.set_trace_callback(statements.append)
    return statements


class Gate:
    """Holds the writer's thread until it is opened, so that others line up behind it."""

    def __init__(self, driver: SqliteDriver) -> None:
        self._opened, entered = threading.Event(), threading.Event()
        self._driver = driver

        def script():
            entered.set()
            self._opened.wait(10)
            return
            yield

        self.job = driver._submit(script())
        assert entered.wait(10)

    async def holds(self, jobs: int) -> None:
        """Wait until so many have lined up."""
        deadline = time.monotonic() + 8
        while self._driver._jobs.qsize() < jobs:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    def open(self) -> None:
        self._opened.set()


async def test_concurrent_creates_share_commits(place):
    """200 creates at once take a few commits, are all acknowledged, and all there."""
    async with place.open() as deployment:
        manager = deployment.manager
        await deployment.supervisor.stop()
        statements = watch(manager.store.driver)
        made = await asyncio.gather(*(manager.create_key(f"k{i}") for i in range(200)))
        commits = statements.count("COMMIT")
        assert 1 <= commits <= 20
        assert statements.count("BEGIN IMMEDIATE") == commits
        assert len(manager.list_keys()) == len(made) == 200


async def test_acknowledged_only_after_the_commit(place):
    """Nobody is told "done" while another connection cannot see it."""
    async with place.open() as deployment:
        manager = deployment.manager
        for i in range(30):
            await manager.create_key(f"k{i}")
            assert place.sql("SELECT count(*) FROM keys") == [(i + 1,)]


async def test_one_bad_script_fails_alone(place):
    """In a group, who asks for a taken id is told so, and leaves no trace; the others commit."""
    async with place.open() as deployment:
        manager = deployment.manager
        await manager.create_key("taken")
        await deployment.supervisor.stop()
        before = place.sql("SELECT revision FROM deployment")[0][0]
        statements = watch(manager.store.driver)
        gate = Gate(manager.store.driver)
        names = ["a", "taken", "b", "taken", "c"]
        calls = [asyncio.create_task(manager.create_key(name)) for name in names]
        await gate.holds(5)
        gate.open()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [
            dict, KeyExistsError, dict, KeyExistsError, dict
        ]  # fmt: skip
        assert statements.count("COMMIT") <= 3
        assert statements.count("ROLLBACK TO job") == 2
        assert {key["key_id"] for key in manager.list_keys()} == {"taken", "a", "b", "c"}
        assert place.sql("SELECT revision FROM deployment") == [(before + 3,)]
        assert len(place.sql("SELECT * FROM changes")) == before + 3
        assert len([e for e in manager.get_audit_log() if e["action"] == "key_created"]) == 4


async def test_half_a_script_is_never_committed(place):
    """A script that fails after it wrote takes back what it wrote, in a group or not."""
    async with place.open(background=False) as deployment:
        driver = deployment.manager.store.driver
        insert = Statement(changes.insert())

        def bad():
            yield insert(revision=77, key_id="k", changed_at=1)
            raise RuntimeError("a defect")

        def good():
            yield insert(revision=78, key_id="k", changed_at=1)

        gate = Gate(driver)
        results = asyncio.gather(driver.write(bad), driver.write(good), return_exceptions=True)
        await gate.holds(2)
        gate.open()
        failed, done = await results
        assert isinstance(failed, StorageError)
        assert "defect" not in str(failed)
        assert done is None
        assert place.sql("SELECT revision FROM changes") == [(78,)]


async def test_pragmas(place):
    """Every connection waits, writes ahead, checks foreign keys and syncs in full; readers
    cannot write."""
    async with place.open() as deployment:
        driver = deployment.manager.store.driver
        for name in ("_writer", "_reader", "_long_reader", "_watcher"):
            connection = getattr(driver, name)

            def pragma(what: str, connection: sqlite3.Connection = connection) -> object:
                return connection.execute(f"PRAGMA {what}").fetchone()[0]

            assert pragma("journal_mode") == "wal"
            assert pragma("synchronous") == 2, "FULL: NORMAL may lose commits with the power"
            assert pragma("foreign_keys") == 1
            assert pragma("busy_timeout") >= 5000
            assert pragma("query_only") == (name != "_writer")


async def test_disk_full(place):
    """On a full disk each write says so, nothing promised is lost, reads go on, and once there
    is room writes do, too, without a restart."""
    async with place.open() as deployment:
        manager = deployment.manager
        writer = manager.store.driver._writer
        first = await manager.create_key("first")
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {pages + 4}")
        promised, refused = [first], []
        fill = {"fill": "x" * 15_000}
        for i in range(10):
            try:
                promised.append(await manager.create_key(f"k{i}", metadata=fill))
            except StorageError as error:
                refused.append(str(error))
        assert len(refused) >= 5
        assert all("full" in message for message in refused)
        many = await asyncio.gather(
            *(manager.create_key(f"m{i}", metadata=fill) for i in range(5)), return_exceptions=True
        )
        assert all(isinstance(one, StorageError) for one in many)
        for key in promised:
            assert await manager.verify(**signed(manager, key))
        assert deployment.problems() == [] or "audit log" in deployment.problems()[0]
        writer.execute("PRAGMA max_page_count = 1073741823")
        for i in range(10):
            if f"k{i}" not in {key["key_id"] for key in promised}:
                promised.append(await manager.create_key(f"k{i}", metadata=fill))
        deadline = time.monotonic() + 10
        while deployment.problems():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    async with place.open() as deployment:
        names = {key["key_id"] for key in deployment.manager.list_keys()}
        assert names == {key["key_id"] for key in promised}
        for key in promised:
            assert await deployment.manager.verify(**signed(deployment.manager, key))
    assert place.sql("PRAGMA integrity_check") == [("ok",)]


async def test_who_gives_up_takes_nobody_along(place):
    """A caller that is cancelled while its write waits does not stop the writer; the write is
    made, and everybody behind it gets an answer."""
    async with place.open() as deployment:
        manager = deployment.manager
        await deployment.supervisor.stop()  # it writes, too
        gate = Gate(manager.store.driver)
        given_up = asyncio.create_task(manager.create_key("given-up"))
        behind = [asyncio.create_task(manager.create_key(f"k{i}")) for i in range(3)]
        await gate.holds(4)
        given_up.cancel()
        await asyncio.sleep(0)
        gate.open()
        async with asyncio.timeout(10):
            await asyncio.gather(*behind)
            await manager.create_key("later")
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert (await manager.get_key("given-up"))["key_id"] == "given-up"


async def test_closing_answers_everybody(place):
    """What was handed in before the close is written; what comes after is refused, never left
    waiting."""
    async with place.open() as deployment:
        manager = deployment.manager
        driver = manager.store.driver
        await deployment.supervisor.stop()  # it writes, too
        gate = Gate(driver)
        waiting = [asyncio.create_task(manager.create_key(f"k{i}")) for i in range(5)]
        await gate.holds(5)
        closing = asyncio.create_task(driver.close())
        await gate.holds(6)
        late = asyncio.create_task(manager.create_key("late"))
        await asyncio.sleep(0.05)
        gate.open()
        async with asyncio.timeout(10):
            await asyncio.gather(*waiting, closing)
            with pytest.raises(StorageError, match="closed"):
                await late
    assert len(place.sql("SELECT * FROM keys")) == 5


async def test_reads_do_not_wait_for_writes(place):
    """While a write transaction is open, keys are read and validated."""
    async with place.open() as deployment:
        manager = deployment.manager
        keys = [await manager.create_key() for _ in range(3)]
        gate = Gate(manager.store.driver)
        begun = time.monotonic()
        for key in keys:
            assert await manager.verify(**signed(manager, key))
        assert len(await manager.store.load([keys[0]["key_id"]])) == 1
        assert time.monotonic() - begun < 5, "the gate opens by itself after 10"
        gate.open()
