"""Admin tokens: bearer keys of their own realm, whose permissions are the scopes they open."""

from __future__ import annotations

from collections.abc import Sequence

from api_key_manager.core.addresses import check_allowlist, networks
from api_key_manager.core.exceptions import PermissionDeniedError, ValidationError
from api_key_manager.core.inputs import check_instant
from api_key_manager.core.models import ApiKey
from api_key_manager.core.permissions import Expression, compile_expression

__all__ = ["SCOPES", "check_scopes", "confine", "needs", "refuse_more"]

SCOPES = ("keys:read", "keys:write", "validate", "audit:read", "metrics", "admin")
"""``admin`` opens everything; the others what they say."""


def check_scopes(scopes: object) -> tuple[str, ...]:
    """A clean tuple of scopes.

    Raises:
        ValidationError: none, or one that does not exist.
    """
    if not isinstance(scopes, (list, tuple)) or not scopes:
        raise ValidationError(f"scopes: at least one of {', '.join(SCOPES)} is needed")
    for scope in scopes:
        if scope not in SCOPES:
            raise ValidationError(f"scopes: {', '.join(SCOPES)} are allowed")
    return tuple(dict.fromkeys(scopes))


def needs(scope: str) -> Expression:
    """The test that an admin token's permissions must pass for ``scope``."""
    return compile_expression(f"{scope} or admin")


def refuse_more(own: Sequence[str], asked: Sequence[str]) -> None:
    """Raises ``PermissionDeniedError`` when a token would grant beyond itself."""
    if "admin" not in own and not set(asked) <= set(own):
        raise PermissionDeniedError("scopes: a token cannot grant what it does not have")


def confine(
    own: ApiKey | None, expires_at: object, ip_allowlist: object, *, inherit: bool
) -> tuple[int | None, tuple[str, ...]]:
    """When another admin token ends, and from where it may be used: never more than one's own.

    Else a token that ends, or that is useless elsewhere, would be worth as much as one that does
    not and is not to whoever steals it.

    Args:
        own: the token of who asks; ``None`` for somebody who has no such bounds.
        expires_at: an instant, or ``None`` for no end.
        ip_allowlist: addresses and networks, or ``None`` or none for all.
        inherit: whether what is not bounded gets one's own bounds; else it is refused.

    Returns:
        The end in microseconds, and the networks.

    Raises:
        PermissionDeniedError: it would outlive one's own, or work where that does not.
        ValidationError: an instant or a network that is none.
    """
    end = check_instant("expires_at", expires_at)
    places = () if ip_allowlist is None else check_allowlist(ip_allowlist)
    if own is None:
        return end, places
    if inherit:
        end = own.expires_at if end is None else end
        places = places or own.ip_allowlist
    if own.expires_at is not None and (end is None or end > own.expires_at):
        raise PermissionDeniedError("expires_at: a token cannot grant beyond its own end")
    if own.ip_allowlist and not _lies_within(places, own.ip_allowlist):
        raise PermissionDeniedError("ip_allowlist: only within the networks of the token itself")
    return end, places


def _lies_within(inner: Sequence[str], outer: Sequence[str]) -> bool:
    """Whether each network of ``inner``, which has some, lies in one of ``outer``."""
    around = networks(outer)
    return bool(inner) and all(
        any(a.version == b.version and a.subnet_of(b) for b in around)  # type: ignore[arg-type]  # of one version
        for a in networks(inner)
    )
