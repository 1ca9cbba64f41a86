"""Rate limits from settings, and the set-ups in which they would silently be wrong."""

from __future__ import annotations

import logging

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import KeyStore
from api_key_manager.storage import SqlStore, scripts

__all__ = [
    "default_limits",
    "limits_are_shared",
    "refuse_unshared_limits",
    "unshared_between_nodes",
    "warn_of_unshared_limits",
]

_log = logging.getLogger(__name__)


def default_limits(settings: Settings) -> tuple[RateLimit, ...]:
    """What a key without limits of its own gets."""
    if not settings.RATE_LIMIT_ENABLED:
        return ()
    return (RateLimit("default", settings.RATE_LIMIT_PER_MINUTE, 60),)


def limits_are_shared(settings: Settings, workers: int) -> bool:
    """Whether all workers count together."""
    return workers == 1 or bool(settings.REDIS_URL)


async def refuse_unshared_limits(settings: Settings, workers: int, store: KeyStore) -> None:
    """Refuse to start workers that would each count for themselves. Asked once, before any starts.

    Every one of them would let a key through anew, so that ``WORKERS=4`` made four times the limit.

    Raises:
        ConfigurationError: one line with the way out.
    """
    if limits_are_shared(settings, workers):
        return
    if settings.RATE_LIMIT_ENABLED:
        raise ConfigurationError(
            f"RATE_LIMIT_ENABLED=true does not go with WORKERS={workers}, which would each count"
            " for themselves: set REDIS_URL, or use WORKERS=1, or RATE_LIMIT_ENABLED=false"
        )
    if isinstance(store, SqlStore):
        count, one = await store.driver.read(scripts.limited)
        if count:
            raise ConfigurationError(
                f"{count} {'key has' if count == 1 else 'keys have'} rate limits ({one}"
                f"{'' if count == 1 else ', …'}), which WORKERS={workers} would each count for"
                f" themselves: set REDIS_URL, or use WORKERS=1, or take them away with"
                f" akm keys update {one} --no-rate-limits"
            )


async def unshared_between_nodes(settings: Settings, store: KeyStore) -> str | None:
    """What is to be said of limits on a database that other nodes may use too, when each node
    would count for itself; ``None`` when nothing is."""
    if not settings.on_network or settings.REDIS_URL:
        return None
    if settings.RATE_LIMIT_ENABLED:
        what = "RATE_LIMIT_ENABLED=true"
    elif isinstance(store, SqlStore) and (count := (await store.driver.read(scripts.limited))[0]):
        what = f"{count} {'key has' if count == 1 else 'keys have'} rate limits"
    else:
        return None
    return (
        f"{what}, and without REDIS_URL each node counts for itself: several nodes let through as"
        " many times more"
    )


async def warn_of_unshared_limits(settings: Settings, store: KeyStore) -> None:
    """Tell the log once, at the start. It is not refused: there may be only this node."""
    problem = await unshared_between_nodes(settings, store)
    if problem is not None:
        _log.warning("%s", problem)
