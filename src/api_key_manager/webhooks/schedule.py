"""What becomes of a delivery after a try: pure arithmetic."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from api_key_manager.core.models import MICROSECONDS
from api_key_manager.storage.webhooks import Delivery

__all__ = ["DELIVERED", "GONE", "TRIES", "Outcome", "after"]

DELIVERED: Final = "delivered"
GONE: Final = "gone"
# The first eight of the specification's schedule: 27 hours and a half together.
_PAUSES: Final = (5, 300, 1800, 7200, 18_000, 36_000, 36_000)
TRIES: Final = len(_PAUSES) + 1
_JITTER: Final = 0.2
_MOST_PATIENCE: Final = 3600


class Outcome(NamedTuple):
    """What one try came to.

    Attributes:
        slug: for metrics and people.
        status: of the answer, if there was one.
        retry_after: seconds that the receiver asked for.
    """

    slug: str
    status: int | None = None
    retry_after: int | None = None


def after(delivery: Delivery, outcome: Outcome, now: int) -> Delivery:
    """The delivery as it goes on.

    Args:
        delivery: as it was claimed; ``attempts`` counts this try.
        now: µs.
    """
    told = delivery._replace(status=outcome.status, outcome=outcome.slug)
    if outcome.slug == DELIVERED:
        return told._replace(state="done", finished_at=now)
    # A test is for somebody who waits for it.
    if outcome.slug == GONE or delivery.attempts >= TRIES or delivery.event_id is None:
        return told._replace(state="dead", finished_at=now)
    # Spread, so that what failed together does not come back together.
    pause = _PAUSES[delivery.attempts - 1] * random.uniform(1, 1 + _JITTER)  # noqa: S311 - spreads
    pause = max(pause, min(outcome.retry_after or 0, _MOST_PATIENCE))
    return told._replace(next_at=now + round(pause * MICROSECONDS))
