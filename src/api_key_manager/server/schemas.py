"""The shapes of the administrative routes. Types are checked here, meanings by the core.

What stands in a ``WithJsonSchema`` is told to readers of the OpenAPI document and not checked here:
the core has better words for it, and is asked by library and command line too.
"""

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
from api_key_manager.core.inputs import MAX_OVERLAP_SECONDS, MAX_QUOTA, MAX_RATE, MAX_WINDOW
from api_key_manager.core.models import MIN_SCHEMES
from api_key_manager.core.permissions import MAX_GRANTS
from api_key_manager.core.signing import MAX_TIMESTAMP
from api_key_manager.core.tokens import MAX_PREFIX, MAX_SECRET_BYTES
from api_key_manager.webhooks.events import TYPES

__all__ = [
    "ID_SCHEMA",
    "MAX_TOKEN_SECONDS",
    "AuditFilters",
    "AuditPage",
    "BulkRevocation",
    "CreateKey",
    "CreateToken",
    "CreateWebhook",
    "CreatedKey",
    "CreatedToken",
    "CreatedWebhook",
    "DeliveryFilters",
    "Key",
    "KeyFilters",
    "KeyPage",
    "LeakOutcome",
    "NotReady",
    "Problem",
    "Proof",
    "ProofFilters",
    "Quota",
    "QuotaIn",
    "RateLimit",
    "RateLimitIn",
    "Ready",
    "Replayed",
    "ReportLeak",
    "RevokeKey",
    "RevokeKeys",
    "RotateKey",
    "RotateWebhookSecret",
    "StatsFilters",
    "Token",
    "TokenFilters",
    "TokenPage",
    "UpdateKey",
    "UpdateWebhook",
    "VersionPage",
    "Webhook",
    "WebhookDelivery",
    "WebhookDeliveryPage",
    "WebhookPage",
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


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _whole(least: int, most: int) -> WrapValidator:
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
Name = Annotated[str, WithJsonSchema(_text(128))]
Why = Annotated[str, WithJsonSchema(_text(256))]
Secret = Annotated[str, WithJsonSchema(_text(MAX_SECRET_BYTES))]
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
    WithJsonSchema({"type": "array", "items": _one_of(*get_args(Scope)), "minItems": 1}),
]
MinScheme = Annotated[str, WithJsonSchema(_one_of(*MIN_SCHEMES))]
AState = Annotated[str, WithJsonSchema(_one_of(*get_args(State)))]
AKind = Annotated[str, WithJsonSchema(_one_of("signed", "bearer"))]
Seconds = Annotated[
    int,
    _whole(0, MAX_OVERLAP_SECONDS),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_OVERLAP_SECONDS}),
]
TokenSeconds = Annotated[
    int,
    _whole(1, MAX_TOKEN_SECONDS),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_TOKEN_SECONDS}),
]
Limit = Annotated[
    int, _whole(1, 1000), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})
]
Count = Annotated[int, Field(ge=0, le=2**53 - 1), _whole(0, 2**53 - 1)]
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
    list[str], WithJsonSchema({"type": "array", "items": _one_of("*", *TYPES), "minItems": 1})
]
At = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _Query(BaseModel):
    # Not strict: what stands in a URL is text.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class RateLimitIn(_In):
    """So much per window."""

    name: str | None = Field(
        None, description="1 to 32 of a-z 0-9 _ -; such as 10-per-60s when left out."
    )
    limit: Annotated[int, _whole(1, MAX_RATE)] = Field(
        description="1 to 1000000000 requests, also as many at once."
    )
    window_seconds: Annotated[int, _whole(1, MAX_WINDOW)] = Field(description="1 to 31536000.")
    scope: Literal["key", "owner"] | None = Field(
        None, description="`owner`: all keys of the owner with this limit share it."
    )


class RateLimit(BaseModel):
    """So much per window."""

    model_config = ConfigDict(extra="forbid")

    name: str
    limit: int
    window_seconds: int
    scope: Literal["owner"] | None = Field(None, description="Only there for a shared limit.")


class QuotaIn(_In):
    """So many credits per period."""

    limit: Annotated[int, _whole(1, MAX_QUOTA)] = Field(
        description="1 to 1000000000000000 credits; a request takes its cost."
    )
    refill: str = Field(description="daily, monthly (on the first) or never.")
    hour: Annotated[int, _whole(0, 23)] = Field(0, description="0 to 23, when it is refilled.")
    zone: str = Field("UTC", description="Whose hour: a name of the IANA time zone database.")
    shared_by_owner: bool = Field(
        False, description="One account for all keys of the owner, environment and refill."
    )


class Quota(BaseModel):
    """So many credits per period."""

    model_config = ConfigDict(extra="forbid")

    limit: int
    refill: Literal["daily", "monthly", "never"]
    hour: int
    zone: str
    shared_by_owner: bool
    spent: int | None = Field(
        description="In this period, with what other nodes hold; null but for one key alone."
    )


class CreateKey(_In):
    """A key to be made. Everything may be left out."""

    key_id: Id | None = Field(None, description="Minted when left out.")
    secret: Secret | None = Field(
        None, repr=False, description="Of a signed key; minted when left out."
    )
    kind: Literal["signed", "bearer"] = "signed"
    prefix: Prefix | None = Field(None, description="What the secret or token starts with.")
    metadata: dict[str, Any] | None = Field(None, description="At most 16 KiB of JSON.")
    permissions: Permissions | None = None
    ip_allowlist: Allowlist | None = Field(None, description="Addresses and CIDR networks.")
    rate_limits: list[RateLimitIn] | None = Field(
        None, description="At most 8, with different names. All of them hold."
    )
    quota: QuotaIn | None = None
    expires_at: Instant | None = None
    min_scheme: MinScheme | None = Field(
        None, description="static, timestamped, timestamped-nonce, request."
    )
    owner: Name | None = None
    environment: Name | None = None
    disabled: bool = False


class UpdateKey(_In):
    """Only what is sent is changed; null empties."""

    metadata: dict[str, Any] | None = None
    permissions: Permissions | None = None
    ip_allowlist: Allowlist | None = None
    rate_limits: list[RateLimitIn] | None = None
    quota: QuotaIn | None = None
    expires_at: Instant | None = None
    min_scheme: MinScheme | None = None
    owner: Name | None = None
    environment: Name | None = None
    disabled: bool = False


class RevokeKey(_In):
    """Why and when; at once when left out."""

    reason: Why | None = None
    at: Instant | None = None


class ReportLeak(_In):
    """A secret or token, and where it was found."""

    token: str = Field(min_length=1, max_length=1024)
    url: str | None = Field(None, max_length=2048)
    source: str | None = Field(None, max_length=64)


class RotateKey(_In):
    """How long the old secret or token works on."""

    overlap_seconds: Seconds = 0


class RevokeKeys(_In):
    """Which keys are to be revoked: all that fit every filter. At least one is needed."""

    created_before: Instant | None = None
    owner: Name | None = None
    environment: Name | None = None
    kind: AKind | None = None
    prefix: Prefix | None = None
    state: AState | None = None
    reason: Why | None = None
    dry_run: bool = Field(False, description="Only say which keys it would be.")


class CreateToken(_In):
    """An admin token to be minted."""

    scopes: Scopes = Field(description="`admin` opens everything.")
    name: Name | None = None
    environment: Name | None = Field(
        None, description="Confines it to the keys of one environment, for good."
    )
    expires_at: Instant | None = None
    expires_in: TokenSeconds | None = Field(
        None, description="In so many seconds, instead of `expires_at`."
    )
    ip_allowlist: Allowlist | None = Field(
        None, description="Where it may be used: addresses and CIDR networks."
    )


class _Paged(_Query):
    limit: Limit = Field(100, description="1 to 1000.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class KeyFilters(_Paged):
    """Which keys."""

    state: AState | None = Field(None, description="active, disabled, expired or revoked.")
    kind: AKind | None = Field(None, description="signed or bearer.")
    owner: Name | None = None
    environment: Name | None = None
    prefix: Prefix | None = None
    created_before: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")


class TokenFilters(_Paged):
    """Which tokens."""

    state: AState | None = Field(None, description="active, disabled, expired or revoked.")


class CreateWebhook(_In):
    """A subscription to be made."""

    url: WebhookUrl
    types: WebhookTypes | None = Field(None, description="Which events; all when left out.")
    environment: Name | None = Field(None, description="Only events of keys that are in it.")
    description: Why | None = None
    disabled: bool = False


class UpdateWebhook(_In):
    """What is to be changed; what is left out stays."""

    url: WebhookUrl | None = None
    types: WebhookTypes | None = None
    description: Why | None = None
    disabled: bool = False


class RotateWebhookSecret(_In):
    """How long the old secret signs, too."""

    overlap_seconds: Seconds = 86_400


class DeliveryFilters(_Paged):
    """Which deliveries."""

    state: Annotated[str, WithJsonSchema(_one_of("pending", "done", "dead"))] | None = Field(
        None, description="pending, done or dead."
    )


class AuditFilters(_Paged):
    """Which events."""

    key_id: Id | None = None
    action: str | None = None
    since: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")
    until: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")
    order: Literal["asc", "desc"] = "desc"


class ProofFilters(_Query):
    """What is to be proved: `index` or `id`, or `from`."""

    index: Count | None = Field(None, description="Of a leaf.")
    id: Count | None = Field(None, description="Of an event, instead of its index.")
    from_: Count | None = Field(
        None,
        alias="from",
        description="The size of an older checkpoint, to prove that it holds.",
    )
    log: Count | None = Field(None, description="Another log than the one that goes on.")
    size: Count | None = Field(None, description="Of the checkpoint to prove it against.")


class StatsFilters(_Query):
    """Which keys are counted."""

    environment: Name | None = Field(None, description="Count the keys of this one.")
    by_environment: bool = Field(
        False, description="Count the keys of each; looks at every key, so not too often."
    )


class Key(BaseModel):
    """A key, its secret redacted."""

    model_config = ConfigDict(extra="forbid")

    key_id: Id
    kind: Literal["signed", "bearer"]
    secret: str | None = Field(
        None, repr=False, description="Of a signed key; shown at creation only."
    )
    token: str | None = Field(
        None, repr=False, description="Of a bearer key; shown at creation only."
    )
    prefix: str
    owner: str | None
    environment: str | None
    metadata: dict[str, Any]
    permissions: list[str]
    ip_allowlist: list[str]
    rate_limits: list[RateLimit]
    quota: Quota | None
    min_scheme: str
    active: bool
    state: State
    disabled: bool
    version: int
    created_at: At
    updated_at: At
    expires_at: At | None
    revoked_at: At | None
    revoke_reason: str | None
    last_used: At | None


class CreatedKey(Key):
    """A key with its `secret` (signed) or `token` (bearer), shown this once."""


class KeyPage(BaseModel):
    """Some keys, in the order of their ids."""

    items: list[Key]
    next_cursor: str | None


class Version(BaseModel):
    """One secret or token of a key."""

    model_config = ConfigDict(extra="forbid")

    version: int
    created_at: At
    ends_at: At | None
    ended: bool
    leaked_at: At | None = Field(description="When it was reported as found in public.")


class VersionPage(BaseModel):
    """Every version that ever was, newest first."""

    items: list[Version]
    next_cursor: None


class LeakOutcome(BaseModel):
    """Whose it is, and what was done; nulls when it is no live secret or token of ours."""

    model_config = ConfigDict(extra="forbid")

    matched: bool
    key_id: str | None
    realm: str | None = Field(description="`default`, or `admin` of an admin token.")
    version: int | None
    action: Literal["revoked", "version_ended", "flagged", "none"] | None = Field(
        description="`none`: all was done before."
    )


class BulkRevocation(BaseModel):
    """What was, or would be, revoked."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool
    matched: int
    revoked: int
    key_ids: list[str] = Field(description="The first thousand.")


class Token(BaseModel):
    """An admin token."""

    model_config = ConfigDict(extra="forbid")

    key_id: Id
    name: str | None
    version: int
    scopes: list[Scope]
    environment: str | None = Field(description="The only one that it reaches, if there is one.")
    ip_allowlist: list[str]
    active: bool
    state: State
    created_at: At
    updated_at: At
    expires_at: At | None
    revoked_at: At | None
    last_used: At | None


class CreatedToken(Token):
    """An admin token, shown this once."""

    token: str = Field(repr=False)


class TokenPage(BaseModel):
    """Some admin tokens, in the order of their ids."""

    items: list[Token]
    next_cursor: str | None


class Event(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(extra="forbid")

    timestamp: At
    action: str
    key_id: str | None
    actor: str | None
    reason: str | None
    ip: str | None
    request_id: str | None
    detail: dict[str, Any]
    count: int
    id: int | None = Field(description="In this database.")
    log: int | None = Field(
        description="Which transparency log holds it; null until it is sealed, within a second."
    )
    index: int | None = Field(description="Of its leaf there: what a proof is asked for by.")


class Proof(BaseModel):
    """That an event is in the log, or that one checkpoint's log is the start of another's.

    All of `leaf`, `leaf_hash` and `index`, or `old_checkpoint` and `from`, by what was asked for.
    """

    log: str = Field(description="The name of the log: the first line of its checkpoints.")
    verifier_key: str = Field(description="What checkpoints are verified by (C2SP signed note).")
    checkpoint: str = Field(description="The signed note.")
    size: int = Field(description="How many leaves the checkpoint's log has.")
    hashes: list[str] = Field(description="The proof (RFC 9162), base64.")
    index: int | None = None
    leaf: str | None = Field(
        None, description="Its exact bytes as text; null once retention has dropped them."
    )
    leaf_hash: str | None = Field(None, description="Base64.")
    old_checkpoint: str | None = None
    from_: int | None = Field(None, alias="from", description="Leaves of the old checkpoint.")


class AuditPage(BaseModel):
    """Some events, newest first unless asked otherwise."""

    items: list[Event]
    next_cursor: str | None


class CacheStats(BaseModel):
    """Counters of the record cache."""

    cache_size: int
    hits: int
    misses: int
    evictions: int
    max_entries: int


class EnvironmentCount(BaseModel):
    """How many keys of an environment are in each state."""

    environment: str | None = Field(description="Null: keys without one.")
    active: int
    disabled: int
    expired: int
    revoked: int


class Stats(BaseModel):
    """Counters of this process, whatever the environment, and of keys where asked for."""

    cache: CacheStats
    audit_queue: int
    uptime_seconds: float
    environments: list[EnvironmentCount] | None = Field(
        description="Null unless asked for; at most a thousand with a name, in its order."
    )


class Health(BaseModel):
    """Alive, or ready."""

    status: str


class Ready(Health):
    """It should get requests. ``degraded``: what is away all the same; absent when nothing is."""

    degraded: list[str] | None = None


class Webhook(BaseModel):
    """A subscription to events."""

    model_config = ConfigDict(extra="forbid")

    id: str
    url: str
    types: list[str]
    environment: str | None
    description: str | None
    disabled: bool
    disabled_reason: str | None = Field(description="`gone` when the receiver answered 410.")
    created_at: At
    updated_at: At
    previous_secret_until: At | None = Field(description="Until then the old secret signs, too.")


class CreatedWebhook(Webhook):
    """A subscription with its `secret`, shown this once."""

    secret: str = Field(repr=False)


class WebhookPage(BaseModel):
    """Every subscription, the oldest first."""

    items: list[Webhook]
    next_cursor: None


class WebhookDelivery(BaseModel):
    """One event to one receiver."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="As in the header `webhook-id`.")
    type: str
    state: Literal["pending", "done", "dead"]
    attempts: int
    outcome: str | None = Field(description="What the last try came to.")
    status: int | None = Field(description="Of the last answer.")
    created_at: At
    next_at: At | None = Field(description="When it is tried next.")
    finished_at: At | None


class WebhookDeliveryPage(BaseModel):
    """Some deliveries, the newest first."""

    items: list[WebhookDelivery]
    next_cursor: str | None


class Replayed(BaseModel):
    """How many deliveries are tried again."""

    replayed: int


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    reason: str = Field(description="A slug to decide by.")
    field: str | None = Field(None, description="What part of the request is meant.")
    request_id: str | None = None


class NotReady(Problem):
    """Why this node should get no requests right now."""

    problems: list[str]
