"""The use cases: subscribe, look, change, rotate, test, replay."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, Final

from api_key_manager.core.changing import Origin
from api_key_manager.core.exceptions import (
    ConflictError,
    KeyNotFoundError,
    PermissionDeniedError,
    ValidationError,
)
from api_key_manager.core.inputs import check_limit, check_name, check_overlap, check_text
from api_key_manager.core.keeping import ReceiptOf
from api_key_manager.core.models import MICROSECONDS, AuditEvent, canonical_json, rfc3339
from api_key_manager.core.ports import SecretBox
from api_key_manager.core.sealed import Stamp
from api_key_manager.storage import Driver
from api_key_manager.storage import webhooks as scripts
from api_key_manager.storage.webhooks import Delivery, Webhook
from api_key_manager.webhooks.events import TEST, check_types, test_body
from api_key_manager.webhooks.outbox import Outbox
from api_key_manager.webhooks.sealing import open_secrets, seal
from api_key_manager.webhooks.sending import Sender
from api_key_manager.webhooks.signing import mint
from api_key_manager.webhooks.targets import parse_target

__all__ = ["OVERLAP_SECONDS", "STATES", "Webhooks"]

STATES: Final = ("pending", "done", "dead")
OVERLAP_SECONDS: Final = 86_400
_PAGE: Final = 1000


class Webhooks:
    """Subscriptions to what happens to keys.

    Every method takes ``within``: the only environment there is for who asks; ``None``: all.
    """

    def __init__(
        self,
        driver: Driver,
        box: SecretBox,
        stamp: Stamp,
        sender: Sender,
        outbox: Outbox,
        clock: Callable[[], float],
    ) -> None:
        self._driver = driver
        self._box = box
        self._stamp = stamp
        self._sender = sender
        self._outbox = outbox
        self._clock = clock

    @property
    def _now(self) -> int:
        return int(self._clock() * MICROSECONDS)

    async def create(
        self,
        fields: dict[str, Any],
        by: Origin,
        within: str | None = None,
        receipt: ReceiptOf | None = None,
    ) -> dict[str, Any]:
        """Subscribe; the answer holds the ``secret``, shown this once.

        Raises:
            ValidationError: a value that is not allowed; the message names the field.
            PermissionDeniedError: another environment than ``within``.
            ConflictError: there are too many.
        """
        environment = check_name("environment", fields.get("environment"))
        if within is not None:
            if environment not in (None, within):
                raise PermissionDeniedError(
                    "environment: only the one that this token is confined to"
                )
            environment = within
        types = check_types(fields.get("types"))
        description = check_text("description", fields.get("description"), 256)
        await self._sender.check(fields.get("url"))
        now = self._now
        webhook = Webhook(
            secrets.token_hex(12), fields["url"], canonical_json(types), environment, description,
            b"", None, None, bool(fields.get("disabled", False)), None, now, now,
        )  # fmt: skip
        secret = mint()
        webhook = webhook._replace(sealed=seal(self._box, webhook, secret))
        answer = {**_shown(webhook), "secret": secret}
        kept = receipt(answer) if receipt else None
        event = self._event(webhook, "created", by, {"types": types})
        await self._driver.write(scripts.add, webhook, event, self._stamp, kept)
        return answer

    async def list(self, within: str | None = None) -> list[dict[str, Any]]:
        """Every subscription, the oldest first."""
        found = await self._driver.read(scripts.every)
        return [_shown(each) for each in found if within in (None, each.environment)]

    async def get(self, webhook_id: str, within: str | None = None) -> dict[str, Any]:
        """One subscription.

        Raises:
            KeyNotFoundError: there is none.
        """
        return _shown(await self._find(webhook_id, within))

    async def update(
        self, webhook_id: str, fields: dict[str, Any], by: Origin, within: str | None = None
    ) -> dict[str, Any]:
        """Change ``url``, ``types``, ``description`` or ``disabled``.

        Raises:
            KeyNotFoundError, ValidationError, ConflictError
        """
        if not fields:
            raise ValidationError("fields: name at least one to change")
        before = await self._find(webhook_id, within)
        after = before._replace(updated_at=self._now)
        if "types" in fields:
            after = after._replace(types=canonical_json(check_types(fields["types"])))
        if "description" in fields:
            description = check_text("description", fields["description"], 256)
            after = after._replace(description=description)
        if fields.get("disabled") is not None:
            after = after._replace(disabled=fields["disabled"], disabled_reason=None)
        if "url" in fields:
            await self._sender.check(fields["url"])
            kept = open_secrets(self._box, before, after.updated_at)
            after = after._replace(url=fields["url"], previous_sealed=None)
            after = after._replace(sealed=seal(self._box, after, kept[0]))
            if kept[1:]:
                after = after._replace(previous_sealed=seal(self._box, after, kept[1]))
        event = self._event(after, "updated", by, {"fields": sorted(fields)})
        await self._driver.write(scripts.change, after, before, event, self._stamp)
        return _shown(after)

    async def delete(self, webhook_id: str, by: Origin, within: str | None = None) -> None:
        """End a subscription, with all that waits.

        Raises:
            KeyNotFoundError: there is none.
        """
        webhook = await self._find(webhook_id, within)
        event = self._event(webhook, "deleted", by, {})
        if not await self._driver.write(scripts.drop, webhook_id, event, self._stamp):
            raise _unknown()

    async def rotate(
        self,
        webhook_id: str,
        overlap_seconds: int,
        by: Origin,
        within: str | None = None,
        receipt: ReceiptOf | None = None,
    ) -> dict[str, Any]:
        """Give a new secret, shown this once; for ``overlap_seconds`` both sign.

        Raises:
            KeyNotFoundError, ValidationError, ConflictError
        """
        check_overlap(overlap_seconds)
        before = await self._find(webhook_id, within)
        now, secret = self._now, mint()
        after = before._replace(
            updated_at=now, sealed=seal(self._box, before, secret),
            previous_sealed=before.sealed if overlap_seconds else None,
            previous_until=now + overlap_seconds * MICROSECONDS if overlap_seconds else None,
        )  # fmt: skip
        answer = {**_shown(after), "secret": secret}
        event = self._event(after, "secret_rotated", by, {"overlap_seconds": overlap_seconds})
        kept = receipt(answer) if receipt else None
        await self._driver.write(scripts.change, after, before, event, self._stamp, kept)
        return answer

    async def test(self, webhook_id: str, within: str | None = None) -> dict[str, Any]:
        """Send an event now, once, and say what became of it.

        Raises:
            KeyNotFoundError: there is none.
        """
        webhook = await self._find(webhook_id, within)
        now = self._now
        until = now + round(self._outbox.lease_seconds * MICROSECONDS)
        body = test_body(webhook_id, now)
        made = await self._driver.write(
            scripts.add_test, webhook_id, TEST, body, now, until, self._outbox.vouch
        )
        return _told(await self._outbox.deliver(webhook, made))

    async def deliveries(
        self,
        webhook_id: str,
        *,
        state: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        within: str | None = None,
    ) -> dict[str, Any]:
        """A page of deliveries, the newest first.

        Raises:
            KeyNotFoundError, ValidationError
        """
        if state not in (None, *STATES):
            raise ValidationError(f"state: {', '.join(STATES)} are allowed")
        if cursor is not None and not (cursor.isascii() and cursor.isprintable()):
            raise ValidationError("cursor: it is not one that was given out")
        limit = check_limit(limit, _PAGE)
        await self._find(webhook_id, within)
        found = await self._driver.read_aside(
            scripts.deliveries, webhook_id, state, cursor, limit + 1
        )
        page = found[:limit]
        following = page[-1].id if len(found) > limit else None
        return {"items": [_told(each) for each in page], "next_cursor": following}

    async def replay(
        self, webhook_id: str, delivery_id: str, by: Origin, within: str | None = None
    ) -> dict[str, Any]:
        """Send a finished delivery once more, from the first try on.

        Raises:
            KeyNotFoundError: there is none.
            ConflictError: it is still tried, or the webhook is disabled.
        """
        webhook = await self._replayable(webhook_id, within)
        if await self._driver.read(scripts.find_delivery, webhook_id, delivery_id) is None:
            raise KeyNotFoundError("no such delivery")
        event = self._event(webhook, "replayed", by, {"delivery_id": delivery_id})
        done = await self._driver.write(
            scripts.replay, webhook_id, delivery_id, self._now, event, self._stamp
        )
        if done is None:
            raise ConflictError("the delivery is still tried")
        return _told(done)

    async def replay_dead(self, webhook_id: str, by: Origin, within: str | None = None) -> int:
        """The same for every dead one; how many that is.

        Raises:
            KeyNotFoundError, ConflictError
        """
        webhook = await self._replayable(webhook_id, within)
        event = self._event(webhook, "replayed", by, {"state": "dead"})
        return await self._driver.write(
            scripts.replay_dead, webhook_id, self._now, event, self._stamp
        )

    async def _replayable(self, webhook_id: str, within: str | None) -> Webhook:
        webhook = await self._find(webhook_id, within)
        if webhook.disabled:
            raise ConflictError("the webhook is disabled: enable it first")
        return webhook

    async def _find(self, webhook_id: str, within: str | None) -> Webhook:
        webhook = await self._driver.read(scripts.find, webhook_id)
        if webhook is None or within not in (None, webhook.environment):
            raise _unknown()
        return webhook

    def _event(self, webhook: Webhook, verb: str, by: Origin, detail: dict[str, Any]) -> AuditEvent:
        by = by.storable()
        # The host alone: what else stands in a URL may be meant for few.
        host = parse_target(webhook.url, private=True).host
        told = canonical_json({"webhook_id": webhook.id, "host": host, **detail})
        return AuditEvent(
            self._now, f"webhook_{verb}", None, by.actor, None, by.ip, by.request_id, told,
            environment=webhook.environment,
        )  # fmt: skip


def _unknown() -> KeyNotFoundError:
    return KeyNotFoundError("no such webhook")


def _shown(webhook: Webhook) -> dict[str, Any]:
    until = webhook.previous_until
    return {
        "id": webhook.id,
        "url": webhook.url,
        "types": json.loads(webhook.types),
        "environment": webhook.environment,
        "description": webhook.description,
        "disabled": webhook.disabled,
        "disabled_reason": webhook.disabled_reason,
        "created_at": rfc3339(webhook.created_at),
        "updated_at": rfc3339(webhook.updated_at),
        "previous_secret_until": None if until is None else rfc3339(until),
    }


def _told(delivery: Delivery) -> dict[str, Any]:
    waits = delivery.state == "pending"
    return {
        "id": delivery.id,
        "type": delivery.type,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "outcome": delivery.outcome,
        "status": delivery.status,
        "created_at": rfc3339(delivery.created_at),
        "next_at": rfc3339(delivery.next_at) if waits else None,
        "finished_at": None if delivery.finished_at is None else rfc3339(delivery.finished_at),
    }
