"""What every database does with a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from api_key_manager.connections import Script

__all__ = ["Driver"]

P = ParamSpec("P")
T = TypeVar("T")


class Driver(Protocol):
    """Runs scripts on one database. A script is named with its arguments, not begun: what failed
    for a reason that passes can be run again from its start.

    Every method raises ``StorageError`` when the database cannot do it.
    """

    async def read(self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short script that only reads; each of its statements sees one state."""
        ...

    async def read_aside(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a long one, all of it on one state; short ones do not wait for it."""
        ...

    async def write(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a script in a transaction; returns once that is durable."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the database."""
        ...
