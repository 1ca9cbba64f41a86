"""What is kept in Redis, on a clock that a test sets: the scripts themselves, but for where they
read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from api_key_manager.connections.redis import LuaScript, Redis
from api_key_manager.core.limits import Decision
from api_key_manager.core.ports import Ask, Claim, ClaimResult
from api_key_manager.ratelimit.limiter import RedisLimiter
from api_key_manager.ratelimit.nonces import RedisNonceStore

__all__ = ["TimedLimiter", "TimedNonceStore", "set_time"]

_KEY = "test:clock"
_READ = "redis.call('TIME')"
_SET = f"""(function()
  local set = tonumber(redis.call('GET', '{_KEY}'))
  return {{math.floor(set / 1000000), set % 1000000}}
end)()"""


def _timed(script: LuaScript, *changes: tuple[str, str]) -> LuaScript:
    text = script.text
    for old, new in ((_READ, _SET), *changes):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return LuaScript(text)


async def set_time(redis: Redis, now: float) -> None:
    await redis.call("SET", _KEY, round(now * 1_000_000))


class TimedLimiter(RedisLimiter):
    """Entries live ten minutes longer in real time, which goes on while the test's stands still."""

    def __init__(self, redis: Redis, prefix: str, clock: Callable[[], float]) -> None:
        super().__init__(redis, prefix)
        self.clock = clock
        self._script = _timed(self._script, ("'PX', ttl", "'PX', ttl + 600000"))

    async def take(self, asked: Sequence[Ask]) -> list[Decision]:
        await set_time(self._redis, self.clock())
        return await super().take(asked)


class TimedNonceStore(RedisNonceStore):
    """Here the node's clock is the server's."""

    def __init__(self, redis: Redis, prefix: str, clock: Callable[[], float], *limit: int) -> None:
        super().__init__(redis, prefix, *limit)
        self.clock = clock
        self._script = _timed(self._script)

    async def prepare(self) -> str | None:
        await set_time(self._redis, self.clock())
        return await super().prepare()

    async def claim(self, claims: Sequence[Claim], now: float, skew: int) -> list[ClaimResult]:
        await set_time(self._redis, now)
        return await super().claim(claims, now, skew)
