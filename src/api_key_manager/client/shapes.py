"""What goes to the server and what comes back: JSON objects with their members' types, and the
verdict, which must not be mistaken for an object that is merely there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict

from api_key_manager.client.errors import refusal_of

__all__ = [
    "BulkRevocation",
    "CacheStats",
    "CreatedKey",
    "CreatedToken",
    "CreatedWebhook",
    "Delivery",
    "EnvironmentCount",
    "Event",
    "Instant",
    "Key",
    "KeyChanges",
    "KeyFilters",
    "KeyVersion",
    "LeakOutcome",
    "NewKey",
    "Quota",
    "RemoteVerdict",
    "RevocationFilters",
    "Stats",
    "Token",
    "ValidationItem",
    "Webhook",
    "WebhookChanges",
]

Instant = str | int | float | datetime
"""RFC 3339 text with an offset, Unix seconds, or a ``datetime`` with a time zone."""

Kind = Literal["signed", "bearer"]
State = Literal["active", "disabled", "expired", "revoked"]


class RateLimit(TypedDict):
    """So many requests per window. The name may be left out when it is sent; with the scope
    ``owner`` all keys of the owner share the limit."""

    name: NotRequired[str]
    limit: int
    window_seconds: int
    scope: NotRequired[Literal["key", "owner"]]


class Quota(TypedDict):
    """So many credits per period. All but ``limit`` and ``refill`` may be left out when it is sent,
    and ``spent`` must be."""

    limit: int
    refill: Literal["daily", "monthly", "never"]
    hour: NotRequired[int]
    zone: NotRequired[str]
    shared_by_owner: NotRequired[bool]
    spent: NotRequired[int | None]


class QuotaState(TypedDict):
    """What is left of a key's quota."""

    limit: int
    remaining: int
    resets_at: str | None


class RateLimitState(TypedDict):
    """Of a key's limits the one that refused, else the one with the smallest share left."""

    name: str
    limit: int
    window_seconds: int
    remaining: int
    reset_seconds: int
    retry_after_seconds: int | None


class KeyChanges(TypedDict, total=False):
    """What may be changed of a key. ``None`` empties."""

    metadata: Mapping[str, Any] | None
    permissions: list[str] | None
    ip_allowlist: list[str] | None
    rate_limits: list[RateLimit] | None
    quota: Quota | None
    expires_at: Instant | None
    min_scheme: str | None
    owner: str | None
    environment: str | None
    disabled: bool


class NewKey(KeyChanges, total=False):
    """What a key may be made with. All of it may be left out."""

    secret: str
    kind: Kind
    prefix: str


class KeyFilters(TypedDict, total=False):
    """Which keys."""

    state: State
    kind: Kind
    owner: str
    environment: str
    prefix: str
    created_before: Instant


class RevocationFilters(KeyFilters, total=False):
    """Which keys to revoke: all that fit every filter. At least one is needed."""


class ValidationItem(TypedDict, total=False):
    """One of a batch, in the words of ``/v1/validate``."""

    key: str
    signature: str
    timestamp: int
    nonce: str
    token: str
    request: Mapping[str, Any]
    permissions: str | list[str]
    ip: str
    cost: int
    tags: list[str]


class Key(TypedDict):
    """A key, its secret or token redacted."""

    key_id: str
    kind: Kind
    secret: NotRequired[str]
    token: NotRequired[str]
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
    created_at: str
    updated_at: str
    expires_at: str | None
    revoked_at: str | None
    revoke_reason: str | None
    last_used: str | None


class CreatedKey(Key):
    """A key with its ``secret`` (signed) or ``token`` (bearer), shown this once."""


class KeyVersion(TypedDict):
    """One secret or token of a key."""

    version: int
    created_at: str
    ends_at: str | None
    ended: bool
    leaked_at: str | None


class BulkRevocation(TypedDict):
    """What was, or would be, revoked; of the ids the first thousand."""

    dry_run: bool
    matched: int
    revoked: int
    key_ids: list[str]


class Token(TypedDict):
    """An admin token."""

    key_id: str
    name: str | None
    version: int
    scopes: list[str]
    environment: str | None
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

    token: str


class WebhookChanges(TypedDict, total=False):
    """What may be changed of a webhook."""

    url: str
    types: list[str]
    description: str | None
    disabled: bool


class Webhook(TypedDict):
    """A subscription to events."""

    id: str
    url: str
    types: list[str]
    environment: str | None
    description: str | None
    disabled: bool
    disabled_reason: str | None
    created_at: str
    updated_at: str
    previous_secret_until: str | None


class CreatedWebhook(Webhook):
    """A subscription with its ``secret``, shown this once."""

    secret: str


class Delivery(TypedDict):
    """One event to one receiver."""

    id: str
    type: str
    state: Literal["pending", "done", "dead"]
    attempts: int
    outcome: str | None
    status: int | None
    created_at: str
    next_at: str | None
    finished_at: str | None


class LeakOutcome(TypedDict):
    """Whose a reported secret or token is, and what was done; ``None`` when it is no live one."""

    matched: bool
    key_id: str | None
    realm: str | None
    version: int | None
    action: Literal["revoked", "version_ended", "flagged", "none"] | None


class Event(TypedDict):
    """One thing that happened."""

    timestamp: str
    action: str
    key_id: str | None
    actor: str | None
    reason: str | None
    ip: str | None
    request_id: str | None
    detail: dict[str, Any]
    count: int
    id: int | None
    log: int | None
    index: int | None


class CacheStats(TypedDict):
    """Counters of the record cache."""

    cache_size: int
    hits: int
    misses: int
    evictions: int
    max_entries: int


class EnvironmentCount(TypedDict):
    """How many keys of an environment are in each state; ``None``: keys without one."""

    environment: str | None
    active: int
    disabled: int
    expired: int
    revoked: int


class Stats(TypedDict):
    """Counters of the process that answered, and of keys where asked for."""

    cache: CacheStats
    audit_queue: int
    uptime_seconds: float
    environments: list[EnvironmentCount] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteVerdict:
    """What became of one credential. True in a condition when it is valid, and only then.

    What is known of the key is ``None`` until its secret was proved.
    """

    valid: bool
    reason: str
    key_id: str | None
    cached: bool
    version: int | None
    scheme: str | None
    metadata: dict[str, Any] | None
    permissions: list[str] | None
    expires_at: str | None
    rate_limit: RateLimitState | None
    body_verified: bool | None
    quota: QuotaState | None = None

    def __bool__(self) -> bool:
        return self.valid

    def raise_unless_valid(self) -> None:
        """Raise the exception of the reason, as ``KeyManager.validate_key`` does.

        Raises:
            APIKeyManagerException: the class that belongs to ``reason``.
        """
        if not self.valid:
            raise refusal_of(self.reason)
