"""What FastAPI cannot know: the hot routes, the scopes, and the one shape of every error."""

from __future__ import annotations

from typing import Any

import msgspec

from api_key_manager.server.errors import PROBLEM_TYPE
from api_key_manager.server.hot import Answer, Answers, Validation, Validations
from api_key_manager.server.schemas import Problem

__all__ = ["complete"]

_REF = "#/components/schemas/{name}"
_INTRODUCTION = """\
Issue, validate, rotate, revoke and audit API keys. Every path but the probes and this document
needs an admin token with the scope named beside it: `Authorization: Bearer <token>`; the scope
`admin` opens everything. Times are RFC 3339 in UTC. Every error is a problem document (RFC 9457).
Bodies are JSON of at most 1 MiB; a field that is unknown or of a wrong type is an error."""

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255},
    "description": "Sent again within 10 minutes, the request gets the first answer.",
}
_IDEMPOTENT = ("create_key", "create_token", "rotate_key")


def complete(document: dict[str, Any], table: dict[str, dict[str, str | None]]) -> dict[str, Any]:
    """Finish FastAPI's document.

    Args:
        document: as FastAPI made it.
        table: the scope of each method of each path.
    """
    document["info"]["description"] = _INTRODUCTION
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    refs, shapes = msgspec.json.schema_components(
        [Validation, Validations, Answer, Answers], ref_template=_REF
    )
    schemas.update(shapes)
    schemas["Problem"] = Problem.model_json_schema(ref_template=_REF.replace("{name}", "{model}"))
    one, many, answer, answers = refs
    document["paths"]["/v1/validate"] = {
        "post": _hot("validate", "Judge one credential.", one, answer)
    }
    document["paths"]["/v1/validate/batch"] = {
        "post": _hot("validate_batch", "Judge up to 1000 credentials.", many, answers)
    }
    document["components"]["securitySchemes"] = {
        "admin_token": {"type": "http", "scheme": "bearer", "description": "An admin token."}
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _finish(operation, table[path][method.upper()])
    return document


def _hot(name: str, summary: str, asked: Any, answered: Any) -> dict[str, Any]:
    return {
        "tags": ["validate"],
        "operationId": name,
        "summary": summary,
        "description": (
            "200 for a refusal too: `reason` says why. A `key` with a `signature`, and the"
            " `timestamp` and `nonce` that were signed, or a `token`, or a signed HTTP `request`."
        ),
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": {
            "200": {
                "description": "The verdict.",
                "content": {"application/json": {"schema": answered}},
            }
        },
    }


def _finish(operation: dict[str, Any], scope: str | None) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    responses["default"] = {
        "description": "A refusal.",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
    }
    if scope is not None:
        operation["security"] = [{"admin_token": []}]
        operation["x-scope"] = scope
    if operation["operationId"] in _IDEMPOTENT:
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
