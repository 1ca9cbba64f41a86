"""The use cases that change a key: create, update, rotate, revoke, delete, settle ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from api_key_manager.core import lifecycle
from api_key_manager.core.changing import LIBRARY, Changing, Origin, Step
from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    ConflictError,
    KeyNotFoundError,
    StorageError,
    ValidationError,
)
from api_key_manager.core.inputs import (
    check_instant,
    check_overlap,
    check_secret,
    check_text,
    clean_fields,
)
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.lookups import key_query
from api_key_manager.core.models import (
    KEY_REALM,
    ApiKey,
    Change,
    Kind,
    canonical_json,
    rfc3339,
)
from api_key_manager.core.ports import Receipt
from api_key_manager.core.quotas import Quota
from api_key_manager.core.records import keep_record, live_secrets
from api_key_manager.core.tokens import (
    check_bearer_id,
    check_new_id,
    check_prefix,
    mint_id,
    mint_secret,
    mint_token,
)

__all__ = ["KeyLifeCycle", "ReceiptOf"]

_log = logging.getLogger(__name__)
_REVOKED_TOGETHER = 100
_SWEPT_TOGETHER = 500
_IDS_SHOWN = 1000

ReceiptOf = Callable[[dict[str, Any]], Receipt | None]
"""Is shown an answer before its change is committed; its receipt is committed with the change."""


class KeyLifeCycle(Changing):
    """What :class:`~api_key_manager.core.manager.KeyManager` does to keys, without validation."""

    async def create_key(
        self,
        key_id: str | None = None,
        secret: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        kind: Kind = "signed",
        prefix: str | None = None,
        realm: str = KEY_REALM,
        by: Origin = LIBRARY,
        receipt: ReceiptOf | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Make a key.

        Args:
            key_id: minted when left out.
            secret: of a signed key, minted when left out; tokens are always minted.
            metadata: a JSON object of at most 16 KiB.
            kind: ``signed`` or ``bearer``.
            prefix: of the minted secret or token.
            realm, by, receipt: for servers: whose key it is, who asks, and what to keep.
            **fields: ``expires_at``, ``permissions``, ``ip_allowlist``, ``rate_limits``, ``quota``,
                ``min_scheme``, ``owner``, ``environment``, ``disabled``.

        Returns:
            The key with its ``secret`` (signed) or ``token`` (bearer): shown this once.

        Raises:
            KeyExistsError: the id is taken, also by a key that was revoked or deleted.
            ValidationError: a value that is not allowed; the message names the field.
            PermissionDeniedError: another environment than the one this is confined to.
            ConflictError: rate limits where several processes would each count for themselves.
        """
        now = self._now()
        if kind not in ("signed", "bearer"):
            raise ValidationError("kind: signed or bearer is allowed")
        key_id = mint_id() if key_id is None else check_new_id(key_id, realm)
        prefix = self.prefix if prefix is None else check_prefix(prefix)
        fields = self._stay_within(fields, new=True)
        clean = self._clean({"metadata": metadata, **fields}, kind)
        expires_at = clean.get("expires_at")
        if expires_at is not None and expires_at <= now:
            raise ValidationError("expires_at: an instant in the future is allowed")
        _check_sharing(clean.get("owner"), clean.get("quota"), clean.get("shared_limits"))
        if kind == "bearer":
            check_bearer_id(key_id)
        shown = _secret_of(kind, prefix, key_id, secret)
        _keep_apart(shown, clean["metadata_json"])
        for field in ("owner", "environment"):
            if clean.get(field) == shown:
                raise ValidationError(f"{field}: the secret must not stand in it")
        version = await keep_record(self.box, key_id, 1, shown, kind, now)
        record = ApiKey(key_id, kind, now, now, (version,), realm, prefix, **clean)
        event = self._event(record, "created", by, {"kind": kind, "version": 1})
        answer = self._shown(record, shown)
        kept = receipt(answer) if receipt else None
        await self._write_new(Change(record, None, [event]), kept)
        return answer

    def _clean(self, fields: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
        clean = clean_fields(fields, kind)
        limited = clean.get("rate_limits") or clean.get("shared_limits")
        if limited and not self.limits_shared:
            raise ConflictError(
                "rate_limits: the workers of this server do not count together, so each would let"
                " the key through anew: set REDIS_URL, or serve with WORKERS=1"
            )
        return clean

    async def update_key(
        self, key_id: str, *, realm: str = KEY_REALM, by: Origin = LIBRARY, **fields: Any
    ) -> dict[str, Any]:
        """Change ``metadata``, ``permissions``, ``expires_at``, ``ip_allowlist``,
        ``rate_limits``, ``quota``, ``min_scheme``, ``disabled``, ``owner`` or ``environment``.

        Raises:
            KeyNotFoundError: no such key.
            ValidationError: a value that is not allowed, or nothing to change.
            PermissionDeniedError: another environment than the one this is confined to.
            ConflictError: as :meth:`create_key`, or somebody else changed the key all the time.
        """
        if not fields:
            raise ValidationError("fields: name at least one to change")
        self._stay_within(fields, new=False)

        def step(record: ApiKey, now: int) -> Change:
            clean = self._clean(fields, record.kind)
            if "metadata_json" in clean:
                for secret in live_secrets(record, self.box):
                    _keep_apart(secret, clean["metadata_json"])
            changed = lifecycle.update(record, clean, now)
            _check_sharing(changed.owner, changed.quota, changed.shared_limits)
            detail = {"fields": sorted(fields)}
            return Change(changed, record.revision, [self._event(record, "updated", by, detail)])

        return self._public(await self._change(key_id, realm, step, self._with_secrets))

    async def rotate_key(
        self,
        key_id: str,
        overlap_seconds: int = 0,
        *,
        secret: str | None = None,
        realm: str = KEY_REALM,
        by: Origin = LIBRARY,
        receipt: ReceiptOf | None = None,
    ) -> dict[str, Any]:
        """Give a key a new secret or token; the old one works on for ``overlap_seconds``.

        Returns:
            As :meth:`create_key`.

        Raises:
            KeyNotFoundError: no such key; also revoked (``KeyRevokedError``).
            KeyExpiredError: the key has expired.
            ConflictError: somebody else changed the key at the same moment.
            ValidationError: an overlap or secret that is not allowed.
        """
        check_overlap(overlap_seconds)
        record = await self._record(key_id, realm)
        now = self._now()
        shown = _secret_of(record.kind, record.prefix, record.key_id, secret)
        _keep_apart(shown, record.metadata_json)
        number = record.version + 1
        lifecycle.require_usable(record, now)
        new = await keep_record(self.box, key_id, number, shown, record.kind, now)
        try:
            rotated = lifecycle.rotate(record, new, overlap_seconds, now)
        except APIKeyManagerException:
            self.box.drop(key_id, number, new.sealed)
            raise
        detail = {"version": number, "overlap_seconds": overlap_seconds}
        event = self._event(record, "rotated", by, detail)
        answer = self._shown(rotated, shown)
        await self._write_new(
            Change(rotated, record.revision, [event]), receipt(answer) if receipt else None
        )
        return answer

    async def _write_new(self, change: Change, receipt: Receipt | None) -> None:
        """Write a record with a new version; what was kept of one that is not written is erased."""
        try:
            await self._write([change], receipt)
        except APIKeyManagerException as error:
            if not (isinstance(error, StorageError) and error.uncertain):
                new = change.record.versions[0]
                if new.sealed is not None:
                    self.box.drop(change.record.key_id, new.version, new.sealed)
            raise

    async def _with_secrets(self, key_id: str, realm: str) -> ApiKey:
        """A record whose secrets open."""
        record = await self._record(key_id, realm)
        await self.box.fetch([record])
        return record

    async def revoke_key(
        self,
        key_id: str,
        reason: str | None = None,
        at: Any = None,
        *,
        realm: str = KEY_REALM,
        by: Origin = LIBRARY,
    ) -> bool:
        """End a key for good: now, or at an instant to come.

        Args:
            reason: for the record and the audit log.
            at: RFC 3339 text, an aware datetime or Unix seconds.

        Returns:
            ``True``: the key is revoked, or will be at ``at``; also when it was before.

        Raises:
            KeyNotFoundError: no such key.
        """
        reason = check_text("reason", reason, 256)
        instant = check_instant("at", at)
        await self._change(key_id, realm, self._revocation(reason, instant, by))
        return True

    def _revocation(self, reason: str | None, at: int | None, by: Origin) -> Step:
        def step(record: ApiKey, now: int) -> Change | None:
            revoked = lifecycle.revoke(record, reason, now if at is None else max(at, now), now)
            if revoked is record:
                return None
            scheduled = not revoked.revoked
            verb = "revocation_scheduled" if scheduled else "revoked"
            detail = {"at": rfc3339(revoked.revoked_at or now)} if scheduled else {}
            event = self._event(record, verb, by, detail, reason=reason)
            return Change(revoked, record.revision, [event])

        return step

    async def revoke_keys(
        self,
        *,
        reason: str | None = None,
        dry_run: bool = False,
        realm: str = KEY_REALM,
        by: Origin = LIBRARY,
        **filters: Any,
    ) -> dict[str, Any]:
        """Revoke every key that fits all filters.

        Args:
            dry_run: only say which keys it would be.
            **filters: ``created_before``, ``owner``, ``environment``, ``kind``, ``prefix``,
                ``state``; at least one.

        Returns:
            ``dry_run``, ``matched``, ``revoked`` and the first thousand ``key_ids``.

        Raises:
            ValidationError: no filter, or one that is not allowed.
            StorageError: the store is away; what was revoked until then stays revoked.
        """
        reason = check_text("reason", reason, 256)
        if not any(value is not None for value in filters.values()):
            raise ValidationError("filter: name at least one, all keys at once are never meant")
        query = key_query(
            filters, realm=realm, cursor=None, limit=_REVOKED_TOGETHER,
            now=self._now(), within=self.environment,
        )  # fmt: skip
        step = self._revocation(reason, None, by)
        matched = revoked = 0
        shown: list[str] = []
        while True:
            page = await self.store.find(query)
            for record in page.items:
                if record.revoked:
                    continue
                matched += 1
                shown.append(record.key_id) if len(shown) < _IDS_SHOWN else None
            if not dry_run:
                revoked += await self._revoke_all(page.items, step, realm)
            if page.next_cursor is None:
                return {
                    "dry_run": dry_run, "matched": matched, "revoked": revoked, "key_ids": shown,
                }  # fmt: skip
            query = replace(query, after=page.next_cursor)

    async def _revoke_all(self, records: list[ApiKey], step: Step, realm: str) -> int:
        now = self._now()
        changes = [change for record in self._intact(records) if (change := step(record, now))]
        return await self._revoke_together(changes, step, realm) if changes else 0

    async def _revoke_together(self, changes: list[Change], step: Step, realm: str) -> int:
        """One transaction for all; key by key where somebody was faster, and half by half where
        the store could not do so many in its time."""
        try:
            await self._write(changes)
        except ConflictError:
            return sum([await self._revoke_one(change, step, realm) for change in changes])
        except StorageError as error:
            # One that cannot do even one change is away; what may have been done is not repeated.
            if error.uncertain or self.closed or len(changes) == 1:
                raise
            middle = len(changes) // 2
            done = await self._revoke_together(changes[:middle], step, realm)
            return done + await self._revoke_together(changes[middle:], step, realm)
        return len(changes)

    async def _revoke_one(self, change: Change, step: Step, realm: str) -> bool:
        """Whatever is wrong with one key must not keep the others alive."""
        key_id = change.record.key_id
        try:
            await self._change(key_id, realm, step)
        except APIKeyManagerException as error:
            if not isinstance(error, KeyNotFoundError):  # deleted meanwhile: that will do
                _log.error("key %s could not be revoked: %s", key_id, error)
            return False
        return True

    async def delete_key(
        self, key_id: str, *, realm: str = KEY_REALM, by: Origin = LIBRARY
    ) -> bool:
        """Erase a key and its secrets. A tombstone keeps the id from ever coming back.

        Raises:
            KeyNotFoundError: no such key.
        """

        def step(record: ApiKey, now: int) -> Change:
            event = self._event(record, "deleted", by, {})
            return Change(lifecycle.delete(record, now), record.revision, [event])

        # Also a record that was edited: nothing of it stays but the id.
        await self._change(key_id, realm, step, self._stored)
        return True

    async def sweep(self, limit: int = _SWEPT_TOGETHER) -> int:
        """Write down what has ended by the clock; returns how many keys that was."""
        now = self._now()
        due = self._intact(await self.store.ending(now, limit))
        changes = [change for record in due if (change := lifecycle.settle(record, now))]
        done = 0
        for change in changes:
            try:
                await self._write([change])
                done += 1
            except ConflictError:
                continue  # changed meanwhile: the next sweep looks again
        return done


def _secret_of(kind: str, prefix: str, key_id: str, secret: str | None) -> str:
    """The secret that was given, for a signed key, or a minted secret or token."""
    if kind == "bearer":
        if secret is not None:
            raise ValidationError("secret: a bearer key's token is minted, leave it out")
        return mint_token(prefix, key_id)
    return mint_secret(prefix) if secret is None else check_secret(secret)


def _check_sharing(
    owner: str | None, quota: Quota | None, limits: tuple[RateLimit, ...] | None
) -> None:
    """Keys of nobody have nothing in common."""
    if limits and owner is None:
        raise ValidationError("rate_limits: one with the scope owner needs a key with an owner")
    if quota is not None and quota.shared_by_owner and owner is None:
        raise ValidationError("quota.shared_by_owner: the key needs an owner")


def _keep_apart(secret: str, metadata_json: str) -> None:
    """Metadata is stored and shown in clear. A short secret stands in any text by chance."""
    written = canonical_json(secret)
    if written in metadata_json or (len(secret) >= 8 and written[1:-1] in metadata_json):
        raise ValidationError("metadata: the secret must not stand in it")
