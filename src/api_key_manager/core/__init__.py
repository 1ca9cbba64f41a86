"""The rules, without I/O: what a key is, what a credential is worth, how a key changes.

Imports no framework, no database and no network.
"""

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
from api_key_manager.core.http_signatures import sign_request
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import ApiKey, AuditEvent, KeyVersion, Verdict
from api_key_manager.core.signing import sign
from api_key_manager.core.validator import AsyncAPIKeyValidator

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
    "StorageError",
    "ValidationError",
    "VaultError",
    "Verdict",
    "sign",
    "sign_request",
]
