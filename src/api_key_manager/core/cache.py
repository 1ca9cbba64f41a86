"""The one bounded map with times to live, behind the record cache and the result cache.

Eviction is SIEVE's lazy promotion in its simplest form (Zhang et al., NSDI 2024; CLOCK's second
chance): a hit only marks its entry, and when room is needed the oldest unmarked entry goes. A hit
costs one dict look-up and no lock.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

__all__ = ["BoundedTTLMap"]

K = TypeVar("K")
V = TypeVar("V")

_VALUE, _EXPIRES, _SEEN = 0, 1, 2


class BoundedTTLMap(Generic[K, V]):
    """At most ``max_entries`` values, each until its own instant.

    Args:
        max_entries: 0 keeps nothing.

    Instants are of whatever clock the caller passes as ``now``.
    """

    __slots__ = ("_entries", "evictions", "hits", "max_entries", "misses")

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._entries: dict[K, list[Any]] = {}
        self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """The value, or ``None`` when there is none or its time is over."""
        try:
            entry = self._entries[key]
        except KeyError:
            self.misses += 1
            return None
        if now >= entry[_EXPIRES]:
            del self._entries[key]
            self.misses += 1
            return None
        entry[_SEEN] = True
        self.hits += 1
        value: V = entry[_VALUE]
        return value

    def put(self, key: K, value: V, expires: float) -> None:
        """Keep ``value`` until ``expires``; the oldest entry nobody asked for makes room."""
        entries = self._entries
        if len(entries) >= self.max_entries and key not in entries and not self._evict():
            return
        entries[key] = [value, expires, False]

    def _evict(self) -> bool:
        """Make room for one; says whether there was anything to throw out."""
        entries = self._entries
        while entries:
            oldest = next(iter(entries))
            entry = entries.pop(oldest)
            if not entry[_SEEN]:
                self.evictions += 1
                return True
            entry[_SEEN] = False
            entries[oldest] = entry
        return False

    def discard(self, key: K) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget every entry; the counters go on."""
        self._entries.clear()

    def stats(self) -> dict[str, int]:
        return {
            "cache_size": len(self._entries),
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
            "max_entries": self.max_entries,
        }
