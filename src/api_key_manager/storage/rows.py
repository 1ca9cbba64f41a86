"""Records as rows, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from api_key_manager.connections.tables import key_uses, key_versions, keys
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.models import (
    ApiKey,
    AuditEvent,
    KeyVersion,
    Use,
    canonical_json,
)
from api_key_manager.core.quotas import Quota

__all__ = [
    "KEY_COLUMNS",
    "VERSION_COLUMNS",
    "event_from",
    "key_from",
    "key_values",
    "use_rows",
    "version_from",
    "version_values",
]

KEY_COLUMNS = [
    *(c for c in keys.columns if c.name != "next_end_at"),
    key_uses.c.last_used_at,
    key_uses.c.static_used_at,
]
VERSION_COLUMNS = [c for c in key_versions.columns if c.name != "key_id"]

_KEY_NAMES = tuple(c.name for c in KEY_COLUMNS)
_SECURITY_NAMES = tuple(n for n in _KEY_NAMES if n not in ("last_used_at", "static_used_at"))
_VERSION_NAMES = tuple(c.name for c in VERSION_COLUMNS)
_LISTS = ("permissions", "ip_allowlist")


def key_values(record: ApiKey) -> dict[str, Any]:
    """The columns of a record, but for its last uses, which no change of a key sets."""
    values = {name: getattr(record, name) for name in _SECURITY_NAMES}
    for name in _LISTS:
        values[name] = canonical_json(list(values[name]))
    values["rate_limits"] = canonical_json(record.written_limits)
    values["quota"] = None if record.quota is None else canonical_json(list(record.quota))
    deleted = record.deleted_at is not None
    values["next_end_at"] = None if deleted else record.next_end
    return values


def key_from(row: tuple[Any, ...], versions: tuple[KeyVersion, ...]) -> ApiKey:
    """A record from a row of :data:`KEY_COLUMNS`."""
    (
        key_id, kind, created_at, updated_at, realm, prefix, owner, environment, metadata_json,
        permissions, ip_allowlist, rate_limits, min_scheme, disabled, expires_at, expired,
        revoked_at, revoked, revoke_reason, deleted_at, revision, mac, quota, last_used_at,
        static_used_at,
    ) = row  # fmt: skip
    own, shared = _limits(rate_limits)
    return ApiKey(
        key_id, kind, created_at, updated_at, versions, realm, prefix, owner, environment,
        metadata_json, _texts(permissions), _texts(ip_allowlist), own, min_scheme,
        bool(disabled), expires_at, bool(expired), revoked_at, bool(revoked), revoke_reason,
        deleted_at, revision, mac, _quota(quota), shared, last_used_at, static_used_at,
    )  # fmt: skip


def _texts(column: str) -> tuple[str, ...]:
    if column == "[]":
        return ()
    try:
        return tuple(str(item) for item in json.loads(column))
    except (TypeError, ValueError, RecursionError):
        # Edited by hand into something unreadable: keep it, so that the MAC refuses it.
        return (str(column),)


def _limits(column: str) -> tuple[tuple[RateLimit, ...], tuple[RateLimit, ...]]:
    """Those of the key, and those that it shares."""
    if column == "[]":
        return (), ()
    try:
        items = [list(item) for item in json.loads(column)]
        shared = [item for item in items if item[3:] == ["owner"]]
        own = [item for item in items if item[3:] != ["owner"]]
        return tuple(RateLimit(*i) for i in own), tuple(RateLimit(*i[:3]) for i in shared)
    except (TypeError, ValueError, RecursionError):
        return (RateLimit(str(column), 0, 0),), ()  # as above


def _quota(column: str | None) -> Quota | None:
    if column is None:
        return None
    try:
        return Quota(*json.loads(column))
    except (TypeError, ValueError, RecursionError):
        return Quota(0, "never", zone=str(column))  # as above


def version_values(key_id: str, version: KeyVersion) -> dict[str, Any]:
    """The columns of a version."""
    return {"key_id": key_id, **{name: getattr(version, name) for name in _VERSION_NAMES}}


def version_from(row: tuple[Any, ...]) -> KeyVersion:
    """A version from a row of :data:`VERSION_COLUMNS`."""
    number, created_at, ends_at, ended, sealed, digest, pepper, mark, leaked_at = row
    return KeyVersion(
        number, created_at, ends_at, bool(ended), sealed, digest, pepper, mark, leaked_at
    )


def event_from(row: tuple[Any, ...]) -> AuditEvent:
    """An event from a row of ``audit_events``: behind the id its first columns are its fields."""
    return AuditEvent(*row[1:11])._replace(row_id=row[0])


def use_rows(used: Mapping[str, Use]) -> list[tuple[Any, ...]]:
    """The rows of ``key_uses`` that note last uses. In one order everywhere: of two transactions
    with the same rows in different orders, each would wait for the other."""
    return [(key_id, use.at, use.static_at) for key_id, use in sorted(used.items())]
