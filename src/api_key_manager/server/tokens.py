"""``/v1/tokens``: admin tokens, which are bearer keys of the realm ``admin``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from api_key_manager.core.admin import check_scopes, confine, refuse_more
from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.inputs import check_text
from api_key_manager.core.keeping import ReceiptOf
from api_key_manager.core.models import ADMIN_REALM, MICROSECONDS
from api_key_manager.server.idempotency import Once, reply
from api_key_manager.server.keys import origin, sent
from api_key_manager.server.principal import PRINCIPAL, Principal, reach
from api_key_manager.server.schemas import (
    MAX_TOKEN_SECONDS,
    CreateToken,
    RotateKey,
    TokenFilters,
)

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment

__all__ = ["Tokens"]

_SHOWN = (
    "key_id", "version", "environment", "ip_allowlist", "active", "state", "created_at",
    "updated_at", "expires_at", "revoked_at", "last_used",
)  # fmt: skip


class Tokens:
    """The handlers."""

    def __init__(self, deployment: Deployment) -> None:
        self._manager = deployment.manager
        self._prefix = f"{deployment.settings.TOKEN_PREFIX}_admin"
        self._once = Once(deployment)

    async def create_token(self, request: Request, body: CreateToken) -> Response:
        """Mint an admin token, shown this once. It cannot hold or reach more than its maker's."""
        caller: Principal = request.scope[PRINCIPAL]
        scopes = check_scopes(body.scopes)
        refuse_more(caller.scopes, scopes)
        name = check_text("name", body.name)
        manager, by = reach(self._manager, request), origin(request)
        ends, places = confine(caller.token, self._end(body), body.ip_allowlist, inherit=True)

        async def work(receipt: ReceiptOf | None) -> dict[str, Any]:
            return await manager.create_key(
                kind="bearer",
                realm=ADMIN_REALM,
                prefix=self._prefix,
                metadata={} if name is None else {"name": name},
                permissions=scopes,
                environment=body.environment,
                expires_at=None if ends is None else ends / MICROSECONDS,
                ip_allowlist=places,
                by=by,
                receipt=receipt,
            )

        return await self._once.run(request, 201, work, _created)

    def _end(self, body: CreateToken) -> Any:
        seconds = body.expires_in
        if seconds is None:
            return body.expires_at
        if body.expires_at is not None:
            raise ValidationError("expires_in: it goes without expires_at")
        if not 1 <= seconds <= MAX_TOKEN_SECONDS:
            raise ValidationError(f"expires_in: 1 to {MAX_TOKEN_SECONDS} seconds are allowed")
        return self._manager.clock() + seconds

    async def rotate_token(
        self, request: Request, key_id: str, body: RotateKey | None = None
    ) -> Response:
        """Give an admin token a new text; the old one works on for `overlap_seconds`.

        Nothing else of it changes. Whose own token is bounded rotates those with its bounds only.
        """
        caller: Principal = request.scope[PRINCIPAL]
        manager, by = reach(self._manager, request), origin(request)
        overlap = (body or RotateKey()).overlap_seconds
        known = await manager.get_key(key_id, realm=ADMIN_REALM)
        refuse_more(caller.scopes, known["permissions"])
        confine(caller.token, known["expires_at"], known["ip_allowlist"], inherit=False)

        async def work(receipt: ReceiptOf | None) -> dict[str, Any]:
            return await manager.rotate_key(
                key_id, overlap, realm=ADMIN_REALM, by=by, receipt=receipt
            )

        return await self._once.run(request, 200, work, _created)

    async def list_tokens(
        self, request: Request, filters: Annotated[TokenFilters, Query()]
    ) -> Response:
        """Admin tokens in the order of their ids, page by page."""
        page = await reach(self._manager, request).find_keys(realm=ADMIN_REALM, **sent(filters))
        return reply({**page, "items": [_shown(key) for key in page["items"]]})

    async def revoke_token(self, request: Request, key_id: str) -> Response:
        """End an admin token for good."""
        manager = reach(self._manager, request)
        await manager.revoke_key(key_id, realm=ADMIN_REALM, by=origin(request))
        return Response(status_code=204)


def _shown(key: dict[str, Any]) -> dict[str, Any]:
    shown = {name: key[name] for name in _SHOWN}
    return {**shown, "name": key["metadata"].get("name"), "scopes": key["permissions"]}


def _created(key: dict[str, Any]) -> dict[str, Any]:
    return {**_shown(key), "token": key["token"]}
