"""ASGI: rate limits for your own app, by whatever you count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from api_key_manager.core.exceptions import ConfigurationError, StorageError, ValidationError
from api_key_manager.core.inputs import check_rate_limits
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import MAX_COST, RateLimit, ratelimit_headers
from api_key_manager.core.ports import Ask, RateLimiter
from api_key_manager.integrations.answers import Answer, limited, unavailable
from api_key_manager.integrations.scopes import (
    App,
    Receive,
    Scope,
    Send,
    adding,
    refuse_websocket,
    reply,
)

__all__ = ["RateLimitMiddleware"]


class RateLimitMiddleware:
    """Lets each caller through so often, and no more: 429 with ``Retry-After`` beyond that.

    What an app takes is counted in this process. Several workers each count for themselves.

    Args:
        app: an ASGI app.
        limits: all that apply, together: what one refuses takes nothing from the others. Objects
            of ``RateLimit``, or dicts with ``limit``, ``window_seconds`` and maybe a ``name``.
        key: whose limits a request is counted in; ``None`` for one that is not limited.
        cost: how many requests one counts for, 1 to 1,000,000; or what says so for each. What
            says 0 lets it through uncounted.
        limiter: where it is counted; one of its own when left out.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Sequence[RateLimit | dict[str, Any]],
        key: Callable[[Scope], str | None],
        cost: int | Callable[[Scope], int] = 1,
        limiter: RateLimiter | None = None,
    ) -> None:
        try:
            self._limits = check_rate_limits(limits)
        except ValidationError as error:
            raise ConfigurationError(str(error).replace("rate_limits", "limits")) from None
        if not self._limits:
            raise ConfigurationError("limits: at least one is needed")
        if not callable(key):
            raise ConfigurationError("key: a function of the scope is needed")
        if not callable(cost) and not _is_cost(cost):
            raise ConfigurationError(f"cost: 1 to {MAX_COST}, or a function of the scope")
        self._app = app
        self._key = key
        self._cost = cost
        self._limiter = limiter if limiter is not None else MemoryLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or WebSocket; the life of the app is none of this one's business."""
        limited_kind = scope["type"] in ("http", "websocket")
        key = self._key(scope) if limited_kind else None
        cost = self._cost_of(scope) if key is not None else 0
        if key is None or cost == 0:
            await self._app(scope, receive, send)
            return
        try:
            decision = self._limiter.take_now(key, self._limits, cost)
            if decision is None:
                (decision,) = await self._limiter.take([Ask(key, self._limits, cost)])
        except StorageError:
            await _refuse(unavailable(), scope, receive, send)
            return
        if decision.allowed:
            await self._app(scope, receive, adding(ratelimit_headers(decision.states), send))
        else:
            await _refuse(limited(decision), scope, receive, send)

    def _cost_of(self, scope: Scope) -> int:
        if not callable(self._cost):
            return self._cost
        cost = self._cost(scope)
        if cost != 0 and not _is_cost(cost):
            raise ValueError(f"cost: 0 to {MAX_COST} is allowed")
        return cost


async def _refuse(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await refuse_websocket(answer, scope, receive, send)
    else:
        await reply(answer, scope["method"], send)


def _is_cost(cost: object) -> bool:
    return type(cost) is int and 1 <= cost <= MAX_COST
