"""Plain numbers, counted where things happen and read when somebody asks for them.

A Prometheus object takes microseconds and a lock for each count, a number in a list a tenth of
one. All counting is done in the event loop's thread, so that no lock is needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, Generic, TypeVar

__all__ = ["BOUNDS", "Durations", "Meter", "Remembered"]

T = TypeVar("T")

BOUNDS: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
"""Seconds. From a record in memory (tens of µs) to a disk that hardly answers."""


class Durations:
    """How often something took how long."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        # Per bound what took at most that long, and more than the bound before; last the rest.
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def values(self) -> list[float]:
        """The counts, then the seconds: such lists can be added up."""
        return [*self.counts, self.seconds]


class Meter:
    """How long the requests of one deployment took, and its store.

    Attributes:
        requests: by method, route and status, the first two as the route was added and never as a
            caller wrote them; from the head of the request to the end of its answer.
        store: by access (``read`` or ``write``) and operation.
    """

    __slots__ = ("requests", "store")

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, int], Durations] = defaultdict(Durations)
        self.store: defaultdict[tuple[str, str], Durations] = defaultdict(Durations)

    def operation(self, access: str, name: str, seconds: float) -> None:
        """An operation of the store took this long."""
        self.store[access, name].observe(seconds)


class Remembered(Generic[T]):
    """A reading that costs something, taken again only once it has become old.

    Args:
        read: takes the reading.
        seconds: how old it may get; more when reading takes long, so that it never fills more
            than a fiftieth of the time, however often it is asked for.
        failures: what ``read`` may raise; there is no value then.
        clock: seconds that never step.
    """

    _SHARE = 50

    def __init__(
        self,
        read: Callable[[], Awaitable[T]],
        *,
        seconds: float,
        failures: type[Exception],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._failures = failures
        self._clock = clock
        self._due = clock()
        self._reading = False
        self._value: T | None = None

    async def get(self) -> T | None:
        """The value; while somebody else waits for a new one, the old one."""
        started = self._clock()
        if self._reading or started < self._due:
            return self._value
        self._reading = True
        try:
            self._value = await self._read()
        except self._failures:
            self._value = None
        finally:
            self._reading = False
            ended = self._clock()
            self._due = ended + max(self._seconds, (ended - started) * self._SHARE)
        return self._value
