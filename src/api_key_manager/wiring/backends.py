"""Where the keys of a deployment live: the only module that names the databases."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.core.memory import MemoryIdempotency, MemoryStore
from api_key_manager.storage import SqliteDriver, SqliteFeed, SqliteStore, SqlNonceStore, upgrade
from api_key_manager.storage.log import SqlLog
from api_key_manager.storage.quotas import SqlQuotaStore
from api_key_manager.wiring.backend import Backend
from api_key_manager.wiring.keyring import open_box
from api_key_manager.wiring.observing import Observing
from api_key_manager.wiring.places import database_path
from api_key_manager.wiring.providers import find_providers

__all__ = ["open_backend"]


async def open_backend(
    settings: Settings, observing: Observing, *, create: bool, background: bool
) -> Backend:
    """The stores that the settings name.

    Args:
        create: whether a database that does not exist is made.
        background: whether what others change is to be followed.

    Raises:
        ConfigurationError: the master key is missing or wrong, or the database is none of ours.
        StorageError: the database cannot be opened.
    """
    if settings.on_network:
        # Its driver is slow to import.
        from api_key_manager.wiring.postgres import open_postgres

        return await open_postgres(settings, observing, create=create, background=background)
    path = database_path(settings)
    if path is None:
        idempotency = MemoryIdempotency()
        store = MemoryStore(receipts=idempotency)
        return Backend(store, idempotency, "in memory, gone when this process ends", "none needed")
    return await _on_sqlite(settings, path, observing, create=create)


async def _on_sqlite(
    settings: Settings, path: Path, observing: Observing, *, create: bool
) -> Backend:
    await asyncio.to_thread(_prepare, path, create)
    worker = observing.worker
    driver = SqliteDriver(path, turns=None if worker is None else worker.folder)
    try:
        find = partial(find_providers, settings, path)
        keys = await open_box(driver, str(path), find)
        observe, stamp = observing.meter.operation, keys.notary.macs.stamp
        store = SqliteStore(driver, observe=observe, stamp=stamp)
        return Backend(
            store, store, str(path), keys.providers.current.source,
            SqlNonceStore(driver, observe=observe), SqlQuotaStore(driver, observe=observe),
            keys.box, keys.origin, SqliteFeed(driver), keys=keys,
            log=SqlLog(driver, stamp), notary=keys.notary,
        )  # fmt: skip
    except BaseException:
        await driver.close()
        raise


def _prepare(path: Path, create: bool) -> None:
    if not create and not path.exists():
        raise ConfigurationError(
            f"there is no database at {path}: `akm serve` or `akm db upgrade` makes one,"
            " DATABASE_URL names another"
        )
    upgrade(path)
