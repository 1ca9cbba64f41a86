"""The public keys of an OIDC issuer: found by discovery, kept for a while, fetched in bounds."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx

__all__ = ["IssuerKeys", "PublicKey", "UnreachableError", "is_safe_url"]

_log = logging.getLogger(__name__)

FETCH_SECONDS: Final = 5.0
FRESH_SECONDS: Final = 300.0
"""For so long the keys are used without a look at whether the issuer has withdrawn one."""
STALE_SECONDS: Final = 3600.0
"""For so long they are used while the issuer does not answer."""
AGAIN_SECONDS: Final = 60.0
"""So often it is asked at most, whatever callers show."""
FIRST_SECONDS: Final = 5.0
"""The same while there are no keys at all."""
_MAX_BYTES: Final = 256 * 1024
_MOST_KEYS: Final = 64
_RSA_BITS: Final = range(2048, 8193)
_RSA_LETTERS: Final = range(342, 1367)
"""The same in base64url, to look at before anything reads them."""
_KINDS: Final[dict[tuple[str, str | None], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    ("RSA", None): (("n", "e"), ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    ("EC", "P-256"): (("crv", "x", "y"), ("ES256",)),
    ("EC", "P-384"): (("crv", "x", "y"), ("ES384",)),
    ("OKP", "Ed25519"): (("crv", "x"), ("EdDSA", "Ed25519")),
}
"""By type and curve: the members of a public key, and the algorithms that it may be used with."""
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class UnreachableError(Exception):
    """The issuer's keys cannot be had."""


class PublicKey(NamedTuple):
    """One key, and the algorithms that it may be used with: those of its own kind only, so that no
    token chooses how it is looked at."""

    kid: str | None
    algorithms: frozenset[str]
    key: Any


def is_safe_url(url: str) -> bool:
    """Whether what comes from there is its owner's: https, or http on this very machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or parts.query or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)


class IssuerKeys:
    """Used from one event loop.

    Args:
        issuer: its URL, as its tokens have it.
        clock: seconds that never go back.
    """

    def __init__(self, issuer: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._clock = clock
        self._keys: tuple[PublicKey, ...] = ()
        self._fetched = self._asked = float("-inf")
        self._fetching = asyncio.Lock()
        self._answers = True

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """The keys that may have made a signature; none when there is no such.

        Raises:
            UnreachableError: there are no keys, and none can be had.
        """
        known = bool(self._fit(kid, algorithm))
        if not known or self._age() > FRESH_SECONDS:
            await self._refresh(wait=not known or self._age() > STALE_SECONDS)
        if self._age() > STALE_SECONDS:
            raise UnreachableError
        return self._fit(kid, algorithm)

    def _age(self) -> float:
        return self._clock() - self._fetched

    def _fit(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        found = [key for key in self._keys if algorithm in key.algorithms]
        if kid is None:
            # Whose key is not named can be told only where there is one.
            return found if len(found) == 1 else []
        return [key for key in found if key.kid == kid]

    async def _refresh(self, *, wait: bool) -> None:
        """Fetch, unless that was done just now; ``wait``: for somebody else who does it, too."""
        if self._fetching.locked():
            if wait:
                async with self._fetching:
                    pass
            return
        least = AGAIN_SECONDS if self._age() <= STALE_SECONDS else FIRST_SECONDS
        if self._clock() - self._asked < least:
            return
        async with self._fetching:
            self._asked = self._clock()
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    self._keys = await self._fetch()
            except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
                if self._answers:
                    _log.warning("the keys of OIDC_ISSUER cannot be fetched: %s",
                                 str(error) or type(error).__name__)  # fmt: skip
                self._answers = False
            else:
                self._fetched = self._clock()
                self._answers = True

    async def _fetch(self) -> tuple[PublicKey, ...]:
        """OpenID Connect Discovery 1.0, section 4, and RFC 7517, section 5."""
        # The system's certificates, and no proxy or password file that the environment names.
        async with httpx.AsyncClient(
            trust_env=False, follow_redirects=False, timeout=FETCH_SECONDS,
            verify=ssl.create_default_context(), headers={"Accept-Encoding": "identity"},
        ) as client:  # fmt: skip
            base = self._issuer.removesuffix("/")
            found = await _get(client, f"{base}/.well-known/openid-configuration")
            if found.get("issuer") != self._issuer:
                raise ValueError("its configuration names another issuer")
            url = found.get("jwks_uri")
            if not isinstance(url, str) or len(url) > 2048 or not is_safe_url(url):
                raise ValueError("its jwks_uri is no https URL")
            if url.startswith("http:") and not self._issuer.startswith("http:"):
                raise ValueError("its jwks_uri is no https URL")
            listed = (await _get(client, url)).get("keys")
        if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
            raise ValueError(f"it has no list of at most {_MOST_KEYS} keys")
        return tuple(key for item in listed if (key := _read_key(item)) is not None)


async def _get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url) as answer:
        if answer.status_code != 200:
            raise ValueError(f"it answered {answer.status_code}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("it answered something compressed")
        body = b""
        async for piece in answer.aiter_raw(16_384):
            body += piece
            if len(body) > _MAX_BYTES:
                raise ValueError(f"it answered more than {_MAX_BYTES} bytes")
    try:
        document = json.loads(body)
    except RecursionError:
        raise ValueError("it answered something too deep") from None
    if isinstance(document, dict):
        return document
    raise ValueError("it answered no JSON object")


def _read_key(item: Any) -> PublicKey | None:
    """A key that may verify signatures; ``None`` for all others, above all symmetric ones."""
    from joserfc.errors import JoseError

    try:
        return _import(item)
    except (JoseError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _import(item: Any) -> PublicKey | None:
    from joserfc.jwk import JWKRegistry

    if item.get("use", "sig") != "sig" or "verify" not in item.get("key_ops", ["verify"]):
        return None
    kind, kid, own = item["kty"], item.get("kid"), item.get("alg")
    names, algorithms = _KINDS[kind, item.get("crv")]
    wanted = frozenset(algorithms) if own is None else frozenset(algorithms) & {own}
    if not wanted or not (kid is None or (isinstance(kid, str) and len(kid) <= 256)):
        return None
    if kind == "RSA" and len(item["n"]) not in _RSA_LETTERS:
        return None
    # Public members only, and none that says what the key is for: that stands above.
    key = JWKRegistry.import_key({"kty": kind, **{name: item[name] for name in names}})
    size = getattr(key.get_op_key("verify"), "key_size", 0)
    return None if kind == "RSA" and size not in _RSA_BITS else PublicKey(kid, wanted, key)
