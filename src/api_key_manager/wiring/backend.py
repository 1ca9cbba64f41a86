"""One set of stores, and the box that goes with a database."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from api_key_manager.audit.sealing import LogKeys, Notary
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
from api_key_manager.encryption import DATA, PEPPER, EnvelopeBox, Keyring, MasterKey, WrappedKey
from api_key_manager.storage import Driver, scripts
from api_key_manager.storage.log import SqlLog
from api_key_manager.wiring.supervisor import Work

__all__ = ["Backend", "Kept", "log_keys", "open_box"]


class Kept(NamedTuple):
    """What a database keeps under the master key.

    ``box`` seals secrets, ``notary`` vouches for the log; ``source`` is where the master key is, in
    words.
    """

    box: EnvelopeBox
    notary: Notary
    origin: str
    source: str


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
        log: the transparency log, where there is one.
        notary: vouches for it.
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
    log: SqlLog | None = None
    notary: Notary | None = None
    close_more: Callable[[], Awaitable[None]] = _nothing

    async def close(self) -> None:
        """Finish what was begun and let go of everything."""
        await self.close_more()
        await self.store.close()


async def open_box(
    driver: Driver, name: str, find: Callable[..., MasterKey], *, create: bool = True
) -> Kept:
    """What needs the master key of a database."""
    origin, _, _ = await driver.read(scripts.describe)
    known = await driver.read(scripts.read_keyring)
    empty = await driver.read(scripts.is_empty)
    if not (known or empty):
        raise ConfigurationError(f"{name} cannot be used: its keys lost their data keys")
    if not (known or create):
        # Whoever comes first decides on the master key: that must be who means to.
        raise ConfigurationError(f"{name} has no keys yet: `akm serve` or `akm db upgrade` first")
    master = find(origin, make=not known)
    if not known:
        minted = [Keyring.mint(master, kind, 1) for kind in (DATA, PEPPER)]
        # Of two first starts at once the one that comes second uses what the first put in.
        known = await driver.write(scripts.found_keyring, minted, time.time_ns() // 1000)
    try:
        box = EnvelopeBox(master, Keyring(master, [WrappedKey(*row) for row in known]))
    except EncryptionError as error:
        raise ConfigurationError(f"{name} cannot be used: {error}") from None
    return Kept(box, Notary(log_keys(master), origin), origin, master.source)


def log_keys(master: MasterKey) -> LogKeys:
    """The keys of the transparency log."""
    return LogKeys(master.derive("audit-mac"), master.derive("audit-sign"))
