"""Does the time of a refusal tell what was wrong?

python -m benchmarks.security [--quick]

The rule, fixed beforehand, stands in docs/security/timing.md. Ends with 0 when nothing was found,
1 when something was, and 2 when that cannot be said: a control was not found, the check of the
harness itself was, or the machine was too busy.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import ssl
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from api_key_manager.config import Settings
from api_key_manager.core.models import Kind
from api_key_manager.wiring import open_deployment
from benchmarks.security import subjects
from benchmarks.security.sampling import sample, sample_async
from benchmarks.security.statistics import Difference, compare, crop

LEAST_COMPARISON_NS: Final = 1.0
"""From here on a difference between places of a mismatch counts: less than one step of any loop."""
LEAST_JUDGED: Final = 0.001
"""The same of a whole judgement, as a part of its time: a loop over the bytes takes 0.14."""
LEAST_SHARE: Final = 0.02
"""And between an unknown key and a wrong secret, of the time of the validation."""
KINDS: Final[tuple[Kind, ...]] = ("bearer", "signed")
_MORE: Final = (1, 2, 4)
"""Times as many samples, where a smaller number leaves it unclear."""


class Report:
    """Prints each comparison, and knows in the end what they mean together."""

    def __init__(self) -> None:
        self.leaks: list[str] = []
        self.doubts: list[str] = []
        print(f"\n{'':<50}{'ns':>10}{'apart':>9}{'%':>8}{'t':>9}{'p':>10}  finding")

    def add(self, name: str, found: Difference, *, control: bool | None = None) -> None:
        """``control``: whether it is known that there is a difference; unknown by default."""
        print(
            f"{name:<50}{found.first:>10.1f}{found.nanoseconds:>+9.2f}{found.share:>+8.2%}"
            f"{found.t:>9.1f}{found.p:>10.1e}  {found.finding}", flush=True,
        )  # fmt: skip
        if control is None:
            if found.finding == "differs":
                self.leaks.append(name)
            elif found.finding == "unclear":
                self.doubts.append(name)
        elif control is not (found.finding == "differs"):
            self.doubts.append(name)

    def conclude(self) -> int:
        if self.doubts:
            print(f"\nInconclusive: {', '.join(self.doubts)}.")
            return 2
        if self.leaks:
            print(f"\nTime tells: {', '.join(self.leaks)}.")
            return 1
        print("\nNo difference that counts was found, and every control was.")
        return 0


def _judged(first: Sequence[float], second: Sequence[float], least: float) -> Difference:
    """The comparison, and the statistics again, by scipy."""
    from scipy import stats

    found = compare(first, second, least)
    a, b = crop(first, second)
    if min(len(a), len(b)) < 2:
        a, b = list(first), list(second)
    t: Any = stats.ttest_ind(b, a, equal_var=False).statistic
    p: Any = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert abs(t - found.t) <= 1e-6 * max(1, abs(t)), (t, found.t)
    assert abs(p - found.p) <= 1e-6 * max(p, 1e-12), (p, found.p)
    return found


def positions(report: Report, scale: int) -> None:
    """Where a MAC differs from the right one."""

    def ask(name: str, make: Any, calls: int, share: float) -> None:
        for more in _MORE:
            first, second = sample(make, 2_000 * scale * more, calls)
            found = _judged(first, second, share * median(first) or LEAST_COMPARISON_NS)
            if found.finding != "unclear":
                break
        report.add(name, found, control=True if "control" in name else None)

    for name, one in subjects.COMPARISONS.items():
        make = partial(subjects.comparing, one)
        ask(f"first/last byte, comparison, {name}", make, 200, 0)
    for kind in KINDS:
        for name in ("ours", "control: byte loop"):
            with subjects.comparing_by(subjects.COMPARISONS[name]):
                make = partial(subjects.judging, kind)
                ask(f"first/last byte, judge, {kind}, {name}", make, 20, LEAST_JUDGED)


async def existence(report: Report, folder: Path, scale: int) -> None:
    """Whether there is such a key."""
    settings = Settings.load(
        DATABASE_URL=f"sqlite:///{folder}/data/akm.db",
        AKM_MASTER_KEY_FILE=str(folder / "keys" / "akm.key"),
        ALLOW_STATIC_SIGNATURES=False,
    )
    async with open_deployment(settings) as deployment:
        manager = deployment.manager

        async def between() -> None:
            await manager.recorder.flush(manager.clock())

        for kind in KINDS:
            classes = await subjects.refusing(manager, kind)
            for more in _MORE:
                same, unknown, wrong = await sample_async(classes, 1_000 * scale * more, 5, between)
                least = LEAST_SHARE * median(unknown)
                nothing = _judged(same, unknown, least)
                found = _judged(unknown, wrong, least)
                if "unclear" not in (nothing.finding, found.finding):
                    break
            report.add(f"unknown/unknown, {kind}, control: nothing", nothing, control=False)
            report.add(f"unknown/wrong secret, {kind}, ours", found)
            with subjects.unproved(manager):
                _, unknown, wrong = await sample_async(classes, 1_000 * scale, 5, between)
            found = _judged(unknown, wrong, least)
            report.add(f"unknown/wrong secret, {kind}, control: no decoy", found, control=True)


def main() -> int:
    logging.disable(logging.ERROR)
    scale = 1 if "--quick" in sys.argv[1:] else 10
    print(f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {platform.machine()}")
    report = Report()
    positions(report, scale)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(existence(report, Path(folder), scale))
    return report.conclude()


if __name__ == "__main__":
    sys.exit(main())
