"""API Key Manager Pro: issue, validate, limit, rotate, revoke and audit API keys."""

from typing import TYPE_CHECKING, Any

from api_key_manager.core import (
    ApiKey,
    APIKeyManagerException,
    AsyncAPIKeyValidator,
    AuditEvent,
    ConfigurationError,
    ConflictError,
    EncryptionError,
    InvalidSignatureError,
    KeyExistsError,
    KeyExpiredError,
    KeyManager,
    KeyNotFoundError,
    KeyRevokedError,
    KeyVersion,
    MemoryLimiter,
    PermissionDeniedError,
    RateLimit,
    RateLimitExceededError,
    Reason,
    StorageError,
    ValidationError,
    VaultError,
    Verdict,
    sign,
    sign_request,
)

if TYPE_CHECKING:
    from api_key_manager.config import Settings
    from api_key_manager.vault_integration import VaultClient
    from api_key_manager.wiring import open_manager

__version__ = "0.1.0"

__all__ = [
    "APIKeyManagerException",
    "ApiKey",
    "AsyncAPIKeyValidator",
    "AuditEvent",
    "ConfigurationError",
    "ConflictError",
    "EncryptionError",
    "InvalidSignatureError",
    "KeyExistsError",
    "KeyExpiredError",
    "KeyManager",
    "KeyNotFoundError",
    "KeyRevokedError",
    "KeyVersion",
    "MemoryLimiter",
    "PermissionDeniedError",
    "RateLimit",
    "RateLimitExceededError",
    "Reason",
    "Settings",
    "StorageError",
    "ValidationError",
    "VaultClient",
    "VaultError",
    "Verdict",
    "open_manager",
    "sign",
    "sign_request",
]


def __getattr__(name: str) -> Any:
    # Settings and the backends cost import time that a library user may never need.
    if name == "open_manager":
        from api_key_manager.wiring import open_manager

        return open_manager
    if name == "Settings":
        from api_key_manager.config import Settings

        return Settings
    if name == "VaultClient":
        from api_key_manager.vault_integration import VaultClient

        return VaultClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
