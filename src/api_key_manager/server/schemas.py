"""The shapes of the administrative routes. Types are checked here, meanings by the core."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AuditFilters",
    "AuditPage",
    "BulkRevocation",
    "CreateKey",
    "CreateToken",
    "CreatedKey",
    "CreatedToken",
    "Key",
    "KeyFilters",
    "KeyPage",
    "Problem",
    "RateLimit",
    "RateLimitIn",
    "RevokeKey",
    "RevokeKeys",
    "RotateKey",
    "Token",
    "TokenFilters",
    "TokenPage",
    "UpdateKey",
    "VersionPage",
]

Instant = Annotated[
    str | int | float, Field(description="RFC 3339 text with an offset, or Unix seconds.")
]
Scope = Literal["keys:read", "keys:write", "validate", "audit:read", "metrics", "admin"]
State = Literal["active", "disabled", "expired", "revoked"]


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
    limit: int = Field(description="1 to 1000000000 requests, also as many at once.")
    window_seconds: int = Field(description="1 to 31536000.")


class RateLimit(BaseModel):
    """So much per window."""

    model_config = ConfigDict(extra="forbid")

    name: str
    limit: int
    window_seconds: int


class CreateKey(_In):
    """A key to be made. Everything may be left out."""

    key_id: str | None = Field(None, description="Minted when left out.")
    secret: str | None = Field(
        None, repr=False, description="Of a signed key; minted when left out."
    )
    kind: Literal["signed", "bearer"] = "signed"
    prefix: str | None = Field(None, description="What the secret or token starts with.")
    metadata: dict[str, Any] | None = Field(None, description="At most 16 KiB of JSON.")
    permissions: list[str] | None = None
    ip_allowlist: list[str] | None = Field(None, description="Addresses and CIDR networks.")
    rate_limits: list[RateLimitIn] | None = Field(
        None, description="At most 8, with different names. All of them hold."
    )
    expires_at: Instant | None = None
    min_scheme: str | None = Field(
        None, description="static, timestamped, timestamped-nonce, request."
    )
    owner: str | None = None
    environment: str | None = None
    disabled: bool = False


class UpdateKey(_In):
    """Only what is sent is changed; null empties."""

    metadata: dict[str, Any] | None = None
    permissions: list[str] | None = None
    ip_allowlist: list[str] | None = None
    rate_limits: list[RateLimitIn] | None = None
    expires_at: Instant | None = None
    min_scheme: str | None = None
    owner: str | None = None
    environment: str | None = None
    disabled: bool = False


class RevokeKey(_In):
    """Why and when; at once when left out."""

    reason: str | None = None
    at: Instant | None = None


class RotateKey(_In):
    """How long the old secret or token works on."""

    overlap_seconds: int = 0


class RevokeKeys(_In):
    """Which keys are to be revoked: all that fit every filter. At least one is needed."""

    created_before: Instant | None = None
    owner: str | None = None
    environment: str | None = None
    kind: str | None = None
    prefix: str | None = None
    state: str | None = None
    reason: str | None = None
    dry_run: bool = Field(False, description="Only say which keys it would be.")


class CreateToken(_In):
    """An admin token to be minted."""

    scopes: list[str] = Field(description="`admin` opens everything.")
    name: str | None = None
    expires_at: Instant | None = None
    ip_allowlist: list[str] | None = None


class _Paged(_Query):
    limit: int = Field(100, description="1 to 1000.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class KeyFilters(_Paged):
    """Which keys."""

    state: str | None = Field(None, description="active, disabled, expired or revoked.")
    kind: str | None = Field(None, description="signed or bearer.")
    owner: str | None = None
    environment: str | None = None
    prefix: str | None = None
    created_before: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")


class TokenFilters(_Paged):
    """Which tokens."""

    state: str | None = Field(None, description="active, disabled, expired or revoked.")


class AuditFilters(_Paged):
    """Which events."""

    key_id: str | None = None
    action: str | None = None
    since: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")
    until: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")
    order: Literal["asc", "desc"] = "desc"


class Key(BaseModel):
    """A key, its secret redacted."""

    model_config = ConfigDict(extra="forbid")

    key_id: str
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
    min_scheme: str
    active: bool
    state: State
    disabled: bool
    version: int
    created_at: str
    updated_at: str
    expires_at: str | None
    revoked_at: str | None
    revoke_reason: str | None
    last_used: str | None


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
    created_at: str
    ends_at: str | None
    ended: bool


class VersionPage(BaseModel):
    """Every version that ever was, newest first."""

    items: list[Version]
    next_cursor: None


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

    key_id: str
    name: str | None
    scopes: list[Scope]
    ip_allowlist: list[str]
    active: bool
    state: State
    created_at: str
    updated_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used: str | None


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

    timestamp: str
    action: str
    key_id: str | None
    actor: str | None
    reason: str | None
    ip: str | None
    request_id: str | None
    detail: dict[str, Any]
    count: int


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


class Stats(BaseModel):
    """Counters of this process."""

    cache: CacheStats
    audit_queue: int
    uptime_seconds: float


class Health(BaseModel):
    """Alive, or ready."""

    status: str


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    reason: str = Field(description="A slug to decide by.")
    field: str | None = Field(None, description="What part of the request is meant.")
    request_id: str | None = None
