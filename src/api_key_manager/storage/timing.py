"""How long operations of a store take, told to whoever wants to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["Observe", "reads", "untold", "writes"]

P = ParamSpec("P")
T = TypeVar("T")

Observe = Callable[[str, str, float], None]
"""Is told ``read`` or ``write``, the operation's name, and the seconds that its caller waited."""


class _Observed(Protocol):
    observe: Observe


S = TypeVar("S", bound=_Observed)
Operation = Callable[Concatenate[S, P], Awaitable[T]]
Timed = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def untold(access: str, operation: str, seconds: float) -> None:
    """For stores whose times nobody wants."""


def reads(operation: Operation[S, P, T]) -> Timed[S, P, T]:
    """Tell how long a coroutine method that only reads took, also when it failed.

    Told in the event loop's thread, so that plain numbers can be counted without a lock.
    """
    return _timed("read", operation)


def writes(operation: Operation[S, P, T]) -> Timed[S, P, T]:
    """The same of one that writes."""
    return _timed("write", operation)


def _timed(access: str, operation: Operation[S, P, T]) -> Timed[S, P, T]:
    name = operation.__name__

    @wraps(operation)
    async def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        started = perf_counter()
        try:
            return await operation(self, *args, **kwargs)
        finally:
            self.observe(access, name, perf_counter() - started)

    return run
