"""Keys: what is sent and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api_key_manager.core.inputs import MAX_QUOTA, MAX_RATE, MAX_WINDOW
from api_key_manager.server.schemas.kinds import (
    AKind,
    Allowlist,
    AState,
    At,
    Body,
    Id,
    Instant,
    MinScheme,
    Name,
    Paged,
    Permissions,
    Prefix,
    Seconds,
    Secret,
    State,
    Why,
    whole,
)

__all__ = [
    "BulkRevocation",
    "CreateKey",
    "CreatedKey",
    "Key",
    "KeyFilters",
    "KeyPage",
    "Quota",
    "QuotaIn",
    "RateLimit",
    "RateLimitIn",
    "RevokeKey",
    "RevokeKeys",
    "RotateKey",
    "UpdateKey",
    "Version",
    "VersionPage",
]


class RateLimitIn(Body):
    """So much per window."""

    name: str | None = Field(
        None, description="1 to 32 of a-z 0-9 _ -; such as 10-per-60s when left out."
    )
    limit: Annotated[int, whole(1, MAX_RATE)] = Field(
        description="1 to 1000000000 requests, also as many at once."
    )
    window_seconds: Annotated[int, whole(1, MAX_WINDOW)] = Field(description="1 to 31536000.")
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


class QuotaIn(Body):
    """So many credits per period."""

    limit: Annotated[int, whole(1, MAX_QUOTA)] = Field(
        description="1 to 1000000000000000 credits; a request takes its cost."
    )
    refill: str = Field(description="daily, monthly (on the first) or never.")
    hour: Annotated[int, whole(0, 23)] = Field(0, description="0 to 23, when it is refilled.")
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


class CreateKey(Body):
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


class UpdateKey(Body):
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


class RevokeKey(Body):
    """Why and when; at once when left out."""

    reason: Why | None = None
    at: Instant | None = None


class RotateKey(Body):
    """How long the old secret or token works on."""

    overlap_seconds: Seconds = 0


class RevokeKeys(Body):
    """Which keys are to be revoked: all that fit every filter. At least one is needed."""

    created_before: Instant | None = None
    owner: Name | None = None
    environment: Name | None = None
    kind: AKind | None = None
    prefix: Prefix | None = None
    state: AState | None = None
    reason: Why | None = None
    dry_run: bool = Field(False, description="Only say which keys it would be.")


class KeyFilters(Paged):
    """Which keys."""

    state: AState | None = Field(None, description="active, disabled, expired or revoked.")
    kind: AKind | None = Field(None, description="signed or bearer.")
    owner: Name | None = None
    environment: Name | None = None
    prefix: Prefix | None = None
    created_before: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")


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


class BulkRevocation(BaseModel):
    """What was, or would be, revoked."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool
    matched: int
    revoked: int
    key_ids: list[str] = Field(description="The first thousand.")
