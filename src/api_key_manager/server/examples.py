"""One example of each shape, for the OpenAPI document and the page made from it."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["EXAMPLES"]

_AT: Final = "2026-01-01T00:00:00.000000+00:00"
_KEY: Final[dict[str, Any]] = {
    "key_id": "client-123",
    "kind": "signed",
    "secret": "***REDACTED***",
    "prefix": "akm",
    "owner": "billing",
    "environment": None,
    "metadata": {"tier": "premium"},
    "permissions": ["invoices.*"],
    "ip_allowlist": ["10.0.0.0/8"],
    "rate_limits": [{"name": "minute", "limit": 600, "window_seconds": 60}],
    "quota": {
        "limit": 1000, "refill": "monthly", "hour": 6, "zone": "Europe/Berlin",
        "shared_by_owner": False, "spent": 12,
    },
    "min_scheme": "timestamped",
    "active": True,
    "state": "active",
    "disabled": False,
    "version": 1,
    "created_at": _AT,
    "updated_at": _AT,
    "expires_at": None,
    "revoked_at": None,
    "revoke_reason": None,
    "last_used": None,
}  # fmt: skip
_TOKEN: Final[dict[str, Any]] = {
    "key_id": "4Zr1bJt8Qm0WcXyK",
    "name": "gateway",
    "version": 1,
    "scopes": ["validate"],
    "environment": None,
    "ip_allowlist": [],
    "active": True,
    "state": "active",
    "created_at": _AT,
    "updated_at": _AT,
    "expires_at": None,
    "revoked_at": None,
    "last_used": None,
}
_ANSWER: Final[dict[str, Any]] = {
    "valid": True,
    "cached": True,
    "reason": "valid",
    "key_id": "client-123",
    "version": 1,
    "scheme": "timestamped",
    "metadata": {"tier": "premium"},
    "permissions": ["invoices.*"],
    "expires_at": None,
    "rate_limit": None,
    "body_verified": None,
    "quota": {"limit": 1000, "remaining": 988, "resets_at": _AT},
}
_WEBHOOK: Final[dict[str, Any]] = {
    "id": "8d1f3b5a7c9e0f2a4b6c8d0e",
    "url": "https://hooks.example.com/keys",
    "types": ["key.revoked", "key.leaked"],
    "environment": None,
    "description": None,
    "disabled": False,
    "disabled_reason": None,
    "created_at": _AT,
    "updated_at": _AT,
    "previous_secret_until": None,
}
_DELIVERY: Final[dict[str, Any]] = {
    "id": "msg_0064d6a3b1c0008d1f3b5a7c9e0f2a4b6c",
    "type": "key.revoked",
    "state": "done",
    "attempts": 1,
    "outcome": "delivered",
    "status": 204,
    "created_at": _AT,
    "next_at": None,
    "finished_at": _AT,
}
_EVENT: Final[dict[str, Any]] = {
    "timestamp": _AT,
    "action": "key_revoked",
    "key_id": "client-123",
    "actor": "first-admin",
    "reason": "leaked",
    "ip": "127.0.0.1",
    "request_id": "5f0c1d2e3a4b-1",
    "detail": {},
    "count": 1,
    "id": 123,
    "log": 1,
    "index": 123,
}
_CHECKPOINT: Final = (
    "api-key-manager-pro/20f5017a5828392ab5e87227b683827d/1\n1\n"
    "QnY9ffpvPLBYl+czsLi0k8Cc8d2D8KGGj9daMrkcdfw=\n\n"
    "\u2014 api-key-manager-pro/20f5017a5828392ab5e87227b683827d/1 ZzXu4ADjKCQM...\n"
)

EXAMPLES: Final[dict[str, Any]] = {
    "CreateKey": {"kind": "bearer", "owner": "billing", "permissions": ["invoices.read"]},
    "UpdateKey": {"permissions": ["invoices.*"]},
    "RevokeKey": {"reason": "leaked"},
    "ReportLeak": {"token": "akm_...", "url": "https://example.com/paste/1"},
    "LeakOutcome": {
        "matched": True, "key_id": "client-123", "realm": "default", "version": 1,
        "action": "revoked",
    },
    "RotateKey": {"overlap_seconds": 3600},
    "RevokeKeys": {"owner": "billing", "dry_run": True},
    "CreateToken": {"name": "gateway", "scopes": ["validate"]},
    "Validation": {"token": "akm_...", "permissions": "invoices.read"},
    "Validations": {"validations": [{"token": "akm_..."}]},
    "Answer": _ANSWER,
    "Answers": {"results": [_ANSWER]},
    "Key": _KEY,
    "CreatedKey": {**_KEY, "secret": "akm_secret_..."},
    "KeyPage": {"items": [_KEY], "next_cursor": None},
    "VersionPage": {
        "items": [
            {
                "version": 1, "created_at": _AT, "ends_at": None, "ended": False,
                "leaked_at": None,
            }
        ],
        "next_cursor": None,
    },
    "BulkRevocation": {"dry_run": True, "matched": 1, "revoked": 0, "key_ids": ["client-123"]},
    "CreatedToken": {**_TOKEN, "token": "akm_admin_4Zr1bJt8Qm0WcXyK_..."},
    "TokenPage": {"items": [_TOKEN], "next_cursor": None},
    "AuditPage": {"items": [_EVENT], "next_cursor": "MTIz"},
    "Proof": {
        "log": "api-key-manager-pro/20f5017a5828392ab5e87227b683827d/1",
        "verifier_key": "api-key-manager-pro/20f5017a5828392ab5e87227b683827d/1+6735eee0+AR...",
        "checkpoint": _CHECKPOINT,
        "size": 1,
        "hashes": [],
        "index": 0,
        "leaf": '{"at":1795388742854576,"index":0,"kind":"origin",...}',
        "leaf_hash": "QnY9ffpvPLBYl+czsLi0k8Cc8d2D8KGGj9daMrkcdfw=",
    },
    "CreateWebhook": {"url": _WEBHOOK["url"], "types": _WEBHOOK["types"]},
    "UpdateWebhook": {"disabled": True},
    "RotateWebhookSecret": {"overlap_seconds": 3600},
    "Webhook": _WEBHOOK,
    "CreatedWebhook": {**_WEBHOOK, "secret": "whsec_..."},
    "WebhookPage": {"items": [_WEBHOOK], "next_cursor": None},
    "WebhookDelivery": _DELIVERY,
    "WebhookDeliveryPage": {"items": [_DELIVERY], "next_cursor": None},
    "Replayed": {"replayed": 3},
    "Stats": {
        "cache": {
            "cache_size": 1, "hits": 2, "misses": 1, "evictions": 0, "max_entries": 100_000,
        },
        "audit_queue": 0,
        "uptime_seconds": 12.5,
        "environments": None,
    },
    "Health": {"status": "ok"},
    "Ready": {"status": "ready"},
    "NotReady": {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "This node is not ready.",
        "reason": "not_ready",
        "request_id": "5f0c1d2e3a4b-3",
        "problems": ["the audit log cannot be written: the disk is full"],
    },
}  # fmt: skip
"""By the name of the shape. Bodies are such as the server takes."""
