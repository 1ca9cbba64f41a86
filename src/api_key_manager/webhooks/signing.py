"""Signatures by the Standard Webhooks specification, version 1 with symmetric keys."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

__all__ = ["PREFIX", "mint", "sign"]

PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32


def mint() -> str:
    """A new secret: ``whsec_`` and base64 of 32 random bytes; the specification has 24 to 64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(shown: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``: one signature for each secret, the newest first.

    Args:
        shown: secrets as :func:`mint` makes them.
        message_id: of ``webhook-id``.
        timestamp: of ``webhook-timestamp``, in Unix seconds.
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    found = []
    for secret in shown:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        mac = hmac.digest(key, signed, "sha256")
        found.append("v1," + base64.b64encode(mac).decode())
    return " ".join(found)
