"""How what was measured is shown."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from textwrap import fill

__all__ = ["Table", "percentile"]


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so much of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


class Table:
    """Rows of a name, a value, and the most (or what else) that it may be."""

    def __init__(self, title: str, method: str) -> None:
        print(f"\n{title}\n\n{fill(method, 100)}\n")
        self.good = True

    def row(self, name: str, value: str, wanted: str = "", *, met: bool = True) -> None:
        """Print a row; one that is not met makes the whole fail."""
        self.good = self.good and met
        print(f"  {name:<62}{value:>14}{wanted:>14}{'' if met else '  missed'}", flush=True)
