"""Rate limits of one process, in a bounded table."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from api_key_manager.core.limits import Decision, RateLimit, decide
from api_key_manager.core.ports import Ask, SharedLimit

__all__ = ["MemoryLimiter"]

_log = logging.getLogger(__name__)
_SWEPT: Final = 2
_COMPARED: Final = 8
_WARN_SECONDS: Final = 60


class _Entry:
    __slots__ = ("arrivals", "limits")

    def __init__(self, limits: tuple[RateLimit, ...], arrivals: Sequence[int]) -> None:
        self.limits = limits
        self.arrivals = arrivals

    def full_at(self) -> int:
        """From when on (µs) this entry says no more than none would."""
        return max(
            -(-arrival // rate.limit)
            for rate, arrival in zip(self.limits, self.arrivals, strict=True)
        )


class MemoryLimiter:
    """How much each key has taken. Used from one event loop, like the manager it belongs to.

    The clock is monotonic: setting the wall clock gives nobody anything and takes nothing away.
    A limit whose numbers are changed starts full; one that stays the same keeps its state.

    The table holds at most ``max_entries`` keys. A key all of whose limits are full again needs no
    entry, and each newcomer sweeps such entries away. If the table is full of keys that all
    are in use, the newcomer takes the place of one of eight: the one that is full again the
    soonest, so that as little as can be is given away. That is logged and counted in
    :attr:`forgotten`. Refusing the newcomer instead would let callers lock each other out.

    Args:
        max_entries: about 400 bytes each.
        whose: what is limited, as the log has it.
        clock: nanoseconds that never go back.
    """

    def __init__(
        self, max_entries: int = 250_000, *, clock: Callable[[], int] = time.monotonic_ns,
        whose: str = "keys",
    ) -> None:  # fmt: skip
        if max_entries < 1:
            raise ValueError("max_entries: at least 1 is needed")
        self.max_entries = max_entries
        self.forgotten = 0
        self._clock = clock
        self._whose = whose
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._warn_from = 0

    def __len__(self) -> int:
        return len(self._entries)

    def take_now(
        self,
        key: str,
        limits: tuple[RateLimit, ...],
        cost: int,
        shared: tuple[SharedLimit, ...] = (),
    ) -> Decision:
        """Take ``cost`` from every limit, or nothing from any. Never needs I/O."""
        now = self._clock() // 1000
        if shared:
            return self._take_shared(key, limits, cost, shared, now)
        entry = self._entries.get(key)
        if entry is None:
            decision, arrivals = decide(limits, (0,) * len(limits), cost, now)
            if decision.allowed:
                self._make_room(now)
                self._entries[key] = _Entry(limits, arrivals)
            return decision
        if entry.limits is not limits and entry.limits != limits:
            known = dict(zip(entry.limits, entry.arrivals, strict=True))
            entry.arrivals = [known.get(rate, 0) for rate in limits]
        # Also when they are equal: the next look is one at the same object then.
        entry.limits = limits
        decision, entry.arrivals = decide(limits, entry.arrivals, cost, now)
        return decision

    async def take(self, asked: Sequence[Ask]) -> list[Decision]:
        """The same for many, in order."""
        return [self.take_now(*ask) for ask in asked]

    def _take_shared(
        self,
        key: str,
        limits: tuple[RateLimit, ...],
        cost: int,
        shared: tuple[SharedLimit, ...],
        now: int,
    ) -> Decision:
        """The same where others count too: a bucket of its own for each shared limit."""
        buckets = [(key, limits), *((bucket, (limit,)) for bucket, limit in shared)]
        wanted = [rate for _, rates in buckets for rate in rates]
        known = [at for bucket, rates in buckets for at in self._arrivals(bucket, rates)]
        decision, arrivals = decide(wanted, known, cost, now)
        if decision.allowed:
            at = 0
            for bucket, rates in buckets:
                self._note(bucket, rates, arrivals[at : at + len(rates)], now)
                at += len(rates)
        return decision

    def _arrivals(self, bucket: str, rates: tuple[RateLimit, ...]) -> list[int]:
        entry = self._entries.get(bucket)
        if entry is None:
            return [0] * len(rates)
        known = dict(zip(entry.limits, entry.arrivals, strict=True))
        return [known.get(rate, 0) for rate in rates]

    def _note(
        self, bucket: str, rates: tuple[RateLimit, ...], arrivals: Sequence[int], now: int
    ) -> None:
        if not rates:
            return
        entry = self._entries.get(bucket)
        if entry is None:
            self._make_room(now)
            self._entries[bucket] = _Entry(rates, arrivals)
        else:
            entry.limits, entry.arrivals = rates, arrivals

    def _make_room(self, now: int) -> None:
        """For one. Looks at a few of the oldest entries only, so a newcomer costs a constant."""
        entries = self._entries
        seen: dict[str, int] = {}
        full = len(entries) >= self.max_entries
        for _ in range(min(_COMPARED if full else _SWEPT, len(entries))):
            key, entry = entries.popitem(last=False)
            full_at = entry.full_at()
            if full_at > now:
                entries[key] = entry
                seen[key] = full_at
        if len(entries) < self.max_entries:
            return
        del entries[min(seen, key=seen.__getitem__)]
        self.forgotten += 1
        if now >= self._warn_from:
            self._warn_from = now + _WARN_SECONDS * 1_000_000
            _log.warning(
                "%d %s are below their rate limits at once: %d were forgotten and start full",
                self.max_entries, self._whose, self.forgotten,
            )  # fmt: skip
