"""What the hot routes take and answer: structs that are decoded and encoded without a detour.

OpenAPI is generated from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from api_key_manager.core.models import Reason

__all__ = [
    "Answer",
    "Answers",
    "HttpRequest",
    "QuotaAnswer",
    "RateLimitAnswer",
    "Validation",
    "Validations",
]

Tag = Annotated[str, Meta(min_length=1, max_length=64, description="Printable characters.")]


class HttpRequest(Struct, forbid_unknown_fields=True, gc=False):
    """A request signed by RFC 9421, as whoever received it saw it."""

    method: str
    url: Annotated[str, Meta(description="Absolute, undecoded: as the client sent it.")]
    headers: Annotated[
        dict[str, str | list[str]] | list[tuple[str, str]],
        Meta(description="Names with a value or all their values, or pairs of name and value."),
    ]
    body_sha256: Annotated[
        str | None, Meta(description="SHA-256 of the content as sent, 64 hex digits.")
    ] = None

    def __repr__(self) -> str:
        return f"HttpRequest({self.method!r})"


class Validation(Struct, forbid_unknown_fields=True, gc=False):
    """A credential: `key` and `signature`, or the `token` of a bearer key, or a `request`."""

    key: Annotated[str | None, Meta(description="The id of a signed key.")] = None
    signature: Annotated[str | None, Meta(description="64 hex digits.")] = None
    timestamp: Annotated[int | None, Meta(description="Unix seconds, as signed.")] = None
    nonce: Annotated[
        str | None, Meta(description="16 to 128 of A-Z a-z 0-9 _ -, accepted once.")
    ] = None
    token: Annotated[str | None, Meta(description="A bearer token, instead of the four.")] = None
    request: Annotated[
        HttpRequest | None, Meta(description="A signed HTTP request, instead of the five.")
    ] = None
    permissions: Annotated[
        str | list[str] | None,
        Meta(description="What the key must hold: an expression, or a list that is needed whole."),
    ] = None
    ip: Annotated[str | None, Meta(description="The address of whoever presented it.")] = None
    cost: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description=(
                "How many requests it counts for in the key's rate limits and quota; 1 if left out."
            )
        ),
    ] = None
    tags: Annotated[
        Annotated[list[Tag], Meta(max_length=10)] | None, Meta(description="For the audit log.")
    ] = None

    def __repr__(self) -> str:
        return f"Validation({self.key!r})"


class Validations(Struct, forbid_unknown_fields=True):
    """Many credentials."""

    validations: Annotated[list[Validation], Meta(min_length=1, max_length=1000)]


class RateLimitAnswer(Struct, gc=False):
    """Of the key's limits the one that refused, else the one with the smallest share left."""

    name: str
    limit: int
    window_seconds: int
    remaining: Annotated[int, Meta(description="What could be taken right now.")]
    reset_seconds: Annotated[int, Meta(description="Until it is full again, rounded up.")]
    retry_after_seconds: Annotated[
        int | None,
        Meta(
            description=(
                "When to try again; null when it was allowed, or costs more than the limit ever"
                " holds."
            )
        ),
    ]


class QuotaAnswer(Struct, gc=False):
    """What is left of the key's quota."""

    limit: int
    remaining: Annotated[int, Meta(description="Blocks that other processes hold are not in it.")]
    resets_at: Annotated[str | None, Meta(description="When it is refilled; null when never.")]


class Answer(Struct, gc=False):
    """What became of one credential. What is known of a key shows once its secret was proved."""

    valid: bool
    cached: Annotated[bool, Meta(description="Answered without I/O for the record.")]
    reason: Annotated[Reason, Meta(description="`valid`, or why it was refused.")]
    key_id: str | None
    version: int | None
    scheme: Annotated[
        str | None,
        Meta(
            description=(
                "`static` (its timestamp is not authenticated), `timestamped`, `request`, `bearer`."
            )
        ),
    ]
    metadata: Any
    permissions: Sequence[str] | None
    expires_at: str | None
    rate_limit: Annotated[
        RateLimitAnswer | None, Meta(description="Null when the key has no limits.")
    ] = None
    body_verified: Annotated[
        bool | None,
        Meta(description="Of a `request`: whether its body was compared with what was signed."),
    ] = None
    quota: Annotated[
        QuotaAnswer | None, Meta(description="Null when the key has none, or it was not asked.")
    ] = None


class Answers(Struct):
    """One answer per credential, in order."""

    results: list[Answer]
