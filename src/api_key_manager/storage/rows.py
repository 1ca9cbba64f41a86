"""Records as rows, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from api_key_manager.connections.tables import key_uses, key_versions, keys
from api_key_manager.core.models import (
    ApiKey,
    AuditEvent,
    KeyVersion,
    Use,
    canonical_json,
)

__all__ = [
    "KEY_COLUMNS",
    "VERSION_COLUMNS",
    "event_from",
    "event_values",
    "key_from",
    "key_values",
    "use_values",
    "version_from",
    "version_values",
]

KEY_COLUMNS = [
    *(c for c in keys.columns if c.name != "next_end_at"),
    key_uses.c.last_used_at,
    key_uses.c.static_used_at,
]
VERSION_COLUMNS = [c for c in key_versions.columns if c.name != "key_id"]

_encode = msgspec.json.Encoder(order="sorted").encode
_KEY_NAMES = tuple(c.name for c in KEY_COLUMNS)
_SECURITY_NAMES = tuple(n for n in _KEY_NAMES if n not in ("last_used_at", "static_used_at"))
_VERSION_NAMES = tuple(c.name for c in VERSION_COLUMNS)
_LISTS = ("permissions", "ip_allowlist")
_FLAGS = ("disabled", "expired", "revoked")


def key_values(record: ApiKey) -> dict[str, Any]:
    """The columns of a record, but for its last uses, which no change of a key sets."""
    values = {name: getattr(record, name) for name in _SECURITY_NAMES}
    for name in _LISTS:
        values[name] = canonical_json(list(values[name]))
    deleted = record.deleted_at is not None
    values["next_end_at"] = None if deleted else record.next_end
    return values


def key_from(row: tuple[Any, ...], versions: tuple[KeyVersion, ...]) -> ApiKey:
    """A record from a row of :data:`KEY_COLUMNS`."""
    values = dict(zip(_KEY_NAMES, row, strict=True))
    for name in _LISTS:
        values[name] = _texts(values[name])
    for name in _FLAGS:
        values[name] = bool(values[name])
    return ApiKey(**values, versions=versions)


def _texts(column: str) -> tuple[str, ...]:
    if column == "[]":
        return ()
    try:
        return tuple(str(item) for item in json.loads(column))
    except (TypeError, ValueError):
        # Edited by hand into something unreadable: keep it, so that the MAC refuses it.
        return (str(column),)


def version_values(key_id: str, version: KeyVersion) -> dict[str, Any]:
    """The columns of a version."""
    return {"key_id": key_id, **{name: getattr(version, name) for name in _VERSION_NAMES}}


def version_from(row: tuple[Any, ...]) -> KeyVersion:
    """A version from a row of :data:`VERSION_COLUMNS`."""
    number, created_at, ends_at, ended, sealed, digest, pepper = row
    return KeyVersion(number, created_at, ends_at, bool(ended), sealed, digest, pepper)


def event_values(event: AuditEvent) -> dict[str, Any]:
    """The columns of an event, without its id."""
    return {
        "at": event.timestamp,
        "action": event.action,
        "key_id": event.key_id,
        "actor": event.actor,
        "reason": event.reason,
        "ip": event.ip,
        "request_id": event.request_id,
        "detail": _encode(event.detail).decode() if event.detail else None,
        "count": event.times,
    }


def event_from(row: tuple[Any, ...]) -> AuditEvent:
    """An event from a row of ``audit_events`` without its id."""
    at, action, key_id, actor, reason, ip, request_id, detail, count = row
    parsed = json.loads(detail) if detail else None
    return AuditEvent(at, action, key_id, actor, reason, ip, request_id, parsed, count)


def use_values(used: Mapping[str, Use]) -> list[dict[str, Any]]:
    """The columns that note last uses."""
    return [
        {"key_id": key_id, "last_used_at": use.at, "static_used_at": use.static_at}
        for key_id, use in used.items()
    ]
