"""Nonces that all nodes share, in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from api_key_manager.connections.redis import LuaScript, Redis, Word
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.ratelimit.names import check_prefix
from api_key_manager.ratelimit.trouble import Trouble

__all__ = ["MAX_NONCES_PER_KEY", "RedisNonceStore"]

MAX_NONCES_PER_KEY: Final = 100_000
_CLAIM: Final = LuaScript.load(__package__, "claim.lua")
_PER_CALL: Final = 1000
_RESULTS: Final = (ClaimResult.TAKEN, ClaimResult.REPLAYED, ClaimResult.REFUSED)


class RedisNonceStore:
    """Nonces of all nodes; who wins is decided by one script in Redis.

    **Held by the server's clock.** A nonce is kept until the server's clock has passed its
    ``expires_at``. A claim that has ended by that clock, or by the furthest that it ever stood, is
    refused: it may have been taken and forgotten. So a node whose clock is slow, and which
    therefore still accepts old timestamps, has its claims refused; it cannot shorten for how long
    one is held.

    **Never believed after a loss.** A marker in Redis says since when no claim was lost. It begins
    anew when it is gone (a flush, a restart without persistence) and when another process of the
    server answers (any other restart, a failover), since the last claims may be missing then. What
    is dated up to that birth plus the skew is refused, unless its key is younger. Marker and claim
    are looked at in the same script.

    **Fails closed**: without an answer there is a ``StorageError``, and the claim may be used up.

    Args:
        redis: the connection.
        prefix: of all names in Redis; the deployment's origin, so that two can share a server.
        max_per_key: how many live nonces one key may hold, about 120 bytes each; past that, only
            this key is refused.
    """

    def __init__(self, redis: Redis, prefix: str, max_per_key: int = MAX_NONCES_PER_KEY) -> None:
        self.birth: float | None = None
        """Since when no claim was lost, in Unix seconds of the server; ``None`` before the first
        answer."""
        self._redis = redis
        # In braces: in a cluster marker and nonces would have to be in one place.
        self._marker = f"{{{check_prefix(prefix)}}}:nonces"
        self._max_per_key = max_per_key
        self._script = _CLAIM
        self._trouble = Trouble("requests with a nonce are unavailable")

    @property
    def problem(self) -> str | None:
        """Why claims fail; ``None`` while they don't."""
        return self._trouble.problem

    @property
    def failures(self) -> int:
        """Calls that could not be answered, since the start."""
        return self._trouble.failures

    async def prepare(self) -> str | None:
        """Make the marker, so that keys made from now on can use nonces at once.

        Returns:
            What to warn of: the server may throw away nonces when its memory is used up, or does
            not tell.

        Raises:
            StorageError: Redis does not answer.
        """
        await self._run((), 0)
        return _eviction(bytes(await self._redis.call("INFO", "memory")).decode())

    async def claim(self, claims: Sequence[Claim], now: float, skew: int) -> list[ClaimResult]:
        """Take each nonce that is free; results in order.

        Args:
            claims: a thousand go in one round trip.
            now: not used: the server's clock counts.
            skew: in seconds.

        Raises:
            StorageError: Redis did not answer; some of the claims may be taken.
        """
        results: list[ClaimResult] = []
        for start in range(0, len(claims), _PER_CALL):
            results += await self._run(claims[start : start + _PER_CALL], skew)
        return results

    async def _run(self, claims: Sequence[Claim], skew: int) -> list[ClaimResult]:
        keys: list[Word] = [self._marker]
        words: list[Word] = [skew * MICROSECONDS, self._max_per_key]
        for claim in claims:
            keys.append(f"{self._marker}:{claim.key_id}")
            since = round(claim.key_since * MICROSECONDS)
            words += (claim.nonce, claim.timestamp * MICROSECONDS, claim.expires_at, since)
        try:
            answer: list[Any] = await self._redis.run(self._script, keys, words)
        except StorageError as error:
            self._trouble.failed(error)
            raise
        self._trouble.worked()
        self.birth = answer[0] / MICROSECONDS
        return [_RESULTS[code] for code in answer[1:]]


def _eviction(info: str) -> str | None:
    """What `INFO memory` says of throwing away keys."""
    told = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    policy, most = told.get("maxmemory_policy"), told.get("maxmemory")
    if policy == "noeviction" or most == "0":
        return None
    if policy is None or most is None:
        return (
            "Redis does not tell its maxmemory-policy: with another than noeviction it may drop"
            " nonces, which can be replayed then"
        )
    return (
        f"Redis drops keys when its memory is used up (maxmemory-policy {policy}), nonces among"
        " them, which can be replayed then: set maxmemory-policy noeviction"
    )
