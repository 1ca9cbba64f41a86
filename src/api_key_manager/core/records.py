"""Open records: fetched once, checked against their MAC, kept only while they are surely current.

The cache may answer only while its lease runs. The store's owner prolongs the lease each time it
has learnt of every change (:meth:`RecordCache.prolong`); a store that nobody else can change has
one without end, a store that nobody watches has none, and is asked every time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from api_key_manager.core.cache import BoundedTTLMap
from api_key_manager.core.exceptions import EncryptionError, StorageError
from api_key_manager.core.models import MICROSECONDS, ApiKey, KeyVersion, Kind
from api_key_manager.core.policy import OpenKey, OpenVersion
from api_key_manager.core.ports import SecretBox
from api_key_manager.core.signing import matches
from api_key_manager.core.tokens import ends_like_a_secret, mint_secret

__all__ = [
    "Load",
    "Read",
    "RecordCache",
    "Records",
    "boot_clock",
    "edited",
    "is_intact",
    "keep_record",
    "live_secrets",
    "mark_of",
    "open_record",
    "seal_record",
]

Load = Callable[[Sequence[str]], Awaitable[list[ApiKey | None]]]
"""Asks for records by their ids; ``None`` for an unknown one."""

_log = logging.getLogger(__name__)
_FOREVER = float("inf")
_CHANGES_KNOWN = 10_000
_ATTEMPTS = 3
_TOO_SLOW = StorageError("the record took longer to read than it may be believed")


boot_clock: Callable[[], float] = (
    partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    if hasattr(time, "clock_gettime")
    else time.monotonic
)
"""Seconds on a clock that never steps and, where there is one, counts suspension too."""


def is_intact(record: ApiKey, box: SecretBox) -> bool:
    """Whether the record is as this deployment wrote it."""
    try:
        return matches(box.record_mac(record), record.mac)
    except (AttributeError, TypeError, ValueError):
        return False  # a column holds something of a type that is never written


def edited(record: ApiKey) -> str:
    """What there is to say of a record that is not intact."""
    return f"the stored record of key {record.key_id} was edited or damaged, or rolled back"


def open_record(record: ApiKey, box: SecretBox) -> OpenKey:
    """Check a stored record and make its secrets ready for use.

    Raises:
        EncryptionError: the record's MAC does not fit, or a secret cannot be opened.
    """
    if not is_intact(record, box):
        raise EncryptionError(edited(record))
    versions = _open_versions(record, box)
    return OpenKey(record, lambda kind: versions if kind == record.kind else ())


def _open_versions(record: ApiKey, box: SecretBox) -> tuple[OpenVersion, ...]:
    return tuple(_open_version(record, version, box) for version in record.versions)


def _open_version(record: ApiKey, version: KeyVersion, box: SecretBox) -> OpenVersion:
    ends_at = _FOREVER if version.ends_at is None else version.ends_at / MICROSECONDS
    if record.kind == "signed":
        secret = box.open("secret", record.key_id, version.version, version.sealed or b"")
        state = box.mac_state(secret)
        return OpenVersion(version.version, version.created_at, ends_at, state, None)
    pepper = box.pepper(version.pepper or 0)
    return OpenVersion(version.version, version.created_at, ends_at, pepper, version.digest)


def seal_record(
    box: SecretBox, key_id: str, version: int, secret: str, kind: Kind, at: int
) -> KeyVersion:
    """A new version of a key: its secret sealed (signed) or digested (bearer)."""
    if kind == "signed":
        sealed = box.seal("secret", key_id, version, secret.encode())
        return KeyVersion(version, at, sealed=sealed, mark=mark_of(box, secret))
    pepper, digest = box.digest(secret.encode())
    return KeyVersion(version, at, digest=digest, pepper=pepper)


async def keep_record(
    box: SecretBox, key_id: str, version: int, secret: str, kind: Kind, at: int
) -> KeyVersion:
    """The same of a key that is to be stored: its secret goes where secrets are kept.

    Raises:
        StorageError: it cannot be kept now.
    """
    if kind != "signed":
        return seal_record(box, key_id, version, secret, kind, at)
    sealed = await box.keep(key_id, version, secret.encode())
    return KeyVersion(version, at, sealed=sealed, mark=mark_of(box, secret))


def mark_of(box: SecretBox, secret: str) -> bytes:
    """How a secret is found when only it is known: a keyed digest of one that has our form.

    Empty for any other: no scanner reports it, and two keys with the same must not show that.
    """
    if secret.isascii() and ends_like_a_secret(secret):
        return box.mark(secret.encode())
    return b""


def live_secrets(record: ApiKey, box: SecretBox) -> list[str]:
    """The secrets of a signed key's live versions; of a bearer key nobody knows any.

    Raises:
        EncryptionError: one cannot be opened.
    """
    return [
        box.open("secret", record.key_id, version.version, version.sealed).decode()
        for version in record.versions
        if version.sealed is not None
    ]


Found = OpenKey | StorageError
"""A key, or why it cannot be told."""


class RecordCache:
    """Open records by key id, answered only under a running lease.

    ``hits`` and ``misses`` are of validations, not of look-ups, and counted by their owner: one
    that goes the slow way looks more than once.

    Attributes:
        bound: seconds after which a change must have been seen, also by who is slow.
    """

    def __init__(
        self, max_entries: int, ttl_seconds: float, *, owned: bool, bound: float = _FOREVER
    ) -> None:
        self.bound = bound
        self.map: BoundedTTLMap[str, OpenKey] = BoundedTTLMap(max_entries if ttl_seconds else 0)
        self._ttl = ttl_seconds
        self._lease = _FOREVER if owned else 0.0
        self.hits = self.misses = 0

    def get(self, key_id: str) -> OpenKey | None:
        """The key, if it is here and surely current."""
        now = boot_clock()
        return self.map.get(key_id, now) if now < self._lease else None

    def put(self, key: OpenKey) -> None:
        """Keep a key, if the lease runs."""
        now = boot_clock()
        if now < self._lease:
            self.map.put(key.record.key_id, key, min(now + self._ttl, key.until))

    def stats(self) -> dict[str, int]:
        return {**self.map.stats(), "hits": self.hits, "misses": self.misses}

    @property
    def leased(self) -> bool:
        return boot_clock() < self._lease

    def prolong(self, until: float) -> None:
        """Answer until this instant of the boot clock."""
        self._lease = until


class Read(NamedTuple):
    """What a reading found, and what was known when it began."""

    found: Found | None
    since: int
    """What :attr:`Records.changes` was."""
    at: float
    """When it was, on the boot clock."""
    leased: bool
    """Whether the cache was leased, so that what the lease vouches for may have been taken."""


class _Flight:
    """One read under way, which others of the same key wait for."""

    __slots__ = ("done", "read")

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # None also when the reader gave up: whoever waits for it reads for itself.
        self.read: Read | None = None


class Records:
    """Where open records come from: the cache, else one read per key however many ask."""

    def __init__(self, load: Load, box: SecretBox, cache: RecordCache) -> None:
        self._load_stored = load
        self._box = box
        self.cache = cache
        self._flights: dict[str, _Flight] = {}
        # When each key last changed, counted in changes; what is no longer known changed at floor.
        self.changes = 0
        self._changed: dict[str, int] = {}
        self._floor = 0
        self._decoys: dict[Kind, ApiKey] = {
            "signed": self._make_decoy("signed"),
            "bearer": self._make_decoy("bearer"),
        }

    def _make_decoy(self, kind: Kind) -> ApiKey:
        # About as long as a record usually is, since its MAC takes longer the longer it is.
        name, at = "decoy-of-no-body", 1_700_000_000_000_000
        version = seal_record(self._box, name, 1, mint_secret("akm"), kind, at)
        record = ApiKey(
            name, kind, at, at, (version,),
            owner="decoy", metadata_json='{"plan":"basic","region":"eu"}',
            permissions=("documents.read",), revision=100,
        )  # fmt: skip
        return replace(record, mac=self._box.record_mac(record))

    def decoy(self, kind: Kind) -> OpenKey:
        """Stands in for a key that is not there: opened anew, at the price of a real one."""
        return self._checked(self._decoys[kind], decoy=True)

    def _checked(self, record: ApiKey, *, decoy: bool = False) -> OpenKey:
        """A record whose secrets are opened by the first credential that needs them."""
        if not is_intact(record, self._box):
            raise EncryptionError(edited(record))
        # Of a decoy too, and for nothing: what is done for known keys only shows in the time.
        stale = any(
            version.pepper is not None and not self._box.is_newest(version.pepper)
            for version in record.versions
        )
        until = self._box.lasts_until(record)
        make_ready = partial(self._make_ready, record)
        return OpenKey(record, make_ready, decoy=decoy, stale=stale and not decoy, until=until)

    def _make_ready(self, record: ApiKey, kind: Kind) -> tuple[OpenVersion, ...]:
        """Of a credential of the other kind nothing is proved, at the price of an unknown key."""
        own = record if record.kind == kind else self._decoys[kind]
        try:
            return _open_versions(own, self._box)
        except EncryptionError as error:
            _log.error("%s", error)
            raise

    def changed(self, key_ids: Iterable[str]) -> None:
        """These keys changed: forget them, and whatever is being read of them."""
        self.changes += 1
        if len(self._changed) > _CHANGES_KNOWN:
            self._changed.clear()
            self._floor = self.changes
        for key_id in key_ids:
            self._changed[key_id] = self.changes
            self.cache.map.discard(key_id)
            # Whoever comes from now on must not get what is being read of the time before.
            self._flights.pop(key_id, None)

    def changed_all(self) -> None:
        """Anything may have changed."""
        self.cache.map.clear()
        self.changed(list(self._flights))
        self._changed.clear()
        self._floor = self.changes

    def keep(self, key: OpenKey, since: int) -> None:
        """Cache a record, unless its key changed after :attr:`changes` stood at ``since``, which
        must have been looked up before the record was read."""
        if self._changed.get(key.record.key_id, self._floor) <= since:
            self.cache.put(key)

    async def find(
        self, wanted: Mapping[str, str | None]
    ) -> tuple[dict[str, Found | None], dict[str, int]]:
        """Keys from the cache or the store, none of them older than the bound when this returns.

        Args:
            wanted: by id the only environment in which a key may be found, if there is one.

        Returns:
            Per id the key, ``None`` (unknown), or why it cannot be told; and of those that were
            read what :attr:`changes` was before that.
        """
        reads: dict[str, Read] = {}
        for _ in range(_ATTEMPTS):
            # Everything anew after each wait, however short: also what was here before.
            missing = [
                key_id
                for key_id, within in wanted.items()
                if not (
                    self._is_current(key_id, reads[key_id])
                    if key_id in reads
                    else self._warm(key_id, within)
                )
            ]
            if not missing:
                break
            reads.update(await self.read(missing))
        keys: dict[str, Found | None] = {}
        for key_id, within in wanted.items():
            read = reads.get(key_id)
            if read is None:
                keys[key_id] = self._warm(key_id, within) or _TOO_SLOW
            else:
                # One that changes during every reading is judged as it was a moment ago, and not
                # kept; one that took longer than the bound is not judged.
                keys[key_id] = read.found if self._is_recent(read) else _TOO_SLOW
        return keys, {key_id: read.since for key_id, read in reads.items()}

    def _warm(self, key_id: str, within: str | None) -> OpenKey | None:
        """A key in memory; of one that is hidden from the caller it must cost a read to say so."""
        key = self.cache.get(key_id)
        return None if key is None or key.is_hidden(within) else key

    def _is_recent(self, read: Read) -> bool:
        """Whether what was read may be judged now: it was asked for not longer ago than a change
        may go unseen."""
        if isinstance(read.found, StorageError):
            return True
        recent = boot_clock() - read.at <= self.cache.bound
        return recent and (self.cache.leased or not read.leased)

    def _is_current(self, key_id: str, read: Read) -> bool:
        """Whether nothing that is known has changed it since, either."""
        return self._changed.get(key_id, self._floor) <= read.since and self._is_recent(read)

    async def read(self, key_ids: Sequence[str]) -> dict[str, Read]:
        """Open records from the store, once however many ask: per id the key, ``None`` (unknown),
        or why it cannot be told. A change may have overtaken them: :meth:`find` sees to that."""
        results: dict[str, Read] = {}
        mine = [key_id for key_id in key_ids if key_id not in self._flights]
        flights = {key_id: self._flights[key_id] for key_id in key_ids if key_id in self._flights}
        if mine:
            results.update(await self._load(mine))
        for key_id, flight in flights.items():
            # wait() leaves the shared future alone when this caller is cancelled.
            await asyncio.wait([flight.done])
            # Again one reads for all who waited.
            results[key_id] = flight.read or (await self.read([key_id]))[key_id]
        return results

    async def _load(self, key_ids: list[str]) -> dict[str, Read]:
        flights = {key_id: _Flight() for key_id in key_ids}
        self._flights.update(flights)
        since, at, leased = self.changes, boot_clock(), self.cache.leased
        try:
            for key_id, found in (await self._fetch(key_ids)).items():
                flights[key_id].read = Read(found, since, at, leased)
        finally:
            for key_id, flight in flights.items():
                if self._flights.get(key_id) is flight:
                    del self._flights[key_id]
                flight.done.set_result(None)
        return {key_id: flight.read for key_id, flight in flights.items() if flight.read}

    async def _fetch(self, key_ids: list[str]) -> dict[str, Found | None]:
        try:
            records = await self._load_stored(key_ids)
        except StorageError as error:
            return dict.fromkeys(key_ids, error)
        if not all(map(self._is_known, records)):
            # Sealed under a key that another node minted since this one looked last.
            await self._box.learn()
        await self._box.fetch([record for record in records if record is not None])
        return dict(zip(key_ids, map(self._open, records), strict=True))

    def _is_known(self, record: ApiKey | None) -> bool:
        """Whether the keys that its versions are sealed under are at hand; asked of a decoy, too,
        where there is no record: what is done for known ones only shows in the time."""
        versions = (record or self._decoys["signed"]).versions
        known = all(map(self._box.knows, versions))
        return known or record is None

    def _open(self, record: ApiKey | None) -> Found | None:
        if record is None:
            return None
        try:
            return self._checked(record)
        except EncryptionError as error:
            _log.error("%s", error)
            return StorageError(str(error))
