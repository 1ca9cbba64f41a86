"""What becomes of rate limits while Redis is away: ``ON_LIMITER_OUTAGE``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.limits import Decision
from api_key_manager.core.ports import Ask, RateLimiter
from api_key_manager.ratelimit.trouble import Trouble

__all__ = ["OutageLimiter", "OutagePolicy"]

OutagePolicy = Literal["local", "deny", "allow"]

_MEANWHILE: Final[dict[OutagePolicy, str]] = {
    "local": "rate limits are counted by each process for itself (ON_LIMITER_OUTAGE=local)",
    "deny": "keys with rate limits are unavailable (ON_LIMITER_OUTAGE=deny)",
    "allow": "rate limits are not kept (ON_LIMITER_OUTAGE=allow)",
}


class OutageLimiter:
    """A shared limiter, and what to do when it cannot tell.

    ``local``: another limiter, of this process, decides meanwhile. It starts full, so that an
    outage gives each process one limit at most. ``deny``: ``StorageError``. ``allow``: everything
    passes, and decisions say that nothing was taken.

    A batch of which only a part could be told is decided by the policy as a whole; what the shared
    limiter has charged for it stays charged.

    Args:
        shared: the limiter on Redis.
        policy: one of the three.
        local: decides while ``shared`` is away and the policy is ``local``.
    """

    def __init__(self, shared: RateLimiter, policy: OutagePolicy, local: RateLimiter) -> None:
        if policy not in get_args(OutagePolicy):
            raise ValueError(f"policy: one of {', '.join(get_args(OutagePolicy))}")
        self.policy = policy
        self.undecided = 0
        """Requests that the policy decided, since the start."""
        self._shared = shared
        self._local = local
        self._trouble = Trouble(_MEANWHILE[policy])

    @property
    def problem(self) -> str | None:
        """Why the policy decides; ``None`` while the shared limiter does."""
        return self._trouble.problem

    def take_now(self, *_: Any, **__: Any) -> None:
        """Whatever is asked takes I/O."""

    async def take(self, asked: Sequence[Ask]) -> list[Decision]:
        """Decide in order.

        Raises:
            StorageError: it cannot be told, and the policy is ``deny``.
        """
        try:
            decisions = await self._shared.take(asked)
        except StorageError as error:
            self._trouble.failed(error)
            self.undecided += len(asked)
            if self.policy == "deny":
                raise
            if self.policy == "allow":
                return [Decision(True, ask.every, (0,) * len(ask.every), 0) for ask in asked]
            return await self._local.take(asked)
        self._trouble.worked()
        return decisions
