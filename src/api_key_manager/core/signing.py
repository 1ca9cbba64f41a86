"""What is signed in each scheme, and the one place where MACs are made and compared.

All signatures are HMAC-SHA256 (RFC 2104, FIPS 198-1) with the full 32 bytes, written as 64 hex
digits in either case.

============  =========================================================================
``static``       ``key_id``; replayable, for callers of the published workflow
``timestamped``  ``AKM1`` LF ``key_id`` LF ``timestamp`` LF ``nonce`` (empty without one)
============  =========================================================================
"""

from __future__ import annotations

import hmac
import re
from binascii import Error as _HexError
from binascii import unhexlify
from collections.abc import Callable
from importlib import import_module

__all__ = [
    "MAX_TIMESTAMP",
    "MacState",
    "is_nonce",
    "is_timestamp",
    "mac",
    "matches",
    "parse_signature",
    "sign",
    "static_message",
    "timestamped_message",
]

MAX_TIMESTAMP = 253_402_300_799
"""9999-12-31T23:59:59Z, the last second that RFC 3339 can write."""

is_nonce = re.compile(r"[A-Za-z0-9_-]{16,128}").fullmatch

mac: Callable[[bytes, bytes, str], bytes]
try:
    # What hmac.digest calls after a check of its arguments, which is a tenth of its time.
    mac = import_module("_hashlib").hmac_digest
except (ImportError, AttributeError):  # an interpreter without OpenSSL
    mac = hmac.digest

matches = hmac.compare_digest
"""Constant-time comparison. Call it on bytes only: on ``str`` it refuses non-ASCII text."""


def is_timestamp(value: object) -> bool:
    """Whether ``value`` is an integer (no bool, no float) of Unix seconds up to the year 9999."""
    return type(value) is int and 0 <= value <= MAX_TIMESTAMP


def parse_signature(text: object) -> bytes | None:
    """The 32 bytes of a signature of exactly 64 hex digits, else ``None``."""
    if type(text) is not str or len(text) != 64:
        return None
    try:
        return unhexlify(text)
    except (_HexError, ValueError):
        return None


def static_message(key_id: str) -> bytes:
    """The message of the ``static`` scheme."""
    return key_id.encode()


def timestamped_message(key_id: str, timestamp: int, nonce: str = "") -> bytes:
    """The message of the ``timestamped`` scheme; ``timestamp`` in Unix seconds."""
    return f"AKM1\n{key_id}\n{timestamp}\n{nonce}".encode()


def sign(secret: str, key_id: str, timestamp: int | None = None, nonce: str | None = None) -> str:
    """Sign as a caller would: ``timestamped`` with a timestamp, ``static`` without.

    Args:
        secret: the secret as it was shown at creation.
        key_id: the key's id.
        timestamp: Unix seconds; leave out for a ``static`` signature.
        nonce: 16 to 128 of ``A-Z a-z 0-9 _ -``, used once; needs a timestamp.

    Returns:
        64 lower-case hex digits.

    Raises:
        ValueError: a nonce without a timestamp.
    """
    if timestamp is None:
        if nonce is not None:
            raise ValueError("a nonce needs a timestamp")
        message = static_message(key_id)
    else:
        message = timestamped_message(key_id, timestamp, nonce or "")
    return mac(secret.encode(), message, "sha256").hex()


class MacState:
    """HMAC-SHA256 under one key, keyed once.

    Copying the keyed state saves the two compressions of the key block on every call. Its
    ``repr`` shows nothing.
    """

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod="sha256")

    def digest(self, message: bytes) -> bytes:
        state = self._keyed.copy()
        state.update(message)
        return state.digest()

    def __repr__(self) -> str:
        return "MacState()"
