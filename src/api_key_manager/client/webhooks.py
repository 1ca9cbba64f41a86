"""What can be asked about webhooks: who is told of events, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

from api_key_manager.client.asking import Asking, Listing
from api_key_manager.client.exchange import Operation, Repeat
from api_key_manager.client.paths import key_path, segment
from api_key_manager.client.shapes import CreatedWebhook, Delivery, Webhook, WebhookChanges

__all__ = ["WebhookOperations"]


def _path(webhook_id: str, rest: str = "") -> str:
    return key_path(webhook_id, rest, under="webhooks")


class WebhookOperations(Asking):
    """Every call of ``/v1/webhooks``."""

    def create_webhook(
        self,
        url: str,
        *,
        types: Sequence[str] | None = None,
        environment: str | None = None,
        description: str | None = None,
        disabled: bool = False,
        idempotency_key: str | None = None,
    ) -> Operation[CreatedWebhook]:
        """Subscribe to events. The ``secret`` that signs them is shown this once.

        Args:
            url: where events are sent to, by HTTPS.
            types: which events, such as ``key.revoked``; all when left out.
            environment: only events of keys that are in it.
            description: what for.
            disabled: whether to send nothing for now.
            idempotency_key: of your own, if you may ask again later; else one is made.
        """
        more = {"types": None if types is None else list(types), "environment": environment,
                "description": description}  # fmt: skip
        given = {name: value for name, value in more.items() if value is not None}
        body = {"url": url, "disabled": disabled, **given}
        return self._once("/v1/webhooks", body, idempotency_key)

    def list_webhooks(self) -> Operation[list[Webhook]]:
        """Every subscription, the oldest first."""
        answer = yield from self._call("GET", "/v1/webhooks")
        return self._items(answer)

    def get_webhook(self, webhook_id: str) -> Operation[Webhook]:
        """One subscription, without its secret."""
        return self._call("GET", _path(webhook_id))

    def update_webhook(
        self, webhook_id: str, **changes: Unpack[WebhookChanges]
    ) -> Operation[Webhook]:
        """Change what is named, and nothing else."""
        return self._call("PATCH", _path(webhook_id), dict(changes), repeat=Repeat.REFUSED)

    def delete_webhook(self, webhook_id: str) -> Operation[None]:
        """End a subscription, with all that waits."""
        return self._call("DELETE", _path(webhook_id), repeat=Repeat.REFUSED)

    def rotate_webhook_secret(
        self, webhook_id: str, overlap_seconds: int = 86_400, *, idempotency_key: str | None = None
    ) -> Operation[CreatedWebhook]:
        """Give a webhook a new secret, shown this once.

        Args:
            webhook_id: the webhook.
            overlap_seconds: how long the old one signs as well.
            idempotency_key: of your own, if you may ask again later; else one is made.
        """
        body = {"overlap_seconds": overlap_seconds}
        return self._once(_path(webhook_id, "/rotate-secret"), body, idempotency_key)

    def test_webhook(self, webhook_id: str) -> Operation[Delivery]:
        """Send an event now, once, and say what became of it."""
        return self._call("POST", _path(webhook_id, "/test"), repeat=Repeat.REFUSED)

    def list_webhook_deliveries(
        self, webhook_id: str, *, state: Literal["pending", "done", "dead"] | None = None
    ) -> Listing[Delivery]:
        """Go through what was sent, the newest first."""
        return Listing(_path(webhook_id, "/deliveries"), {"state": state})

    def replay_delivery(self, webhook_id: str, delivery_id: str) -> Operation[Delivery]:
        """Send one delivery that is done or dead once more."""
        rest = f"/deliveries/{segment(delivery_id)}/replay"
        return self._call("POST", _path(webhook_id, rest), repeat=Repeat.REFUSED)

    def replay_webhook(self, webhook_id: str) -> Operation[int]:
        """Send all that are dead once more; how many that is."""
        answer = yield from self._call("POST", _path(webhook_id, "/replay"), repeat=Repeat.REFUSED)
        return self._count(answer, "replayed")
