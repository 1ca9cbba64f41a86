"""Who calls, once that is known."""

from __future__ import annotations

from typing import Final, NamedTuple

from api_key_manager.core.changing import Origin

__all__ = ["PRINCIPAL", "Principal"]

PRINCIPAL: Final = "akm.principal"
"""The ASGI scope key under which the principal stands. No HTTP client can set it; a program that
runs the app in its own process may."""


class Principal(NamedTuple):
    """Who calls: an admin token's id, ``env`` for ``AKM_ADMIN_TOKEN``, or a local program."""

    id: str
    scopes: tuple[str, ...]
    ip: str | None = None
    request_id: str | None = None

    @property
    def origin(self) -> Origin:
        """The same, as the audit log has it."""
        return Origin(self.id, self.ip, self.request_id)

    def anew(self, request_id: str) -> Principal:
        """The same caller with another request."""
        return Principal(self.id, self.scopes, self.ip, request_id)

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes
