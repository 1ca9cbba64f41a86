"""Envelopes: AES-256-GCM under a key of their own, bound to what they hold and whose it is.

An envelope is ``0x01``, the data key's number (4 bytes, big-endian), a random nonce (12 bytes),
ciphertext and tag. Its key is expanded from the data key with purpose, name and version (HKDF
expand, RFC 5869), so that no two records share a key and the limit on random nonces under one
key (NIST SP 800-38D, 8.3) is never near, however many records there are. The same three are the
associated data: an envelope moved to another row does not open.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from api_key_manager.core.exceptions import EncryptionError, StorageError
from api_key_manager.core.models import ApiKey, KeyVersion
from api_key_manager.core.records import boot_clock
from api_key_manager.core.signing import MacState, mac
from api_key_manager.encryption.keyring import DATA, PEPPER, RECORD_MAC, Keyring

__all__ = ["EnvelopeBox"]

Learn = Callable[[], Awaitable[None]]

_FORMAT = 1
_NONCE_BYTES = 12
_HEAD_BYTES = 5
_AWAY = "the data keys' lease has ended: the key-encryption key cannot be asked"
_MARK_BYTES = 16


class EnvelopeBox:
    """The secret box of every store that outlives the process.

    Args:
        keyring: data keys, peppers, and the key of the record MACs.
        learn: looks for keys that others minted, puts them in and calls :meth:`refresh`.

    Raises:
        EncryptionError: a kind of them is missing.
    """

    def __init__(self, keyring: Keyring, learn: Learn | None = None) -> None:
        self._keyring = keyring
        self._learn = learn
        self._data_until = float("inf")
        self._record_mac = FastMac(keyring.get(RECORD_MAC, 1))
        self.refresh()
        # One keyed state per pepper, shared by every bearer key in memory.
        self.pepper = lru_cache(maxsize=None)(self._make_pepper)

    def __repr__(self) -> str:
        return "EnvelopeBox()"

    def refresh(self) -> None:
        """Seal and digest under what is the newest by now."""
        self._newest = self._keyring.newest(DATA)
        self._newest_pepper, _ = self._keyring.newest(PEPPER)

    def seal(self, purpose: str, name: str, version: int, plaintext: bytes) -> bytes:
        if not self.lent:
            raise StorageError(_AWAY)
        number, data_key = self._newest
        bound = _bound(purpose, name, version, number)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = _cipher(data_key, bound).encrypt(nonce, plaintext, bound)
        return bytes([_FORMAT]) + number.to_bytes(4, "big") + nonce + sealed

    def open(self, purpose: str, name: str, version: int, sealed: bytes) -> bytes:
        if len(sealed) <= _HEAD_BYTES + _NONCE_BYTES or sealed[0] != _FORMAT:
            raise EncryptionError(f"the sealed {purpose} of {name} is no envelope")
        if not self.lent:
            raise EncryptionError(_AWAY, reason="unavailable")
        number = int.from_bytes(sealed[1:_HEAD_BYTES], "big")
        bound = _bound(purpose, name, version, number)
        nonce = sealed[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        cipher = _cipher(self._keyring.get(DATA, number), bound)
        try:
            return cipher.decrypt(nonce, sealed[_HEAD_BYTES + _NONCE_BYTES :], bound)
        except InvalidTag:
            raise EncryptionError(
                f"the sealed {purpose} of {name} was changed or belongs elsewhere"
            ) from None

    async def keep(self, name: str, version: int, secret: bytes) -> bytes:
        return self.seal("secret", name, version, secret)

    def drop(self, name: str, version: int, sealed: bytes | None = None) -> None:
        """The record held all of it."""

    async def fetch(self, records: Sequence[ApiKey]) -> None:
        """The record holds all of it."""

    def lasts_until(self, record: ApiKey) -> float:
        return self._data_until if record.kind == "signed" else float("inf")

    def lend(self, until: float) -> None:
        """Let what is under data keys be opened and sealed until this instant of the boot clock."""
        self._data_until = until

    def forget(self) -> None:
        """Drop the data key that seals, until :meth:`refresh`."""
        self._newest = (0, b"")

    @property
    def lent(self) -> bool:
        """Whether data keys may be used."""
        return boot_clock() < self._data_until

    def digest(self, token: bytes) -> tuple[int, bytes]:
        number = self._newest_pepper
        return number, self.pepper(number).digest(token)

    def mac_state(self, key: bytes) -> MacState:
        return FastMac(key)

    def is_newest(self, pepper: int) -> bool:
        return pepper >= self._newest_pepper

    def knows(self, version: KeyVersion) -> bool:
        if version.pepper is not None:
            return (PEPPER, version.pepper) in self._keyring
        sealed = version.sealed
        if not self.lent or not isinstance(sealed, bytes) or sealed[:1] != bytes([_FORMAT]):
            return True  # or whatever it is, no key would open it
        return (DATA, int.from_bytes(sealed[1:_HEAD_BYTES], "big")) in self._keyring

    async def learn(self) -> None:
        if self._learn is not None:
            await self._learn()

    def _make_pepper(self, number: int) -> MacState:
        return FastMac(self._keyring.get(PEPPER, number))

    def mark(self, secret: bytes) -> bytes:
        return self._marks.digest(secret)[:_MARK_BYTES]

    @cached_property
    def _marks(self) -> MacState:
        # Derived by the record MAC's key from what is no record: those begin with a bracket.
        return FastMac(self._record_mac.digest(b"akm-secret-mark-1"))

    def record_mac(self, record: ApiKey) -> bytes:
        return self._record_mac.digest(record.mac_input())


class FastMac(MacState):
    """The same by a library that copies a keyed state in half the time."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes) -> None:
        self._state = HMAC(key, SHA256())

    def digest(self, message: bytes) -> bytes:
        state = self._state.copy()
        state.update(message)
        return state.finalize()


def _cipher(data_key: bytes, bound: bytes) -> AESGCM:
    # HKDF's expand step for one block of output is one HMAC, and this is the cold path of every
    # validation; a test compares it with the library's.
    return AESGCM(mac(data_key, bound + b"\x01", "sha256"))


def _bound(purpose: str, name: str, version: int, number: int) -> bytes:
    """No field can run into its neighbour: numbers end at a blank, texts say their length."""
    raw, whose = purpose.encode(), name.encode()
    return b"akm-envelope-1\n%d %d %d:%b%d:%b" % (
        number, version, len(raw), raw, len(whose), whose,
    )  # fmt: skip
