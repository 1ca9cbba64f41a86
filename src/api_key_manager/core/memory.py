"""Everything in dicts: the store, the nonces and the secrets of a manager that needs no file."""

from __future__ import annotations

import asyncio
import secrets
from bisect import bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from api_key_manager.core.exceptions import ConflictError, EncryptionError, KeyExistsError
from api_key_manager.core.models import (
    MICROSECONDS,
    ApiKey,
    AuditEvent,
    AuditQuery,
    Change,
    KeyQuery,
    KeyVersion,
    Page,
    Use,
)
from api_key_manager.core.ports import (
    BEGUN_SECONDS,
    MOST_COUNTED,
    Begun,
    Claim,
    ClaimResult,
    GivenBack,
    Receipt,
    Seal,
    Spend,
    Spent,
)
from api_key_manager.core.signing import MacState, mac, matches

__all__ = ["MemoryBox", "MemoryIdempotency", "MemoryNonceStore", "MemoryQuotaStore", "MemoryStore"]

MAX_NONCES_PER_KEY = 100_000
MAX_EVENTS = 100_000
_SWEEP_SECONDS = 60
_PERIODS_KEPT = 3

T = TypeVar("T")


class _Request:
    __slots__ = ("answer", "expires_at", "fingerprint")

    def __init__(self, fingerprint: bytes, expires_at: int) -> None:
        self.fingerprint = fingerprint
        self.expires_at = expires_at
        self.answer: bytes | None = None


class MemoryIdempotency:
    """Requests of this process that may be sent again."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str], _Request] = {}
        self._next_sweep = 0

    async def begin(self, scope: str, key: str, fingerprint: bytes, now: int) -> Begun:
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_SECONDS * MICROSECONDS
            self._requests = {k: r for k, r in self._requests.items() if r.expires_at > now}
        known = self._requests.get((scope, key))
        if known is None or known.expires_at <= now:
            expires_at = now + BEGUN_SECONDS * MICROSECONDS
            self._requests[scope, key] = _Request(fingerprint, expires_at)
            return Begun("new")
        if known.fingerprint != fingerprint:
            return Begun("mismatch")
        return Begun("in_progress") if known.answer is None else Begun("answered", known.answer)

    async def abandon(self, scope: str, key: str) -> None:
        known = self._requests.get((scope, key))
        if known is not None and known.answer is None:
            del self._requests[scope, key]

    def keep(self, receipt: Receipt) -> None:
        """Attach the answer to the request that was begun."""
        request = self._requests.get((receipt.scope, receipt.key))
        if (
            request is None
            or request.answer is not None
            or request.fingerprint != receipt.fingerprint
        ):
            raise ConflictError("the request was not begun, or took too long")
        request.answer, request.expires_at = receipt.answer, receipt.expires_at


class MemoryStore:
    """Keys and events of this process, gone with it.

    Args:
        max_events: how many audit events are kept; the oldest go first.
        receipts: where the receipts of changes go.
    """

    def __init__(
        self, max_events: int = MAX_EVENTS, receipts: MemoryIdempotency | None = None
    ) -> None:
        self._receipts = receipts or MemoryIdempotency()
        self._keys: dict[str, ApiKey] = {}
        self._ids: list[str] = []
        self._history: dict[str, dict[int, KeyVersion]] = {}
        self._used: dict[str, Use] = {}
        self._events: deque[tuple[int, AuditEvent]] = deque(maxlen=max_events)
        self._written = 0
        self.revision = 0

    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        return [self._visible(key_id) for key_id in key_ids]

    def _visible(self, key_id: str) -> ApiKey | None:
        record = self._keys.get(key_id)
        if record is None or record.deleted_at is not None:
            return None
        return self._with_use(record)

    def _with_use(self, record: ApiKey) -> ApiKey:
        used = self._used.get(record.key_id)
        if used is None:
            return record
        return replace(record, last_used_at=used.at, static_used_at=used.static_at)

    async def apply(
        self, changes: Sequence[Change], seal: Seal, receipt: Receipt | None = None
    ) -> list[ApiKey]:
        done: list[ApiKey] = []
        pending: dict[str, ApiKey] = {}
        for change in changes:
            key_id = change.record.key_id
            stored = pending.get(key_id) or self._keys.get(key_id)
            if change.expected_revision is None:
                if stored is not None:
                    raise KeyExistsError("key_id: this id is taken")
            elif stored is None or stored.revision != change.expected_revision:
                raise ConflictError("the key was changed by somebody else meanwhile")
            live = tuple(v for v in change.record.versions if not v.ended)
            revision = self.revision + len(done) + 1
            record = replace(change.record, revision=revision, versions=live)
            pending[key_id] = record = replace(record, mac=seal(record))
            done.append(record)
        if receipt is not None:
            self._receipts.keep(receipt)
        # Nothing fails from here on: all or none.
        for change, record in zip(changes, done, strict=True):
            self._put(change, record)
        return [self._with_use(record) for record in done]

    def _put(self, change: Change, record: ApiKey) -> None:
        self.revision = record.revision
        history = self._history.setdefault(record.key_id, {})
        for version in change.record.versions:
            history[version.version] = replace(version, sealed=None, digest=None, mark=None)
        if record.key_id not in self._keys:
            insort(self._ids, record.key_id)
        self._keys[record.key_id] = record
        self._append(change.events)

    async def find(self, query: KeyQuery) -> Page[ApiKey]:
        return self.find_now(query)

    def find_now(self, query: KeyQuery) -> Page[ApiKey]:
        start = 0 if query.after is None else bisect_right(self._ids, query.after)
        records = (self._keys[key_id] for key_id in islice(self._ids, start, None))
        found = [
            self._with_use(record)
            for record in islice((r for r in records if _fits(r, query)), query.limit + 1)
        ]
        return _page(found, query.limit, lambda record: record.key_id)

    async def versions(self, key_id: str) -> list[KeyVersion]:
        history = self._history.get(key_id, {})
        return [history[number] for number in sorted(history, reverse=True)]

    async def marked(self, mark: bytes) -> list[str]:
        found = (
            record.key_id
            for record in self._keys.values()
            if any(version.mark == mark for version in record.versions)
        )
        return list(islice(found, 100))

    async def ending(self, before: int, limit: int) -> list[ApiKey]:
        due = (r for r in self._keys.values() if r.deleted_at is None)
        ended = (r for r in due if r.next_end is not None and r.next_end <= before)
        return list(islice(ended, limit))

    async def count(self, realm: str, now: int) -> dict[str, int]:
        return await asyncio.to_thread(_count, list(self._keys.values()), realm, now)

    async def census(
        self, realm: str, now: int, environment: str | None = None
    ) -> dict[str | None, dict[str, int]]:
        return await asyncio.to_thread(_census, list(self._keys.values()), realm, now, environment)

    async def record(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        self.record_now(events, used)

    def record_now(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        self._append(events)
        for key_id, use in used.items():
            known = self._used.get(key_id, use)
            self._used[key_id] = Use(max(use.at, known.at), use.static_at or known.static_at)

    def _append(self, events: Sequence[AuditEvent]) -> None:
        for event in events:
            self._written += 1
            self._events.append((self._written, event))

    async def find_audit(self, query: AuditQuery) -> Page[AuditEvent]:
        return self.find_audit_now(query)

    def find_audit_now(self, query: AuditQuery) -> Page[AuditEvent]:
        events = iter(self._events) if query.ascending else reversed(self._events)
        wanted = (pair for pair in events if _event_fits(pair[0], pair[1], query))
        found = list(islice(wanted, query.limit + 1))
        page = _page(found, query.limit, lambda pair: str(pair[0]))
        items = [event._replace(row_id=row_id) for row_id, event in page.items]
        return Page(items, page.next_cursor)

    async def close(self) -> None:
        """Nothing to let go of: the data is gone with the object."""


def _page(found: list[T], limit: int, cursor_of: Callable[[T], str]) -> Page[T]:
    items = found[:limit]
    return Page(items, cursor_of(items[-1]) if len(found) > limit else None)


def _fits(record: ApiKey, query: KeyQuery) -> bool:
    state = record.state(query.now)
    return (
        record.realm == query.realm
        and state != "deleted"
        and query.state in (None, state)
        and query.kind in (None, record.kind)
        and query.owner in (None, record.owner)
        and query.environment in (None, record.environment)
        and query.within in (None, record.environment)
        and query.prefix in (None, record.prefix)
        and (query.created_before is None or record.created_at < query.created_before)
    )


def _count(records: list[ApiKey], realm: str, now: int) -> dict[str, int]:
    living = (r for r in records if r.realm == realm and r.deleted_at is None)
    return dict(Counter(record.state(now) for record in living))


def _census(
    records: list[ApiKey], realm: str, now: int, environment: str | None
) -> dict[str | None, dict[str, int]]:
    found: dict[str | None, list[ApiKey]] = {}
    for record in records:
        if environment in (None, record.environment):
            found.setdefault(record.environment, []).append(record)
    counted: dict[str | None, dict[str, int]] = {}
    for name in sorted(found, key=lambda name: (name is not None, name or "")):
        states = _count(found[name], realm, now)
        if states and len(counted) < MOST_COUNTED + (None in counted):
            counted[name] = states
    return counted


def _event_fits(index: int, event: AuditEvent, query: AuditQuery) -> bool:
    if query.after is not None and (
        index <= query.after if query.ascending else index >= query.after
    ):
        return False
    return (
        query.key_id in (None, event.key_id)
        and query.action in (None, event.action)
        and query.within in (None, event.environment)
        and (query.since is None or event.timestamp >= query.since)
        and (query.until is None or event.timestamp < query.until)
    )


class MemoryNonceStore:
    """Nonces of this process.

    What was claimed before ``birth`` is lost: for a key that existed then, timestamps up to
    ``birth + skew`` are refused, since such a request may have been accepted already.

    Args:
        birth: when this store began, in Unix seconds.
        max_per_key: how many live nonces one key may hold; past that, only this key is refused.
    """

    def __init__(self, birth: float, max_per_key: int = MAX_NONCES_PER_KEY) -> None:
        # Down to the microseconds in which keys say when they were made.
        self.birth = birth if birth == float("inf") else int(birth * MICROSECONDS) / MICROSECONDS
        self._max_per_key = max_per_key
        self._held: dict[str, dict[str, int]] = {}
        self._swept_to = 0.0
        self._next_sweep = birth + _SWEEP_SECONDS

    async def claim(self, claims: Sequence[Claim], now: float, skew: int) -> list[ClaimResult]:
        return [self.claim_now(claim, now, skew) for claim in claims]

    def claim_now(self, claim: Claim, now: float, skew: int) -> ClaimResult:
        """The same without waiting: a dict needs none."""
        if claim.timestamp <= self.birth + skew and claim.key_since < self.birth:
            return ClaimResult.REFUSED
        if now >= self._next_sweep:
            self._sweep(now)
        if claim.expires_at < self._swept_to:
            return ClaimResult.REFUSED
        held = self._held.setdefault(claim.key_id, {})
        if claim.nonce in held:
            return ClaimResult.REPLAYED
        if len(held) >= self._max_per_key:
            return ClaimResult.REFUSED
        held[claim.nonce] = claim.expires_at
        return ClaimResult.TAKEN

    def _sweep(self, now: float) -> None:
        self._next_sweep = now + _SWEEP_SECONDS
        # Should the clock come back from here, what was forgotten must not be taken for new.
        self._swept_to = max(self._swept_to, now)
        for key_id, held in list(self._held.items()):
            live = {nonce: end for nonce, end in held.items() if end >= now}
            if live:
                self._held[key_id] = live
            else:
                del self._held[key_id]


class MemoryQuotaStore:
    """Credits of this process, gone with it like its keys."""

    def __init__(self) -> None:
        self._spent: dict[str, dict[int, int]] = {}

    async def spend(self, asked: Sequence[Spend]) -> list[Spent]:
        return [self._spend(each) for each in asked]

    def _spend(self, asked: Spend) -> Spent:
        account = self._spent.setdefault(asked.bucket, {})
        spent = account.get(asked.period_start, 0)
        left = asked.limit - spent
        if asked.block and left >= asked.block * asked.blocks:
            taken = asked.block
        else:
            taken = min(asked.needed, left) if left >= asked.cost else 0
        if taken:
            account[asked.period_start] = spent + taken
            # Not only the newest: the clock may come back.
            while len(account) > _PERIODS_KEPT:
                del account[min(account)]
        return Spent(taken, spent + taken)

    async def give_back(self, returned: Sequence[GivenBack]) -> None:
        for bucket, start, amount in returned:
            account = self._spent.get(bucket, {})
            if start in account:
                account[start] = max(0, account[start] - amount)

    async def spent(self, accounts: Sequence[tuple[str, int]]) -> list[int]:
        return [self._spent.get(bucket, {}).get(start, 0) for bucket, start in accounts]


class MemoryBox:
    """A secret box for data that never leaves the process: nothing is at rest, so nothing is
    encrypted; what is handed out is bound to purpose, name and version all the same."""

    def __init__(self) -> None:
        self._mac_key = secrets.token_bytes(32)
        self._pepper = MacState(secrets.token_bytes(32))

    def __repr__(self) -> str:
        return "MemoryBox()"

    def seal(self, purpose: str, name: str, version: int, plaintext: bytes) -> bytes:
        return self._tag(purpose, name, version, plaintext) + plaintext

    def open(self, purpose: str, name: str, version: int, sealed: bytes) -> bytes:
        tag, plaintext = sealed[:32], sealed[32:]
        if not matches(tag, self._tag(purpose, name, version, plaintext)):
            raise EncryptionError(f"the sealed {purpose} of {name} was changed")
        return plaintext

    async def keep(self, name: str, version: int, secret: bytes) -> bytes:
        return self.seal("secret", name, version, secret)

    def drop(self, name: str, version: int, sealed: bytes | None = None) -> None:
        """The record held all of it."""

    async def fetch(self, records: Sequence[ApiKey]) -> None:
        """The record holds all of it."""

    def lasts_until(self, record: ApiKey) -> float:
        return float("inf")

    def _tag(self, purpose: str, name: str, version: int, plaintext: bytes) -> bytes:
        bound = f"{purpose}\n{name}\n{version}\n".encode()
        return mac(self._mac_key, bound + plaintext, "sha256")

    def mac_state(self, key: bytes) -> MacState:
        return MacState(key)

    def digest(self, token: bytes) -> tuple[int, bytes]:
        return 1, self._pepper.digest(token)

    def pepper(self, number: int) -> MacState:
        if number != 1:
            raise EncryptionError(f"there is no pepper {number}")
        return self._pepper

    def is_newest(self, pepper: int) -> bool:
        return pepper == 1

    def knows(self, version: KeyVersion) -> bool:
        return version.pepper in (None, 1)

    async def learn(self) -> None:
        """Nobody else mints any."""

    def mark(self, secret: bytes) -> bytes:
        return mac(self._mac_key, b"akm-secret-mark-1\n" + secret, "sha256")[:16]

    def record_mac(self, record: ApiKey) -> bytes:
        return mac(self._mac_key, record.mac_input(), "sha256")
