"""The shapes of the administrative routes. Types are checked here, meanings by the core.

What stands in a ``WithJsonSchema`` is told to readers of the OpenAPI document and not checked here:
the core has better words for it, and is asked by library and command line too.
"""

from __future__ import annotations

from api_key_manager.server.schemas.audit import AuditFilters, AuditPage, Proof, ProofFilters
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
    VersionPage,
)
from api_key_manager.server.schemas.kinds import ID_SCHEMA, MAX_TOKEN_SECONDS
from api_key_manager.server.schemas.leaks import LeakOutcome, ReportLeak
from api_key_manager.server.schemas.system import (
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
    "CreateKey",
    "CreateToken",
    "CreateWebhook",
    "CreatedKey",
    "CreatedToken",
    "CreatedWebhook",
    "DeliveryFilters",
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
    "Stats",
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
