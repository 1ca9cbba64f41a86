"""What can go wrong between here and the server, in the terms of the core's exceptions.

::

    APIKeyManagerException
    ├── ApiError                    the server refused; with status, field, request_id, retry_after
    │   ├── UnauthorizedError           unauthorized: the admin token is not accepted
    │   └── one that is a ValidationError, KeyNotFoundError, KeyExistsError, … as well
    └── NoAnswerError               no_answer: unreachable, too slow, or broken off
"""

from __future__ import annotations

from typing import Any

from api_key_manager.core.exceptions import (
    OUTCOMES,
    APIKeyManagerException,
    ConflictError,
    KeyExistsError,
    Reason,
    StorageError,
    ValidationError,
)

__all__ = ["ApiError", "NoAnswerError", "UnauthorizedError", "error_of", "refusal_of"]


class ApiError(APIKeyManagerException):
    """The server refused, or answered what no API key manager answers.

    Attributes:
        reason: the slug of its problem document; ``error`` when it sent none.
        status: of HTTP.
        field: what part of the request is meant, where one is.
        request_id: under which the server's log has it.
        retry_after: seconds after which it may be tried again, where the server said so.
    """

    status: int = 0
    field: str | None = None
    request_id: str | None = None
    retry_after: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Most of the classes are found by their reason only: this is how a pickle finds them.
        problem = {"reason": self.reason, "detail": str(self), "field": self.field,
                   "request_id": self.request_id}  # fmt: skip
        return error_of, (self.status, problem, self.retry_after, "")


class UnauthorizedError(ApiError):
    """The admin token is unknown, expired, revoked or not for this address."""

    default_reason = "unauthorized"


class NoAnswerError(APIKeyManagerException):
    """No answer came: the server cannot be reached, took too long, or broke off.

    Attributes:
        processed: ``False`` when nothing was sent; ``None`` when it cannot be known whether the
            server did what it was asked to do.
    """

    default_reason = "no_answer"

    def __init__(self, message: str, *, processed: bool | None = None) -> None:
        super().__init__(message)
        self.processed = processed


_BASES: dict[str, type[APIKeyManagerException]] = {
    **{str(reason): outcome.exception for reason, outcome in OUTCOMES.items()},
    "key_exists": KeyExistsError,
    "conflict": ConflictError,
    "in_progress": ConflictError,
    "idempotency_key": ValidationError,
    "too_large": ValidationError,
    "unsupported_media_type": ValidationError,
    "not_ready": StorageError,
}
# One class for each of the core's that a server can mean: an ApiError that is also the other.
_CLASSES: dict[str, type[ApiError]] = {
    base.__name__: type(base.__name__, (ApiError, base), {"__doc__": base.__doc__})
    for base in dict.fromkeys(_BASES.values())
}
_UNAVAILABLE = 503


def error_of(
    status: int, problem: dict[str, Any], retry_after: float | None, phrase: str
) -> ApiError:
    """The exception of an answer that is no success.

    Args:
        status: of HTTP.
        problem: the problem document (RFC 9457), empty when there is none.
        retry_after: seconds, if the answer said so.
        phrase: what to say when there is no document.
    """
    said = problem.get("reason")
    # A gateway in front of the server says 503 without a document.
    reason = said if isinstance(said, str) else ("error", "unavailable")[status == _UNAVAILABLE]
    kind: type[ApiError] = ApiError
    if reason == "unauthorized":
        kind = UnauthorizedError
    elif reason in _BASES:
        kind = _CLASSES[_BASES[reason].__name__]
    detail = problem.get("detail")
    error = kind(detail if isinstance(detail, str) else phrase, reason=reason)
    error.status = status
    error.retry_after = retry_after
    for name in ("field", "request_id"):
        value = problem.get(name)
        setattr(error, name, value if isinstance(value, str) else None)
    return error


def refusal_of(reason: str) -> APIKeyManagerException:
    """The core's exception of a verdict's reason."""
    try:
        outcome = OUTCOMES[Reason(reason)]
    except (ValueError, KeyError):  # of a newer server
        return APIKeyManagerException(reason=reason)
    return outcome.exception(outcome.message, reason=reason)
