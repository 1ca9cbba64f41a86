"""Data keys and peppers: random, numbered, wrapped by the key-encryption key at rest.

Rewrapping them under another key-encryption key touches no secret and no digest.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from api_key_manager.core.exceptions import EncryptionError
from api_key_manager.encryption.masterkey import MasterKey

__all__ = ["DATA", "PEPPER", "Keyring", "WrappedKey"]

DATA = "data"
PEPPER = "pepper"
_NONCE_BYTES = 12


class WrappedKey(NamedTuple):
    """A key as it lies in the store."""

    kind: str
    number: int
    wrapped: bytes


class Keyring:
    """The unwrapped keys of one deployment, by kind and number. Its ``repr`` shows none.

    Args:
        master: whose key-encryption key wraps them.
        rows: what the store holds.

    Raises:
        EncryptionError: a key does not unwrap: another master key, or changed bytes.
    """

    def __init__(self, master: MasterKey, rows: Iterable[WrappedKey]) -> None:
        kek = AESGCM(master.derive("key-encryption"))
        self._keys: dict[tuple[str, int], bytes] = {}
        for row in rows:
            nonce, sealed = row.wrapped[:_NONCE_BYTES], row.wrapped[_NONCE_BYTES:]
            try:
                key = kek.decrypt(nonce, sealed, _bound(row.kind, row.number))
            # The others: bytes of a length, or of a type, that no wrapped key has.
            except (InvalidTag, ValueError, TypeError):
                raise EncryptionError(
                    f"the master key ({master.source}) does not open this database"
                ) from None
            self._keys[row.kind, row.number] = key

    def __repr__(self) -> str:
        return f"Keyring({len(self._keys)} keys)"

    @staticmethod
    def mint(master: MasterKey, kind: str, number: int) -> WrappedKey:
        """A new random key, wrapped."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        kek = AESGCM(master.derive("key-encryption"))
        sealed = kek.encrypt(nonce, secrets.token_bytes(32), _bound(kind, number))
        return WrappedKey(kind, number, nonce + sealed)

    def newest(self, kind: str) -> tuple[int, bytes]:
        """The highest number of a kind, and its key.

        Raises:
            EncryptionError: there is none.
        """
        number = max((n for k, n in self._keys if k == kind), default=0)
        return number, self.get(kind, number)

    def get(self, kind: str, number: int) -> bytes:
        """One key.

        Raises:
            EncryptionError: there is no such key.
        """
        try:
            return self._keys[kind, number]
        except KeyError:
            raise EncryptionError(f"there is no {kind} key number {number}") from None


def _bound(kind: str, number: int) -> bytes:
    return f"akm-wrap-1\n{kind}\n{number}".encode()
