"""What the fields of the shapes are."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from api_key_manager.core.addresses import MAX_ALLOWLIST
from api_key_manager.core.inputs import MAX_OVERLAP_SECONDS
from api_key_manager.core.models import MIN_SCHEMES
from api_key_manager.core.permissions import MAX_GRANTS
from api_key_manager.core.signing import MAX_TIMESTAMP
from api_key_manager.core.tokens import MAX_PREFIX, MAX_SECRET_BYTES
from api_key_manager.webhooks.events import TYPES

__all__ = [
    "ID_SCHEMA",
    "MAX_TOKEN_SECONDS",
    "AKind",
    "AState",
    "Allowlist",
    "At",
    "Body",
    "Count",
    "Id",
    "Instant",
    "Limit",
    "MinScheme",
    "Name",
    "Paged",
    "Permissions",
    "Prefix",
    "Query",
    "Scope",
    "Scopes",
    "Seconds",
    "Secret",
    "State",
    "TokenSeconds",
    "WebhookTypes",
    "WebhookUrl",
    "Why",
    "one_of",
    "text",
    "whole",
]

MAX_TOKEN_SECONDS: Final = 315_360_000
"""Ten years."""

Scope = Literal["keys:read", "keys:write", "validate", "audit:read", "metrics", "admin"]
State = Literal["active", "disabled", "expired", "revoked"]
ID_SCHEMA: Final = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_PERMISSION: Final = {
    "type": "string",
    "pattern": r"^([A-Za-z0-9_:-]+|\*)(\.([A-Za-z0-9_:-]+|\*))*$",
    "maxLength": 128,
}


def text(longest: int) -> dict[str, Any]:
    """What the document says of a text."""
    return {"type": "string", "minLength": 1, "maxLength": longest}


def one_of(*values: str) -> dict[str, Any]:
    """What it says of a text of which there are few."""
    return {"type": "string", "enum": list(values)}


def whole(least: int, most: int) -> WrapValidator:
    """Of what is no whole number it is told which ones are allowed, as the core tells of those that
    are out of range: who sends text learns all of it at once."""

    def read(value: Any, to_int: ValidatorFunctionWrapHandler) -> Any:
        try:
            return to_int(value)
        except ValidationError:
            raise PydanticCustomError(
                "allowed", f"a whole number from {least} to {most} is allowed"
            ) from None

    return WrapValidator(read)


Id = Annotated[str, WithJsonSchema(ID_SCHEMA)]
Name = Annotated[str, WithJsonSchema(text(128))]
Why = Annotated[str, WithJsonSchema(text(256))]
Secret = Annotated[str, WithJsonSchema(text(MAX_SECRET_BYTES))]
Prefix = Annotated[
    str,
    WithJsonSchema(
        {"type": "string", "pattern": "^[a-z][a-z0-9]*(_[a-z0-9]+)*$", "maxLength": MAX_PREFIX}
    ),
]
Permissions = Annotated[
    list[str],
    WithJsonSchema({"type": "array", "items": _PERMISSION, "maxItems": MAX_GRANTS}),
]
Allowlist = Annotated[
    list[str],
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "maxItems": MAX_ALLOWLIST}),
]
Scopes = Annotated[
    list[str],
    WithJsonSchema({"type": "array", "items": one_of(*get_args(Scope)), "minItems": 1}),
]
MinScheme = Annotated[str, WithJsonSchema(one_of(*MIN_SCHEMES))]
AState = Annotated[str, WithJsonSchema(one_of(*get_args(State)))]
AKind = Annotated[str, WithJsonSchema(one_of("signed", "bearer"))]
Seconds = Annotated[
    int,
    whole(0, MAX_OVERLAP_SECONDS),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_OVERLAP_SECONDS}),
]
TokenSeconds = Annotated[
    int,
    whole(1, MAX_TOKEN_SECONDS),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_TOKEN_SECONDS}),
]
Limit = Annotated[
    int, whole(1, 1000), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})
]
Count = Annotated[int, Field(ge=0, le=2**53 - 1), whole(0, 2**53 - 1)]
Instant = Annotated[
    str | int | float,
    WithJsonSchema(
        {
            "description": "RFC 3339 text with an offset, or Unix seconds.",
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "minimum": 0, "maximum": MAX_TIMESTAMP},
            ],
        }
    ),
]
WebhookUrl = Annotated[
    str, WithJsonSchema({"type": "string", "pattern": "^https?://", "maxLength": 2048})
]
WebhookTypes = Annotated[
    list[str], WithJsonSchema({"type": "array", "items": one_of("*", *TYPES), "minItems": 1})
]
At = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class Body(BaseModel):
    """What a request sends as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Query(BaseModel):
    """What a request asks for in its URL."""

    # Not strict: what stands in a URL is text.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Paged(Query):
    """The same of what is answered in pages."""

    limit: Limit = Field(100, description="1 to 1000.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")
