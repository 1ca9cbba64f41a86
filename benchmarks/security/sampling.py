"""Times of several classes of calls, so taken that what else the machine does hits all alike."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Final

__all__ = ["sample", "sample_async"]

Call = Callable[[], object]
Slow = Callable[[], Awaitable[object]]
_BLOCK: Final = 100


@contextmanager
def _quiet() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def sample(
    make: Callable[[], Sequence[Sequence[Call]]], samples: int, calls: int
) -> list[list[float]]:
    """Nanoseconds a call, ``samples`` numbers for each class that ``make`` makes.

    Each sample is ``calls`` calls of one variant of its class, chosen at random. Where a variant
    lies in memory makes nanoseconds of its own, so that variants are made anew again and again:
    differences of a few dozens of them would be taken for one of the classes. Classes take turns in
    an order that is drawn anew each time, after a warm-up; the garbage collector is off.
    """
    times: list[list[float]] = [[] for _ in make()]
    order, draw = list(range(len(times))), random.Random()
    with _quiet():
        for at in range(-_BLOCK, samples):
            if at % _BLOCK == 0:
                classes = make()
            draw.shuffle(order)
            for which in order:
                call, repeat = draw.choice(classes[which]), range(calls)
                call()
                start = perf_counter_ns()
                for _ in repeat:
                    call()
                taken = perf_counter_ns() - start
                if at >= 0:
                    times[which].append(taken / calls)
    return times


async def sample_async(
    classes: Sequence[Sequence[Slow]], samples: int, calls: int, between: Slow
) -> list[list[float]]:
    """The same of what is awaited; ``between`` is awaited now and then, outside of the times."""
    times: list[list[float]] = [[] for _ in classes]
    order, draw = list(range(len(classes))), random.Random()
    with _quiet():
        for at in range(-(samples // 10), samples):
            if at % 50 == 0:
                await between()
            draw.shuffle(order)
            for which in order:
                variants, repeat = draw.choices(classes[which], k=calls), range(calls)
                start = perf_counter_ns()
                for i in repeat:
                    await variants[i]()
                taken = perf_counter_ns() - start
                if at >= 0:
                    times[which].append(taken / calls)
    return times
