"""A subscription's secrets at rest, bound to where they are used."""

from __future__ import annotations

from api_key_manager.core.ports import SecretBox
from api_key_manager.storage.webhooks import Webhook

__all__ = ["open_secrets", "seal"]

_PURPOSE = "webhook"


def _name(webhook: Webhook) -> str:
    """A URL or an environment that is edited in the database opens no secret, so sends nothing."""
    return f"{webhook.id}\n{webhook.environment or ''}\n{webhook.url}"


def seal(box: SecretBox, webhook: Webhook, secret: str) -> bytes:
    """A secret for the subscription as it is to be."""
    return box.seal(_PURPOSE, _name(webhook), 1, secret.encode())


def open_secrets(box: SecretBox, webhook: Webhook, now: int) -> list[str]:
    """The secrets that are signed with at ``now`` (µs), the newest first.

    Raises:
        EncryptionError: the row was edited.
    """
    sealed = [webhook.sealed]
    if webhook.previous_sealed is not None and now < (webhook.previous_until or 0):
        sealed.append(webhook.previous_sealed)
    return [box.open(_PURPOSE, _name(webhook), 1, each).decode() for each in sealed]
