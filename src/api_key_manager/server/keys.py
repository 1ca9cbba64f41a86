"""``/v1/keys``: the life cycle of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from api_key_manager.core.changing import Origin
from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.keeping import ReceiptOf
from api_key_manager.server.idempotency import Once, reply
from api_key_manager.server.principal import PRINCIPAL, reach
from api_key_manager.server.schemas import (
    CreateKey,
    KeyFilters,
    RevokeKey,
    RevokeKeys,
    RotateKey,
    UpdateKey,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from api_key_manager.wiring import Deployment

__all__ = ["Keys", "instant", "origin", "sent"]


def origin(request: Request) -> Origin:
    """On whose behalf a request is made."""
    made_by: Origin = request.scope[PRINCIPAL].origin
    return made_by


def sent(body: BaseModel) -> dict[str, Any]:
    """The fields that were sent: null is a value, absence is none."""
    fields = {name: getattr(body, name) for name in body.model_fields_set}
    # Not model_dump() of the whole body: metadata may be nested deeper than that goes.
    if fields.get("rate_limits"):
        fields["rate_limits"] = [limit.model_dump() for limit in fields["rate_limits"]]
    if fields.get("quota") is not None:
        fields["quota"] = fields["quota"].model_dump(exclude_unset=True)
    return fields


def instant(text: str | None) -> str | float | None:
    """An instant out of a URL, where a ``+`` that nobody escaped has become a space."""
    if text is None:
        return None
    if text.replace(".", "", 1).isdecimal() and text.isascii():
        return float(text)
    return f"{text[:-6]}+{text[-5:]}" if text[-6:-5] == " " else text


class Keys:
    """The handlers."""

    def __init__(self, deployment: Deployment) -> None:
        self._manager = deployment.manager
        self._once = Once(deployment)

    async def create_key(self, request: Request, body: CreateKey) -> Response:
        """Make a key. Its secret or token is shown this once."""
        manager = reach(self._manager, request)
        by, fields = origin(request), sent(body)

        async def work(receipt: ReceiptOf | None) -> dict[str, Any]:
            return await manager.create_key(**fields, by=by, receipt=receipt)

        return await self._once.run(request, 201, work)

    async def list_keys(
        self, request: Request, filters: Annotated[KeyFilters, Query()]
    ) -> Response:
        """Keys in the order of their ids, page by page."""
        wanted = sent(filters)
        wanted["created_before"] = instant(filters.created_before)
        return reply(await reach(self._manager, request).find_keys(**wanted))

    async def get_key(self, request: Request, key_id: str) -> Response:
        """One key, its secret redacted."""
        return reply(await reach(self._manager, request).get_key(key_id))

    async def update_key(self, request: Request, key_id: str, body: UpdateKey) -> Response:
        """Change what is sent, and nothing else."""
        manager = reach(self._manager, request)
        return reply(await manager.update_key(key_id, **sent(body), by=origin(request)))

    async def delete_key(self, request: Request, key_id: str) -> Response:
        """Erase a key and its secrets. Its id never returns."""
        await reach(self._manager, request).delete_key(key_id, by=origin(request))
        return Response(status_code=204)

    async def revoke_key(
        self, request: Request, key_id: str, body: RevokeKey | None = None
    ) -> Response:
        """End a key for good, at once or at an instant to come."""
        body = body or RevokeKey()
        manager = reach(self._manager, request)
        await manager.revoke_key(key_id, body.reason, body.at, by=origin(request))
        return reply(await manager.get_key(key_id))

    async def rotate_key(
        self, request: Request, key_id: str, body: RotateKey | None = None
    ) -> Response:
        """Give a key a new secret or token; the old one works on for `overlap_seconds`."""
        manager = reach(self._manager, request)
        by, overlap = origin(request), (body or RotateKey()).overlap_seconds

        async def work(receipt: ReceiptOf | None) -> dict[str, Any]:
            return await manager.rotate_key(key_id, overlap, by=by, receipt=receipt)

        return await self._once.run(request, 200, work)

    async def list_versions(self, request: Request, key_id: str) -> Response:
        """Every version of a key that ever was, newest first."""
        versions = await reach(self._manager, request).key_versions(key_id)
        return reply({"items": versions, "next_cursor": None})

    async def revoke_keys(self, request: Request, body: RevokeKeys) -> Response:
        """End every key that fits all filters, or say which it would be."""
        fields = sent(body)
        for name, value in fields.items():
            # Whoever sends null meant one owner and has none: that must not mean every owner.
            if value is None and name != "reason":
                raise ValidationError(f"{name}: a value is needed, or leave it out")
        return reply(await reach(self._manager, request).revoke_keys(**fields, by=origin(request)))
