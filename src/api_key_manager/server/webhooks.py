"""``/v1/webhooks``: who is told of events, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from api_key_manager.core.exceptions import ConflictError, KeyNotFoundError
from api_key_manager.core.keeping import ReceiptOf
from api_key_manager.server.idempotency import Once, reply
from api_key_manager.server.keys import origin, sent
from api_key_manager.server.principal import PRINCIPAL
from api_key_manager.server.schemas import (
    CreateWebhook,
    DeliveryFilters,
    RotateWebhookSecret,
    UpdateWebhook,
)

if TYPE_CHECKING:
    from api_key_manager.webhooks import Webhooks
    from api_key_manager.wiring import Deployment

__all__ = ["Hooks"]


def _within(request: Request) -> str | None:
    environment: str | None = request.scope[PRINCIPAL].environment
    return environment


class Hooks:
    """The handlers. Keys in memory have no webhooks: nothing would be left to try again."""

    def __init__(self, deployment: Deployment) -> None:
        self._webhooks = deployment.webhooks
        self._once = Once(deployment)

    @property
    def _there(self) -> Webhooks:
        if self._webhooks is None:
            raise KeyNotFoundError("no such webhook")
        return self._webhooks

    async def create_webhook(self, request: Request, body: CreateWebhook) -> Response:
        """Subscribe to events. The secret that signs them is shown this once."""
        webhooks = self._webhooks
        if webhooks is None:
            raise ConflictError("webhooks need a database: these keys end with the process")

        async def work(receipt: ReceiptOf | None) -> dict[str, Any]:
            return await webhooks.create(sent(body), origin(request), _within(request), receipt)

        return await self._once.run(request, 201, work)

    async def list_webhooks(self, request: Request) -> Response:
        """Every subscription, the oldest first."""
        found = [] if self._webhooks is None else await self._webhooks.list(_within(request))
        return reply({"items": found, "next_cursor": None})

    async def get_webhook(self, request: Request, webhook_id: str) -> Response:
        """One subscription."""
        return reply(await self._there.get(webhook_id, _within(request)))

    async def update_webhook(
        self, request: Request, webhook_id: str, body: UpdateWebhook
    ) -> Response:
        """Change what is sent, and nothing else."""
        by, within = origin(request), _within(request)
        return reply(await self._there.update(webhook_id, sent(body), by, within))

    async def delete_webhook(self, request: Request, webhook_id: str) -> Response:
        """End a subscription, with all that waits."""
        await self._there.delete(webhook_id, origin(request), _within(request))
        return Response(status_code=204)

    async def rotate_webhook_secret(
        self, request: Request, webhook_id: str, body: RotateWebhookSecret | None = None
    ) -> Response:
        """Give it a new secret, shown this once; both sign for `overlap_seconds`."""
        webhooks, overlap = self._there, (body or RotateWebhookSecret()).overlap_seconds
        by, within = origin(request), _within(request)

        async def work(receipt: ReceiptOf | None) -> dict[str, Any]:
            return await webhooks.rotate(webhook_id, overlap, by, within, receipt)

        return await self._once.run(request, 200, work)

    async def send_test_webhook(self, request: Request, webhook_id: str) -> Response:
        """Send an event now, once, and say what became of it."""
        return reply(await self._there.test(webhook_id, _within(request)))

    async def list_deliveries(
        self, request: Request, webhook_id: str, filters: Annotated[DeliveryFilters, Query()]
    ) -> Response:
        """Deliveries, the newest first."""
        within = _within(request)
        return reply(await self._there.deliveries(webhook_id, **sent(filters), within=within))

    async def replay_delivery(
        self, request: Request, webhook_id: str, delivery_id: str
    ) -> Response:
        """Send one that is done or dead once more."""
        by, within = origin(request), _within(request)
        return reply(await self._there.replay(webhook_id, delivery_id, by, within))

    async def replay_dead_deliveries(self, request: Request, webhook_id: str) -> Response:
        """Send all that are dead once more."""
        by, within = origin(request), _within(request)
        return reply({"replayed": await self._there.replay_dead(webhook_id, by, within)})
