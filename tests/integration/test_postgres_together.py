"""What one node does in bulk on PostgreSQL leaves the others room."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from api_key_manager.connections import Many, Script, Step
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.storage import SqlNonceStore, SqlStore, postgres_schema, scripts
from api_key_manager.storage.migrations import config
from api_key_manager.storage.postgres_schema import current_of, upgrade_at
from api_key_manager.storage.schema import HEAD
from api_key_manager.wiring import Deployment, diagnose
from tests.integration.postgres_nodes import Shared, eventually
from tests.services import Postgres

FAR = 4_000_000_000


@pytest.fixture
def shared(tmp_path: Path, postgres: Postgres) -> Iterator[Shared]:
    place = Shared(tmp_path, postgres)
    yield place
    place.drop()


def nonces_of(node: Deployment) -> SqlNonceStore:
    assert isinstance(node.manager.store, SqlStore)
    return SqlNonceStore(node.manager.store.driver)


def claims(key_id: str, count: int, expires_at: int) -> list[Claim]:
    return [Claim(key_id, f"{expires_at}-{i:010d}", 1, expires_at, FAR) for i in range(count)]


def counted(script: Callable[..., Script[Any]], seen: list[int]) -> Callable[..., Script[Any]]:
    """The same script, which says how many statements it took."""

    def run(*args: Any) -> Script[Any]:
        inner, steps = script(*args), list[Step | Many]()
        try:
            step = next(inner)
            while True:
                steps.append(step)
                step = inner.send((yield step))
        except StopIteration as stop:
            seen.append(len(steps))
            return stop.value

    return run


async def test_bulk_revocation_takes_few_statements(shared, monkeypatch):
    """As many for a hundred keys as for one: each is a round trip in which nobody else writes."""
    seen: list[int] = []
    async with shared.open() as node:
        for i in range(250):
            await node.manager.create_key(f"k{i:03d}", owner="acme")
        monkeypatch.setattr(scripts, "apply", counted(scripts.apply, seen))
        await node.manager.revoke_key("k007")
        assert (await node.manager.revoke_keys(owner="acme"))["revoked"] == 249
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] < 12
    assert shared.sql("SELECT count(*) FROM keys WHERE revoked") == [(250,)]
    # Every change has its row in the feed and its event, in the same order.
    feed = shared.sql("SELECT key_id FROM changes ORDER BY revision DESC LIMIT 250")
    events = shared.sql("SELECT key_id FROM audit_events WHERE action = 'key_revoked' ORDER BY id")
    assert feed[::-1] == events
    assert len(events) == 250


async def test_pruning_at_once(shared):
    """Several nodes that prune at the same time lower a key's count once for each nonce."""
    async with shared.open() as a, shared.open() as b, shared.open() as c:
        stores = [nonces_of(node) for node in (a, b, c)]
        for key_id, count, expires_at in (("k", 700, 5), ("j", 100, 5), ("k", 300, FAR)):
            taken = await stores[0].claim(claims(key_id, count, expires_at), 1, 60)
            assert set(taken) == {ClaimResult.TAKEN}

        async def prune(store: SqlNonceStore) -> int:
            return sum([await store.prune(6) for _ in range(6)])

        assert sum(await asyncio.gather(*map(prune, stores))) == 800
    assert shared.sql("SELECT key_id, held FROM nonce_counts") == [("k", 300)]


async def test_changes_go_on_while_nonces_are_removed(shared):
    """Up to when nonces are forgotten is known before they are, and nobody who changes a key waits
    for the removal."""
    async with shared.open() as node:
        store = nonces_of(node)
        await store.claim(claims("k", 10, 5), 1, 60)
        held = await asyncpg.connect(shared.url)
        hold = held.transaction()
        await hold.start()
        await held.execute("SELECT * FROM nonce_counts FOR UPDATE")
        pruning = asyncio.create_task(store.prune(6))
        await eventually(
            lambda: shared.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        )
        await node.manager.create_key("meanwhile")
        assert not pruning.done()
        assert shared.sql("SELECT nonces_pruned_to FROM deployment") == [(6,)]
        assert shared.sql("SELECT count(*) FROM nonces") == [(10,)]
        assert await store.claim(claims("other", 1, 5), 1, 60) == [ClaimResult.REFUSED]
        await hold.rollback()
        await held.close()
        assert await pruning == 10
    assert shared.sql("SELECT * FROM nonce_counts") == []


class TestMigration:
    """One that must wait for somebody who has a table in use for long, as a backup does."""

    @pytest.fixture
    async def old(self, tmp_path, postgres, monkeypatch):
        """A database of the first schema."""
        monkeypatch.setattr(postgres_schema, "_LOCK_SECONDS", 1)
        monkeypatch.setattr(postgres_schema, "_PAUSE_SECONDS", 0.2)
        place = Shared(tmp_path, postgres, template="template0")
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: asyncpg.connect(place.url),
            poolclass=NullPool,
        )
        async with engine.begin() as connection:
            await connection.run_sync(lambda c: command.upgrade(config(c), "0001"))
        await engine.dispose()
        yield place
        place.drop()

    async def test_gives_way(self, old, caplog):
        """Readers that come later are let through, and it is done when the first one has ended."""
        backup, node = await asyncpg.connect(old.url), await asyncpg.connect(old.url)
        reading = backup.transaction()
        await reading.start()
        await backup.fetch("SELECT count(*) FROM keys")
        with caplog.at_level(logging.WARNING):
            work = asyncio.create_task(upgrade_at(old.url))
            longest, until = 0.0, time.monotonic() + 4
            while time.monotonic() < until:
                at = time.monotonic()
                await node.fetch("SELECT key_id FROM keys", timeout=3)
                await node.fetch("SELECT revision FROM deployment", timeout=3)
                longest = max(longest, time.monotonic() - at)
                await asyncio.sleep(0.01)
            assert not work.done()
            await reading.rollback()
            assert await work
        assert longest > 0.5  # it was in the way, for a while
        assert await current_of(old.url) == HEAD
        waits = [r for r in caplog.records if "waits up to 120 s" in r.getMessage()]
        assert len(waits) == 1
        await backup.close()
        await node.close()

    async def test_gives_up(self, old, monkeypatch):
        """In the end it says what to do, and the schema is as it was."""
        monkeypatch.setattr(postgres_schema, "_PATIENCE_SECONDS", 0.5)
        backup = await asyncpg.connect(old.url)
        async with backup.transaction():
            await backup.fetch("SELECT count(*) FROM keys")
            with pytest.raises(StorageError, match=r"for 0.5 s another .*run: akm db upgrade"):
                await upgrade_at(old.url)
        await backup.close()
        assert await current_of(old.url) == "0001"


async def warnings_of(shared: Shared, caplog: pytest.LogCaptureFixture, **more: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        async with shared.open(**more):
            pass
    return [r.getMessage() for r in caplog.records if "each node counts" in r.getMessage()]


async def advice_of(shared: Shared, **more: Any) -> list[str]:
    found = [f async for f in diagnose(shared.settings(**more)) if f.topic == "rate limits"]
    assert {f.level for f in found} <= {"warning"}
    return [f.message for f in found]


async def test_limits_that_each_node_counts(shared, caplog, redis_at):
    """The log says so once at the start, and the doctor says the same; not when Redis counts."""
    assert await warnings_of(shared, caplog) == await advice_of(shared) == []
    more = {"RATE_LIMIT_ENABLED": True}
    (told,) = await warnings_of(shared, caplog, **more)
    assert told.startswith("RATE_LIMIT_ENABLED=true, and without REDIS_URL")
    assert await advice_of(shared, **more) == [told]
    async with shared.open() as node:
        limit = {"name": "hour", "limit": 5, "window_seconds": 3600}
        await node.manager.create_key("k", rate_limits=[limit])
    (told,) = await warnings_of(shared, caplog)
    assert told.startswith("1 key has rate limits")
    assert await advice_of(shared) == [told]
    more = {"REDIS_URL": redis_at.url, "RATE_LIMIT_ENABLED": True}
    assert await warnings_of(shared, caplog, **more) == await advice_of(shared, **more) == []
