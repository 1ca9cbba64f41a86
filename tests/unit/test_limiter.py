"""The table of what keys have taken: bounded, on its own clock."""

from __future__ import annotations

import inspect
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit, decide
from api_key_manager.core.ports import Ask

TEN = (RateLimit("ten", 10, 1),)
BOTH = (RateLimit("ten", 10, 1), RateLimit("hour", 20, 3600))


class Nanoseconds:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 5_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@pytest.fixture
def clock() -> Nanoseconds:
    return Nanoseconds()


@pytest.fixture
def limiter(clock) -> MemoryLimiter:
    return MemoryLimiter(clock=clock)


def take(limiter: MemoryLimiter, key: str, limits=TEN, times: int = 1, cost: int = 1) -> int:
    """How many of so many requests passed."""
    return sum(limiter.take_now(key, limits, cost).allowed for _ in range(times))


def test_keys_do_not_share(limiter):
    """What one key takes is nobody else's loss."""
    assert take(limiter, "one", times=50) == 10
    assert take(limiter, "two", times=50) == 10


def test_a_refusal_by_one_limit_leaves_the_other(limiter, clock):
    """Of 20 an hour nothing is gone for what ten a second refused."""
    assert take(limiter, "key", BOTH, times=1000) == 10
    clock.advance(1)
    assert take(limiter, "key", BOTH, times=1000) == 10
    clock.advance(1)
    assert take(limiter, "key", BOTH, times=1000) == 0


async def test_take_is_take_now_in_order(limiter):
    """A batch is decided as its items would be, one after the other."""
    asked = [Ask("a", TEN, 6), Ask("a", TEN, 6), Ask("b", TEN, 6), Ask("a", TEN, 4)]
    decisions = await limiter.take(asked)
    assert [decision.allowed for decision in decisions] == [True, False, True, True]
    assert [decision.states[0].remaining for decision in decisions] == [4, 4, 4, 0]


def test_wall_clock_steps_change_nothing():
    """Setting the wall clock neither refills a limit nor locks a caller out: nobody asks it."""
    clock = inspect.signature(MemoryLimiter).parameters["clock"].default
    assert clock is time.monotonic_ns
    assert not time.get_clock_info("monotonic").adjustable
    limiter = MemoryLimiter()
    day = (RateLimit("day", 2, 86_400),)
    assert take(limiter, "key", day, times=3) == 2


def test_an_unchanged_limit_keeps_its_state(limiter):
    """Adding a limit, or a change of another, resets nothing; a limit whose numbers change is
    full."""
    assert take(limiter, "key", TEN, times=10) == 10
    assert take(limiter, "key", BOTH) == 0
    equal = tuple(RateLimit(*limit) for limit in BOTH)
    assert take(limiter, "key", equal) == 0
    assert take(limiter, "key", (RateLimit("ten", 11, 1),), times=20) == 11


def test_room_is_taken_by_those_in_use_only(clock):
    """Keys whose limits are full again go as others come: the table does not grow for ever."""
    limiter = MemoryLimiter(max_entries=1000, clock=clock)
    for i in range(10_000):
        assert take(limiter, f"key-{i}") == 1
        clock.advance(0.01)
    assert len(limiter) < 50
    assert limiter.forgotten == 0


def test_bounded_memory(clock, caplog):
    """However many keys are in use at once, the table holds `max_entries`; the operator is told."""
    limiter = MemoryLimiter(max_entries=100, clock=clock)
    with caplog.at_level(logging.WARNING):
        for i in range(5000):
            take(limiter, f"key-{i}")
            assert len(limiter) <= 100
    assert limiter.forgotten == 4900
    assert len(caplog.records) == 1


def test_the_nearest_to_full_is_forgotten(clock):
    """Who has taken the most is the last to be forgotten."""
    limiter = MemoryLimiter(max_entries=8, clock=clock)
    for i in range(7):
        take(limiter, f"busy-{i}", BOTH, times=10)
    take(limiter, "quiet", BOTH)
    take(limiter, "new", BOTH, times=5)
    assert all(take(limiter, f"busy-{i}", BOTH) == 0 for i in range(7))
    assert take(limiter, "new", BOTH, times=10) == 5


def test_a_refused_newcomer_takes_no_room(clock):
    """What costs more than its limit leaves no trace."""
    limiter = MemoryLimiter(max_entries=1, clock=clock)
    take(limiter, "known", times=10)
    assert take(limiter, "new", cost=11) == 0
    assert len(limiter) == 1
    assert take(limiter, "known") == 0


def test_a_table_needs_room():
    """No entries at all would be no limits at all."""
    with pytest.raises(ValueError, match="max_entries"):
        MemoryLimiter(0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 2_000_000), st.integers(1, 12)),
        max_size=80,
    )
)
def test_forgetting_the_full_gives_nothing_away(schedule):
    """With room for all that is in use, every decision is that of a table without bound."""
    clock = Nanoseconds()
    limiter = MemoryLimiter(max_entries=12, clock=clock)
    arrivals: dict[str, tuple[int, ...]] = {}
    for key, step, cost in schedule:
        clock.now += step * 1000
        expected, after = decide(BOTH, arrivals.get(key, (0, 0)), cost, clock.now // 1000)
        arrivals[key] = tuple(after)
        taken = limiter.take_now(key, BOTH, cost)
        assert (taken.allowed, taken.states) == (expected.allowed, expected.states)
        assert (taken.retry_after, taken.deciding) == (expected.retry_after, expected.deciding)
    assert limiter.forgotten == 0
