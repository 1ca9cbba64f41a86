"""Records that the processes of a deployment share, in Redis and under authenticated encryption.

Nothing rests on Redis: an entry says as of which change it was read, and is believed by a process
only if its own window of the change feed shows no later change of that key. What cannot be told,
because the feed no longer reaches back or another past is meant, counts as a miss.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from api_key_manager.cache.window import Window
from api_key_manager.connections.redis import Redis
from api_key_manager.core.exceptions import EncryptionError, StorageError
from api_key_manager.core.models import ApiKey
from api_key_manager.core.ports import Changed, SecretBox
from api_key_manager.core.records import Load

__all__ = ["SharedRecords"]

_PURPOSE: Final = "shared-record"
_FORMAT: Final = 1
_MOST_BYTES: Final = 65_536
_PER_CALL: Final = 256
_WRITES: Final = 10_000


class _Entry(msgspec.Struct, array_like=True):
    as_of: Changed
    record: ApiKey


_decode: Final = msgspec.msgpack.Decoder(_Entry).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class SharedRecords:
    """In front of the store, behind the cache of the process.

    While Redis does not answer it is bypassed: the store is asked, as if there were no Redis.

    Args:
        redis: a connection with a short time-out, since the store is the alternative.
        prefix: of all names in Redis; the deployment's origin.
        box: seals entries; its keys are not in Redis.
        window: the last changes, as this process has read them.
        leased: whether the window is recent enough to rely on.
        load: asks the store.
        ttl: seconds that an entry lives at most; 0 leaves Redis out.

    Attributes:
        hits, misses, outdated, bypassed: records asked for, by what became of it.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        *,
        box: SecretBox,
        window: Window,
        leased: Callable[[], bool],
        load: Load,
        ttl: float,
    ) -> None:
        self._redis = redis
        self._prefix = f"{prefix}:record:"
        self._box = box
        self._window = window
        self._leased = leased
        self._load = load
        self._ttl = ttl
        self._writes: set[asyncio.Task[None]] = set()
        self.hits = self.misses = self.outdated = self.bypassed = 0

    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        """The records, in order, from Redis or else from the store.

        Raises:
            StorageError: the store cannot tell, and Redis had not all of them.
        """
        found = await self._fetch(key_ids)
        wanted = [key_id for key_id in key_ids if key_id not in found]
        if wanted:
            # Before the store is asked: whatever changes from now on comes later in the feed.
            as_of = self._window.newest if self._leased() else None
            loaded = dict(zip(wanted, await self._load(wanted), strict=True))
            if as_of is not None and self._ttl and self._redis.problem is None:
                # A record that is newer than what this process has read of the feed waits for the
                # next one who reads it: should the change be lost, nothing here would show that.
                self._offer(
                    [r for r in loaded.values() if r and r.revision <= as_of.revision], as_of
                )
            found.update({key_id: record for key_id, record in loaded.items() if record})
        return [found.get(key_id) for key_id in key_ids]

    async def _fetch(self, key_ids: Sequence[str]) -> dict[str, ApiKey]:
        if not self._ttl or self._redis.problem is not None or not self._leased():
            self.bypassed += len(key_ids)
            return {}
        found: dict[str, ApiKey] = {}
        for at in range(0, len(key_ids), _PER_CALL):
            some = key_ids[at : at + _PER_CALL]
            try:
                sealed = await self._redis.call("MGET", *[self._prefix + k for k in some])
            except StorageError:
                self.bypassed += len(some)
                continue
            for key_id, entry in zip(some, sealed, strict=True):
                record = self._believed(key_id, entry)
                if record is not None:
                    found[key_id] = record
        return found

    def _believed(self, key_id: str, sealed: bytes | None) -> ApiKey | None:
        """The record in an entry, if it is what the store holds now."""
        if sealed is None:
            self.misses += 1
            return None
        try:
            entry = _decode(self._box.open(_PURPOSE, key_id, _FORMAT, sealed))
        except (EncryptionError, msgspec.DecodeError):
            # Somebody else's bytes, or those of another version of this software.
            self.misses += 1
            return None
        # Looked at anew: Redis may have taken its time.
        newer = entry.record.revision > entry.as_of.revision
        if newer or not (self._leased() and self._window.holds(key_id, entry.as_of)):
            self.outdated += 1
            return None
        self.hits += 1
        return entry.record

    def _offer(self, records: Sequence[ApiKey], as_of: Changed) -> None:
        """Put records into Redis, for the next who asks; nobody waits for it."""
        if len(self._writes) < _WRITES:
            task = asyncio.get_running_loop().create_task(self._put(records, as_of))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _put(self, records: Sequence[ApiKey], as_of: Changed) -> None:
        for record in records:
            entry = _encode(_Entry(as_of, record))
            try:
                sealed = self._box.seal(_PURPOSE, record.key_id, _FORMAT, entry)
            except StorageError:
                return
            if len(sealed) > _MOST_BYTES:
                continue
            # At different times, so that what was read together is not read anew together.
            ttl = round(self._ttl * random.uniform(0.8, 1) * 1000)  # noqa: S311 - only spreads
            try:
                await self._redis.call("SET", self._prefix + record.key_id, sealed, "PX", ttl)
            except StorageError:
                return

    async def flushed(self) -> None:
        """Return once what was offered has been written, or could not be."""
        await asyncio.gather(*self._writes, return_exceptions=True)

    async def close(self) -> None:
        """Give up what was not written yet."""
        for task in self._writes:
            task.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)
