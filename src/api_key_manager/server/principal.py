"""Who calls, once that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.requests import Request

from api_key_manager.core.changing import Origin

if TYPE_CHECKING:
    from api_key_manager.core.manager import KeyManager
    from api_key_manager.core.models import ApiKey

__all__ = ["PRINCIPAL", "Principal", "reach"]

PRINCIPAL: Final = "akm.principal"
"""The ASGI scope key under which the principal stands. No HTTP client can set it; a program that
runs the app in its own process may."""


class Principal(NamedTuple):
    """Who calls: an admin token's id, ``env`` for ``AKM_ADMIN_TOKEN``, or a local program."""

    id: str
    scopes: tuple[str, ...]
    ip: str | None = None
    request_id: str | None = None
    environment: str | None = None
    """The only one whose keys there are for this caller; ``None``: every key."""
    token: ApiKey | None = None
    """The admin token that was shown; ``None`` for who has none with bounds of its own."""

    @property
    def origin(self) -> Origin:
        """The same, as the audit log has it."""
        return Origin(self.id, self.ip, self.request_id)

    def anew(self, request_id: str) -> Principal:
        """The same caller with another request."""
        return Principal(self.id, self.scopes, self.ip, request_id, self.environment, self.token)

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


def reach(manager: KeyManager, request: Request) -> KeyManager:
    """The manager as far as who calls may use it. Every handler goes through here."""
    return manager.within(request.scope[PRINCIPAL].environment)
