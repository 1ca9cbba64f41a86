"""One set of stores, and the box that goes with a database."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from api_key_manager.core.exceptions import ConfigurationError, EncryptionError
from api_key_manager.core.ports import (
    Feed,
    IdempotencyStore,
    KeyStore,
    NonceStore,
    QuotaStore,
    SecretBox,
)
from api_key_manager.core.records import Load
from api_key_manager.encryption import (
    FOUNDED,
    EnvelopeBox,
    Keyring,
    Providers,
    WrappedKey,
    open_keyring,
    seed,
    wrap,
)
from api_key_manager.storage import Driver, keyrings, scripts
from api_key_manager.storage.keyrings import Row
from api_key_manager.wiring.supervisor import Work

__all__ = ["Backend", "Opened", "open_box"]


class Opened(NamedTuple):
    """What opening the keyring of a database gives.

    Attributes:
        box: of its records.
        keyring: the keys themselves, for what else needs one of them.
        providers: what wraps them.
        origin: of the database.
    """

    box: EnvelopeBox
    keyring: Keyring
    providers: Providers
    origin: str


async def _nothing() -> None:
    """There is nothing more to close."""


@dataclass
class Backend:
    """One set of stores, open.

    Attributes:
        name: where the data is, in words.
        master_key: where the master key is, in words.
        origin: of the database; ``None`` when it ends with the process.
        feed: what others change is announced here; ``None`` when nobody else can.
        knock: tells the feed to look; for wake-ups that come by other ways.
        tasks: what has to run meanwhile, by name.
        load: where records to be judged come from, if not straight from the store.
        keys: the keyring, opened; ``None`` when nothing outlives the process.
    """

    store: KeyStore
    idempotency: IdempotencyStore
    name: str
    master_key: str
    nonces: NonceStore | None = None
    quotas: QuotaStore | None = None
    box: SecretBox | None = None
    origin: str | None = None
    feed: Feed | None = None
    knock: Callable[[], None] = lambda: None
    tasks: Mapping[str, Work] = field(default_factory=dict)
    load: Load | None = None
    keys: Opened | None = None
    close_more: Callable[[], Awaitable[None]] = _nothing

    async def close(self) -> None:
        """Finish what was begun and let go of everything."""
        await self.close_more()
        if self.keys is not None:
            await self.keys.providers.close()
        await self.store.close()


async def open_box(
    driver: Driver, name: str, find: Callable[..., Providers], *, create: bool = True
) -> Opened:
    """Open the keyring of a database; found it, if there is none.

    Args:
        driver: of the database.
        name: the database, in words.
        find: the key-encryption keys, by the database's origin and whether a local one may be made.
        create: whether whoever opens it may decide on the key-encryption key.

    Raises:
        ConfigurationError: the keys do not open, or there are none and none may be minted.
        StorageError, VaultError: they cannot be read or unwrapped now.
    """
    origin, _, _ = await driver.read(scripts.describe)
    rows = await driver.read(keyrings.read_keyring)
    empty = await driver.read(scripts.is_empty)
    if not (rows or empty):
        raise ConfigurationError(f"{name} cannot be used: its keys lost their data keys")
    if not (rows or create):
        # Whoever comes first decides on the master key: that must be who means to.
        raise ConfigurationError(f"{name} has no keys yet: `akm serve` or `akm db upgrade` first")
    providers = find(origin, make=not rows)
    try:
        ring = await _open_ring(driver, providers, rows)
        return Opened(EnvelopeBox(ring), ring, providers, origin)
    except EncryptionError as error:
        await providers.close()
        raise ConfigurationError(f"{name} cannot be used: {error}") from None
    except BaseException:
        await providers.close()
        raise


async def _open_ring(driver: Driver, providers: Providers, rows: Sequence[Row]) -> Keyring:
    now = time.time_ns() // 1000
    if not rows:
        ring = Keyring.fresh()
        minted = [await wrap(providers.current, ring, kind, 1) for kind in FOUNDED]
        # Of two first starts at once the one that comes second uses what the first put in.
        rows = await driver.write(keyrings.found_keyring, [Row(*row) for row in minted], now)
    known = [WrappedKey(*row) for row in rows]
    ring = await open_keyring(providers, known)
    if all(row.seal is None for row in known):
        seeded = await seed(providers, ring, known)
        rows = await driver.write(keyrings.seed_keyring, [Row(*row) for row in seeded], now)
        ring = await open_keyring(providers, [WrappedKey(*row) for row in rows])
    return ring
