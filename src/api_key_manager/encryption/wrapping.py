"""From the rows of the store to a keyring, and back."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from api_key_manager.core.exceptions import EncryptionError
from api_key_manager.encryption.keyring import (
    AUDIT_MAC,
    AUDIT_SIGN,
    KEY_BYTES,
    RECORD_MAC,
    Keyring,
)
from api_key_manager.encryption.provider import KeyEncryption, LocalKey, Providers

__all__ = ["WrappedKey", "add_missing", "open_keyring", "rewrap", "seed", "wrap"]

_AT_ONCE: Final = 8
_DERIVED: Final = (RECORD_MAC, AUDIT_MAC, AUDIT_SIGN)


class WrappedKey(NamedTuple):
    """A key as it lies in the store.

    ``kek`` names what wrapped it and ``seal`` shows that it belongs there (:meth:`Keyring.seal`);
    both are ``None`` in a database from before they were stored. ``since`` is the revision of the
    store when the key was minted.
    """

    kind: str
    number: int
    wrapped: bytes
    kek: str | None = None
    seal: bytes | None = None
    since: int = 0


async def wrap(
    provider: KeyEncryption, ring: Keyring, kind: str, number: int, key: bytes
) -> WrappedKey:
    """A key as it is to be stored in the place of a ring.

    Raises:
        StorageError, VaultError: it cannot be wrapped now.
    """
    wrapped = await provider.wrap(key, _bound(kind, number))
    return WrappedKey(kind, number, wrapped, provider.name, ring.seal(kind, number, key))


async def rewrap(providers: Providers, row: WrappedKey) -> WrappedKey:
    """The same key wrapped under the current key-encryption key.

    Raises:
        EncryptionError, StorageError, VaultError: as :func:`open_keyring`.
    """
    key, _ = await _unwrap(providers, row)
    wrapped = await providers.current.wrap(key, _bound(row.kind, row.number))
    return row._replace(wrapped=wrapped, kek=providers.current.name)


async def open_keyring(providers: Providers, rows: Sequence[WrappedKey]) -> Keyring:
    """All keys that the store holds.

    Raises:
        EncryptionError: a key does not unwrap, is wrapped under a key-encryption key that is not
            among the providers, or belongs elsewhere.
        StorageError, VaultError: they cannot be unwrapped now.
    """
    ring = Keyring({})
    await add_missing(ring, providers, rows)
    return ring


async def add_missing(ring: Keyring, providers: Providers, rows: Iterable[WrappedKey]) -> None:
    """Unwrap what the ring does not have. None of it is added when any of it cannot be believed.

    Raises:
        EncryptionError, StorageError, VaultError: as :func:`open_keyring`.
    """
    rows = [row for row in rows if (row.kind, row.number) not in ring]
    _refuse_strange(rows)
    _refuse_unknown_names(providers, rows)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(row: WrappedKey) -> bytes:
        async with turns:
            return (await _unwrap(providers, row))[0]

    keys = await asyncio.gather(*(one(row) for row in rows))
    found = Keyring({(r.kind, r.number): key for r, key in zip(rows, keys, strict=True)})
    if (RECORD_MAC, 1) in ring:
        found.add(RECORD_MAC, 1, ring.get(RECORD_MAC, 1))
    elif (RECORD_MAC, 1) not in found and any(row.seal is not None for row in rows):
        raise EncryptionError(f"there is no {RECORD_MAC} key number 1")
    for row in rows:
        # Without a record-MAC key they are from before there was one in a keyring.
        key = found.get(row.kind, row.number)
        if (RECORD_MAC, 1) in found and not _belongs(found, row, key):
            raise EncryptionError(
                f"the {row.kind} key number {row.number} was changed, or is of another database"
            )
    for row, key in zip(rows, keys, strict=True):
        ring.add(row.kind, row.number, key)


def _belongs(ring: Keyring, row: WrappedKey, key: bytes) -> bool:
    seal = row.seal if isinstance(row.seal, bytes) else b""
    return hmac.compare_digest(ring.seal(row.kind, row.number, key), seal)


def _refuse_strange(rows: Sequence[WrappedKey]) -> None:
    for row in rows:
        place: tuple[object, object] = row[:2]
        if not (isinstance(place[0], str) and isinstance(place[1], int)):
            raise EncryptionError("its keyring was edited")


def _refuse_unknown_names(providers: Providers, rows: Sequence[WrappedKey]) -> None:
    names = {each.name for each in providers.every}
    unknown = [row for row in rows if row.kek is not None and row.kek not in names]
    if unknown:
        current = providers.current
        # Whoever edits the database writes here what they like.
        others = ", ".join(sorted({ascii(row.kek)[:64] for row in unknown})[:4])
        raise EncryptionError(
            f"{len(unknown)} of its keys are wrapped under {others}, and the key-encryption key"
            f" ({current.source}) is {current.name}: set that one back; or, to change to this one,"
            " set that one as AKM_PREVIOUS_MASTER_KEY or AKM_PREVIOUS_MASTER_KEY_FILE (as ever, if"
            " it is Vault's) until `akm secrets rotate-kek` is done"
        )


async def _unwrap(providers: Providers, row: WrappedKey) -> tuple[bytes, KeyEncryption]:
    """One key, and whichever provider wrapped it."""
    for provider in providers.every:
        # Before names were stored there were only local keys.
        fits = provider.name == row.kek if row.kek else isinstance(provider, LocalKey)
        if fits and isinstance(row.wrapped, bytes):
            try:
                key = await provider.unwrap(row.wrapped, _bound(row.kind, row.number))
            except EncryptionError:
                continue
            if len(key) == KEY_BYTES:
                return key, provider
    tried = " and ".join(f"({each.source})" for each in providers.every)
    raise EncryptionError(f"the master key {tried} does not open this database")


async def seed(providers: Providers, ring: Keyring, rows: Sequence[WrappedKey]) -> list[WrappedKey]:
    """Bring the keyring of an older database to what this version expects.

    What was derived from the master key becomes keys of the ring, with exactly the derived values,
    so that what was made with them holds, and the master key can be changed.

    Args:
        ring: the old one; gets the new keys.
        rows: the old ones.

    Returns:
        All rows, old and new, wrapped under the key that the old ones are wrapped under.

    Raises:
        EncryptionError: no local master key opens the old ones.
    """
    _, provider = await _unwrap(providers, rows[0])
    if not isinstance(provider, LocalKey):
        raise EncryptionError(f"there is no {RECORD_MAC} key number 1")
    for kind in _DERIVED:
        ring.add(kind, 1, provider.derived(kind))
    old = [
        row._replace(
            kek=provider.name,
            seal=ring.seal(row.kind, row.number, ring.get(row.kind, row.number)),
        )
        for row in rows
    ]
    return old + [await wrap(provider, ring, kind, 1, ring.get(kind, 1)) for kind in _DERIVED]


def _bound(kind: str, number: int) -> bytes:
    return f"akm-wrap-1\n{kind}\n{number}".encode()
