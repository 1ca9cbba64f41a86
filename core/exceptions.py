"""The published place of the exceptions, for a clone."""

from __future__ import annotations

from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    ConfigurationError,
    ConflictError,
    EncryptionError,
    InvalidSignatureError,
    KeyExistsError,
    KeyExpiredError,
    KeyNotFoundError,
    KeyRevokedError,
    PermissionDeniedError,
    RateLimitExceededError,
    Reason,
    StorageError,
    ValidationError,
    VaultError,
)

__all__ = [
    "APIKeyManagerException",
    "ConfigurationError",
    "ConflictError",
    "EncryptionError",
    "InvalidSignatureError",
    "KeyExistsError",
    "KeyExpiredError",
    "KeyNotFoundError",
    "KeyRevokedError",
    "PermissionDeniedError",
    "RateLimitExceededError",
    "Reason",
    "StorageError",
    "ValidationError",
    "VaultError",
]
