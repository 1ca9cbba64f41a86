"""Which of several processes this is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Worker"]


class Worker(NamedTuple):
    """One of the processes that together are one server.

    Attributes:
        number: its place, from 1 to ``count``; one that is replaced leaves it to its successor.
        count: how many there are.
        folder: private to them all, empty at the start, and gone after the end.
    """

    number: int
    count: int  # type: ignore[assignment]  # hides tuple's method, which nobody needs here
    folder: Path
