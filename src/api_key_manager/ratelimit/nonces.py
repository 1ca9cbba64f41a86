"""Nonces that all nodes share, in Redis."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from api_key_manager.connections.redis import LuaScript, Redis, Word
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import (
    NONCE_LEASE_SECONDS,
    Claim,
    ClaimResult,
    NonceRegister,
    NonceStanding,
)
from api_key_manager.core.records import boot_clock
from api_key_manager.ratelimit.names import check_prefix
from api_key_manager.ratelimit.trouble import Trouble

__all__ = ["MAX_NONCES_PER_KEY", "RedisNonceStore"]

_log = logging.getLogger(__name__)
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
    is dated up to that birth plus the skew is refused, unless its key is younger than that too.
    Marker and claim are looked at in the same script.

    **In one place only.** The marker has an id, and the register says for all nodes which place is
    in force. When it starts, a node puts its own in force; from then on it only looks. What the
    register said is believed for :data:`~api_key_manager.core.ports.NONCE_LEASE_SECONDS`, by which
    a move's birth lies ahead. A marker made anew has another id: who was in force before the loss
    puts that in force, whichever node comes first; who was not, refuses.

    **Fails closed**: without an answer there is a ``StorageError``, and the claim may be used up.

    Args:
        redis: the connection.
        prefix: of all names in Redis; the deployment's origin, so that two can share a server.
        max_per_key: how many live nonces one key may hold, about 120 bytes each; past that, only
            this key is refused.
        register: which place of nonces is in force; ``None`` if there can be no other.
        clock: seconds that never go back and count suspension.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        max_per_key: int = MAX_NONCES_PER_KEY,
        register: NonceRegister | None = None,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self.birth: float | None = None
        """Since when no claim was lost, in Unix seconds of the server; ``None`` before the first
        answer."""
        self._redis = redis
        # In braces: in a cluster marker and nonces would have to be in one place.
        self._marker = f"{{{check_prefix(prefix)}}}:nonces"
        self._max_per_key = max_per_key
        self._script = _CLAIM
        self._trouble = Trouble("requests with a nonce are unavailable")
        self._register = register
        self._clock = clock
        self._look: asyncio.Task[None] | None = None
        self._looked: float | None = None
        self._standing = NonceStanding(None, 0, 0)
        self._place: str | None = None
        self._takes_over = False
        self._renewed = False
        self._elsewhere = False

    @property
    def problem(self) -> str | None:
        """Why claims fail; ``None`` while they don't."""
        if self._elsewhere:
            return (
                "requests with a nonce are unavailable: a node that started later claims nonces"
                " elsewhere, with another REDIS_URL or none"
            )
        return self._trouble.problem

    @property
    def failures(self) -> int:
        """Calls that could not be answered, since the start."""
        return self._trouble.failures

    async def prepare(self) -> str | None:
        """Make the marker, and put this place in force.

        Returns:
            What to warn of: the server may throw away nonces when its memory is used up, or does
            not tell.

        Raises:
            StorageError: Redis or the register does not answer; :meth:`look` tries again.
        """
        self._takes_over = True
        if self._register is None:
            await self._run((), 0)
        await self.look()
        return _eviction(bytes(await self._redis.call("INFO", "memory")).decode())

    async def claim(self, claims: Sequence[Claim], now: float, skew: int) -> list[ClaimResult]:
        """Take each nonce that is free; results in order.

        Args:
            claims: a thousand go in one round trip.
            now: not used: the server's clock counts.
            skew: in seconds.

        Raises:
            StorageError: Redis did not answer, and some of the claims may be taken; or the
                register did not say whether they may be.
        """
        results: list[ClaimResult] = []
        for start in range(0, len(claims), _PER_CALL):
            if not self._believes():
                await self.look()
            some = claims[start : start + _PER_CALL]
            if self._elsewhere:
                results += [ClaimResult.REFUSED] * len(some)
            else:
                results += (await self._run(some, skew, self._place or ""))[1]
        return results

    def _believes(self) -> bool:
        if self._register is None:
            return True
        lately = self._looked is not None and self._clock() <= self._looked + NONCE_LEASE_SECONDS
        return lately and not self._renewed

    async def look(self) -> None:
        """See whether nonces are still claimed here; after :meth:`prepare`, first take over.

        Raises:
            StorageError: the register does not say, or Redis not which place it is.
        """
        if self._register is None:
            return
        # One for all who want to know, or they would wait for a silent server one after the other.
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_now(self._register))
        await asyncio.shield(self._look)

    async def close(self) -> None:
        """Stop looking."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])

    async def _look_now(self, register: NonceRegister) -> None:
        started = self._clock()
        found = await register.standing()
        if self._renewed or found.place is None or found.place != self._place:
            found = await self._compare(register, found)
        self._standing, self._looked = found, started
        was, self._elsewhere = self._elsewhere, found.place != self._place
        if self._elsewhere and not was:
            _log.warning("%s", self.problem)
        elif was and not self._elsewhere:
            _log.info("nonces are claimed here again")

    async def _compare(self, register: NonceRegister, found: NonceStanding) -> NonceStanding:
        """Whether the place in force is this one by now, or is to be."""
        # Before the first key of a deployment there was no claim that could be lost.
        place, _ = await self._run((), 0, first=found.place is None and not found.revision)
        ours = self._place is not None and found.place == self._place
        if found.place != place and (self._takes_over or ours):
            found = await register.move(found.place, place)
        self._takes_over = False
        if self._place is None or found.place == place:
            self._place = place
        self._renewed = False
        return found

    async def _run(
        self, claims: Sequence[Claim], skew: int, place: str = "", *, first: bool = False
    ) -> tuple[str, list[ClaimResult]]:
        """Which place this is, and the results."""
        keys: list[Word] = [self._marker]
        words: list[Word] = [
            skew * MICROSECONDS, self._max_per_key, secrets.token_hex(16), int(first), place,
            self._standing.birth,
        ]  # fmt: skip
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
        self.birth = answer[1] / MICROSECONDS
        here = bytes(answer[0]).decode()
        self._renewed = self._renewed or bool(place and here != place)
        return here, [_RESULTS[code] for code in answer[2:]]


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
