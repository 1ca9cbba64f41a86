"""OIDC bearer tokens: JSON Web Tokens (RFC 7519) of one issuer, in the place of admin tokens.

A token chooses nothing: neither the algorithm (each key has those of its kind), nor where its key
comes from (``jku``, ``jwk``, ``x5u`` and ``x5c`` are not read), nor what must be understood of it
(``crit`` is refused). See RFC 8725.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from api_key_manager.core.exceptions import Reason
from api_key_manager.server.oidc_claims import Identity, Policy
from api_key_manager.server.oidc_keys import IssuerKeys, UnreachableError

__all__ = ["ALGORITHMS", "Oidc", "is_jwt"]

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "Ed25519"}
)
MAX_BYTES: Final = 8192
_REMEMBERED: Final = 1024
_REMEMBERED_SECONDS: Final = 60.0
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_is_base64url = re.compile(rb"[A-Za-z0-9_-]+").fullmatch


def is_jwt(token: bytes) -> bool:
    """Whether it has the form of one: JSON that begins with ``{"`` in base64url, and two dots. Ours
    begin with a small letter and never so."""
    return token.startswith(b"eyJ") and token.count(b".") == 2


class Oidc:
    """Tells who shows a token. Used from one event loop.

    Args:
        policy: what is accepted.
        keys: of the issuer.
        clock: Unix seconds.
    """

    def __init__(self, policy: Policy, keys: IssuerKeys, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._keys = keys
        self._clock = clock
        self._known: OrderedDict[bytes, Identity] = OrderedDict()

    def known(self, token: bytes) -> Identity | None:
        """Who shows it, if that was found out a short while ago; without I/O."""
        digest = hashlib.sha256(token).digest()
        identity = self._known.get(digest)
        if identity is not None and self._clock() >= identity.until:
            del self._known[digest]
            return None
        return identity

    async def identify(self, token: bytes) -> Identity | Reason:
        """Who shows it, or why that is nobody.

        ``unavailable`` when the issuer's keys cannot be had.
        """
        found = await self._identify(token)
        if isinstance(found, Identity):
            # Only good ones are remembered, so that no flood of others makes one forgotten.
            self._known[hashlib.sha256(token).digest()] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    async def _identify(self, token: bytes) -> Identity | Reason:
        if len(token) > MAX_BYTES:
            return Reason.MALFORMED
        head, body, mac = token.split(b".")
        header, signature = _object(head), _decode(mac)
        if header is None or signature is None:
            return Reason.MALFORMED
        algorithm, kid = header.get("alg"), header.get("kid")
        kind = header.get("typ", "JWT")
        if (
            not isinstance(algorithm, str)
            or algorithm not in ALGORITHMS
            or not isinstance(kind, str)
            or kind.lower() not in _TYPES
            or "crit" in header
            or not (kid is None or isinstance(kid, str))
        ):
            return Reason.BAD_SIGNATURE
        try:
            keys = await self._keys.find(kid, algorithm)
        except UnreachableError:
            return Reason.UNAVAILABLE
        message = head + b"." + body
        if not any(_verifies(algorithm, message, signature, key.key) for key in keys):
            return Reason.BAD_SIGNATURE
        claims = _object(body)
        if claims is None:
            return Reason.MALFORMED
        return self._policy.read(claims, self._clock(), _REMEMBERED_SECONDS)


def _verifies(algorithm: str, message: bytes, signature: bytes, key: Any) -> bool:
    from joserfc.errors import JoseError
    from joserfc.jws import JWSRegistry

    try:
        return bool(JWSRegistry.algorithms[algorithm].verify(message, signature, key))
    except (JoseError, ValueError, TypeError):
        return False


def _decode(part: bytes) -> bytes | None:
    """Base64url without padding (RFC 7515, section 2), and nothing that only nearly is."""
    if not _is_base64url(part):
        return None
    try:
        raw = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error:
        return None
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=") == part else None


def _object(part: bytes) -> dict[str, Any] | None:
    """A JSON object in which no name stands twice (RFC 7515, section 4)."""
    raw = _decode(part)
    if raw is None:
        return None
    try:
        value = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name stands there twice")
    return members
