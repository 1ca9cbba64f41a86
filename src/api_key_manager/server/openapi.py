"""What FastAPI cannot know: the hot routes, the scopes, the refusals, and examples."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from api_key_manager.server.errors import PROBLEM_TYPE
from api_key_manager.server.examples import EXAMPLES
from api_key_manager.server.refusals import REFUSALS, refusals_of
from api_key_manager.server.schemas import ID_SCHEMA, Problem
from api_key_manager.server.shapes import Answer, Answers, Validation, Validations

__all__ = ["complete"]

_REF: Final = "#/components/schemas/{name}"
_INTRODUCTION: Final = """\
Issue, validate, rotate, revoke and audit API keys. A path needs an admin token with the scope named
beside it: `Authorization: Bearer <token>`; the scope `admin` opens everything. The probes and this
document are open to all, and `/v1/authorize` takes the credentials of callers. Times are RFC 3339
in UTC. Every error is a problem document (RFC 9457). Bodies are JSON of at most 1 MiB; a field that
is unknown or of a wrong type is an error. A connection itself may be refused, on any path: 400 for
what is no HTTP, 431 for a head over 64 KiB, 503 when too many are open."""

_IDEMPOTENCY_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    # No example: whoever tries the document out would send all their requests under it.
    "description": (
        "Of your choice, one per request. Sent again within 10 minutes, the request gets the first"
        " answer."
    ),
}
_IDEMPOTENT: Final = (
    "create_key",
    "create_token",
    "rotate_key",
    "rotate_token",
    "create_webhook",
    "rotate_webhook_secret",
)
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "RequestId": {
        "description": (
            "The request's own `X-Request-Id` (1 to 64 of `A-Z a-z 0-9 . _ -`), or a new one."
        ),
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "IdempotencyReplayed": {
        "description": "This is the answer of an earlier request with this `Idempotency-Key`.",
        "schema": {"type": "string", "const": "true"},
    },
}


def complete(document: dict[str, Any], table: dict[str, dict[str, str | None]]) -> dict[str, Any]:
    """Finish FastAPI's document.

    A route needs no words of its own about refusals: they follow from its scope, its method and
    what it takes. What else it may answer it declares to FastAPI in ``responses``; a status from
    400 on without a shape there is the problem document of that status.

    Args:
        document: as FastAPI made it.
        table: the scope of each method of each path; what isn't in it is open to all.
    """
    document["info"]["description"] = _INTRODUCTION
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["paths"].update(_hot_paths(schemas))
    schemas["Problem"] = Problem.model_json_schema(ref_template=_REF.replace("{name}", "{model}"))
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    components["securitySchemes"] = {
        "admin_token": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "<prefix>_admin_<key_id>_<secret>",
            "description": "An admin token with the scope of the operation (`x-scope`).",
        }
    }
    components["headers"] = _HEADERS
    components["responses"] = {
        str(status): refusal.response(status) for status, refusal in REFUSALS.items()
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _finish(method, operation, table.get(path, {}).get(method.upper()))
    _link(document["paths"])
    return document


def _link(paths: dict[str, Any]) -> None:
    """Say which operations the id of a new key or token is for."""
    for path, operations in paths.items():
        created = operations.get("post", {}).get("responses", {}).get("201")
        if created is not None:
            created["links"] = {
                operation["operationId"]: {
                    "operationId": operation["operationId"],
                    "parameters": {"key_id": "$response.body#/key_id"},
                }
                for below, methods in paths.items()
                if below.startswith(f"{path}/{{key_id}}")
                for operation in methods.values()
            }


def _hot_paths(schemas: dict[str, Any]) -> dict[str, Any]:
    """The routes that FastAPI never hears of, from the structs that they are decoded with."""
    refs, shapes = msgspec.json.schema_components(
        [Validation, Validations, Answer, Answers], ref_template=_REF
    )
    schemas.update(shapes)
    one, many, answer, answers = refs
    return {
        "/v1/validate": {
            "post": _hot("validate", "Judge one credential.", one, answer, "The verdict.")
        },
        "/v1/validate/batch": {
            "post": _hot(
                "validate_batch",
                "Judge up to 1000 credentials.",
                many,
                answers,
                "The verdicts, in order.",
            )
        },
    }


def _hot(name: str, summary: str, asked: Any, answered: Any, told: str) -> dict[str, Any]:
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
            "200": {"description": told, "content": {"application/json": {"schema": answered}}}
        },
    }


def _finish(method: str, operation: dict[str, Any], scope: str | None) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own, whose shape is never sent
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "key_id":
            parameter["schema"] = ID_SCHEMA
            if parameter["in"] == "path":
                parameter["example"] = EXAMPLES["Key"]["key_id"]
    idempotent = operation["operationId"] in _IDEMPOTENT
    if idempotent:
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    for status, response in responses.items():
        if int(status) >= 400 and "application/json" in response.get("content", {}):
            response["content"] = {PROBLEM_TYPE: response["content"]["application/json"]}
        headers = response.setdefault("headers", {})
        headers["X-Request-Id"] = {"$ref": "#/components/headers/RequestId"}
        if idempotent and int(status) < 300:
            headers["Idempotency-Replayed"] = {"$ref": "#/components/headers/IdempotencyReplayed"}
    own = {int(status) for status, response in responses.items() if "content" in response}
    named = {int(status) for status in responses if int(status) >= 400}
    for status in (refusals_of(method, operation, scope) | named) - own:
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    operation["responses"] = dict(sorted(responses.items()))
    if scope is not None:
        operation["security"] = [{"admin_token": []}]
        operation["x-scope"] = scope
