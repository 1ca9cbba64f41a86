"""The keys that GitHub signs its reports of leaked secrets with.

Secret scanning partner program: a key is named by its identifier, and signs the raw body by ECDSA
on P-256 with SHA-256.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from api_key_manager.core.exceptions import StorageError

__all__ = ["GitHubKeys", "is_signed"]

_is_identifier = re.compile(r"[A-Za-z0-9_-]{1,128}").fullmatch
_LONGEST_SIGNATURE: Final = 200
_MOST_BYTES: Final = 65_536
_MOST_KEYS: Final = 32
_PATIENCE_SECONDS: Final = 5.0
_APART_SECONDS: Final = 60.0
_KEPT_SECONDS: Final = 86_400.0


class _Key(msgspec.Struct):
    key_identifier: str
    key: str


class _Keys(msgspec.Struct):
    public_keys: list[_Key]


class GitHubKeys:
    """Public keys by identifier, fetched when one is not known, at most once a minute.

    Args:
        url: where they are published.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, EllipticCurvePublicKey] = {}
        self._asked_at = self._fetched_at = float("-inf")
        self._problem: str | None = None
        self._turn = asyncio.Lock()

    async def key(self, identifier: str) -> EllipticCurvePublicKey | None:
        """The key of an identifier; ``None`` when GitHub names no such key.

        Raises:
            StorageError: the keys cannot be fetched, so it cannot be told.
        """
        if not _is_identifier(identifier):
            return None
        if not self._is_known(identifier):
            async with self._turn:
                # Whoever waited for another's fetch has what it found.
                if not self._is_known(identifier):
                    await self._refresh()
        return self._keys.get(identifier)

    def _is_known(self, identifier: str) -> bool:
        # A key that GitHub has withdrawn must not be believed for ever.
        recent = time.monotonic() - self._fetched_at < _KEPT_SECONDS
        return recent and identifier in self._keys

    async def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._asked_at >= _APART_SECONDS:
            self._asked_at = now
            self._problem = None
            try:
                self._keys = await _fetch(self._url)
                self._fetched_at = now
            except Exception as error:  # whatever it is: without keys nothing is believed
                self._problem = type(error).__name__
        if self._problem is not None or now - self._fetched_at >= _KEPT_SECONDS:
            raise StorageError(f"GitHub's keys cannot be fetched: {self._problem}")


async def _fetch(url: str) -> dict[str, EllipticCurvePublicKey]:
    # Slow to import, and needed by those only who have told GitHub of this server.
    import httpx

    async with (
        asyncio.timeout(_PATIENCE_SECONDS),
        # No proxy, no .netrc and no certificates of the environment's choice.
        httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
        client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
    ):
        if answer.status_code != 200:
            raise ValueError("not a 200")
        raw = b""
        async for chunk in answer.aiter_bytes():
            raw += chunk
            if len(raw) > _MOST_BYTES:
                raise ValueError("too long")
    named = msgspec.json.decode(raw, type=_Keys).public_keys[:_MOST_KEYS]
    keys = {item.key_identifier: key for item in named if (key := _read(item.key)) is not None}
    if not keys:
        raise ValueError("no usable key")
    return keys


def _read(pem: str) -> EllipticCurvePublicKey | None:
    try:
        key: Any = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    usable = isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    return key if usable else None


def is_signed(key: EllipticCurvePublicKey, signature: str, body: bytes) -> bool:
    """Whether ``signature`` (base64 of DER) is the key's over exactly these bytes."""
    if len(signature) > _LONGEST_SIGNATURE:
        return False
    try:
        key.verify(base64.b64decode(signature, validate=True), body, ECDSA(SHA256()))
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True
