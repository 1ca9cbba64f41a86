"""The statistics of the timing harness find what is there, and nothing that is not."""

from __future__ import annotations

import random

import pytest

from benchmarks.security.sampling import sample
from benchmarks.security.statistics import compare, crop, mann_whitney, welch


def noise(seed: int, mean: float = 1000, count: int = 4000) -> list[float]:
    """Like times: a bell, and now and then something long."""
    draw = random.Random(seed)
    return [
        draw.gauss(mean, 20) + (draw.expovariate(1 / 5000) if draw.random() < 0.02 else 0)
        for _ in range(count)
    ]


def test_welch_by_a_worked_example():
    """Two short series, by hand: means 3 and 6, variances 2.5 and 10, five of each."""
    assert welch([1, 2, 3, 4, 5], [2, 4, 6, 8, 10]) == pytest.approx(3 / (12.5 / 5) ** 0.5)


def test_mann_whitney_by_worked_examples():
    """U and its spread by hand: no overlap, many ties, nothing but ties."""
    low, high = list(range(30)), list(range(30, 60))
    z = (450 - 0.5) / (30 * 30 * 61 / 12) ** 0.5
    assert mann_whitney(low, high) == pytest.approx(2 * tail(z))
    assert mann_whitney(high, low) == mann_whitney(low, high)
    # 20 zeros and 10 ones beside 10 zeros and 20 ones: U = 300, ties of 30 and 30.
    z = (150 - 0.5) / (900 / 12 * (61 - 2 * (30**3 - 30) / (60 * 59))) ** 0.5
    found = mann_whitney([0] * 20 + [1] * 10, [0] * 10 + [1] * 20)
    assert found == pytest.approx(2 * tail(z))
    assert mann_whitney([1] * 30, [1] * 30) == 1


def tail(z: float) -> float:
    """The normal distribution's upper tail, by summing it up."""
    steps, width = 200_000, 12 / 200_000
    density = sum(2.718281828459045 ** (-((z + (i + 0.5) * width) ** 2) / 2) for i in range(steps))
    return density * width / (2 * 3.141592653589793) ** 0.5


def test_the_same_is_the_same():
    """Twenty pairs of series of one kind: none is said to differ, and that is certain."""
    for seed in range(0, 40, 2):
        found = compare(noise(seed), noise(seed + 1), least=10)
        assert found.finding == "no difference", (seed, found)


def test_a_small_difference_is_found():
    """Five parts in a thousand, far below the noise of one sample, either way round."""
    for seed in range(0, 20, 2):
        found = compare(noise(seed), noise(seed + 1, 1005), least=2)
        assert found.finding == "differs", (seed, found)
        assert found.nanoseconds == pytest.approx(5, abs=2)
        assert found.low > 0
        turned = compare(noise(seed + 1, 1005), noise(seed), least=2)
        assert turned.finding == "differs"
        assert turned.nanoseconds < 0


def test_a_real_difference_below_the_size_that_counts():
    """With enough samples everything differs: what is too small to count is not called one."""
    found = compare(noise(1, count=40_000), noise(2, 1005, 40_000), least=20)
    assert found.t > 4.5
    assert found.finding == "no difference"


def test_few_samples_prove_nothing():
    """Where a difference that would count cannot be ruled out, that is said."""
    assert compare(noise(1, count=20), noise(2, count=20), least=1).finding == "unclear"


def test_ranks_alone_or_means_alone_are_not_enough():
    """A few very slow samples move the mean, not the ranks: nothing is made of that."""
    slow = noise(4)
    for i in range(0, 4000, 20):
        slow[i] += 1_000_000
    assert compare(noise(3), slow, least=10).finding == "no difference"


def test_what_is_cropped():
    """One bound for both, at nine tenths of all."""
    first, second = list(range(100)), list(range(100, 200))
    assert crop(first, second) == (first, second[:80])


def test_a_wholly_slower_class():
    """What is never as fast as the other is found, though cropping leaves little of it."""
    assert compare([1.0, 2.0] * 100, [9.0, 9.5], least=1).finding in ("differs", "unclear")
    assert compare(noise(1), noise(2, 5000), least=1).finding == "differs"


def test_classes_take_turns_in_no_fixed_order():
    """No class is always first, all are taken equally often, and the warm-up is not counted."""
    seen: list[int] = []
    calls = [[lambda which=which: seen.append(which)] for which in range(3)]
    made = []
    times = sample(lambda: made.append(1) or calls, samples=200, calls=1)
    assert [len(one) for one in times] == [200, 200, 200]
    assert [seen.count(which) for which in range(3)] == [2 * 300] * 3
    assert len(made) == 4  # to know how many classes there are, to warm up, and for each hundred
    first = [seen[i] for i in range(0, len(seen), 6)]
    assert all(60 < first.count(which) < 140 for which in range(3))
