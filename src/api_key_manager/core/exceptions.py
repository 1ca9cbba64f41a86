"""The error tree, and the one table that gives every refusal its exception and HTTP status.

::

    APIKeyManagerException
    ├── ValidationError             malformed
    ├── InvalidSignatureError       bad_signature, weak_scheme, replayed
    ├── KeyExpiredError             expired, stale_timestamp, future_timestamp
    ├── KeyNotFoundError            not_found
    │   └── KeyRevokedError         revoked, disabled
    ├── KeyExistsError              key_exists
    ├── ConflictError               conflict
    ├── PermissionDeniedError       ip_denied, forbidden
    ├── RateLimitExceededError      rate_limited, quota_exceeded
    ├── ConfigurationError          configuration
    ├── VaultError                  vault
    ├── EncryptionError             encryption
    └── StorageError                unavailable

Every exception carries a ``reason`` slug: the same word stands in answers, metrics, audit events
and documentation. Messages never hold a secret, a token or a signature.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, NamedTuple

__all__ = [
    "OUTCOMES",
    "APIKeyManagerException",
    "ConfigurationError",
    "ConflictError",
    "EncryptionError",
    "InvalidSignatureError",
    "KeyExistsError",
    "KeyExpiredError",
    "KeyNotFoundError",
    "KeyRevokedError",
    "Outcome",
    "PermissionDeniedError",
    "RateLimitExceededError",
    "Reason",
    "StorageError",
    "ValidationError",
    "VaultError",
]


class Reason(StrEnum):
    """Why a credential was accepted or refused."""

    VALID = "valid"
    MALFORMED = "malformed"
    NOT_FOUND = "not_found"
    BAD_SIGNATURE = "bad_signature"
    WEAK_SCHEME = "weak_scheme"
    REPLAYED = "replayed"
    REVOKED = "revoked"
    DISABLED = "disabled"
    EXPIRED = "expired"
    STALE_TIMESTAMP = "stale_timestamp"
    FUTURE_TIMESTAMP = "future_timestamp"
    IP_DENIED = "ip_denied"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    UNAVAILABLE = "unavailable"


class APIKeyManagerException(Exception):  # noqa: N818 - the published name
    """Base of everything this package raises on purpose.

    Args:
        message: what happened, fit to be shown to a user.
        reason: the slug; each class has its own default.
    """

    default_reason: ClassVar[str] = "error"

    def __init__(self, message: str = "", *, reason: str | None = None) -> None:
        self.reason: str = str(reason) if reason else self.default_reason
        super().__init__(message or self.reason.replace("_", " "))


class ValidationError(APIKeyManagerException):
    """Input that cannot be used: a wrong type, an empty value, a bound exceeded."""

    default_reason = Reason.MALFORMED.value


class InvalidSignatureError(APIKeyManagerException):
    """The caller did not prove, well enough and for the first time, that it holds the secret."""

    default_reason = Reason.BAD_SIGNATURE.value


class KeyExpiredError(APIKeyManagerException):
    """The key has expired, or the timestamp lies outside the validation window."""

    default_reason = Reason.EXPIRED.value


class KeyNotFoundError(APIKeyManagerException):
    """No such key."""

    default_reason = Reason.NOT_FOUND.value


class KeyRevokedError(KeyNotFoundError):
    """The key exists and no longer works: revoked for good, or disabled for now."""

    default_reason = Reason.REVOKED.value


class KeyExistsError(APIKeyManagerException):
    """The id is taken; also by a revoked or deleted key, since an id never returns."""

    default_reason = "key_exists"


class ConflictError(APIKeyManagerException):
    """Somebody else changed the same thing at the same moment; read it again and retry."""

    default_reason = "conflict"


class PermissionDeniedError(APIKeyManagerException):
    """The key is genuine, but not allowed to do this or from here."""

    default_reason = Reason.FORBIDDEN.value


class RateLimitExceededError(APIKeyManagerException):
    """A rate limit or quota of the key is used up for now.

    Args:
        message: as of every exception.
        reason: the slug.
        retry_after: seconds after which the same request would pass; ``None`` when it never would,
            because it costs more than the whole limit, or when nobody knows.
    """

    default_reason = Reason.RATE_LIMITED.value

    def __init__(
        self, message: str = "", *, reason: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class ConfigurationError(APIKeyManagerException):
    """A setting or a combination of settings that must not be started with."""

    default_reason = "configuration"


class VaultError(APIKeyManagerException):
    """The secret vault did not give what was asked for."""

    default_reason = "vault"


class EncryptionError(APIKeyManagerException):
    """Something sealed cannot be opened: a wrong master key, or changed bytes."""

    default_reason = "encryption"


class StorageError(APIKeyManagerException):
    """The store cannot answer, or what it answered cannot be believed.

    Args:
        message: as of every exception.
        reason: the slug.
        uncertain: whether the change that was asked for may have been made all the same.
    """

    default_reason = Reason.UNAVAILABLE.value

    def __init__(
        self, message: str = "", *, reason: str | None = None, uncertain: bool = False
    ) -> None:
        super().__init__(message, reason=reason)
        self.uncertain = uncertain


class Outcome(NamedTuple):
    """What one reason means to each face: Python, HTTP, and the people who read it."""

    exception: type[APIKeyManagerException]
    status: int
    message: str


OUTCOMES: dict[Reason, Outcome] = {
    Reason.MALFORMED: Outcome(ValidationError, 401, "the credential is malformed"),
    Reason.NOT_FOUND: Outcome(KeyNotFoundError, 401, "no such key"),
    Reason.BAD_SIGNATURE: Outcome(InvalidSignatureError, 401, "the signature does not match"),
    Reason.WEAK_SCHEME: Outcome(
        InvalidSignatureError, 401, "the signature scheme is weaker than this key allows"
    ),
    Reason.REPLAYED: Outcome(InvalidSignatureError, 401, "the nonce was used before"),
    Reason.REVOKED: Outcome(KeyRevokedError, 401, "the key is revoked"),
    Reason.DISABLED: Outcome(KeyRevokedError, 401, "the key is disabled"),
    Reason.EXPIRED: Outcome(KeyExpiredError, 401, "the key has expired"),
    Reason.STALE_TIMESTAMP: Outcome(
        KeyExpiredError, 401, "the timestamp is older than the validation window"
    ),
    Reason.FUTURE_TIMESTAMP: Outcome(KeyExpiredError, 401, "the timestamp lies in the future"),
    Reason.IP_DENIED: Outcome(
        PermissionDeniedError, 403, "the address is not on the key's allowlist"
    ),
    Reason.FORBIDDEN: Outcome(PermissionDeniedError, 403, "the key lacks a required permission"),
    Reason.RATE_LIMITED: Outcome(RateLimitExceededError, 429, "a rate limit is used up"),
    Reason.QUOTA_EXCEEDED: Outcome(RateLimitExceededError, 429, "the quota is used up"),
    Reason.UNAVAILABLE: Outcome(StorageError, 503, "the key cannot be checked right now"),
}
"""Reason -> exception, `/v1/authorize` status and message. ``valid`` needs none."""
