"""The bounded map behind both caches, against a dict that forgets nothing on its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from api_key_manager.core.cache import BoundedTTLMap

SIZE = 4
keys = st.integers(0, 7)


class Model(RuleBasedStateMachine):
    """Whatever was evicted may be missing; nothing may be wrong, late or too much."""

    def __init__(self) -> None:
        super().__init__()
        self.map: BoundedTTLMap[int, int] = BoundedTTLMap(SIZE)
        self.model: dict[int, tuple[int, int]] = {}
        self.now = 0
        self.serial = self.hits = self.misses = 0

    @rule(key=keys, ttl=st.integers(-1, 5))
    def put(self, key: int, ttl: int) -> None:
        self.serial += 1
        self.map.put(key, self.serial, self.now + ttl)
        self.model[key] = (self.serial, self.now + ttl)
        # What was just put is there.
        if ttl > 0:
            self.get(key)
            assert self.map.get(key, self.now) == self.serial
            self.hits += 1

    @rule(key=keys)
    def get(self, key: int) -> None:
        value = self.map.get(key, self.now)
        expected, expires = self.model.get(key, (None, -1))
        if value is None:
            self.misses += 1
            self.model.pop(key, None)
        else:
            self.hits += 1
            assert value == expected
            assert self.now < expires

    @rule(key=keys)
    def discard(self, key: int) -> None:
        self.map.discard(key)
        self.model.pop(key, None)
        assert self.map.get(key, self.now) is None
        self.misses += 1

    @rule()
    def clear(self) -> None:
        self.map.clear()
        self.model.clear()
        assert len(self.map) == 0

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.model) <= SIZE)
    @rule()
    def nothing_goes_without_need(self) -> None:
        if self.map.evictions == 0:
            for key, (value, expires) in list(self.model.items()):
                if self.now < expires:
                    assert self.map.get(key, self.now) == value
                    self.hits += 1

    @invariant()
    def bounded_and_counted(self) -> None:
        assert len(self.map) <= SIZE
        assert self.map.stats() == {
            "cache_size": len(self.map), "hits": self.hits, "misses": self.misses,
            "evictions": self.map.evictions, "max_entries": SIZE,
        }  # fmt: skip


TestModel = Model.TestCase
TestModel.__doc__ = "Any sequence of operations leaves a map that never lies and never grows."


def test_ends_at_its_instant():
    """A value is there before its instant and not at it."""
    cache: BoundedTTLMap[str, int] = BoundedTTLMap(2)
    cache.put("a", 1, 10.0)
    assert cache.get("a", 9.999) == 1
    assert cache.get("a", 10.0) is None
    assert len(cache) == 0


def test_put_replaces():
    """The second value and its end count, not the first one's."""
    cache: BoundedTTLMap[str, int] = BoundedTTLMap(2)
    cache.put("a", 1, 100)
    cache.put("a", 2, 10)
    assert cache.get("a", 5) == 2
    assert cache.get("a", 10) is None


def test_zero_entries_keep_nothing():
    """A size of 0 turns the cache off."""
    cache: BoundedTTLMap[str, int] = BoundedTTLMap(0)
    cache.put("a", 1, 10)
    assert cache.get("a", 0) is None
    assert len(cache) == 0


def test_entries_in_use_survive_a_flood():
    """Entries that are asked for stay, however many others are put in once."""
    cache: BoundedTTLMap[int, int] = BoundedTTLMap(100)
    good = range(50)
    for key in good:
        cache.put(key, key, 10)
    for flood in range(1000, 11_000):
        if flood % 50 == 0:
            assert [cache.get(key, 0) for key in good] == list(good)
        cache.put(flood, 0, 10)
        assert len(cache) <= 100
    assert [cache.get(key, 0) for key in good] == list(good)
    assert cache.evictions == 10_050 - 100


def test_oldest_unasked_goes_first():
    """When nobody was asked for, the oldest goes; one that was asked for outlives younger ones."""
    cache: BoundedTTLMap[str, int] = BoundedTTLMap(3)
    for key in "abc":
        cache.put(key, 1, 10)
    assert cache.get("a", 0) == 1
    cache.put("d", 1, 10)
    assert [key for key in "abcd" if cache.get(key, 0)] == ["a", "c", "d"]


@given(st.lists(st.tuples(keys, st.booleans()), max_size=60))
def test_all_seen_still_ends(steps: list[tuple[int, bool]]):
    """Making room ends, also when every entry has been asked for."""
    cache: BoundedTTLMap[int, int] = BoundedTTLMap(3)
    for key, ask in steps:
        cache.put(key, key, 10)
        if ask:
            assert cache.get(key, 0) == key
        assert len(cache) <= 3
