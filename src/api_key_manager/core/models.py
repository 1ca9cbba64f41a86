"""The nouns of the house: frozen values without behaviour that could surprise.

Instants are integer microseconds since the Unix epoch (UTC) inside, RFC 3339 text outside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from api_key_manager.core.exceptions import (
    OUTCOMES,
    APIKeyManagerException,
    RateLimitExceededError,
    Reason,
)
from api_key_manager.core.limits import Decision, RateLimit
from api_key_manager.core.quotas import Quota, QuotaState

__all__ = [
    "ADMIN_REALM",
    "KEY_REALM",
    "MIN_SCHEMES",
    "ApiKey",
    "AuditEvent",
    "AuditQuery",
    "Change",
    "KeyQuery",
    "KeyVersion",
    "Kind",
    "Page",
    "Reason",
    "Scheme",
    "Use",
    "Verdict",
    "canonical_json",
    "rfc3339",
]

Kind = Literal["signed", "bearer"]
Scheme = Literal["static", "timestamped", "request", "bearer"]

KEY_REALM = "default"
ADMIN_REALM = "admin"
"""Admin tokens are bearer keys of this realm; no other realm's key is ever accepted for one."""

MIN_SCHEMES: tuple[str, ...] = ("static", "timestamped", "timestamped-nonce", "request")
"""``min_scheme`` values, weakest first."""

MICROSECONDS = 1_000_000
# An enum gives its members slowly.
_VALID = Reason.VALID
_REDACTED = "***REDACTED***"

T = TypeVar("T")


def rfc3339(instant: int) -> str:
    """Microseconds since the epoch as RFC 3339 text in UTC, with its offset."""
    seconds, micros = divmod(instant, MICROSECONDS)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros).isoformat()


def _maybe(instant: int | None) -> str | None:
    return None if instant is None else rfc3339(instant)


# Made once: json.dumps() makes an encoder per call when it is told anything unusual.
_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN.

    Raises:
        ValueError, TypeError: the value has no JSON form.
    """
    return _encode(value)


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One secret of a key, at rest: sealed (signed keys) or as a keyed digest (bearer keys)."""

    version: int
    created_at: int
    ends_at: int | None = None
    ended: bool = False
    sealed: bytes | None = field(default=None, repr=False)
    digest: bytes | None = field(default=None, repr=False)
    pepper: int | None = None
    # Of a minted secret: how it is found when only it is known; empty for what nobody can scan for.
    mark: bytes | None = field(default=None, repr=False)
    leaked_at: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "created_at": rfc3339(self.created_at),
            "ends_at": _maybe(self.ends_at),
            "ended": self.ended,
            "leaked_at": _maybe(self.leaked_at),
        }


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as stored. ``versions`` are those that have not ended, newest first.

    ``expired`` and ``revoked`` are ends made permanent: once set, no clock revives the key.
    ``rate_limits`` are its own; ``shared_limits`` are those that it shares with its owner's others.
    ``mac`` covers everything but itself and the two ``*_used_at`` (see :meth:`mac_input`).
    """

    key_id: str
    kind: Kind
    created_at: int
    updated_at: int
    versions: tuple[KeyVersion, ...]
    realm: str = KEY_REALM
    prefix: str = "akm"
    owner: str | None = None
    environment: str | None = None
    metadata_json: str = "{}"
    permissions: tuple[str, ...] = ()
    ip_allowlist: tuple[str, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    min_scheme: str = "static"
    disabled: bool = False
    expires_at: int | None = None
    expired: bool = False
    revoked_at: int | None = None
    revoked: bool = False
    revoke_reason: str | None = None
    deleted_at: int | None = None
    revision: int = 0
    mac: bytes = field(default=b"", repr=False)
    quota: Quota | None = None
    shared_limits: tuple[RateLimit, ...] = ()
    last_used_at: int | None = None
    static_used_at: int | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """A fresh copy each time, so that nobody's change reaches the record."""
        value: dict[str, Any] = json.loads(self.metadata_json)
        return value

    @property
    def version(self) -> int:
        """The newest live version's number, or 0 when every version has ended."""
        return self.versions[0].version if self.versions else 0

    @property
    def next_end(self) -> int | None:
        """The earliest instant at which something of this key ends that is not yet written down."""
        ends = [v.ends_at for v in self.versions if v.ends_at is not None]
        if self.expires_at is not None and not self.expired:
            ends.append(self.expires_at)
        if self.revoked_at is not None and not self.revoked:
            ends.append(self.revoked_at)
        return min(ends, default=None)

    def state(self, now: int) -> str:
        """``deleted``, ``revoked``, ``disabled``, ``expired`` or ``active`` at ``now`` (µs)."""
        if self.deleted_at is not None:
            return "deleted"
        if self.revoked or (self.revoked_at is not None and now >= self.revoked_at):
            return "revoked"
        if self.disabled:
            return "disabled"
        if self.expired or (self.expires_at is not None and now >= self.expires_at):
            return "expired"
        return "active"

    @property
    def written_limits(self) -> list[list[Any]]:
        """All limits as they are stored."""
        shared = [[*limit, "owner"] for limit in self.shared_limits]
        return [*map(list, self.rate_limits), *shared]

    def mac_input(self) -> bytes:
        """The exact bytes that the record MAC covers: every security column and the revision."""
        columns: list[Any] = [
            "akm-record-1", self.key_id, self.realm, self.kind, self.prefix, self.owner,
            self.environment, self.metadata_json, list(self.permissions),
            list(self.ip_allowlist), self.written_limits, self.min_scheme, self.disabled,
            self.expires_at, self.expired, self.revoked_at, self.revoked, self.revoke_reason,
            self.created_at, self.updated_at, self.deleted_at, self.revision,
            [
                [v.version, v.created_at, v.ends_at, v.pepper,
                 v.sealed.hex() if v.sealed else None, v.digest.hex() if v.digest else None]
                for v in self.versions
            ],
        ]  # fmt: skip
        # What came later stands only where it is, so that the MACs of older records still fit.
        if self.quota is not None:
            columns.append(["quota", *self.quota])
        leaked = [[v.version, v.leaked_at] for v in self.versions if v.leaked_at is not None]
        if leaked:
            columns.append(["leaked", *leaked])
        return canonical_json(columns).encode("utf-8", "surrogatepass")

    def to_dict(self, now: int) -> dict[str, Any]:
        """What users see of a key; the secret never among it."""
        state = self.state(now)
        secret = {"secret": _REDACTED} if self.kind == "signed" else {"token": _REDACTED}
        return {
            "key_id": self.key_id,
            "kind": self.kind,
            **secret,
            "prefix": self.prefix,
            "owner": self.owner,
            "environment": self.environment,
            "metadata": self.metadata,
            "permissions": list(self.permissions),
            "ip_allowlist": list(self.ip_allowlist),
            "rate_limits": [
                *(limit.to_dict() for limit in self.rate_limits),
                *({**limit.to_dict(), "scope": "owner"} for limit in self.shared_limits),
            ],
            "quota": None if self.quota is None else {**self.quota.to_dict(), "spent": None},
            "min_scheme": self.min_scheme,
            "active": state == "active",
            "state": state,
            "disabled": self.disabled,
            "version": self.version,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
            "expires_at": _maybe(self.expires_at),
            "revoked_at": _maybe(self.revoked_at),
            "revoke_reason": self.revoke_reason,
            "last_used": _maybe(self.last_used_at),
        }


class Verdict(NamedTuple):
    """What became of one credential. A refusal is a value; truth means "accepted".

    ``key`` is set only once the caller has proved the secret, so nothing of a key is shown to
    somebody who merely knows its id. ``scheme == "static"`` says that the timestamp, if any, was
    not authenticated. ``cached``: answered without I/O for the record. ``body_verified``, of a
    signed request: whether the body was compared with what was signed. ``rate_limit``: what the
    key's limits said; ``None`` when it has none, or when it was not for them to say. ``quota``:
    what is left of the key's credits; ``None`` when it has no quota, or it was not asked.
    """

    reason: Reason
    key_id: str | None = None
    key: ApiKey | None = None
    version: int | None = None
    scheme: Scheme | None = None
    cached: bool = False
    body_verified: bool | None = None
    rate_limit: Decision | None = None
    quota: QuotaState | None = None

    @property
    def valid(self) -> bool:
        return self.reason is _VALID

    def __bool__(self) -> bool:
        return self.reason is _VALID

    @property
    def metadata(self) -> dict[str, Any] | None:
        return self.key.metadata if self.key else None

    @property
    def permissions(self) -> list[str] | None:
        return list(self.key.permissions) if self.key else None

    @property
    def expires_at(self) -> str | None:
        return _maybe(self.key.expires_at) if self.key else None

    def error(self) -> APIKeyManagerException:
        """The exception of this refusal's reason.

        Raises:
            ValueError: the verdict is no refusal.
        """
        if self.valid:
            raise ValueError("a valid verdict has no error")
        outcome = OUTCOMES[self.reason]
        if self.rate_limit is not None and self.reason is Reason.RATE_LIMITED:
            return _limit_error(self.rate_limit, outcome.message)
        if self.quota is not None and self.reason is Reason.QUOTA_EXCEEDED:
            wait = self.quota.retry_after or None
            return RateLimitExceededError(outcome.message, reason=self.reason, retry_after=wait)
        return outcome.exception(outcome.message, reason=self.reason)


def _limit_error(decision: Decision, message: str) -> RateLimitExceededError:
    name = decision.deciding.name
    if decision.never:
        return RateLimitExceededError(f"the cost is more than the rate limit {name} ever holds")
    return RateLimitExceededError(f"{message}: {name}", retry_after=decision.retry_after)


class AuditEvent(NamedTuple):
    """One thing that happened. ``timestamp`` in µs; ``count`` > 1 when refusals were folded."""

    timestamp: int
    action: str
    key_id: str | None = None
    actor: str | None = None
    reason: str | None = None
    ip: str | None = None
    request_id: str | None = None
    # Canonical JSON of an object. Text, so that what repeats on the hot path is written once.
    detail_json: str | None = None
    # "count" is also a tuple method, hence the other name inside.
    times: int = 1
    # Of the key, when it happened. Only for who may look at one environment.
    environment: str | None = None
    # Of an event that was read: its row, and where it stands in the transparency log.
    row_id: int | None = None
    log: int | None = None
    leaf: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "timestamp": rfc3339(self.timestamp),
            "action": self.action,
            "key_id": self.key_id,
            "actor": self.actor,
            "reason": self.reason,
            "ip": self.ip,
            "request_id": self.request_id,
            "detail": json.loads(self.detail_json) if self.detail_json else {},
            "count": self.times,
            "id": self.row_id,
            "log": self.log,
            "index": self.leaf,
        }


class Use(NamedTuple):
    """When a key was last used, and when last by a static signature (µs)."""

    at: int
    static_at: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One record as it shall be, and what was believed of it before.

    ``expected_revision`` is ``None`` for a new id; else the revision that was read: when the
    stored one differs, somebody else was faster and the store raises ``ConflictError``.
    """

    record: ApiKey
    expected_revision: int | None
    events: Sequence[AuditEvent] = ()


@dataclass(frozen=True, slots=True)
class KeyQuery:
    """Which keys, from where, how many. ``state`` is judged at ``now`` (µs).

    ``within`` is no filter of the caller's: whose environment it names sees no other.
    """

    realm: str = KEY_REALM
    state: str | None = None
    kind: str | None = None
    owner: str | None = None
    environment: str | None = None
    prefix: str | None = None
    created_before: int | None = None
    within: str | None = None
    now: int = 0
    after: str | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which events, newest first unless ``ascending``. ``after`` is the last index seen.

    ``within``: only events of keys that were in this environment when they happened.
    """

    key_id: str | None = None
    action: str | None = None
    since: int | None = None
    until: int | None = None
    within: str | None = None
    ascending: bool = False
    after: int | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items, and where the next ones begin (``None``: there are no more)."""

    items: list[T]
    next_cursor: str | None = None
