"""Rate limits that all nodes share, decided in Redis by its clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from api_key_manager.connections.redis import LuaScript, Redis, Word
from api_key_manager.core.limits import Decision, RateLimit, decide
from api_key_manager.core.ports import Ask
from api_key_manager.ratelimit.names import check_prefix

__all__ = ["RedisLimiter"]

_TAKE: Final = LuaScript.load(__package__, "take.lua")
_PER_CALL: Final = 1000
_REMEMBERED: Final = 4096


class RedisLimiter:
    """How much each key has taken, exact across nodes: one script decides, by one clock.

    The arithmetic is that of ``core.limits.decide``, in whole numbers also there. A limit whose
    numbers are changed starts full; one that stays the same keeps its state. A key all of whose
    limits are full again has no entry. Should the server's clock go back, a limit waits at most one
    window longer.

    What Redis loses is given back: after a flush, a restart without persistence, or a failover to a
    replica that lagged behind, callers may take again what was taken in what is lost. A call
    without an answer may have been charged.

    Args:
        redis: the connection.
        prefix: of all names in Redis; the deployment's origin, so that two can share a server.
    """

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = f"{check_prefix(prefix)}:limits:"
        self._script = _TAKE
        self._known: dict[tuple[tuple[RateLimit, ...], int], tuple[Word, ...]] = {}

    def take_now(self, *_: Any, **__: Any) -> None:
        """Whatever is asked takes I/O."""

    async def take(self, asked: Sequence[Ask]) -> list[Decision]:
        """Decide as if in order, a thousand in one round trip.

        Raises:
            StorageError: Redis did not decide, or did and did not say so.
        """
        decisions: list[Decision] = []
        for start in range(0, len(asked), _PER_CALL):
            part = asked[start : start + _PER_CALL]
            keys: list[Word] = []
            words: list[Word] = []
            for ask in part:
                buckets = [(ask.key, ask.limits)] if ask.limits else []
                buckets += [(bucket, (limit,)) for bucket, limit in ask.shared]
                words.append(len(buckets))
                for bucket, limits in buckets:
                    keys.append(f"{self._prefix}{bucket}")
                    words += self._known.get((limits, ask.cost)) or self._words(limits, ask.cost)
            answer = await self._redis.run(self._script, keys, words)
            decisions += _decisions(part, answer)
        return decisions

    def _words(self, limits: tuple[RateLimit, ...], cost: int) -> tuple[Word, ...]:
        """What the script is told of a bucket's limits, and of the cost."""
        words: list[Word] = [len(limits)]
        for name, limit, window_seconds in limits:
            if ";" in name or "=" in name:
                raise ValueError("the name of a limit holds no ; and no =")
            window = window_seconds * 1_000_000
            # More than the whole limit never passes, and its quotient might not fit a double.
            taken = divmod(cost * window, limit) if cost <= limit else (window + 1, 0)
            words += (f"{name} {limit} {window_seconds}", limit, window, *taken)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[limits, cost] = made = tuple(words)
        return made


def _decisions(asked: Sequence[Ask], answer: list[Any]) -> list[Decision]:
    now, at, decisions = answer[0], 1, []
    for ask in asked:
        limits, allowed, at = ask.every, answer[at], at + 1
        arrivals = []
        for rate in limits:
            # From two doubles there to one number of ticks here.
            arrivals.append(answer[at] * rate.limit + answer[at + 1])
            at += 2
        decisions.append(
            Decision(True, limits, arrivals, now)
            if allowed
            # Refused again by the same arithmetic, which says by which limit and for how long.
            else decide(limits, arrivals, ask.cost, now)[0]
        )
    return decisions
