"""The keyring of a database while it is in use: opened, learnt again, added to, rewrapped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from api_key_manager.audit.sealing import LogKeys, Notary
from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    ConfigurationError,
    EncryptionError,
    StorageError,
    VaultError,
)
from api_key_manager.core.models import AuditEvent, canonical_json
from api_key_manager.core.records import boot_clock
from api_key_manager.encryption import (
    AUDIT_MAC,
    AUDIT_SIGN,
    DATA,
    FOUNDED,
    PEPPER,
    RECORD_MAC,
    EnvelopeBox,
    Keyring,
    Providers,
    WrappedKey,
    add_missing,
    new_key,
    open_keyring,
    rewrap,
    seed,
    wrap,
)
from api_key_manager.storage import Driver, keyrings, scripts
from api_key_manager.storage.keyrings import Row

__all__ = ["MOST_PER_DATA_KEY", "Standing", "StoredKeyring", "open_box"]

_log = logging.getLogger(__name__)
MOST_PER_DATA_KEY: Final = 1 << 20
"""How many changes of records one data key seals. Each envelope has a key of its own, so no limit
of the cipher is near (docs/decisions/0003-envelopes.md): this bounds what one data key opens."""
# Each process looks every few seconds, so the next one is there long before this one is full.
_MINT_AT: Final = MOST_PER_DATA_KEY // 2
_LOOK_SECONDS: Final = 5.0
_LEARN_SECONDS: Final = 0.2
_REWRAP_BATCH: Final = 50
_PAGE: Final = 200
_LEASE_AGAIN_SECONDS: Final = 1.0


class Standing(NamedTuple):
    """What a keyring is wrapped under: how many keys per name; ``None`` is from before names."""

    current: str
    wrapped: dict[str | None, int]

    @property
    def previous(self) -> int:
        """How many are not under the current key-encryption key."""
        return sum(n for name, n in self.wrapped.items() if name != self.current)


class StoredKeyring:
    """The open keyring of a database.

    Args:
        driver: of the database.
        providers: what wraps it.
        keyring: its keys.
        origin: the database's.

    Attributes:
        box: of its records.
        notary: of its log.
        renewed: called when this process has learnt of a new pepper.
    """

    def __init__(self, driver: Driver, providers: Providers, keyring: Keyring, origin: str) -> None:
        self._driver = driver
        self.providers = providers
        self.keyring = keyring
        self.origin = origin
        self.box = EnvelopeBox(keyring, self.learn)
        self.notary = Notary(LogKeys(keyring.get(AUDIT_MAC, 1), keyring.get(AUDIT_SIGN, 1)), origin)
        self.renewed: Callable[[], None] = lambda: None
        self._turn = asyncio.Lock()
        self._begun = 0
        self._looked_at = -_LOOK_SECONDS
        self._failed = False
        self._opened = boot_clock()
        self.lease_problem: str | None = None

    # The lease

    async def keep_lease(self, seconds: float) -> None:
        """Ask for the data keys again and again: they, and what is made of them, are used for
        ``seconds`` after the key-encryption key last gave them.

        Peppers and the key of the record MACs stay as long as the process.
        """
        self.box.lend(self._opened + seconds)
        wait = seconds / 3
        while True:
            await asyncio.sleep(wait)
            wait = seconds / 3
            try:
                at = boot_clock()
                rows = [WrappedKey(*row) for row in await self._driver.read(keyrings.read_keyring)]
                ring = Keyring({(RECORD_MAC, 1): self.keyring.get(RECORD_MAC, 1)})
                data = [row for row in rows if row.kind == DATA]
                await add_missing(ring, self.providers, data)
            except APIKeyManagerException as error:
                if self.lease_problem is None:
                    _log.error("the data keys' lease cannot be renewed: %s", error)
                self.lease_problem = f"the data keys' lease cannot be renewed: {error.reason}"
                wait = min(wait, _LEASE_AGAIN_SECONDS)
                if not self.box.lent:
                    self.keyring.forget(DATA)
                    self.box.forget()
            else:
                if self.lease_problem is not None:
                    _log.info("the data keys' lease is renewed again")
                self.lease_problem = None
                for number in ring.numbers(DATA):
                    self.keyring.add(DATA, number, ring.get(DATA, number))
                self.box.refresh()
                self.box.lend(at + seconds)

    # Learning

    async def learn(self) -> None:
        """Look for keys that others minted, once for all who ask meanwhile, a few times a second
        at most. What cannot be had is said in the log."""
        asked = self._begun
        async with self._turn:
            if self._begun > asked:
                return  # what was begun after this was asked for is done
            # Whoever edits the database can make every reading of a record ask.
            await asyncio.sleep(self._looked_at + _LEARN_SECONDS - time.monotonic())
            self._begun += 1
            await self._look()

    async def keep(self) -> None:
        """Learn every few seconds, and mint the next data key when it is time."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            async with self._turn:
                self._begun += 1
                if await self._look():
                    await self._mint_when_due()

    async def start_over(self) -> None:
        """Take what the database holds now for all that there is: it came back without its last
        changes, and a key that was lost with them would seal what nobody can open later.

        Raises:
            StorageError: it cannot be read, or does not open.
        """
        async with self._turn:
            rows = await self._driver.read(keyrings.read_keyring)
            try:
                ring = await open_keyring(self.providers, [WrappedKey(*row) for row in rows])
            except (EncryptionError, VaultError) as error:
                raise StorageError(f"the keyring cannot be read again: {error}") from None
            for kind in (DATA, PEPPER):
                self.keyring.forget(kind)
                for number in ring.numbers(kind):
                    self.keyring.add(kind, number, ring.get(kind, number))
            self.box.refresh()
            self.box.pepper.cache_clear()

    async def _look(self) -> bool:
        self._looked_at = time.monotonic()
        try:
            await self._take(await self._driver.read(keyrings.read_keyring))
        except APIKeyManagerException as error:
            if not self._failed:
                _log.error("the keyring cannot be read again: %s", error)
            self._failed = True
            return False
        self._failed = False
        return True

    async def _take(self, rows: Sequence[Row]) -> None:
        """Put in what is new."""
        data, pepper = self._newest(DATA), self._newest(PEPPER)
        await add_missing(self.keyring, self.providers, [WrappedKey(*row) for row in rows])
        if self._newest(DATA) != data or self._newest(PEPPER) != pepper:
            self.box.refresh()
        if self._newest(PEPPER) != pepper:
            self.renewed()

    def _newest(self, kind: str) -> int:
        return max(self.keyring.numbers(kind), default=0)

    # Minting

    async def _mint_when_due(self) -> None:
        try:
            _, revision, _ = await self._driver.read(scripts.describe)
            rows = await self._driver.read(keyrings.read_keyring)
            since = max((row.since for row in rows if row.kind == DATA), default=0)
            if revision - since >= _MINT_AT:
                number = await self.mint(DATA)
                _log.info("data key %d seals from now on", number)
        except APIKeyManagerException as error:
            _log.error("the next data key cannot be minted: %s", error)

    async def mint(self, kind: str, event: AuditEvent | None = None) -> int:
        """Mint the next key of a kind, and use it; its number. If another process did so at the
        same time, its key is the one.

        Raises:
            EncryptionError, StorageError, VaultError: it cannot be minted now.
        """
        await self._take(await self._driver.read(keyrings.read_keyring))
        number = self._newest(kind) + 1
        row = await wrap(self.providers.current, self.keyring, kind, number, new_key())
        stamp = self.notary.macs.stamp
        await self._take(
            await self._driver.write(keyrings.add_key, Row(*row), event, _now(), stamp)
        )
        return self._newest(kind)

    # The key-encryption key

    async def standing(self) -> Standing:
        """What the keys are wrapped under now. Raises ``StorageError``."""
        wrapped: dict[str | None, int] = {}
        for row in await self._driver.read(keyrings.read_keyring):
            wrapped[row.kek] = wrapped.get(row.kek, 0) + 1
        return Standing(self.providers.current.name, wrapped)

    async def rewrap(self, actor: str, progress: Callable[[int, int], None]) -> int:
        """Wrap every key anew that is not wrapped under the current key-encryption key.

        In batches, each one transaction that replaces what is still as it was read: it can be cut
        off anywhere and begun again, and two may run at once.

        Args:
            actor: who does it, for the audit log.
            progress: called with how many are done and how many there were.

        Returns:
            How many were wrapped anew.

        Raises:
            EncryptionError, StorageError, VaultError: it cannot go on; what is done stays.
        """
        current, done = self.providers.current, 0
        while True:
            rows = await self._driver.read(keyrings.read_keyring)
            stale = [row for row in rows if row.kek != current.name]
            total = done + len(stale)
            progress(done, total)
            if not stale:
                return done
            batch = stale[:_REWRAP_BATCH]
            changes = [(row, Row(*await rewrap(self.providers, WrappedKey(*row)))) for row in batch]
            left = len(stale) - len(batch)
            event = _event("kek_rotated", actor, to=current.name, keys=len(batch), left=left)
            done += await self._driver.write(
                keyrings.rewrap_keys, changes, event, self.notary.macs.stamp
            )

    # Peppers

    async def rotate_pepper(self, actor: str) -> int:
        """Mint a new pepper; its number. Digests move to it as their tokens are used.

        Raises:
            EncryptionError, StorageError, VaultError: it cannot be minted now.
        """
        number = self._newest(PEPPER) + 1
        return await self.mint(PEPPER, _event("pepper_rotated", actor, pepper=number))

    async def digests(self) -> dict[int, int]:
        """How many live digests are under each pepper that is there. Raises ``StorageError``."""
        counted = await self._driver.read_aside(keyrings.count_digests)
        rows = await self._driver.read(keyrings.read_keyring)
        numbers = [row.number for row in rows if row.kind == PEPPER]
        return {number: counted.get(number, 0) for number in sorted({*numbers, *counted})}

    async def under(self, least: int, after: str) -> list[str]:
        """A page of the ids of keys with live digests under older peppers than ``least``."""
        return await self._driver.read_aside(keyrings.under_peppers, least, after, _PAGE)

    async def remove_peppers(self, least: int, actor: str) -> int:
        """Remove older peppers than ``least``, unless digests are left under them; how many are."""
        event = _event("pepper_retired", actor, up_to=least - 1)
        return await self._driver.write(
            keyrings.retire_peppers, least, event, self.notary.macs.stamp
        )


def _now() -> int:
    return time.time_ns() // 1000


def _event(action: str, actor: str, **detail: Any) -> AuditEvent:
    return AuditEvent(_now(), action, None, actor, detail_json=canonical_json(detail))


async def open_box(
    driver: Driver, name: str, find: Callable[..., Providers], *, create: bool = True
) -> StoredKeyring:
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
        return StoredKeyring(driver, providers, ring, origin)
    except EncryptionError as error:
        await providers.close()
        raise ConfigurationError(f"{name} cannot be used: {error}") from None
    except BaseException:
        await providers.close()
        raise


async def _open_ring(driver: Driver, providers: Providers, rows: Sequence[Row]) -> Keyring:
    if not rows:
        fresh = Keyring.fresh()
        minted = [
            Row(*await wrap(providers.current, fresh, kind, 1, fresh.get(kind, 1)))
            for kind in FOUNDED
        ]
        # Of two first starts at once the one that comes second uses what the first put in.
        rows = await driver.write(keyrings.found_keyring, minted, _now())
    known = [WrappedKey(*row) for row in rows]
    ring = await open_keyring(providers, known)
    if all(row.seal is None and row.kek is None for row in known):
        seeded = [Row(*row) for row in await seed(providers, ring, known)]
        rows = await driver.write(keyrings.seed_keyring, seeded, _now())
        ring = await open_keyring(providers, [WrappedKey(*row) for row in rows])
    return ring
