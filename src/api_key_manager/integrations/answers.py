"""What a middleware answers by itself: problem documents (RFC 9457) as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from api_key_manager.core.exceptions import OUTCOMES, Reason
from api_key_manager.core.limits import Decision, ratelimit_headers
from api_key_manager.core.models import Verdict
from api_key_manager.core.problems import (
    PROBLEM_TYPE,
    RETRY_SECONDS,
    TOO_MANY_FAILURES,
    problem_document,
)

__all__ = [
    "Answer",
    "Headers",
    "RefusedError",
    "content_for",
    "limited",
    "problem",
    "refusal",
    "too_large",
    "too_many_failures",
    "unauthorized",
    "unavailable",
]

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, as ASGI wants them."""


class Answer(NamedTuple):
    """A whole HTTP response."""

    status: int
    headers: Headers
    body: bytes


class RefusedError(Exception):
    """The request goes no further.

    Args:
        answer: what its sender is told.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def problem(status: int, reason: str, detail: str, headers: Headers = ()) -> Answer:
    """A problem document.

    Args:
        status: the HTTP status.
        reason: the slug.
        detail: a sentence for people, without secrets.
        headers: to go with it.
    """
    document = problem_document(status, reason, detail)
    body = json.dumps(document, separators=(",", ":")).encode()
    about = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", b"%d" % len(body))]
    return Answer(status, [*about, *headers], body)


def unauthorized() -> Answer:
    """The one 401: whether a key is unknown, wrong, revoked or expired is nobody's business."""
    return problem(
        401, "unauthorized", "A valid API key is needed.", [(b"www-authenticate", b"Bearer")]
    )


def too_many_failures(wait: int) -> Answer:
    """Instead of a 401, whatever that was for; ``wait`` in seconds."""
    return problem(
        429,
        Reason.RATE_LIMITED.value,
        TOO_MANY_FAILURES,
        [(b"retry-after", b"%d" % wait)],
    )


def unavailable() -> Answer:
    """It cannot be told right now; why is in the log."""
    return problem(
        503,
        Reason.UNAVAILABLE.value,
        "The key cannot be checked right now. Try again in a moment.",
        [(b"retry-after", b"%d" % RETRY_SECONDS)],
    )


def too_large(limit: int) -> Answer:
    """The body of a signed request is longer than what is read of one."""
    return problem(413, "too_large", f"A signed body has at most {limit} bytes.")


def limited(decision: Decision) -> Answer:
    """A rate limit refused."""
    detail = f"The rate limit {decision.deciding.name} is used up."
    if decision.never:
        detail = f"This costs more than the rate limit {decision.deciding.name} ever holds."
    headers = ratelimit_headers(decision.states, decision.retry_after)
    return problem(429, Reason.RATE_LIMITED.value, detail, headers)


def refusal(verdict: Verdict, wait: int = 0) -> Answer:
    """What the sender of a refused credential is told; all 401s are the same bytes.

    Args:
        verdict: why it is refused.
        wait: what :meth:`.KeyManager.wait_after` said.
    """
    if wait:
        return too_many_failures(wait)
    reason = verdict.reason
    status = OUTCOMES[reason].status
    if status == 401:
        return unauthorized()
    if status == 503:
        return unavailable()
    if reason is Reason.RATE_LIMITED and verdict.rate_limit is not None:
        return limited(verdict.rate_limit)
    return problem(status, reason.value, f"Refused: {OUTCOMES[reason].message}.")


def content_for(answer: Answer, method: str) -> bytes:
    """The body to send: none to HEAD, whatever the headers say of it (RFC 9110 section 9.3.2)."""
    return b"" if method == "HEAD" else answer.body
