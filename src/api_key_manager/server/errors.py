"""Problem documents (RFC 9457): one shape for every refusal, one table from exception to status.

What a client reads never holds a secret, a body it sent, or anything about the inside.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    ConflictError,
    EncryptionError,
    KeyExistsError,
    KeyExpiredError,
    KeyNotFoundError,
    KeyRevokedError,
    PermissionDeniedError,
    RateLimitExceededError,
    Reason,
    StorageError,
    ValidationError,
    VaultError,
)
from api_key_manager.core.problems import (
    PROBLEM_TYPE,
    RETRY_SECONDS,
    TOO_MANY_FAILURES,
    problem_document,
)

__all__ = [
    "PROBLEM_TYPE",
    "RETRY_SECONDS",
    "Headers",
    "ProblemError",
    "forbidden",
    "problem_of",
    "too_many_failures",
    "unauthorized",
    "unavailable",
]

Headers = Sequence[tuple[bytes, bytes]]


class ProblemError(Exception):
    """A refusal as HTTP says it.

    Args:
        status: the HTTP status.
        reason: the slug.
        detail: a sentence for people.
        field: what part of the request is meant.
        headers: to go with the answer.
        extra: further members of the document.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Headers = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.field = field
        self.headers = headers
        self.extra = extra

    def body(self, request_id: str | None) -> bytes:
        """The document. A 401 leaves the request id out: all of them are the same bytes."""
        document = problem_document(self.status, self.reason, self.detail)
        if self.field is not None:
            document["field"] = self.field
        if request_id is not None and self.status != HTTPStatus.UNAUTHORIZED:
            document["request_id"] = request_id
        return msgspec.json.encode({**document, **(self.extra or {})})


def unauthorized() -> ProblemError:
    """The one 401: whether a token is unknown, wrong, revoked or expired is nobody's business."""
    return ProblemError(
        401,
        "unauthorized",
        "An admin token is needed: Authorization: Bearer <token>.",
        headers=[(b"www-authenticate", b"Bearer")],
    )


def too_many_failures(wait: int) -> ProblemError:
    """Instead of a 401, whatever that was for; ``wait`` in seconds."""
    return ProblemError(
        429,
        Reason.RATE_LIMITED.value,
        TOO_MANY_FAILURES,
        headers=[(b"retry-after", b"%d" % wait)],
    )


def forbidden(scope: str) -> ProblemError:
    """The token is genuine, and lacks a scope."""
    return ProblemError(403, Reason.FORBIDDEN.value, f"This needs the scope {scope}.")


def unavailable(*, uncertain: bool = False) -> ProblemError:
    """It cannot be told right now; why is in the log.

    Args:
        uncertain: whether the change may have been made all the same.
    """
    told = (
        "The store went away while this was being written: it may or may not have been done."
        " The same request with the same Idempotency-Key finds out."
        if uncertain
        else "The store cannot answer right now. Try again in a moment."
    )
    return ProblemError(
        503,
        Reason.UNAVAILABLE.value,
        told,
        headers=[(b"retry-after", b"%d" % RETRY_SECONDS)],
    )


class _Row(NamedTuple):
    exception: type[APIKeyManagerException]
    status: int


_TABLE: Final = (
    # The first that fits counts, so a subclass stands above its base.
    _Row(ValidationError, 422),
    _Row(KeyRevokedError, 409),
    _Row(KeyNotFoundError, 404),
    _Row(KeyExistsError, 409),
    _Row(ConflictError, 409),
    _Row(KeyExpiredError, 409),
    _Row(PermissionDeniedError, 403),
    _Row(RateLimitExceededError, 429),
    _Row(StorageError, 503),
    _Row(EncryptionError, 503),
    _Row(VaultError, 503),
)

_SLUGS: Final = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}

# What pydantic says of a wrong type in words of Python.
_ALLOWED: Final = {
    "bool_type": "true or false is allowed",
    "bool_parsing": "true or false is allowed",
    "dict_type": "a JSON object is allowed",
    "list_type": "a list is allowed",
    "model_attributes_type": "a JSON object is allowed",
    "model_type": "a JSON object is allowed",
    "string_type": "text is allowed",
}

_read_field = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)?): ").match
# Members that are objects with members of their own.
_OBJECTS: Final = frozenset({"quota"})


def problem_of(error: Exception) -> ProblemError:
    """What a client is told of an exception."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, APIKeyManagerException):
        return _problem_of_ours(error)
    if isinstance(error, RequestValidationError):
        return _problem_of_body(error.errors())
    if isinstance(error, HTTPException):
        if error.status_code == 400:  # what FastAPI makes of a body that no parser takes
            return ProblemError(400, "malformed", "The body is not JSON.")
        reason = _SLUGS.get(error.status_code, "error")
        return ProblemError(error.status_code, reason, HTTPStatus(error.status_code).description)
    return ProblemError(500, "error", "Something went wrong here. The log has it by request_id.")


def _problem_of_ours(error: APIKeyManagerException) -> ProblemError:
    status = next((row.status for row in _TABLE if isinstance(error, row.exception)), 500)
    if status == 500:
        return ProblemError(500, "error", "Something went wrong here.")
    if status == 503:
        return unavailable(uncertain=isinstance(error, StorageError) and error.uncertain)
    message = str(error)
    field = _read_field(message)
    return ProblemError(status, error.reason, message, field=field[1] if field else None)


def _problem_of_body(errors: Sequence[Any]) -> ProblemError:
    """The first thing that pydantic did not like, without the value that it quotes."""
    error = errors[0]
    kind = error["type"]
    if kind == "json_invalid":
        return ProblemError(400, "malformed", "The body is not JSON.")
    field = _field_of(error["loc"])
    if kind == "missing":
        told = "it is missing"
    elif kind == "extra_forbidden":
        told = "there is no such field"
    else:
        told = _ALLOWED.get(kind) or str(error["msg"]).lower()
    if kind == "literal_error":
        told = f"{error['ctx']['expected']} is allowed"
    return ProblemError(422, Reason.MALFORMED.value, f"{field}: {told}", field=field)


def _field_of(location: Sequence[str | int]) -> str:
    """``("body", "rate_limits", 0, "limit")`` as ``rate_limits[0].limit``; names of union members
    are dropped."""
    place, *rest = location
    if not rest:
        return str(place)
    inner = ""
    for before, part in itertools.pairwise(rest):
        if type(part) is int:
            inner += f"[{part}]"
        elif type(before) is int or before in _OBJECTS:
            inner += f".{part}"[:65]
    return f"{rest[0]}"[:64] + inner
