"""Two processes that write to one file at the same time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from api_key_manager.core import lifecycle
from api_key_manager.core.models import Change
from api_key_manager.core.records import is_intact, seal_record
from api_key_manager.storage import scripts
from api_key_manager.storage.events import unstamped
from tests.integration.places import Place

ROUNDS = 60


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_two_writers(place):
    """Two processes and this one write as fast as they can to own and shared keys: nobody is told
    that the file is busy, each promise is kept, revisions are one unbroken line, and so is the
    feed."""
    async with place.open() as deployment:
        manager = deployment.manager
        await manager.create_key("shared")
        with place.child("write", "a", ROUNDS) as a, place.child("write", "b", ROUNDS) as b:
            for child in (a, b):
                assert await asyncio.to_thread(child.hear) == "ready"
            for child in (a, b):
                child.tell("go")
            for i in range(ROUNDS):
                await manager.create_key(f"c-{i}")
            promised = [*await asyncio.to_thread(a.done), *await asyncio.to_thread(b.done)]

        created = {line.split()[1] for line in promised if line.startswith("created")}
        changed = Counter(line.split()[1] for line in promised if line.startswith("changed"))
        assert created == {f"{name}-{i}" for name in "ab" for i in range(ROUNDS)}
        assert changed["rotate"] > 0
        assert changed["update"] > 0
        keys = {key["key_id"]: key for key in manager.list_keys()}
        assert keys.keys() == created | {f"c-{i}" for i in range(ROUNDS)} | {"shared"}
        assert keys["shared"]["version"] == 1 + changed["rotate"]
        total = 1 + 3 * ROUNDS + changed.total()
        assert place.sql("SELECT revision FROM deployment") == [(total,)]
        feed = place.sql("SELECT revision, key_id FROM changes ORDER BY revision")
        assert [revision for revision, _ in feed] == list(range(1, total + 1))
        assert Counter(key_id for _, key_id in feed) == Counter(
            {**dict.fromkeys(keys, 1), "shared": 1 + changed.total()}
        )
        assert place.sql("SELECT max(revision) FROM keys") == [(total,)]
        assert place.sql("SELECT count(DISTINCT revision), count(*) FROM keys") == [
            (len(keys), len(keys))
        ]
        events = Counter(event["action"] for event in manager.get_audit_log())
        assert events["key_created"] == len(keys)
        assert events["key_rotated"] == changed["rotate"]
        assert events["key_updated"] == changed["update"]
        for record in await manager.store.load(list(keys)):
            assert is_intact(record, manager.box)
    assert place.sql("PRAGMA integrity_check") == [("ok",)]


async def test_writer_waits_for_a_busy_file(place):
    """A write that meets somebody else's transaction waits for its end instead of failing."""
    async with place.open() as deployment:
        with closing(sqlite3.connect(place.file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            write = asyncio.create_task(deployment.manager.create_key("k"))
            await asyncio.sleep(0.3)
            assert not write.done()
            other.execute("ROLLBACK")
            assert (await write)["key_id"] == "k"


async def test_a_list_sees_rows_and_versions_of_one_state(place):
    """A rotation between the two statements of a list must not make a good key look edited."""
    async with place.open() as deployment:
        manager = deployment.manager
        await manager.create_key("k", owner="acme")
        driver, run = manager.store.driver, manager.store.driver._run
        rotated = []

        def slow(connection, script):
            def watched():
                step = next(script)
                while True:
                    rows = yield step
                    if connection is driver._long_reader and not rotated:
                        rotated.append(driver.write_now(_rotation, manager))
                    try:
                        step = script.send(rows)
                    except StopIteration as stop:
                        return stop.value

            return run(connection, watched())

        driver._run = slow
        page = await manager.find_keys(owner="acme")
        assert rotated
        assert [key["key_id"] for key in page["items"]] == ["k"]


def _rotation(manager):
    """The script of a rotation, from the record as it is now."""
    record = manager.store.driver.read_now(scripts.load, "k")
    new = seal_record(manager.box, "k", 2, "another secret", "signed", record.created_at)
    changed = lifecycle.rotate(record, new, 0, record.created_at + 1)
    return scripts.apply(
        [Change(changed, record.revision)], manager.box.record_mac, None, unstamped
    )
