"""Rounds of interleaved measurements, and how they are shown.

These machines are noisy: every case is measured in turn in every round beside the same baseline,
and what counts is the median of the ratios of one round, not a time.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Work = Callable[[], Awaitable[None]]


@dataclass
class Case:
    """Something to measure.

    ``work`` does ``count`` of it; ``baseline`` names the case it is compared with; ``target`` is
    the most that the ratio may be.
    """

    name: str
    work: Work
    count: int
    baseline: str | None = None
    target: float | None = None
    before: Work | None = None
    cpu: bool = False
    target_us: float | None = None
    times: list[float] = field(default_factory=list)


async def measure(cases: list[Case], rounds: int = 15) -> None:
    for _ in range(rounds + 1):
        for case in cases:
            if case.before is not None:
                await case.before()
            clock = time.process_time if case.cpu else time.perf_counter
            start = clock()
            await case.work()
            case.times.append((clock() - start) / case.count * 1e6)
            await asyncio.sleep(0)
    for case in cases:
        del case.times[0]  # the first round warms up


def show(title: str, cases: list[Case]) -> bool:
    """Print the table; says whether every target was met."""
    by_name = {case.name: case for case in cases}
    print(f"\n{title}\n")
    print(f"{'':<58}{'µs':>10}{'min':>10}{'ratio':>8}{'at most':>9}")
    good = True
    for case in cases:
        median, least = statistics.median(case.times), min(case.times)
        ratio, limit, mark = "", "", ""
        if case.baseline is not None:
            pairs = zip(case.times, by_name[case.baseline].times, strict=True)
            value = statistics.median(mine / theirs for mine, theirs in pairs)
            ratio = f"{value:.2f}"
            if case.target is not None:
                limit, met = f"{case.target:.1f}", value <= case.target
                mark, good = ("" if met else "  missed"), good and met
        if case.target_us is not None:
            limit, met = f"{case.target_us:.0f} µs", median <= case.target_us
            mark, good = ("" if met else "  missed"), good and met
        print(f"{case.name:<58}{median:>10.2f}{least:>10.2f}{ratio:>8}{limit:>9}{mark}")
    return good
