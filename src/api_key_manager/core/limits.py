"""Rate limits: what they are, and the arithmetic that decides, without clock or memory.

The algorithm is GCRA (ITU-T I.371, the "virtual scheduling" form). A limit of ``limit`` per
``window`` keeps one value, the theoretical arrival time: the instant at which everything that
was taken will have been given back. A request of cost 1 moves it by ``window / limit`` and is
refused when that would put it more than ``window`` ahead of now. So a caller who was quiet may
take ``limit`` at once, and one who takes steadily gets ``limit`` per ``window``: in any span of
time at most ``limit + span * limit / window``.

``window / limit`` is rarely a whole number of microseconds, so an arrival time is kept in units of
``1 / limit`` microseconds (*ticks*), in which all of this is whole numbers: nothing is rounded, so
nothing drifts, whatever the limit.

All limits of a key are decided together: what one refuses takes nothing from the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

__all__ = [
    "MAX_COST",
    "Decision",
    "LimitState",
    "RateLimit",
    "decide",
    "ratelimit_headers",
    "refuse",
    "whole_seconds",
]

MAX_COST: Final = 1_000_000
_MICROSECONDS: Final = 1_000_000
_FOREVER: Final = float("inf")


class RateLimit(NamedTuple):
    """So much per window: ``RateLimit("burst", 10, 1)`` is ten at once, and ten a second."""

    name: str
    limit: int
    window_seconds: int

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


class LimitState(NamedTuple):
    """A limit and what is left of it."""

    name: str
    limit: int
    window_seconds: int
    remaining: int
    """What could be taken right now."""
    reset_seconds: float
    """Until it is full again, if nothing is taken meanwhile."""


class Decision(NamedTuple):
    """What all limits of a key said to one request, in the order of the limits.

    ``retry_after``: after so many seconds the same request passes, if nothing else is taken
    meanwhile. It is 0 for one that was allowed, and for one that costs more than a limit ever
    holds: see :attr:`never`.
    """

    allowed: bool
    limits: Sequence[RateLimit]
    arrivals: Sequence[int]
    """Of each limit its theoretical arrival time in ticks, from now on."""
    now: int
    """Microseconds, when it was decided."""
    retry_after: float = 0.0
    refused_by: int | None = None
    """Which of the limits it was; of several the one to wait for the longest."""

    @property
    def never(self) -> bool:
        """Whether waiting is no use, because the request costs more than the whole limit."""
        return not (self.allowed or self.retry_after)

    @property
    def states(self) -> tuple[LimitState, ...]:
        """What is left of each limit. Not stored, since few who ask for a decision want it."""
        return tuple(map(self._state, self.limits, self.arrivals))

    @property
    def deciding(self) -> LimitState:
        """The limit that refused, else the one of which the smallest share is left."""
        if len(self.limits) == 1:
            return self._state(self.limits[0], self.arrivals[0])
        states = self.states
        if self.refused_by is not None:
            return states[self.refused_by]
        return min(states, key=lambda state: state.remaining / state.limit)

    def left_of_only(self) -> tuple[int, int]:
        """Of the only limit what could be taken right now, and the whole seconds until it is full
        again, rounded up: :attr:`deciding` without anything else."""
        rate = self.limits[0]
        left, taken = self._left(rate, self.arrivals[0])
        return left, -(-taken // (rate.limit * _MICROSECONDS))

    def _state(self, rate: RateLimit, arrival: int) -> LimitState:
        left, taken = self._left(rate, arrival)
        return LimitState(*rate, left, -(-taken // rate.limit) / _MICROSECONDS)

    def _left(self, rate: RateLimit, arrival: int) -> tuple[int, int]:
        """What could be taken right now, and the ticks that have been taken."""
        _, limit, window_seconds = rate
        window = window_seconds * _MICROSECONDS
        taken = max(0, arrival - self.now * limit)
        return (window * limit - taken) // window, taken


def decide(
    limits: Sequence[RateLimit], arrivals: Sequence[int], cost: int, now: int
) -> tuple[Decision, Sequence[int]]:
    """Decide one request.

    Args:
        limits: all that apply, at least one.
        arrivals: of each limit its theoretical arrival time in ticks; 0 when nothing is known.
        cost: how many requests this one counts for; with 0 nothing is taken, and nothing refused.
        now: microseconds of a clock that never goes back.

    Returns:
        The decision, and the arrival times from now on: ``arrivals`` itself after a refusal.
    """
    after = []
    for (_, limit, window_seconds), arrival in zip(limits, arrivals):  # noqa: B905 - it is asked often
        window, clock = window_seconds * _MICROSECONDS, now * limit
        arrival = (arrival if arrival > clock else clock) + cost * window
        if arrival - clock > window * limit:
            return _refusal(limits, arrivals, cost, now), arrivals
        after.append(arrival)
    return Decision(True, limits, after, now), after


def _refusal(limits: Sequence[RateLimit], arrivals: Sequence[int], cost: int, now: int) -> Decision:
    """What all limits say when at least one of them refuses and nothing is taken."""
    waits = []
    for (_, limit, window_seconds), arrival in zip(limits, arrivals, strict=True):
        window = window_seconds * _MICROSECONDS
        left = window * limit - max(0, arrival - now * limit)
        # In whole microseconds, rounded up: whoever waits exactly so long passes.
        waits.append(-((left - cost * window) // limit) if cost <= limit else _FOREVER)
    longest = max(waits)
    retry_after = 0.0 if longest == _FOREVER else longest / _MICROSECONDS
    return Decision(False, limits, arrivals, now, retry_after, waits.index(longest))


def refuse(decision: Decision, cost: int) -> Decision | None:
    """What the limits of a decision on a cost of 0 say to another cost, if they would refuse it.

    Whoever asks for a cost of 0 takes nothing, and learns how the limits stand.
    """
    after, _ = decide(decision.limits, decision.arrivals, cost, decision.now)
    return None if after.allowed else after


def ratelimit_headers(
    states: Sequence[LimitState], retry_after: float = 0.0
) -> list[tuple[bytes, bytes]]:
    """The fields that tell a client of its limits, named in lower case as ASGI wants them.

    ``RateLimit-Policy`` and ``RateLimit`` are those of draft-ietf-httpapi-ratelimit-headers, lists
    of RFC 9651: one member per limit, ``q`` per ``w`` seconds, ``r`` left, full again in ``t``
    seconds. ``Retry-After`` is RFC 9110's.

    Args:
        states: of all limits that apply; without any there are no fields.
        retry_after: of a refusal, in seconds; 0 when there is nothing to wait for.
    """
    if not states:
        return []
    policy = ", ".join(
        f'"{state.name}";q={state.limit};w={state.window_seconds}' for state in states
    )
    left = ", ".join(
        f'"{state.name}";r={state.remaining};t={whole_seconds(state.reset_seconds)}'
        for state in states
    )
    fields = [(b"ratelimit-policy", policy.encode()), (b"ratelimit", left.encode())]
    if retry_after > 0:
        fields.append((b"retry-after", b"%d" % whole_seconds(retry_after)))
    return fields


def whole_seconds(seconds: float) -> int:
    """Seconds as headers and answers say them: rounded up, so that nobody comes too early."""
    return math.ceil(seconds)
