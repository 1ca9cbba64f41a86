"""Quotas: what they are, and in which period an instant falls.

A quota of ``limit`` credits is filled up again by the calendar: each day, or on the first day of
each month, at an hour of a time zone. Where clocks are put forward and that hour does not exist, it
is at the instant of the change; where they are put back and it comes twice, at its first coming.
So every day and every month has one refill, and no two periods overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo, available_timezones

__all__ = ["FOREVER", "REFILLS", "Period", "Quota", "QuotaState", "is_zone"]

Refill = Literal["daily", "monthly", "never"]
REFILLS: Final[tuple[str, ...]] = get_args(Refill)

FOREVER: Final = 2**62
"""Microseconds: the end of a period that has none."""

_MICROSECONDS: Final = 1_000_000
# What a machine calls its own differs from node to node.
_NO_ZONES: Final = frozenset({"localtime", "Factory"})


class Period(NamedTuple):
    """From one refill to the next, in microseconds; the end is not part of it."""

    start: int
    end: int


class Quota(NamedTuple):
    """So many credits per period.

    ``hour`` and ``zone`` say when it is refilled. With ``shared_by_owner`` all keys of the owner,
    in the same environment and with the same refill, take from one account.
    """

    limit: int
    refill: Refill
    hour: int = 0
    zone: str = "UTC"
    shared_by_owner: bool = False

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()

    def period(self, now: float) -> Period:
        """The period in which ``now`` (Unix seconds) falls.

        Raises:
            KeyError, ValueError: this machine does not know the zone.
        """
        if self.refill == "never":
            return Period(0, FOREVER)
        micros = int(now * _MICROSECONDS)
        refills = sorted(self._refills(datetime.fromtimestamp(now, UTC)))
        return Period(
            max(at for at in refills if at <= micros), min(at for at in refills if at > micros)
        )

    def _refills(self, now: datetime) -> Iterator[int]:
        """The instants of some refills around ``now``, on both sides of it."""
        # Needs no data, so that it works on a machine that has none.
        zone: tzinfo = UTC if self.zone == "UTC" else ZoneInfo(self.zone)
        today = now.astimezone(zone).date()
        if self.refill == "daily":
            days = [today + timedelta(days=n) for n in range(-2, 3)]
        else:
            first = today.replace(day=1)
            before = (first - timedelta(days=1)).replace(day=1)
            after = _next_month(first)
            days = [before, first, after, _next_month(after)]
        for day in days:
            # Of an hour that comes twice this is the first, as fold is 0.
            at = datetime(day.year, day.month, day.day, self.hour, tzinfo=zone)
            yield int(_not_in_gap(at).timestamp()) * _MICROSECONDS


def _next_month(first: date) -> date:
    return (first + timedelta(days=32)).replace(day=1)


def _not_in_gap(at: datetime) -> datetime:
    """The instant of the change, for a time of day that a change of clocks skips."""
    there = at.astimezone(UTC)
    if there.astimezone(at.tzinfo).replace(tzinfo=None) == at.replace(tzinfo=None):
        return at
    # The change lies within a day before: halve until it is found, to the second.
    zone, low, high = at.tzinfo, there - timedelta(days=1), there
    offset = high.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return high


class QuotaState(NamedTuple):
    """What is left of a quota.

    ``remaining`` is what this process knows of; blocks that others hold count as spent.
    """

    limit: int
    remaining: int
    resets_at: int | None
    """Microseconds; ``None`` when it is never refilled."""
    retry_after: float = 0.0
    """Of a refusal, seconds until the refill; 0 when waiting is no use."""


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones()) - _NO_ZONES


def is_zone(name: str) -> bool:
    """Whether this is the name of a time zone of the IANA database, and this machine has it."""
    return name == "UTC" or name in _zones()
