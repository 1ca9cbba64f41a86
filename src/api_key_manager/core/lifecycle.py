"""How a key changes: each step takes a record and gives the next one, without I/O.

The rules it keeps: rotation never extends an expiry and never changes the prefix; an old version
ends exactly when said, and an earlier end stays; what has ended stays ended.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from api_key_manager.core.exceptions import (
    ConflictError,
    KeyExpiredError,
    KeyNotFoundError,
    KeyRevokedError,
    Reason,
    ValidationError,
)
from api_key_manager.core.models import (
    ADMIN_REALM,
    MICROSECONDS,
    ApiKey,
    AuditEvent,
    Change,
    KeyVersion,
    canonical_json,
    rfc3339,
)

__all__ = [
    "delete",
    "end_version",
    "event_action",
    "require_usable",
    "retire",
    "revoke",
    "rotate",
    "settle",
    "update",
]

MAX_LIVE_VERSIONS = 8


def event_action(record: ApiKey, verb: str) -> str:
    """``key_created``, or ``token_created`` for an admin token."""
    return f"{'token' if record.realm == ADMIN_REALM else 'key'}_{verb}"


def require_usable(record: ApiKey, now: int) -> None:
    """Raises ``KeyRevokedError`` or ``KeyExpiredError`` for a key that has ended."""
    state = record.state(now)
    if state == "revoked":
        raise KeyRevokedError("the key is revoked")
    if state == "expired":
        raise KeyExpiredError("the key has expired")


def update(record: ApiKey, fields: dict[str, Any], now: int) -> ApiKey:
    """Set cleaned fields. An explicit new expiry is the only way out of an expired state."""
    expires_at = fields.get("expires_at")
    if "expires_at" in fields:
        if expires_at is not None and expires_at <= now:
            raise ValidationError("expires_at: an instant in the future is allowed")
        fields = {**fields, "expired": False}
    return replace(record, **fields, updated_at=now)


def rotate(record: ApiKey, new: KeyVersion, overlap_seconds: int, now: int) -> ApiKey:
    """Put a new version on top; the others end after the overlap, or earlier if so said before.

    Raises:
        KeyRevokedError, KeyExpiredError: the key has ended.
        ConflictError: too many versions are alive at once.
    """
    require_usable(record, now)
    cut = now + overlap_seconds * MICROSECONDS
    older = []
    for version in record.versions:
        ends_at = cut if version.ends_at is None else min(cut, version.ends_at)
        older.append(_end(replace(version, ends_at=ends_at), now))
    if sum(not version.ended for version in older) >= MAX_LIVE_VERSIONS:
        raise ConflictError(
            f"{MAX_LIVE_VERSIONS} versions of this key are alive; let one end before rotating"
        )
    return replace(record, versions=(new, *older), updated_at=now)


def _end(version: KeyVersion, now: int) -> KeyVersion:
    if version.ends_at is None or version.ends_at > now:
        return version
    return replace(version, ended=True, sealed=None, digest=None, pepper=None, mark=None)


def end_version(record: ApiKey, number: int, now: int) -> ApiKey:
    """End one version at once; the others stay as they are."""
    versions = tuple(
        _end(replace(version, ends_at=now), now) if version.version == number else version
        for version in record.versions
    )
    return replace(record, versions=versions, updated_at=now)


def revoke(record: ApiKey, reason: str | None, at: int, now: int) -> ApiKey:
    """End the key at ``at``, for good once that has passed. Nothing ends a revocation."""
    if record.revoked:
        return record
    if record.revoked_at is not None:
        at = min(at, record.revoked_at)
    return replace(
        record,
        revoked_at=at,
        revoked=at <= now,
        revoke_reason=reason or record.revoke_reason,
        updated_at=now,
    )


def retire(record: ApiKey, least_pepper: int, actor: str, now: int) -> Change | None:
    """End every version whose digest is under an older pepper, and the key when none is left.

    Args:
        least_pepper: the oldest pepper that stays.
        actor: for the audit log.
        now: in µs.

    Returns:
        ``None`` when there is no such version.
    """
    versions = tuple(
        _end(replace(v, ends_at=min(now, now if v.ends_at is None else v.ends_at)), now)
        if v.pepper is not None and v.pepper < least_pepper
        else v
        for v in record.versions
    )
    ended = [
        new.version
        for old, new in zip(record.versions, versions, strict=True)
        if new.ended and not old.ended
    ]
    if not ended:
        return None
    changed = replace(record, versions=versions, updated_at=now)
    verb, reason = "version_ended", f"pepper {least_pepper - 1} is retired"
    if not record.revoked and all(version.ended for version in versions):
        changed, verb = revoke(changed, reason, now, now), "revoked"
    event = AuditEvent(
        now, event_action(record, verb), record.key_id, actor, reason,
        detail_json=canonical_json({"versions": ended}), environment=record.environment,
    )  # fmt: skip
    return Change(changed, record.revision, [event])


def delete(record: ApiKey, now: int) -> ApiKey:
    """The tombstone: the id stays taken, everything else is erased."""
    erased = tuple(
        replace(version, ends_at=min(now, version.ends_at or now), ended=True, sealed=None,
                digest=None, pepper=None, mark=None)
        for version in record.versions
    )  # fmt: skip
    return ApiKey(
        key_id=record.key_id,
        kind=record.kind,
        realm=record.realm,
        prefix=record.prefix,
        created_at=record.created_at,
        updated_at=now,
        versions=erased,
        revoked_at=record.revoked_at,
        revoked=record.revoked,
        deleted_at=now,
    )


def settle(record: ApiKey, now: int) -> Change | None:
    """Make the ends that have passed permanent; ``None`` when there is none."""
    next_end = record.next_end
    if record.deleted_at is not None or next_end is None or next_end > now:
        return None
    events = []
    revoked, expired = record.revoked, record.expired
    if not revoked and record.revoked_at is not None and record.revoked_at <= now:
        revoked = True
        events.append(_ended(record, now, "revoked", Reason.REVOKED, record.revoked_at))
    if not expired and record.expires_at is not None and record.expires_at <= now:
        expired = True
        events.append(_ended(record, now, "expired", Reason.EXPIRED, record.expires_at))
    versions = tuple(_end(version, now) for version in record.versions)
    for old, new in zip(record.versions, versions, strict=True):
        if new.ended and not old.ended:
            detail = {"version": new.version, "ended_at": rfc3339(new.ends_at or now)}
            action = event_action(record, "version_ended")
            events.append(
                AuditEvent(
                    now, action, record.key_id, "system", detail_json=canonical_json(detail),
                    environment=record.environment,
                )
            )  # fmt: skip
    settled = replace(record, revoked=revoked, expired=expired, versions=versions, updated_at=now)
    return Change(settled, record.revision, events)


def _ended(record: ApiKey, now: int, verb: str, reason: Reason, at: int) -> AuditEvent:
    return AuditEvent(
        now, event_action(record, verb), record.key_id, "system", reason.value,
        detail_json=canonical_json({"ended_at": rfc3339(at)}), environment=record.environment,
    )  # fmt: skip


def require_found(record: ApiKey | None, realm: str, within: str | None = None) -> ApiKey:
    """Raises ``KeyNotFoundError`` unless there is such a key in this realm, and in the environment
    ``within``, if that is named."""
    if (
        record is None
        or record.realm != realm
        or record.deleted_at is not None
        or within not in (None, record.environment)
    ):
        raise KeyNotFoundError("no such key")
    return record
