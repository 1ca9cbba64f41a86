"""What an OIDC bearer token says, once its signature is known to be good: who, until when, and
which scopes that opens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from api_key_manager.core.admin import check_scopes
from api_key_manager.core.exceptions import Reason, ValidationError
from api_key_manager.core.inputs import check_name

__all__ = ["Grant", "Identity", "Policy", "read_grants"]

_MOST_GRANTS: Final = 64
_MOST_VALUES: Final = 1024
_SPACED: Final = frozenset({"scope", "scp"})
_is_plain = re.compile(r"[!-~]{1,120}").fullmatch


class Grant(NamedTuple):
    """What a value of the claim opens."""

    value: str
    scopes: tuple[str, ...]
    environment: str | None


class Identity(NamedTuple):
    """Who calls."""

    id: str
    """``oidc:`` and the subject, fit for the audit log."""
    scopes: tuple[str, ...]
    environment: str | None
    until: float
    """Unix seconds: from then on the token has to be looked at anew."""


def read_grants(text: str) -> tuple[Grant, ...]:
    """The entries of ``OIDC_SCOPES``: ``value=scope+scope`` or ``value=scope+scope@environment``,
    separated by commas.

    Raises:
        ValidationError: what is not such; the message says what is wrong.
    """
    grants = []
    for entry in text.split(","):
        value, equals, rest = entry.strip().partition("=")
        scopes, at, environment = rest.partition("@")
        if (
            not (value and equals and scopes and bool(at) == bool(environment))
            or "@" in environment
        ):
            raise ValidationError("value=scope+scope@environment is expected")
        place = check_name("environment", environment) if at else None
        grants.append(Grant(value, check_scopes(scopes.split("+")), place))
    if len(grants) > _MOST_GRANTS:
        raise ValidationError(f"at most {_MOST_GRANTS} entries are allowed")
    if len({grant.value for grant in grants}) < len(grants):
        raise ValidationError("a value stands there twice")
    return tuple(grants)


class Policy(NamedTuple):
    """What is accepted, and what it opens."""

    issuer: str
    audience: str
    claim: str
    grants: tuple[Grant, ...]
    skew: int

    def read(self, claims: Mapping[str, Any], now: float, most: float) -> Identity | Reason:
        """Who calls, or why not (RFC 7519, 4.1).

        Args:
            claims: of a token whose signature is good.
            now: Unix seconds.
            most: how long this may be relied on, in seconds.
        """
        subject, ends = claims.get("sub"), claims.get("exp")
        if (
            claims.get("iss") != self.issuer
            or not self._is_for_us(claims.get("aud"))
            or not isinstance(subject, str)
            or not 1 <= len(subject) <= 1024
            or not _is_instant(ends)
        ):
            return Reason.BAD_SIGNATURE
        for name in ("nbf", "iat"):
            begins = claims.get(name)
            if begins is not None and (not _is_instant(begins) or begins > now + self.skew):
                return Reason.BAD_SIGNATURE
        if now >= ends + self.skew:
            return Reason.EXPIRED
        grant = self._grant(claims.get(self.claim))
        return Identity(
            _actor(subject),
            () if grant is None else grant.scopes,
            None if grant is None else grant.environment,
            min(ends + self.skew, now + most),
        )

    def _is_for_us(self, audience: Any) -> bool:
        if isinstance(audience, list):
            return len(audience) <= _MOST_VALUES and self.audience in audience
        return bool(audience == self.audience)

    def _grant(self, held: Any) -> Grant | None:
        """The first entry whose value the caller holds. One alone: from two environments together
        nobody shall get the scopes of both in both."""
        if isinstance(held, str):
            # Only these are lists in a text (RFC 8693, 4.2); of others a part is another value.
            held = held.split(" ") if self.claim in _SPACED else [held]
        if not isinstance(held, list) or len(held) > _MOST_VALUES:
            return None
        values = {value for value in held if isinstance(value, str)}
        return next((grant for grant in self.grants if grant.value in values), None)


def _is_instant(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value < 1e11


def _actor(subject: str) -> str:
    """A text of at most 128 plain characters, of which two subjects never have the same."""
    if _is_plain(subject) and not subject.startswith("sha256:"):
        return f"oidc:{subject}"
    return f"oidc:sha256:{hashlib.sha256(subject.encode('utf-8', 'surrogatepass')).hexdigest()}"
