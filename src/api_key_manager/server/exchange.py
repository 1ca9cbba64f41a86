"""One request and its answer as plain values, and the steps between them, which do no I/O.

The steps are a generator. It yields what it needs (credentials judged, the body, a pause) and
returns the answer. :class:`Exchange` takes it as far as it goes without waiting, which is all
the way for nearly every hot request, and waits only for the rest. So the ASGI app and the HTTP
protocol run the same steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeVar

from api_key_manager.core.models import Verdict
from api_key_manager.core.presented import Presented
from api_key_manager.server.errors import Headers

if TYPE_CHECKING:
    from api_key_manager.core.manager import KeyManager
    from api_key_manager.server.principal import Principal

__all__ = ["JSON", "Errand", "Exchange", "Need", "Reply", "Request", "Steps", "judged"]

T = TypeVar("T")
JSON: Final = b"application/json"


class Need(Enum):
    """``BODY``: the request's body. ``PAUSE``: a turn for others, after a long piece of work."""

    BODY = "body"
    PAUSE = "pause"


class Errand:
    """Something else that takes I/O; the steps are sent what comes of it."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], Awaitable[Any]]) -> None:
        self.run = run


# An enum gives its members slowly.
_BODY: Final = Need.BODY
_PAUSE: Final = Need.PAUSE

Wish = Sequence[Presented] | Errand | Literal[Need.BODY, Need.PAUSE]
Steps = Generator[Wish, Any, T]
"""Yields credentials (and is sent their verdicts, in order), a :class:`Need` or an errand."""


class Request(NamedTuple):
    """What is known of a request when its head is in. Its ``repr`` shows the id only."""

    method: str
    path: str
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    """As they came, names in lower case."""
    head: Mapping[bytes, Sequence[bytes]]
    """The values of the headers that count, by name."""
    client: Any
    """Host and port of the peer, or ``None``."""
    id: str
    ready: Principal | None = None
    """Who calls, when the app runs in the caller's own process."""
    raw_path: str = ""
    """As it came, where that was told and differs."""

    @property
    def undecoded(self) -> str:
        """The path as it came."""
        return self.raw_path or self.path

    def __repr__(self) -> str:
        # The headers hold credentials.
        return f"Request({self.id!r})"

    def with_id(self, request_id: str) -> Request:
        """The same request, come once more."""
        return self._replace(id=request_id)


class Reply(NamedTuple):
    """An answer that is complete."""

    body: bytes
    status: int = 200
    kind: bytes = JSON
    headers: Headers = ()

    def __repr__(self) -> str:
        return f"Reply({self.status})"


def judged(presented: Presented) -> Steps[Verdict]:
    """One verdict."""
    verdicts: list[Verdict] = yield (presented,)
    return verdicts[0]


class Exchange(Generic[T]):
    """Steps that are under way.

    Args:
        manager: judges.
        steps: not begun.
        body: of the request, when it is in already.
        now: Unix seconds, when the clock was read already.
    """

    __slots__ = ("_body", "_given", "_manager", "_now", "_steps", "_verdicts", "_wish")

    def __init__(
        self,
        manager: KeyManager,
        steps: Steps[T],
        body: bytes | None = None,
        now: float | None = None,
    ) -> None:
        self._manager = manager
        self._steps = steps
        self._body = body
        self._now = manager.clock() if now is None else now
        self._given: Any = None
        self._wish: Wish = ()
        self._verdicts: list[Verdict | None] = []

    def advance(self) -> T | None:
        """Go as far as it goes without waiting: to the result, else ``None``.

        Raises:
            ProblemError: the request is refused.
        """
        send, verify_now, now = self._steps.send, self._manager.verify_now, self._now
        given = self._given
        try:
            while True:
                wish = send(given)
                if wish is _BODY:
                    given = self._body
                    if given is None:
                        break
                elif wish is _PAUSE or isinstance(wish, Errand):
                    break
                else:
                    missing = False
                    given = verdicts = []
                    for presented in wish:
                        verdict = verify_now(presented, now)
                        missing = missing or verdict is None
                        verdicts.append(verdict)
                    if missing:
                        self._verdicts = verdicts
                        break
        except StopIteration as done:
            result: T = done.value
            return result
        self._wish = wish
        return None

    async def finish(self, read_body: Callable[[], Awaitable[bytes]]) -> T:
        """Go to the result, from wherever it stands.

        Raises:
            ProblemError: the request is refused.
        """
        while True:
            if self._wish != ():
                await self._fulfil(read_body)
            result = self.advance()
            if result is not None:
                return result

    async def _fulfil(self, read_body: Callable[[], Awaitable[bytes]]) -> None:
        wish, self._wish = self._wish, ()
        if wish is Need.BODY:
            self._given = self._body = await read_body()
        elif wish is Need.PAUSE:
            self._given = None
            await asyncio.sleep(0)
        elif isinstance(wish, Errand):
            self._given = await wish.run()
        else:
            self._given = await self._manager.complete(wish, self._verdicts, self._now)
        self._now = self._manager.clock()
