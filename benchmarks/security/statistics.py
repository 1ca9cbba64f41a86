"""Whether two series of times differ, by a rule that was fixed before anything was measured.

Two tests, since each is blind to something: Welch's t compares means (the test of dudect, whose
threshold is used here), Mann and Whitney's U compares ranks, which a few slow samples do not move.
With enough samples everything differs, so a difference counts from a size on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, variance
from typing import Final, Literal

__all__ = ["MOST_P", "MOST_T", "Difference", "Finding", "compare", "crop", "mann_whitney", "welch"]

MOST_T: Final = 4.5
"""Of dudect (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?", 2017)."""
MOST_P: Final = 1e-5
KEPT: Final = 0.9
"""Of the samples: the slowest tenth of both series together is the machine's, not the code's."""

Finding = Literal["differs", "no difference", "unclear"]


@dataclass(frozen=True)
class Difference:
    """What became of a comparison. Times in nanoseconds a call; ``low`` and ``high`` bound the
    difference of the means with 99.9 % confidence."""

    first: float
    second: float
    t: float
    p: float
    low: float
    high: float
    least: float

    @property
    def nanoseconds(self) -> float:
        return self.second - self.first

    @property
    def share(self) -> float:
        """The difference as a part of the first."""
        return self.nanoseconds / self.first

    @property
    def finding(self) -> Finding:
        """``unclear``: no difference was shown, and one that would count was not ruled out."""
        if abs(self.t) > MOST_T and self.p < MOST_P and abs(self.nanoseconds) >= self.least:
            return "differs"
        ruled_out = -self.least < self.low and self.high < self.least
        return "no difference" if ruled_out else "unclear"


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Welch's t of the means, positive when the second is the greater."""
    error = _error(first, second)
    apart = fmean(second) - fmean(first)
    if error == 0:
        return math.copysign(math.inf, apart) if apart else 0.0
    return apart / error


def _error(first: Sequence[float], second: Sequence[float]) -> float:
    return math.sqrt(variance(first) / len(first) + variance(second) / len(second))


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p of Mann and Whitney's U, by its normal approximation with the corrections for
    ties and for continuity: for series of more than 20."""
    a, b = len(first), len(second)
    total = a + b
    marked = sorted([(x, 0) for x in first] + [(x, 1) for x in second])
    ranks, before, ties = 0.0, 0, 0
    for _, group in groupby(marked, key=lambda pair: pair[0]):
        sides = [side for _, side in group]
        count = len(sides)
        ranks += (count - sum(sides)) * (before + (count + 1) / 2)
        before += count
        ties += count**3 - count
    u = ranks - a * (a + 1) / 2
    spread = math.sqrt(a * b / 12 * (total + 1 - ties / (total * (total - 1))))
    if spread == 0:
        return 1.0
    z = max(abs(u - a * b / 2) - 0.5, 0) / spread
    return math.erfc(z / math.sqrt(2))


def crop(first: Sequence[float], second: Sequence[float]) -> tuple[list[float], list[float]]:
    """Without what is slower than nine tenths of all: one bound for both, so that it favours
    neither."""
    bound = sorted([*first, *second])[math.ceil(KEPT * (len(first) + len(second))) - 1]
    return [x for x in first if x <= bound], [x for x in second if x <= bound]


def compare(first: Sequence[float], second: Sequence[float], least: float) -> Difference:
    """Judge two series.

    Args:
        first, second: nanoseconds a call, one number for each sample.
        least: nanoseconds from which a difference counts.
    """
    a, b = crop(first, second)
    if min(len(a), len(b)) < 2:  # one series is wholly slower than nearly all of the other
        a, b = list(first), list(second)
    apart, reach = fmean(b) - fmean(a), 3.29 * _error(a, b)
    return Difference(
        fmean(a), fmean(b), welch(a, b), mann_whitney(a, b), apart - reach, apart + reach, least
    )
