"""Which events subscribers may have, and what they read of one."""

from __future__ import annotations

import json
from typing import Any, Final

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.models import canonical_json, rfc3339
from api_key_manager.storage.webhooks import Logged, Webhook

__all__ = ["ALL", "TEST", "TYPES", "check_types", "test_body", "wanted"]

ALL: Final = "*"
TEST: Final = "webhook.test"
_BY_ACTION: Final = {
    "key_created": "key.created",
    "key_updated": "key.changed",
    "key_revocation_scheduled": "key.changed",
    "key_rotated": "key.rotated",
    "key_revoked": "key.revoked",
    "key_deleted": "key.deleted",
    "key_expiring": "key.expiring",
    "key_expired": "key.expired",
    "key_leaked": "key.leaked",
    "limit_reached": "key.limit_reached",
}
TYPES: Final = tuple(dict.fromkeys(_BY_ACTION.values()))


def check_types(types: object) -> list[str]:
    """The types of a subscription, each once.

    Raises:
        ValidationError: none, or one that there is not.
    """
    if types is None:
        return [ALL]
    if not isinstance(types, list) or not types or not set(types) <= {ALL, *TYPES}:
        raise ValidationError(f"types: {ALL} (all of them), or of {', '.join(TYPES)} are allowed")
    return [ALL] if ALL in types else [kind for kind in TYPES if kind in types]


def wanted(webhook: Webhook, event: Logged) -> tuple[str, str] | None:
    """The type and body of what a subscriber is sent of an event, if anything."""
    kind = _BY_ACTION.get(event.action)
    types = json.loads(webhook.types)
    if kind is None or (ALL not in types and kind not in types):
        return None
    if webhook.environment not in (None, event.environment):
        return None
    data = {
        "key_id": event.key_id,
        "environment": event.environment,
        "owner": event.owner,
        "action": event.action,
        "actor": event.actor,
        "reason": event.reason,
        "detail": json.loads(event.detail) if event.detail else {},
    }
    return kind, _body(kind, event.at, data)


def test_body(webhook_id: str, now: int) -> str:
    """What a test sends."""
    return _body(TEST, now, {"webhook_id": webhook_id})


def _body(kind: str, at: int, data: dict[str, Any]) -> str:
    return canonical_json({"type": kind, "timestamp": rfc3339(at), "data": data})
