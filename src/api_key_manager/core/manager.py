"""The use cases: create, find, change, rotate, revoke, delete and validate keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from api_key_manager.core.changing import LIBRARY, Origin
from api_key_manager.core.charging import quota_bucket
from api_key_manager.core.credits import Credits
from api_key_manager.core.exceptions import ConfigurationError, ValidationError
from api_key_manager.core.failures import ALL_FAILURES_PER_MINUTE, FAILURES_PER_MINUTE, Failures
from api_key_manager.core.inputs import check_name, check_rate_limits
from api_key_manager.core.keeping import KeyLifeCycle
from api_key_manager.core.leaks import Leaks
from api_key_manager.core.lifecycle import retire
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.lookups import PAGE_LIMIT, STATES, audit_query, key_query, write_cursor
from api_key_manager.core.memory import (
    MemoryBox,
    MemoryNonceStore,
    MemoryQuotaStore,
    MemoryStore,
)
from api_key_manager.core.models import KEY_REALM, AuditQuery, Reason, Verdict
from api_key_manager.core.moving import Moves
from api_key_manager.core.ports import (
    EmbeddedStore,
    KeyStore,
    NonceStore,
    QuotaStore,
    RateLimiter,
    SecretBox,
    is_embedded,
)
from api_key_manager.core.presented import Presented, present, present_item, why_malformed
from api_key_manager.core.recorder import Recorder
from api_key_manager.core.records import Load, RecordCache, Records
from api_key_manager.core.tally import Tally
from api_key_manager.core.tokens import check_prefix
from api_key_manager.core.validator import AsyncAPIKeyValidator
from api_key_manager.core.verifier import Verifier

__all__ = ["KeyManager"]


class KeyManager(KeyLifeCycle, Leaks):
    """Issues, validates, rotates and revokes keys.

    Without a store, keys live in memory. With one, each verdict is in the audit log before it is
    given; :func:`api_key_manager.open_manager` adds caching and batched writes on top.

    Args:
        validator: lends its window, clock skew, static switch and clock.
        store: where keys live.
        box: seals their secrets; needed with every store but the memory one.
        nonces: where used nonces are held; without one no nonce is accepted by other stores.
        limiter: where it is counted what keys take from their rate limits; in this process when
            left out.
        quotas: where it is kept what keys have spent of their quotas; without one no key with a
            quota is accepted by other stores than the memory one.
        default_limits: of keys that have none of their own.
        limits_shared: whether all who validate these keys count together; if not, no key gets a
            limit, since each of them would let it through anew.
        failures_per_minute: how often outsiders at one address may fail before they are told to
            wait, see :mod:`api_key_manager.core.failures`; 0 for ever.
        all_failures_per_minute: the same of all addresses together; 0 for any number.
        prefix: of minted secrets and tokens.
        nonce_window_seconds: how old a timestamp with a nonce may be.
        cache: open records; :mod:`api_key_manager.wiring` makes one that follows the store.
        recorder: the audit queue; made by :mod:`api_key_manager.wiring` as well.
        tally: counts verdicts.
        background: whether somebody flushes the recorder; else this manager writes through.
        on_leak: what is done with a key that leaked: ``revoke`` or ``flag``.
        load: where records to be judged come from, if not straight from the store.

    Raises:
        ConfigurationError: a store without a box.
    """

    def __init__(
        self,
        validator: AsyncAPIKeyValidator | None = None,
        *,
        store: KeyStore | None = None,
        box: SecretBox | None = None,
        nonces: NonceStore | None = None,
        limiter: RateLimiter | None = None,
        quotas: QuotaStore | None = None,
        default_limits: Sequence[RateLimit] = (),
        limits_shared: bool = True,
        failures_per_minute: int = FAILURES_PER_MINUTE,
        all_failures_per_minute: int = ALL_FAILURES_PER_MINUTE,
        prefix: str = "akm",
        nonce_window_seconds: int = 300,
        cache: RecordCache | None = None,
        recorder: Recorder | None = None,
        tally: Tally | None = None,
        background: bool = False,
        on_leak: str = "revoke",
        load: Load | None = None,
    ) -> None:
        if validator is not None and not isinstance(validator, AsyncAPIKeyValidator):
            raise ConfigurationError("validator: an AsyncAPIKeyValidator is allowed")
        self.validator = validator or AsyncAPIKeyValidator()
        self.clock = self.validator.clock
        in_memory = store is None or isinstance(store, MemoryStore)
        if box is None and not in_memory:
            raise ConfigurationError("box: a store that outlives the process needs a secret box")
        self.store = store if store is not None else MemoryStore()
        self.box = box if box is not None else MemoryBox()
        self.prefix = check_prefix(prefix)
        self.limits_shared = limits_shared
        self.on_leak = on_leak
        self.cache = cache if cache is not None else RecordCache(100_000, 300, owned=store is None)
        stored = self.store
        # By its name at each call: a store may be wrapped while it is in use.
        self.records = Records(load or (lambda ids: stored.load(ids)), self.box, self.cache)
        self.recorder = recorder if recorder is not None else Recorder(self.store)
        self.tally = tally if tally is not None else Tally()
        self._failures = Failures(
            self.recorder, self.tally, per_minute=failures_per_minute,
            all_per_minute=all_failures_per_minute,
        )  # fmt: skip
        self._flush_when_full = in_memory and not background
        # In blocks only where somebody gives back what was not used.
        self.credits = Credits(
            quotas if quotas is not None else MemoryQuotaStore() if in_memory else None,
            lease=background,
        )
        self.moves = Moves(self.box)
        self._verifier = Verifier(
            store=self.store,
            records=self.records,
            # Claims in memory are no use to keys that outlive them: such a store refuses them all.
            nonces=nonces or MemoryNonceStore(self.clock() if in_memory else float("inf")),
            limiter=limiter if limiter is not None else MemoryLimiter(),
            credits=self.credits,
            default_limits=check_rate_limits(default_limits),
            recorder=self.recorder,
            tally=self.tally,
            rules=replace(self.validator.rules, nonce_window=nonce_window_seconds),
            write=self._write,
            write_through=not (background or in_memory),
            moves=self.moves,
        )

        self.repeat_now = self._verifier.repeat_now
        self.accept_now = self._verifier.accept_now

    def within(self, environment: str | None) -> KeyManager:
        """The same manager for somebody who is confined to one environment; itself for ``None``.

        For them there are no other keys: they find, validate, change, revoke and audit those of
        this environment only, a key of another one looks exactly as one that does not exist, and
        no key enters or leaves the environment. What was read of a caller by
        :func:`~api_key_manager.core.presented.present` names the environment itself.

        Raises:
            ValidationError: what is no environment's name.
        """
        if environment is None:
            return self
        confined = copy.copy(self)
        confined.environment = check_name("environment", environment)
        return confined

    async def move_digests(self) -> None:
        """Write digests of tokens that were seen, under the newest pepper.

        Raises:
            StorageError: it cannot be done now.
        """
        await self.moves.write(self.store.load, self._write, self._now())

    async def retire_digests(
        self, key_ids: Sequence[str], least_pepper: int, by: Origin = LIBRARY
    ) -> int:
        """End versions whose digest is under an older pepper than this one, and keys that have no
        other; of every realm.

        Args:
            key_ids: which keys; those that cannot be believed are left alone, and said in the log.
            least_pepper: the oldest pepper that stays.
            by: on whose behalf.

        Returns:
            How many keys were changed.

        Raises:
            ConflictError: one of them was changed meanwhile, and none was by this.
            StorageError: it cannot be done now.
        """
        records = [r for r in await self.store.load(key_ids) if r is not None]
        now, actor = self._now(), by.storable().actor
        changes = [
            change
            for record in self._intact(records)
            if (change := retire(record, least_pepper, actor, now)) is not None
        ]
        if changes:
            await self._write(changes)
        return len(changes)

    def close(self) -> None:
        """Refuse what comes from now on; what was accepted can still be flushed."""
        self._verifier.closed = True

    @property
    def closed(self) -> bool:
        """Whether nothing is judged or changed any more."""
        return self._verifier.closed

    # Validation

    def verify_now(self, presented: Presented, now: float) -> Verdict | None:
        """The verdict, if no I/O is needed for it.

        Args:
            presented: what :func:`~api_key_manager.core.presented.present` made of the values.
            now: Unix seconds.

        Returns:
            ``None`` when I/O is needed; then nothing was claimed, charged, counted or recorded.
        """
        verdict = self._verifier.verify_now(presented, now)
        if verdict is None and self._flush_when_full and self.recorder.full:
            self._flush_now()
        return verdict

    async def verify(
        self,
        key_id: str | None = None,
        signature: str | None = None,
        timestamp: int | None = None,
        nonce: str | None = None,
        *,
        token: str | None = None,
        request: Mapping[str, Any] | None = None,
        ip: str | None = None,
        permissions: str | Sequence[str] | None = None,
        cost: int = 1,
        realm: str = KEY_REALM,
        by: Origin = LIBRARY,
    ) -> Verdict:
        """Judge one credential: ``key_id`` and ``signature``, or ``token``, or ``request``.

        Args:
            timestamp: Unix seconds, as signed.
            nonce: 16 to 128 of ``A-Z a-z 0-9 _ -``, accepted once.
            request: ``method``, ``url``, ``headers`` and, where the body is known,
                ``body_sha256`` of a signed HTTP request.
            ip: the caller's address.
            permissions: an expression, or a list that is needed whole.
            cost: how many requests this one counts for in the key's rate limits.

        Returns:
            A verdict, also for unusable input; this never raises for a refusal.
        """
        by = by.storable()
        presented = present(
            key_id, signature, timestamp, nonce, token=token, request=request, ip=ip,
            permissions=permissions, cost=cost, realm=realm, request_id=by.request_id,
            actor=by.actor, within=self.environment,
        )  # fmt: skip
        return await self.verify_presented(presented)

    async def verify_presented(self, presented: Presented) -> Verdict:
        """Judge what :func:`~api_key_manager.core.presented.present` read."""
        now = self.clock()
        verdict = self.verify_now(presented, now)
        if verdict is None:
            verdict = (await self._verifier.verify([presented], now))[0]
        return verdict

    async def verify_batch(self, batch: Sequence[Presented]) -> list[Verdict]:
        """Judge many in order; the store is asked once for all that is not cached."""
        now = self.clock()
        return await self.complete(batch, [self.verify_now(p, now) for p in batch], now)

    async def complete(
        self, batch: Sequence[Presented], verdicts: list[Verdict | None], now: float
    ) -> list[Verdict]:
        """Put in the verdicts for which :meth:`verify_now` had none, at the same ``now``."""
        missing = [i for i, verdict in enumerate(verdicts) if verdict is None]
        if missing:
            late = await self._verifier.verify([batch[i] for i in missing], now)
            for i, verdict in zip(missing, late, strict=True):
                verdicts[i] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    def wait_after(self, presented: Presented, verdict: Verdict) -> int:
        """Count a verdict on an outsider's credential, which a face asks for before it answers.

        Returns:
            0 when it may be answered as ever; else, after how many seconds this address may fail
            again: until then a failure is answered 429 and nothing else. Never after a valid one.
        """
        if verdict.reason is Reason.VALID:
            return 0
        return self._failures.wait(presented, verdict, self.clock())

    def refuse_login(self, presented: Presented, reason: Reason) -> Verdict:
        """Count and record that somebody was refused who shows no key of this manager's.

        Args:
            presented: of the realm of admin tokens, without a key id.
            reason: why.
        """
        verdict = Verdict(reason)
        self.tally.add(presented, verdict)
        self.recorder.note(presented, verdict, self.clock())
        return verdict

    async def validate_key(
        self,
        key_id: str,
        signature: str,
        timestamp: int | None = None,
        nonce: str | None = None,
    ) -> Literal[True]:
        """``True``, or the exception of the verdict's reason.

        Raises:
            ValidationError, KeyNotFoundError, InvalidSignatureError, KeyRevokedError,
            KeyExpiredError, PermissionDeniedError, RateLimitExceededError, StorageError
        """
        presented = present(
            key_id, signature, timestamp, nonce, actor="library", within=self.environment
        )
        now = self.clock()
        verdict = self.verify_now(presented, now)
        if verdict is None:
            verdict = (await self._verifier.verify([presented], now))[0]
        if verdict.reason is Reason.VALID:
            return True
        if verdict.reason is Reason.MALFORMED:
            raise ValidationError(why_malformed(key_id, signature, timestamp, nonce))
        raise verdict.error()

    async def batch_validate(self, validations: Sequence[Any]) -> list[dict[str, Any]]:
        """Judge many: dicts with ``key_id`` (or ``key``) and ``signature``, ``token`` or
        ``request``.

        Returns:
            Per item, in order, ``key_id``, ``valid`` and ``reason``. A bad item is ``malformed``.
        """
        if not isinstance(validations, (list, tuple)):
            raise ValidationError("validations: a list is needed")
        batch = [present_item(item, self.environment) for item in validations]
        verdicts = await self.verify_batch(batch)
        return [
            {"key_id": verdict.key_id, "valid": verdict.valid, "reason": str(verdict.reason)}
            for verdict in verdicts
        ]

    # Looking

    async def get_key(self, key_id: str, *, realm: str = KEY_REALM) -> dict[str, Any]:
        """One key, its secret redacted; its quota says what was ``spent`` in the period.

        Raises:
            KeyNotFoundError: no such key.
        """
        record = await self._record(key_id, realm)
        shown = self._public(record)
        if record.quota is not None:
            bucket = quota_bucket(record, record.quota)
            spent = await self.credits.spent(bucket, record.quota, self.clock())
            shown["quota"]["spent"] = spent
        return shown

    async def key_versions(self, key_id: str, *, realm: str = KEY_REALM) -> list[dict[str, Any]]:
        """Every version that ever was, newest first, without secrets.

        Raises:
            KeyNotFoundError: no such key.
        """
        await self._record(key_id, realm)
        return [version.to_dict() for version in await self.store.versions(key_id)]

    async def find_keys(
        self, *, limit: int = 100, cursor: str | None = None, realm: str = KEY_REALM, **filters: Any
    ) -> dict[str, Any]:
        """A page of keys in the order of their ids.

        Args:
            limit: 1 to 1000.
            cursor: ``next_cursor`` of the page before.
            **filters: ``state`` (``active``, ``disabled``, ``expired``, ``revoked``), ``kind``,
                ``owner``, ``environment``, ``prefix``, ``created_before``.

        Returns:
            ``items`` and ``next_cursor`` (``None`` on the last page). Records that were edited in
            the store are left out and logged; ``akm doctor`` names them.

        Raises:
            ValidationError: a filter, limit or cursor that is not allowed.
        """
        query = key_query(
            filters, realm=realm, cursor=cursor, limit=limit, now=self._now(),
            within=self.environment,
        )  # fmt: skip
        page = await self.store.find(query)
        items = [self._public(record) for record in self._intact(page.items)]
        return {"items": items, "next_cursor": write_cursor(page.next_cursor)}

    async def find_audit(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Any
    ) -> dict[str, Any]:
        """A page of audit events, newest first.

        Args:
            limit: 1 to 1000.
            cursor: ``next_cursor`` of the page before.
            **filters: ``key_id``, ``action``, ``since``, ``until``, ``ascending``.

        Raises:
            ValidationError: a filter, limit or cursor that is not allowed.
            StorageError: the log cannot be read.
        """
        query = audit_query(filters, cursor=cursor, limit=limit, within=self.environment)
        await self.recorder.flush(self.clock())
        page = await self.store.find_audit(query)
        items = [event.to_dict() for event in page.items]
        return {"items": items, "next_cursor": write_cursor(page.next_cursor)}

    def list_keys(self, active_only: bool = True) -> list[dict[str, Any]]:
        """Every key, or every active one, by a plain call.

        Raises:
            ConfigurationError: the store is on a network; await :meth:`find_keys` there.
        """
        store = self._embedded("find_keys")
        query = key_query(
            {"state": "active"} if active_only else {},
            realm=KEY_REALM, cursor=None, limit=PAGE_LIMIT, now=self._now(),
            within=self.environment,
        )  # fmt: skip
        found: list[dict[str, Any]] = []
        while True:
            page = store.find_now(query)
            found.extend(self._public(record) for record in self._intact(page.items))
            if page.next_cursor is None:
                return found
            query = replace(query, after=page.next_cursor)

    def get_audit_log(self) -> list[dict[str, Any]]:
        """Every audit event, oldest first, with all that happened before this call.

        Raises:
            ConfigurationError: the store is on a network; await :meth:`find_audit` there.
            StorageError: the log cannot be written or read.
        """
        store = self._embedded("find_audit")
        self.recorder.flush_now(store, self.clock())
        query = AuditQuery(ascending=True, limit=PAGE_LIMIT, within=self.environment)
        found: list[dict[str, Any]] = []
        while True:
            page = store.find_audit_now(query)
            found.extend(event.to_dict() for event in page.items)
            if page.next_cursor is None:
                return found
            query = replace(query, after=int(page.next_cursor))

    async def count_keys(self, environment: str | None = None) -> list[dict[str, Any]]:
        """How many keys of each environment are in each state; looks at every key.

        Args:
            environment: count those of this one only, by an index.

        Returns:
            Per environment, by name, ``environment``, ``active``, ``disabled``, ``expired`` and
            ``revoked``; ``None`` stands for keys without one. Of a thousand environments at most.
        """
        wanted = check_name("environment", environment)
        if wanted is None:
            wanted = self.environment
        elif self.environment not in (None, wanted):
            return []
        counted = await self.store.census(KEY_REALM, self._now(), wanted)
        return [
            {"environment": name, **dict.fromkeys(STATES, 0), **states}
            for name, states in counted.items()
        ]

    def get_stats(self) -> dict[str, Any]:
        """Counters of this process: the record cache and the audit queue."""
        return {"cache": self.cache.stats(), "audit_queue": self.recorder.depth}

    # Inside

    def _embedded(self, instead: str) -> EmbeddedStore:
        if is_embedded(self.store):
            return self.store
        raise ConfigurationError(f"this store is on a network: await {instead}(...) instead")

    def _flush_now(self) -> None:
        if is_embedded(self.store):
            self.recorder.flush_now(self.store, self.clock())
