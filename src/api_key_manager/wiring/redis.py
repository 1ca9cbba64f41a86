"""What the processes of a deployment share by Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import Final

from api_key_manager.cache import Window
from api_key_manager.cache.shared import SharedRecords
from api_key_manager.config import Settings
from api_key_manager.connections.redis import Redis
from api_key_manager.core.exceptions import ConfigurationError, StorageError
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.records import RecordCache
from api_key_manager.ratelimit.limiter import RedisLimiter
from api_key_manager.ratelimit.nonces import RedisNonceStore
from api_key_manager.ratelimit.outage import OutageLimiter
from api_key_manager.storage import SqlNonceRegister, SqlStore
from api_key_manager.wiring.backend import Backend

__all__ = ["SharedByRedis", "share_by_redis"]

_log = logging.getLogger(__name__)
_CALL_SECONDS: Final = 0.5
# The database is asked instead, which takes no longer.
_CACHE_SECONDS: Final = 0.1
_NEVER: Final = re.compile(r"refuses with (ERR|NOAUTH|NOPERM|WRONGPASS)\b")


class SharedByRedis:
    """Limits, nonces, records and wake-ups.

    Limits and nonces have a connection of their own, so that large records are never in front of
    them.
    """

    def __init__(
        self, settings: Settings, backend: Backend, window: Window, cache: RecordCache
    ) -> None:
        if backend.origin is None or backend.box is None:
            raise ConfigurationError(
                "REDIS_URL does not go with DATABASE_URL=memory://, whose keys no other process"
                " has: use sqlite:///path/to/file.db or postgresql://…, or leave REDIS_URL unset"
            )
        self._redis = Redis(settings.REDIS_URL, timeout=_CALL_SECONDS)
        self._quick = Redis(settings.REDIS_URL, timeout=_CACHE_SECONDS)
        prefix = f"akm:{backend.origin}"
        self._channel = f"{prefix}:changes"
        self._knock = backend.knock
        self.nonces = RedisNonceStore(self._redis, prefix, register=_register(backend))
        self.limiter = OutageLimiter(
            RedisLimiter(self._redis, prefix), settings.ON_LIMITER_OUTAGE, MemoryLimiter()
        )
        self.records = SharedRecords(
            self._quick,
            prefix,
            box=backend.box,
            window=window,
            leased=lambda: cache.leased,
            load=backend.load or backend.store.load,
            ttl=settings.CACHE_TTL_SECONDS,
        )
        self._announcing: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> tuple[Redis, Redis]:
        """Of limits and nonces, and of records."""
        return self._redis, self._quick

    def problems(self) -> list[str]:
        """What is not as it should be, though requests are answered all the same."""
        found = (self._redis.problem, self._quick.problem, self.limiter.problem)
        return list(dict.fromkeys(why for why in (*found, self.nonces.problem) if why))

    def announce(self) -> None:
        """Wake the other nodes. Nothing rests on it, so nobody waits for it."""
        if self._redis.problem is None:
            task = asyncio.get_running_loop().create_task(self._publish())
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _publish(self) -> None:
        with contextlib.suppress(StorageError):
            await self._redis.publish(self._channel, b"")

    async def prepare(self) -> None:
        """Make ready for nonces, and warn of what could lose them.

        Raises:
            ConfigurationError: Redis refuses what the URL says, which no waiting mends.
        """
        try:
            warning = await self.nonces.prepare()
        except StorageError as error:
            # A refused greeting is told as a lost connection, with the refusal in words.
            if _NEVER.search(str(error)):
                raise ConfigurationError(f"REDIS_URL: {error}") from None
            warning = f"nonces cannot be claimed yet: {error}"
        if warning is not None:
            _log.warning("%s", warning)

    async def probe(self) -> None:
        """See that both connections work, so that a quiet node knows it too."""
        for redis in self.connections:
            if redis.problem is None:
                with contextlib.suppress(StorageError):
                    await redis.call("PING")

    async def listen(self) -> None:
        """Pass on what other nodes announce, until cancelled."""
        await self._redis.subscribe(self._channel, lambda _: self._knock())

    async def close(self) -> None:
        """Let go of the connections."""
        await asyncio.gather(*self._announcing)
        await self.nonces.close()
        await self.records.close()
        await asyncio.gather(self._redis.close(), self._quick.close())


def _register(backend: Backend) -> SqlNonceRegister | None:
    store = backend.store
    return SqlNonceRegister(store.driver) if isinstance(store, SqlStore) else None


def share_by_redis(
    settings: Settings, backend: Backend, window: Window, cache: RecordCache
) -> SharedByRedis | None:
    """What ``REDIS_URL`` gives, ``None`` when it is not set.

    Raises:
        ConfigurationError: it is no URL of Redis, or there is nothing to share.
    """
    if not settings.REDIS_URL:
        return None
    shared = SharedByRedis(settings, backend, window, cache)
    if settings.on_network and isinstance(backend.store, SqlStore):
        backend.store.announce = shared.announce
    return shared
