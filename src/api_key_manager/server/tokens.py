"""``/v1/tokens``: admin tokens, which are bearer keys of the realm ``admin``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from api_key_manager.core.admin import check_scopes, refuse_more
from api_key_manager.core.inputs import check_text
from api_key_manager.core.keeping import ReceiptOf
from api_key_manager.core.models import ADMIN_REALM
from api_key_manager.server.idempotency import Once, reply
from api_key_manager.server.keys import origin, sent
from api_key_manager.server.principal import PRINCIPAL, reach
from api_key_manager.server.schemas import CreateToken, TokenFilters

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment

__all__ = ["Tokens"]

_SHOWN = (
    "key_id", "environment", "ip_allowlist", "active", "state", "created_at", "updated_at",
    "expires_at", "revoked_at", "last_used",
)  # fmt: skip


class Tokens:
    """The handlers."""

    def __init__(self, deployment: Deployment) -> None:
        self._manager = deployment.manager
        self._prefix = f"{deployment.settings.TOKEN_PREFIX}_admin"
        self._once = Once(deployment)

    async def create_token(self, request: Request, body: CreateToken) -> Response:
        """Mint an admin token, shown this once. It cannot hold or reach more than its maker's."""
        scopes = check_scopes(body.scopes)
        refuse_more(request.scope[PRINCIPAL].scopes, scopes)
        name = check_text("name", body.name)
        manager, by = reach(self._manager, request), origin(request)

        async def work(receipt: ReceiptOf | None) -> dict[str, Any]:
            return await manager.create_key(
                kind="bearer",
                realm=ADMIN_REALM,
                prefix=self._prefix,
                metadata={} if name is None else {"name": name},
                permissions=scopes,
                environment=body.environment,
                expires_at=body.expires_at,
                ip_allowlist=body.ip_allowlist,
                by=by,
                receipt=receipt,
            )

        return await self._once.run(request, 201, work, _created)

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
