"""One call, from its arguments to its answer, without I/O: when to send, when to wait, when to
give up.

An operation is a generator. It yields what is to be done, a :class:`Send` or a number of seconds to
wait, and is sent what came of it; a blocking and an asynchronous client differ in nothing but how
they do it.

What may be sent again, and when:

- nothing was sent (no connection), or 429: always, since nothing was done;
- 503 with ``Retry-After``: unless a second time would be refused for the first one's sake, as with
  a nonce;
- an answer that got lost, 502, 503, 504: what only reads or judges, nonces aside, and what carries
  an ``Idempotency-Key``.

Between attempts is an exponential backoff with full jitter, a random part of the whole wait, so
that clients that failed together don't come back together.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeVar

from api_key_manager.client.errors import ApiError, NoAnswerError, error_of
from api_key_manager.core.exceptions import ValidationError

__all__ = ["Answer", "Call", "Lost", "Operation", "Outcome", "Repeat", "Retries", "Send", "call"]

T = TypeVar("T")

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_CONFLICT: Final = 409
_TOO_MANY: Final = 429
_UNAVAILABLE: Final = 503
_BROKEN_GATEWAY: Final = frozenset({502, 503, 504})
_MULTIPLE_CHOICES: Final = 300
_BAD_REQUEST: Final = 400
_LONGEST_NUMBER: Final = 9
_random = secrets.SystemRandom()


class Repeat(IntEnum):
    """Up to which doubt a call may be sent again; see the module."""

    NOT_DONE = 0
    REFUSED = 1
    ANY = 2


@dataclass(frozen=True)
class Retries:
    """How often and how long to try.

    Attributes:
        most: attempts after the first one; 0 for none.
        base_seconds: the longest first wait; it doubles with each attempt.
        most_seconds: no wait is longer. If the server asks for more, its refusal is raised.
        deadline_seconds: of a call with all its attempts. No attempt begins later.

    Raises:
        ValidationError: a negative number.
    """

    most: int = 3
    base_seconds: float = 0.2
    most_seconds: float = 10
    deadline_seconds: float = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValidationError(f"{name}: zero or a positive number is allowed")

    def wait(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after an attempt; ``asked`` is what the server wants at least."""
        most = min(self.most_seconds, self.base_seconds * 2 ** min(attempt, 30))
        return (asked or 0) + _random.uniform(0, most)


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked. Its ``repr`` shows no body, which may hold a credential."""

    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] | None = None
    repeat: Repeat = Repeat.ANY
    idempotency_key: str | None = None

    def __repr__(self) -> str:
        return f"Call({self.method} {self.path})"


class Send(NamedTuple):
    """What is to be sent, and how many seconds are left for it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    content: bytes
    seconds: float

    def __repr__(self) -> str:
        return f"Send({self.method} {self.path})"


class Answer(NamedTuple):
    """What came back. Header names are in lower case."""

    status: int
    phrase: str
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Answer({self.status})"

    @property
    def retry_after(self) -> float | None:
        """Seconds, from either form of ``Retry-After`` (RFC 9110 section 10.2.3)."""
        text = self.headers.get("retry-after", "")
        if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER:
            return float(text)
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None

    def json(self) -> dict[str, Any] | None:
        """The JSON object, if it is one."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


class Lost(NamedTuple):
    """Nothing came back, and what is known of it."""

    error: Exception
    told: str
    sent: bool


Outcome = Answer | Lost | None
Operation = Generator[Send | float, Outcome, T]


def call(asked: Call, retries: Retries, where: str) -> Operation[Any]:
    """Make a call and read its answer.

    Args:
        asked: the call.
        retries: how often and how long.
        where: the server, for messages.

    Returns:
        The JSON object of the answer; ``None`` when it has no body.

    Raises:
        ApiError: the server refused; also as the core's exception of its reason.
        NoAnswerError: no answer came.
    """
    answer = yield from exchange(asked, retries, where)
    if _MULTIPLE_CHOICES <= answer.status < _BAD_REQUEST:
        # Not followed: the token is for the server that was named.
        raise error_of(answer.status, {}, None, f"{where} redirects elsewhere: name the final URL")
    if answer.status >= _BAD_REQUEST:
        phrase = f"{where} answered {answer.status} {answer.phrase}".rstrip()
        raise error_of(answer.status, answer.json() or {}, answer.retry_after, phrase)
    if not answer.body:
        return None
    found = answer.json()
    if found is None:
        raise strange(where)
    return found


def exchange(asked: Call, retries: Retries, where: str) -> Operation[Answer]:
    """Send a call until it is answered, or should not be sent again; the answer as it came.

    Raises:
        NoAnswerError: no answer came.
    """
    until = time.monotonic() + retries.deadline_seconds
    content, headers = _content(asked)
    query = {name: str(value) for name, value in (asked.query or {}).items() if value is not None}
    doubt = False  # whether an attempt may have been processed
    for attempt in itertools.count():
        left = max(until - time.monotonic(), 0.001)
        outcome = yield Send(asked.method, asked.path, query, headers, content, left)
        after = None
        if isinstance(outcome, Lost):
            doubt = doubt or outcome.sent
        elif outcome is not None:
            after = outcome.retry_after
        wait = retries.wait(attempt, after)
        in_time = (after or 0) <= retries.most_seconds and time.monotonic() + wait < until
        if attempt < retries.most and in_time and _repeatable(asked, outcome):
            yield wait
        elif isinstance(outcome, Answer):
            return outcome
        else:
            break
    assert isinstance(outcome, Lost)  # noqa: S101 - what a driver gives when it has no answer
    processed = None if doubt else False
    raise NoAnswerError(f"{where} {outcome.told}", processed=processed) from outcome.error


def strange(where: str) -> ApiError:
    """Something answered that is no API key manager."""
    return ApiError(f"{where} does not answer as an API key manager does")


def _repeatable(asked: Call, outcome: Outcome) -> bool:
    if not isinstance(outcome, Answer):
        return outcome is not None and (not outcome.sent or asked.repeat is Repeat.ANY)
    status = outcome.status
    if status == _TOO_MANY:
        return True
    if status == _UNAVAILABLE and outcome.retry_after is not None:
        return asked.repeat >= Repeat.REFUSED
    if status == _CONFLICT and asked.idempotency_key is not None:
        return (outcome.json() or {}).get("reason") == "in_progress"
    return status in _BROKEN_GATEWAY and asked.repeat is Repeat.ANY


def _content(asked: Call) -> tuple[bytes, dict[str, str]]:
    headers: dict[str, str] = {}
    if asked.idempotency_key is not None:
        headers[IDEMPOTENCY_KEY] = asked.idempotency_key
    if asked.body is None:
        return b"", headers
    try:
        content = json.dumps(asked.body, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        raise ValidationError("body: values that JSON can express are allowed") from None
    return content, {**headers, "Content-Type": "application/json"}
