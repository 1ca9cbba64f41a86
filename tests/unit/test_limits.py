"""The arithmetic of rate limits: GCRA, exactly; and what clients are told of it."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from throttled import rate_limiter, store, utils

from api_key_manager.core.limits import LimitState, RateLimit, decide, ratelimit_headers

SECOND = 1_000_000
NOW = 7 * SECOND
EXACT = 2**52
"""Microseconds that a float of seconds still tells apart."""

# Odd numbers on purpose: window / limit is no whole number of microseconds for most of them.
rate_limits = st.builds(
    RateLimit,
    st.just("a"),
    st.one_of(st.integers(1, 20), st.integers(1, 1_000_000_000)),
    st.one_of(st.integers(1, 10), st.integers(1, 31_536_000)),
)
# Such as people set, where bursts are soon used up and few intervals are whole microseconds.
small_limits = st.builds(RateLimit, st.just("a"), st.integers(1, 13), st.integers(1, 10))
busy_schedules = st.lists(
    st.tuples(st.integers(0, SECOND), st.integers(1, 3)), min_size=10, max_size=40
)
# Steps of time between requests (µs), and what each one costs.
schedules = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 3 * SECOND), st.integers(0, 10**14)),
        st.one_of(st.just(1), st.integers(1, 30)),
    ),
    max_size=40,
)


def run(limits, schedule, start=NOW):
    """Decide one after the other; yields the instant, the cost and the decision."""
    arrivals, now = (0,) * len(limits), start
    for step, cost in schedule:
        now += step
        decision, arrivals = decide(limits, arrivals, cost, now)
        yield now, cost, decision, arrivals


def test_a_burst_then_a_steady_flow():
    """A quiet caller may take the whole limit at once, then one per window / limit."""
    limit = RateLimit("a", 10, 1)
    burst = [d.allowed for _, _, d, _ in run([limit], [(0, 1)] * 12)]
    assert burst == [True] * 10 + [False] * 2
    later = [(0, 1)] * 10 + [(100_000, 1), (99_999, 1), (1, 1)]
    assert [d.allowed for _, _, d, _ in run([limit], later)][10:] == [True, False, True]


def test_states_of_an_accepted_request():
    """What is left, and when the limit is full again, are told after the request itself."""
    decision, _ = decide([RateLimit("a", 10, 60)], (0,), 4, NOW)
    assert decision.allowed
    assert decision.states == (LimitState("a", 10, 60, 6, 24.0),)
    assert decision.left_of_only() == (6, 24)
    assert (decision.retry_after, decision.refused_by) == (0.0, None)
    assert not decision.never


@given(rate_limits, schedules)
def test_never_more_than_the_limit(limit, schedule):
    """In any span of time at most limit + span * limit / window is accepted."""
    taken = [(at, cost) for at, cost, decision, _ in run([limit], schedule) if decision.allowed]
    per_microsecond = Fraction(limit.limit, limit.window_seconds * SECOND)
    for i, (since, _) in enumerate(taken):
        total = 0
        for at, cost in taken[i:]:
            total += cost
            assert total <= limit.limit + (at - since) * per_microsecond


@given(st.one_of(small_limits, rate_limits), st.one_of(busy_schedules, schedules))
def test_whoever_waits_as_told_passes(limit, schedule):
    """A refused request passes after `retry_after`, and not a microsecond earlier."""
    arrivals, now = (0,), NOW
    for step, cost in schedule:
        now += step
        decision, arrivals = decide([limit], arrivals, cost, now)
        if decision.allowed or decision.never:
            assert decision.never is (cost > limit.limit)
            assert decision.retry_after == 0
            continue
        wait = round(decision.retry_after * SECOND)
        if wait < EXACT:
            assert decide([limit], arrivals, cost, now + wait)[0].allowed
            assert not decide([limit], arrivals, cost, now + wait - 1)[0].allowed


@given(st.one_of(small_limits, rate_limits), st.one_of(busy_schedules, schedules))
def test_what_is_said_to_be_left_can_be_taken(limit, schedule):
    """`remaining` passes at once and one more does not; after `reset_seconds` all of it does."""
    for now, _, decision, arrivals in run([limit], schedule):
        (state,) = decision.states
        left = state.remaining
        assert 0 <= left <= limit.limit
        assert not decide([limit], arrivals, left + 1, now)[0].allowed
        assert left == 0 or decide([limit], arrivals, left, now)[0].allowed
        wait = round(state.reset_seconds * SECOND)
        if wait < EXACT:
            assert decide([limit], arrivals, limit.limit, now + wait)[0].allowed
            if wait:
                assert not decide([limit], arrivals, limit.limit, now + wait - 1)[0].allowed


@given(st.lists(rate_limits, min_size=1, max_size=4), schedules)
def test_a_refusal_takes_nothing(limits, schedule):
    """All limits or none: what one of them refuses leaves every state as it was."""
    before = (0,) * len(limits)
    for _, _, decision, after in run(limits, schedule):
        if not decision.allowed:
            assert list(after) == list(before)
        before = after


@given(st.lists(rate_limits, min_size=1, max_size=4), schedules)
def test_limits_are_decided_together(limits, schedule):
    """A request passes if and only if each limit alone, charged alike, would let it through."""
    alone = [0] * len(limits)
    now = NOW
    for step, cost in schedule:
        now += step
        decision, after = decide(limits, tuple(alone), cost, now)
        each = [decide([limit], (alone[i],), cost, now) for i, limit in enumerate(limits)]
        assert decision.allowed is all(single.allowed for single, _ in each)
        if decision.allowed:
            alone = [arrivals[0] for _, arrivals in each]
            assert list(after) == alone
        else:
            assert not each[decision.refused_by][0].allowed
            waits = [single.retry_after for single, _ in each if not single.allowed]
            never = any(single.never for single, _ in each)
            assert decision.retry_after == (0 if never else max(waits))


def test_a_clock_that_stands_still():
    """Nothing refills while no time passes."""
    limit = RateLimit("a", 5, 1)
    decisions = [d.allowed for _, _, d, _ in run([limit], [(0, 1)] * 100)]
    assert sum(decisions) == 5


def test_nothing_drifts():
    """3 a second are 3 million in a million seconds, though 1/3 s is no number of microseconds."""
    limit, arrivals, count = RateLimit("a", 3, 1), (0,), 0
    for step in range(30_000):
        decision, arrivals = decide([limit], arrivals, 1, NOW + step * 100_000)
        count += decision.allowed
    assert count == 3 + 3 * 3000 - 1  # the burst, then three a second until the last step


def test_cost_above_the_limit_never_passes():
    """Waiting is no use for it, so none is told; cheaper requests still pass."""
    limits = [RateLimit("big", 100, 60), RateLimit("small", 5, 3600)]
    decision, arrivals = decide(limits, (0, 0), 6, NOW)
    assert (decision.allowed, decision.never, decision.retry_after) == (False, True, 0)
    assert decision.deciding.name == "small"
    assert decide(limits, arrivals, 5, NOW)[0].allowed


def test_deciding_limit():
    """The one to wait for the longest refused; else the one with the smallest share left."""
    limits = [RateLimit("wide", 100, 60), RateLimit("tight", 2, 60), RateLimit("tighter", 2, 90)]
    decision, arrivals = decide(limits, (0, 0, 0), 2, NOW)
    assert decision.deciding.name == "tight"
    decision, _ = decide(limits, arrivals, 1, NOW)
    assert (decision.deciding.name, decision.retry_after) == ("tighter", 45.0)


@given(
    # All instants are multiples of 1/64 s, which microseconds and floats both hold exactly.
    limit=st.sampled_from([1, 2, 4, 8, 16, 64]),
    window=st.sampled_from([1, 2, 8, 64, 4096]),
    schedule=st.lists(
        st.tuples(
            st.one_of(st.just(0), st.integers(0, 64), st.integers(0, 64 * 5000)),
            st.one_of(st.just(1), st.integers(1, 70)),
        ),
        max_size=60,
    ),
)
def test_decides_as_throttled_py_does(limit, window, schedule):
    """Ours and the GCRA of throttled-py agree on every request of any schedule."""
    ours = [RateLimit("a", limit, window)]
    arrivals, now = (0,), NOW

    def clock() -> float:
        return now / SECOND

    quota = rate_limiter.Quota(rate_limiter.Rate(timedelta(seconds=window), limit), limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "now_mono_f", clock)
        theirs = rate_limiter.RateLimiterRegistry.get("gcra")(quota, store.MemoryStore())
        for step, cost in schedule:
            now += step * 15_625  # 1/64 s
            decision, arrivals = decide(ours, arrivals, cost, now)
            result = theirs.limit("key", cost)
            assert decision.allowed is not result.limited
            if cost <= limit:
                (state,) = decision.states
                assert decision.retry_after == result.state.retry_after
                assert state.reset_seconds == result.state.reset_after
                assert state.remaining == result.state.remaining


def test_headers_of_an_accepted_request():
    """One member per limit, names as quoted strings, whole seconds."""
    limits = [RateLimit("burst", 10, 1), RateLimit("hour", 1000, 3600)]
    decision, _ = decide(limits, (0, 0), 5, NOW)
    assert ratelimit_headers(decision.states, decision.retry_after) == [
        (b"ratelimit-policy", b'"burst";q=10;w=1, "hour";q=1000;w=3600'),
        (b"ratelimit", b'"burst";r=5;t=1, "hour";r=995;t=18'),
    ]


def test_headers_of_a_refusal():
    """`Retry-After` is whole seconds, rounded up, and at least 1."""
    limits = [RateLimit("burst", 10, 1)]
    _, arrivals = decide(limits, (0,), 10, NOW)
    decision, _ = decide(limits, arrivals, 1, NOW)
    assert decision.retry_after == 0.1
    assert ratelimit_headers(decision.states, decision.retry_after) == [
        (b"ratelimit-policy", b'"burst";q=10;w=1'),
        (b"ratelimit", b'"burst";r=0;t=1'),
        (b"retry-after", b"1"),
    ]


def test_headers_of_nothing():
    """No limits, no fields; no waiting, no Retry-After."""
    assert ratelimit_headers((), 0.0) == []
    decision, _ = decide([RateLimit("a", 1, 1)], (0,), 2, NOW)
    assert b"retry-after" not in dict(ratelimit_headers(decision.states, decision.retry_after))


@given(st.lists(rate_limits, min_size=1, max_size=8), schedules)
def test_headers_are_lists_of_rfc_9651(limits, schedule):
    """Whatever the numbers: integers of at most 15 digits, and names that need no escape."""
    member = rb'"[a-z0-9_-]{1,32}"(;[a-z]=\d{1,15}){2}'
    for _, _, decision, _ in run(limits, schedule):
        for name, value in ratelimit_headers(decision.states, decision.retry_after):
            if name == b"retry-after":
                assert int(value) >= 1
            else:
                assert re.fullmatch(member + rb"(, " + member + rb")*", value)
