"""Problem documents (RFC 9457): the one shape of every refusal over HTTP, as plain values."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

__all__ = ["PROBLEM_TYPE", "RETRY_SECONDS", "TOO_MANY_FAILURES", "problem_document"]

PROBLEM_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = 1
"""What ``Retry-After`` says where nobody knows when it will be better."""
TOO_MANY_FAILURES: Final = "Too many refused credentials came from this address."
"""The detail of the 429 that stands in for a 401: the same whatever that was for."""


def problem_document(status: int, reason: str, detail: str) -> dict[str, Any]:
    """A problem of the type ``about:blank``, whose title is the status's own (section 4.2.1).

    Args:
        status: the HTTP status.
        reason: the slug, an extension member of ours.
        detail: a sentence for people, without secrets.
    """
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": reason,
    }
