"""What the OpenAPI document says of forward auth, whose handler FastAPI never sees."""

from __future__ import annotations

from typing import Any, Final

from api_key_manager.server.errors import PROBLEM_TYPE
from api_key_manager.server.gateways import BELOW, PATH

__all__ = ["describe"]

_DESCRIPTION: Final = (
    "Asked by a gateway (nginx, Traefik, Caddy, Envoy) before it lets a request pass, by any"
    " method; the original request is taken from the headers of `AUTHORIZE_PROFILE` and from"
    " nowhere else. One credential: a bearer token, in either header, or an RFC 9421 signature"
    " over the original request. Query and body are not read."
)
_PERMISSIONS: Final = {
    "name": "permissions",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 1024},
    "description": "What the key must hold, an expression; set by the gateway's configuration.",
    "example": "documents.read",
}
_SCHEMES: Final = {
    "api_key_token": {
        "type": "http", "scheme": "bearer", "description": "The token of a bearer key.",
    },
    "api_key_header": {
        "type": "apiKey", "in": "header", "name": "X-Api-Key",
        "description": "The same in a header of its own.",
    },
    "signature": {
        "type": "apiKey", "in": "header", "name": "Signature",
        "description": "RFC 9421, with `Signature-Input` and `Content-Digest`.",
    },
}  # fmt: skip
_TEXT: Final = {"type": "string"}
_REQUEST_ID: Final = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
_TOLD: Final = {
    "X-Key-Id": ("The key's id.", True),
    "X-Key-Owner": ("Its owner; all but visible ASCII percent-encoded.", False),
    "X-Key-Metadata": ("The fields of `AUTHORIZE_METADATA`, base64url of JSON.", False),
    "X-Content-Digest": ("What a signed request's body must fit (RFC 9530).", False),
    "RateLimit": ("What is left of the key's rate limits.", False),
    "RateLimit-Policy": ("The key's rate limits.", False),
}
_REFUSALS: Final = {
    "401": ("No valid credential; which part of it is wrong is not told.", ["WWW-Authenticate"]),
    "403": ("A valid key that may not do this, or not from this address.", []),
    "429": (
        "The key's rate limit or quota is used up, or instead of a 401 after too many from here.",
        ["Retry-After", "RateLimit", "RateLimit-Policy"],
    ),
    "503": ("It cannot be told right now.", ["Retry-After"]),
}


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """Add forward auth to a document that is otherwise complete."""
    document["components"]["securitySchemes"].update(_SCHEMES)
    document["paths"][PATH] = {"get": _operation("authorize", "May this request pass?")}
    document["paths"][f"{BELOW}{{permissions}}"] = {
        "get": {
            **_operation("authorize_for", "May it pass, with these permissions?"),
            "parameters": [_PERMISSIONS],
        }
    }
    return document


def _operation(name: str, summary: str) -> dict[str, Any]:
    problem = {"content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    return {
        "tags": ["authorize"],
        "operationId": name,
        "summary": summary,
        "description": _DESCRIPTION,
        "security": [{scheme: []} for scheme in _SCHEMES],
        "responses": {
            "200": {
                "description": "It may. The body is empty.",
                "headers": {
                    **_REQUEST_ID,
                    **{
                        name: {"description": told, "required": always, "schema": _TEXT}
                        for name, (told, always) in _TOLD.items()
                    },
                },
            },
            **{
                status: {
                    "description": told,
                    "headers": {**_REQUEST_ID, **{name: {"schema": _TEXT} for name in names}},
                    **problem,
                }
                for status, (told, names) in _REFUSALS.items()
            },
        },
    }
