"""The shapes of the administrative routes. Types are checked here, meanings by the core.

What stands in a ``WithJsonSchema`` is told to readers of the OpenAPI document and not checked here:
the core has better words for it, and is asked by library and command line too.
"""

from __future__ import annotations

from api_key_manager.server.schemas.audit import AuditFilters, AuditPage, Event, Proof, ProofFilters
from api_key_manager.server.schemas.keys import (
    BulkRevocation,
    CreatedKey,
    CreateKey,
    Key,
    KeyFilters,
    KeyPage,
    Quota,
    QuotaIn,
    RateLimit,
    RateLimitIn,
    RevokeKey,
    RevokeKeys,
    RotateKey,
    UpdateKey,
    Version,
    VersionPage,
)
from api_key_manager.server.schemas.kinds import ID_SCHEMA, MAX_TOKEN_SECONDS, State
from api_key_manager.server.schemas.leaks import LeakOutcome, ReportLeak
from api_key_manager.server.schemas.system import (
    CacheStats,
    Health,
    NotReady,
    Problem,
    Ready,
    Stats,
    StatsFilters,
)
from api_key_manager.server.schemas.tokens import (
    CreatedToken,
    CreateToken,
    Token,
    TokenFilters,
    TokenPage,
)
from api_key_manager.server.schemas.webhooks import (
    CreatedWebhook,
    CreateWebhook,
    DeliveryFilters,
    Replayed,
    RotateWebhookSecret,
    UpdateWebhook,
    Webhook,
    WebhookDelivery,
    WebhookDeliveryPage,
    WebhookPage,
)

__all__ = [
    "ID_SCHEMA",
    "MAX_TOKEN_SECONDS",
    "AuditFilters",
    "AuditPage",
    "BulkRevocation",
    "CacheStats",
    "CreateKey",
    "CreateToken",
    "CreateWebhook",
    "CreatedKey",
    "CreatedToken",
    "CreatedWebhook",
    "DeliveryFilters",
    "Event",
    "Health",
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
    "State",
    "Stats",
    "StatsFilters",
    "Token",
    "TokenFilters",
    "TokenPage",
    "UpdateKey",
    "UpdateWebhook",
    "Version",
    "VersionPage",
    "Webhook",
    "WebhookDelivery",
    "WebhookDeliveryPage",
    "WebhookPage",
]
