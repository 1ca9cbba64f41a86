"""Key-encryption keys: what wraps the keyring, behind a protocol that others can satisfy."""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from api_key_manager.core.exceptions import EncryptionError
from api_key_manager.encryption.masterkey import MasterKey

__all__ = ["KeyEncryption", "LocalKey", "Providers"]

_NONCE_BYTES: Final = 12
_FINGERPRINT_BYTES: Final = 4


class KeyEncryption(Protocol):
    """Wraps the keys of the keyring, 32 bytes each, and unwraps them again.

    It is asked when a process starts, when a key is minted and when keys are rewrapped, never by a
    validation. Many calls may be under way at once.
    """

    @property
    def name(self) -> str:
        """Which key this is: the same for as long as it unwraps what was wrapped under this name,
        another for any other key. At most 128 printable characters, and nothing secret: it is
        stored beside what it wrapped, as ``local:5f0c9a1b``."""
        ...

    @property
    def source(self) -> str:
        """Where it is, in words for people, as ``AKM_MASTER_KEY``."""
        ...

    async def wrap(self, key: bytes, bound: bytes) -> bytes:
        """Encrypt a key.

        Args:
            key: 32 bytes.
            bound: has to be given again to unwrap: authenticated, not secret, not stored.

        Returns:
            At most 4096 bytes.

        Raises:
            StorageError, VaultError: it cannot be asked, or refuses.
        """
        ...

    async def unwrap(self, wrapped: bytes, bound: bytes) -> bytes:
        """The key again.

        Raises:
            EncryptionError: it is not this one that wrapped it, or ``wrapped`` or ``bound`` was
                changed.
            StorageError, VaultError: it cannot be asked, or refuses.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Providers(NamedTuple):
    """The key-encryption keys that a process has.

    ``current`` wraps; ``previous`` only unwrap what is not yet rewrapped.
    """

    current: KeyEncryption
    previous: tuple[KeyEncryption, ...] = ()

    @property
    def every(self) -> tuple[KeyEncryption, ...]:
        """All of them, the current one first."""
        return (self.current, *self.previous)

    async def close(self) -> None:
        """Let go of all of them."""
        for each in self.every:
            await each.close()


class LocalKey:
    """The key-encryption key that is derived from a master key: AES-256-GCM, a random nonce.

    Args:
        master: its ``source`` says where it is.
    """

    def __init__(self, master: MasterKey) -> None:
        self._master = master
        self._cipher = AESGCM(master.derive("key-encryption"))
        # Of a key that serves nothing else, so that it tells nothing of the others.
        fingerprint = master.derive("key-encryption-name")[:_FINGERPRINT_BYTES]
        self.name = f"local:{fingerprint.hex()}"
        self.source = master.source

    def __repr__(self) -> str:
        return f"LocalKey({self.name!r})"

    def derived(self, purpose: str) -> bytes:
        """What a database from before the keyring held this key derived from the master key."""
        return self._master.derive(purpose)

    async def wrap(self, key: bytes, bound: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, bound)

    async def unwrap(self, wrapped: bytes, bound: bytes) -> bytes:
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):  # the latter: a length that no wrapped key has
            raise EncryptionError(f"the key-encryption key {self.name} does not fit") from None

    async def close(self) -> None:
        """There is nothing to let go of."""
