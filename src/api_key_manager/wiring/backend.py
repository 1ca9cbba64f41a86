"""One set of stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from api_key_manager.audit.sealing import Notary
from api_key_manager.core.ports import (
    Feed,
    IdempotencyStore,
    KeyStore,
    NonceStore,
    QuotaStore,
    SecretBox,
)
from api_key_manager.core.records import Load
from api_key_manager.storage.log import SqlLog
from api_key_manager.wiring.keyring import StoredKeyring
from api_key_manager.wiring.supervisor import Work

__all__ = ["Backend"]


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
    keys: StoredKeyring | None = None
    log: SqlLog | None = None
    notary: Notary | None = None
    close_more: Callable[[], Awaitable[None]] = _nothing

    async def close(self) -> None:
        """Finish what was begun and let go of everything."""
        await self.close_more()
        if self.keys is not None:
            await self.keys.providers.close()
        await self.store.close()
