"""The keys of one deployment: random, numbered by kind, each wrapped at rest.

What wraps them is in :mod:`~api_key_manager.encryption.provider`; rewrapping them under another
key-encryption key touches no secret, no digest and no MAC.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from api_key_manager.core.exceptions import EncryptionError
from api_key_manager.core.signing import mac

__all__ = [
    "AUDIT_MAC",
    "AUDIT_SIGN",
    "DATA",
    "FOUNDED",
    "PEPPER",
    "RECORD_MAC",
    "Keyring",
    "new_key",
]

DATA: Final = "data"
PEPPER: Final = "pepper"
RECORD_MAC: Final = "record-mac"
AUDIT_MAC: Final = "audit-mac"
AUDIT_SIGN: Final = "audit-sign"
FOUNDED: Final = (DATA, PEPPER, RECORD_MAC, AUDIT_MAC, AUDIT_SIGN)
"""The kinds that every deployment has. Of the last three there is one key: number 1."""
KEY_BYTES: Final = 32


class Keyring:
    """Unwrapped keys by kind and number. Its ``repr`` shows none.

    Args:
        keys: 32 bytes each.
    """

    def __init__(self, keys: Mapping[tuple[str, int], bytes]) -> None:
        self._keys = dict(keys)

    def __repr__(self) -> str:
        return f"Keyring({len(self._keys)} keys)"

    @classmethod
    def fresh(cls) -> Keyring:
        """The first keys of a new deployment: a random one of each kind."""
        return cls({(kind, 1): new_key() for kind in FOUNDED})

    def __contains__(self, place: tuple[str, int]) -> bool:
        return place in self._keys

    def add(self, kind: str, number: int, key: bytes) -> None:
        """Put in a key that was not known here."""
        self._keys[kind, number] = key

    def forget(self, kind: str) -> None:
        """Drop all keys of a kind: they lived as long as they may."""
        for place in [place for place in self._keys if place[0] == kind]:
            del self._keys[place]

    def numbers(self, kind: str) -> list[int]:
        """The numbers of a kind, ascending."""
        return sorted(number for each, number in self._keys if each == kind)

    def newest(self, kind: str) -> tuple[int, bytes]:
        """The highest number of a kind, and its key.

        Raises:
            EncryptionError: there is none.
        """
        number = max(self.numbers(kind), default=0)
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

    def seal(self, kind: str, number: int, key: bytes) -> bytes:
        """What is stored beside a wrapped key to show that it belongs in this place of this
        keyring: a MAC under the record-MAC key, which another database does not have.

        The key-encryption key binds kind and number too, but may be shared by several databases.

        Raises:
            EncryptionError: the record-MAC key is not here.
        """
        place = b"akm-keyring-1\n%b\n%d\n" % (kind.encode(), number)
        return mac(self.get(RECORD_MAC, 1), place + key, "sha256")


def new_key() -> bytes:
    """A random key."""
    return secrets.token_bytes(KEY_BYTES)
