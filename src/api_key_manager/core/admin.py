"""Admin tokens: bearer keys of their own realm, whose permissions are the scopes they open."""

from __future__ import annotations

from collections.abc import Sequence

from api_key_manager.core.exceptions import PermissionDeniedError, ValidationError
from api_key_manager.core.permissions import Expression, compile_expression

__all__ = ["SCOPES", "check_scopes", "needs", "refuse_more"]

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
