"""Every refusal as the OpenAPI document has it: one response per status, and who may give it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, NamedTuple

from api_key_manager.core.exceptions import Reason
from api_key_manager.core.problems import (
    PROBLEM_TYPE,
    RETRY_SECONDS,
    TOO_MANY_FAILURES,
    problem_document,
)
from api_key_manager.server.errors import unauthorized, unavailable

__all__ = ["REFUSALS", "Refusal", "refusals_of"]

# These name in their query what may not be there, or ask for what is not there yet.
_OF_SOMETHING: Final = frozenset({"get_checkpoint", "get_proof"})
_CHANGES: Final = frozenset({"post", "put", "patch", "delete"})


class Refusal(NamedTuple):
    """The problem documents of one status.

    Args:
        description: when it is given.
        reasons: every slug that it may carry; the first is the example's.
        detail: of the example.
        field: of the example.
        headers: that go with it, by name; ``True`` for those that always do.
    """

    description: str
    reasons: tuple[str, ...]
    detail: str
    field: str | None = None
    headers: tuple[tuple[str, bool], ...] = ()

    def response(self, status: int) -> dict[str, Any]:
        """As a component of the document."""
        example = problem_document(status, self.reasons[0], self.detail)
        if self.field is not None:
            example["field"] = self.field
        if status != HTTPStatus.UNAUTHORIZED:
            example["request_id"] = "5f0c1d2e3a4b-2"
        told = {"status": {"const": status}, "reason": {"enum": list(self.reasons)}}
        schema = {"allOf": [{"$ref": "#/components/schemas/Problem"}, {"properties": told}]}
        headers = {
            name: {**_HEADERS[name], "required": True} if always else _HEADERS[name]
            for name, always in self.headers
        }
        return {
            "description": self.description,
            "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}, **headers},
            "content": {PROBLEM_TYPE: {"schema": schema, "example": example}},
        }


_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "WWW-Authenticate": {
        "description": "How to authenticate.",
        "schema": {"type": "string", "const": "Bearer"},
    },
    "Retry-After": {
        "description": "Seconds after which it is worth another try.",
        "schema": {"type": "integer", "minimum": RETRY_SECONDS},
    },
}

REFUSALS: Final[dict[int, Refusal]] = {
    400: Refusal("The body is not JSON.", ("malformed",), "The body is not JSON."),
    401: Refusal(
        "No valid admin token, or none for this address; the body is always the same.",
        ("unauthorized",),
        unauthorized().detail,
        headers=(("WWW-Authenticate", True),),
    ),
    403: Refusal(
        "The token lacks the scope, or would grant beyond itself.",
        ("forbidden",),
        "This needs the scope keys:write.",
    ),
    404: Refusal("There is no such thing.", ("not_found",), "no such key"),
    408: Refusal("The body took too long.", ("timeout",), "The body took too long."),
    409: Refusal(
        "It cannot be done to the thing as it is.",
        ("revoked", "conflict", "expired", "in_progress", "key_exists"),
        "the key is revoked",
        headers=(("Retry-After", False),),
    ),
    413: Refusal("The body is too large.", ("too_large",), "A body has at most 1048576 bytes."),
    415: Refusal(
        "The body is no JSON by its own words, or compressed.",
        ("unsupported_media_type",),
        "Send Content-Type: application/json.",
    ),
    422: Refusal(
        "A field is missing, unknown, of a wrong type or of a value that is not allowed.",
        ("malformed", "idempotency_key"),
        "limit: a whole number from 1 to 1000 is allowed",
        field="limit",
    ),
    429: Refusal(
        "No valid admin token, and too many before it from the same address; a valid one passes.",
        (Reason.RATE_LIMITED.value,),
        TOO_MANY_FAILURES,
        headers=(("Retry-After", True),),
    ),
    500: Refusal(
        "A defect here; the log has it by `request_id`.",
        ("error",),
        "Something went wrong here. The log has it by request_id.",
    ),
    503: Refusal(
        "The store does not answer.",
        ("unavailable",),
        unavailable().detail,
        headers=(("Retry-After", True),),
    ),
}


def refusals_of(method: str, operation: dict[str, Any], scope: str | None) -> set[int]:
    """The statuses with which an operation may refuse, by what it takes.

    Args:
        method: in lower case.
        operation: its parameters and body; a status that it names itself is left to it.
        scope: that it needs; ``None`` when everybody may.
    """
    takes_body = "requestBody" in operation
    parameters = operation.get("parameters", ())
    found: set[int] = set()
    if scope is not None:
        # Whatever the method, a body that is sent is read, and bounded.
        found |= {401, 403, 408, 413, 415, 429, 500, 503}
        if method in _CHANGES and scope != "validate":
            found.add(409)
    if takes_body:
        found |= {400, 422}
    if parameters:
        found.add(422)
    named = any(parameter["in"] == "path" for parameter in parameters)
    if named or operation.get("operationId") in _OF_SOMETHING:
        found.add(404)
    return found
