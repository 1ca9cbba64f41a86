"""The rows of the contract: what every backend promises is tested on each of these.

A new backend is one function and one entry in ``BACKENDS``.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from api_key_manager.connections.redis import Redis
from api_key_manager.core import AsyncAPIKeyValidator, KeyManager
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.memory import (
    MemoryBox,
    MemoryIdempotency,
    MemoryNonceStore,
    MemoryQuotaStore,
    MemoryStore,
)
from api_key_manager.core.models import canonical_json
from api_key_manager.core.ports import (
    IdempotencyStore,
    KeyStore,
    NonceStore,
    QuotaStore,
    RateLimiter,
    SecretBox,
)
from api_key_manager.core.recorder import Recorder
from api_key_manager.core.records import RecordCache
from api_key_manager.encryption import EnvelopeBox, Keyring
from api_key_manager.storage import (
    SqliteDriver,
    SqliteStore,
    SqlNonceStore,
    SqlStore,
    upgrade,
)
from api_key_manager.storage.nonce_places import bear_anew
from api_key_manager.storage.postgres import PostgresDriver
from api_key_manager.storage.quotas import SqlQuotaStore
from tests.redis_clock import TimedLimiter, TimedNonceStore
from tests.services import Postgres


@dataclass
class Backend:
    """One set of stores.

    ``nonces(limit)`` opens the nonces with a cap per key; ``edit(key_id, column=value, …)`` does
    what somebody does who can write to the data, but does not have the master key.
    """

    store: KeyStore
    box: SecretBox
    idempotency: IdempotencyStore
    nonces: Callable[..., NonceStore]
    quotas: QuotaStore
    birth: float
    edit: Callable[..., None]
    persistent: bool = True
    limiter: Callable[[], RateLimiter] | None = None
    """Makes one; without it there is one in memory."""

    def due(self, ends: dict[str, Any]) -> dict[str, Any]:
        """An end as an editor would set it, with the column beside it where the sweeper looks."""
        return {**ends, "next_end_at": ends["expires_at"]} if ends and self.persistent else ends


@asynccontextmanager
async def in_memory(_: Any, clock: Any) -> AsyncIterator[Backend]:
    now = clock.now
    requests = MemoryIdempotency()
    nonces: dict[tuple, NonceStore] = {}

    def open_nonces(*limit: int) -> NonceStore:
        return nonces.setdefault(limit, MemoryNonceStore(now, *limit))

    def edit(key_id: str, **columns: Any) -> None:
        store._keys[key_id] = replace(store._keys[key_id], **columns)

    store = MemoryStore(receipts=requests)
    quotas = MemoryQuotaStore()
    yield Backend(store, MemoryBox(), requests, open_nonces, quotas, now, edit, persistent=False)


@asynccontextmanager
async def on_sqlite(request: Any, clock: Any) -> AsyncIterator[Backend]:
    path = request.getfixturevalue("tmp_path") / "akm.db"
    await asyncio.to_thread(upgrade, path)
    driver = SqliteDriver(path)
    store = SqliteStore(driver)
    box = EnvelopeBox(Keyring.fresh())
    birth = await driver.write(bear_anew, clock) / 1_000_000

    def edit(key_id: str, **columns: Any) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            for name, value in columns.items():
                text = canonical_json(list(value)) if isinstance(value, tuple) else value
                connection.execute(f"UPDATE keys SET {name} = ? WHERE key_id = ?", (text, key_id))

    yield Backend(
        store, box, store, lambda *limit: SqlNonceStore(driver, *limit), SqlQuotaStore(driver),
        birth, edit,
    )  # fmt: skip
    await store.close()


@asynccontextmanager
async def on_postgres(request: Any, clock: Any) -> AsyncIterator[Backend]:
    server: Postgres = request.getfixturevalue("postgres")
    name = await asyncio.to_thread(server.database, "akm_empty")
    driver = await PostgresDriver.open(server.url(name), connections=10, seconds=10)
    store = SqlStore(driver)
    box = EnvelopeBox(Keyring.fresh())
    birth = await driver.write(bear_anew, clock) / 1_000_000

    def edit(key_id: str, **columns: Any) -> None:
        for column, value in columns.items():
            text = canonical_json(list(value)) if isinstance(value, tuple) else value
            text = bool(text) if column in ("disabled", "expired", "revoked") else text
            set_it = f"UPDATE keys SET {column} = $1 WHERE key_id = $2"
            server.sql(set_it, text, key_id, database=name)

    def open_nonces(*limit: int) -> SqlNonceStore:
        return SqlNonceStore(driver, *limit)

    yield Backend(store, box, store, open_nonces, SqlQuotaStore(driver), birth, edit)
    await store.close()
    await asyncio.to_thread(server.drop, name)


@asynccontextmanager
async def with_redis(request: Any, clock: Any) -> AsyncIterator[Backend]:
    """Keys in memory; nonces and rate limits in a Redis that takes the test's clock for its own."""
    redis = Redis(request.getfixturevalue("redis_at").url, timeout=10)
    async with in_memory(request, clock) as backend:
        first = TimedNonceStore(redis, "akm", clock)
        await first.prepare()
        assert first.birth is not None
        backend.nonces = lambda *limit: TimedNonceStore(redis, "akm", clock, *limit)
        backend.birth = first.birth
        backend.limiter = lambda: TimedLimiter(redis, "akm", clock)
        yield backend
    await redis.close()


BACKENDS = {
    "memory": in_memory,
    "sqlite": on_sqlite,
    "postgresql": on_postgres,
    "redis": with_redis,
}


@pytest.fixture(params=BACKENDS)
async def backend(request, clock) -> AsyncIterator[Backend]:
    async with BACKENDS[request.param](request, clock) as opened:
        # A store that lost nothing lately: new keys can use nonces at once.
        clock.now = float(math.ceil(opened.birth)) + 3600
        yield opened


def make_limiter(backend: Backend, clock: Any) -> RateLimiter:
    """A limiter whose time is the test's."""
    if backend.limiter is not None:
        return backend.limiter()
    return MemoryLimiter(clock=lambda: round(clock() * 1e9))


def make_manager(
    backend: Backend,
    clock: Any,
    *,
    store: Any = None,
    options: Mapping[str, Any] | None = None,
    **validator: Any,
) -> KeyManager:
    """A manager over a backend as the wiring makes one: cached, with batched audit writes."""
    store = store or backend.store
    return KeyManager(
        AsyncAPIKeyValidator(clock=clock, **validator),
        store=store,
        box=backend.box,
        nonces=backend.nonces(),
        quotas=backend.quotas,
        # Nobody else changes the store here, so the lease has no end.
        cache=RecordCache(1000, 300, owned=True),
        recorder=Recorder(store),
        background=True,
        **{"limiter": make_limiter(backend, clock), **(options or {})},
    )


@pytest.fixture
def manager(backend, clock) -> KeyManager:
    return make_manager(backend, clock)


@pytest.fixture
def manager_of(backend, clock) -> Callable[..., KeyManager]:
    """Makes more managers over the same backend."""
    return lambda **options: make_manager(backend, clock, **options)


@pytest.fixture(params=["cached", "direct"])
def either_manager(request, backend, clock) -> KeyManager:
    """With the cache and batched writes, and as a library user makes one: writing through."""
    if request.param == "cached":
        return make_manager(backend, clock)
    validator = AsyncAPIKeyValidator(clock=clock)
    return KeyManager(
        validator, store=backend.store, box=backend.box, nonces=backend.nonces(),
        limiter=make_limiter(backend, clock), quotas=backend.quotas,
    )  # fmt: skip
