"""One connection to Redis: what is asked in a turn of the event loop goes out in one write, and
what is answered goes back in order.

The protocol is RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/): answers come
in the order of the questions and carry nothing that says whose they are. So a question that nobody
waits for any longer keeps its place in the line until its answer has come, and a connection that
owes one past its deadline gets no new questions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast

import hiredis

from api_key_manager.connections.redis_errors import RedisReplyError
from api_key_manager.core.exceptions import StorageError

__all__ = ["Wire", "WireOwner", "Word", "pack"]

Word = str | bytes | int
"""One argument of a command."""
# Its stub knows tuples of one only.
pack = cast("Callable[[tuple[Word, ...]], bytes]", hiredis.pack_command)
"""A command as it goes over the wire."""

_PER_PIPELINE: Final = 512
_MAX_WAITING: Final = 16_384
_MAX_ANSWER: Final = 32 * 1024 * 1024
_CONNECT_SECONDS: Final = 2.0
_GRACE_SECONDS: Final = 0.01
_REPLICA_SECONDS: Final = 1.0


class WireOwner(Protocol):
    """Who opened a connection, and is told how it goes."""

    pipelines: int

    def answered(self) -> None:
        """The server has given answers."""
        ...

    def missed(self, why: str) -> None:
        """A question failed for want of a server that answers."""
        ...

    def retired(self, wire: Wire) -> None:
        """It takes no new questions."""
        ...


class Wire(asyncio.Protocol):
    """A connection from before it is made until it is lost.

    Args:
        owner: is told how it goes.
        greeting: commands that come first; nothing else is sent before they have succeeded.
        timeout: seconds that each question may take, from when it was asked.
        hear: is given what comes unasked. Without it, that is the end of the connection.
    """

    def __init__(
        self,
        owner: WireOwner,
        greeting: Sequence[tuple[str, ...]],
        timeout: float,
        hear: Callable[[Any], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._greeting = greeting
        self._greeted = 0
        self._timeout = timeout
        self._hear = hear
        self._reader = hiredis.Reader(notEnoughData=self)
        self._unread = 0
        self._unsent: list[bytes] = []
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._grace = False
        self._sending = False
        self._paused = False
        self._retired = False
        self._made_at = self._loop.time()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done once questions are sent; failed with the reason if that never came."""
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done once the connection is no more."""

    async def open(self, connect: Callable[[Callable[[], Wire]], Awaitable[Wire]]) -> None:
        """Connect and greet. Never raises: who asked is told, and so is the owner."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await connect(lambda: self)
                await asyncio.wait([self.ready])
        except TimeoutError:
            self.drop(f"no connection within {_CONNECT_SECONDS:g} s")
        except OSError as error:
            # A name that cannot be resolved, a refused connection, a certificate not believed.
            why = getattr(error, "verify_message", None) or error.strerror or "refused"
            self.drop(f"no connection: {why}")

    def ask(self, packed: bytes) -> asyncio.Future[Any]:
        """Send a packed command with all others of this turn.

        Raises:
            StorageError: too many wait already.
        """
        waiting = self._waiting
        if len(waiting) >= _MAX_WAITING:
            raise StorageError("too many calls wait for Redis")
        future = self._loop.create_future()
        waiting.append((future, self._loop.time() + self._timeout))
        self._unsent.append(packed)
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look)
        return future

    def tell(self, packed: bytes) -> None:
        """Send a packed command whose answer is heard, not awaited."""
        if self._transport is not None:
            self._transport.write(packed)

    def drop(self, why: str, *, broken: bool = False) -> None:
        """End it at once; whoever waits fails.

        Args:
            why: in words.
            broken: a failure also if nobody waits.
        """
        if self._transport is not None:
            self._transport.abort()
        if self.lost.done():
            return
        self.lost.set_result(None)
        if self._watch is not None:
            self._watch.cancel()
        waited = broken or not self.ready.done()
        if not self.ready.done():
            self.ready.set_exception(StorageError(f"Redis: {why}"))
            self.ready.exception()  # Nobody may be looking.
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(StorageError(f"Redis: {why}"))
                waited = True
        self._waiting.clear()
        self._unsent.clear()
        self._owner.retired(self)
        # A server may close a connection that nobody uses.
        if waited:
            self._owner.missed(why)

    def _retire(self) -> None:
        self._retired = True
        self._owner.retired(self)

    def _send(self) -> None:
        self._sending = False
        transport, unsent = self._transport, self._unsent
        if transport is None or not self.ready.done():
            return
        while unsent and not self._paused:
            transport.write(b"".join(unsent[:_PER_PIPELINE]))
            del unsent[:_PER_PIPELINE]
            self._owner.pipelines += 1

    def _look(self) -> None:
        """Whether the oldest question is past its deadline."""
        self._watch = None
        waiting, now = self._waiting, self._loop.time()
        due = [future for future, deadline in waiting if deadline <= now and not future.done()]
        if due and not self._grace:
            # If the loop stood still, the answers may be here and only unread: read first.
            self._grace = True
            self._watch = self._loop.call_later(_GRACE_SECONDS, self._look)
            return
        self._grace = False
        why = f"no answer within {self._timeout:g} s"
        for future in due:
            future.set_exception(StorageError(f"Redis: {why}"))
            self._owner.missed(why)
        left = next((deadline for future, deadline in waiting if not future.done()), None)
        if left is not None:
            self._watch = self._loop.call_later(max(0.0, left - now), self._look)
        if due and self.ready.done():
            self._retire()
            if left is None:
                self.drop(why)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.lost.done():
            self._transport.abort()
            return
        if self._greeting:
            self._transport.write(b"".join(map(pack, self._greeting)))
        else:
            self._begin()

    def _begin(self) -> None:
        # What nobody waits for any longer must not be done now.
        live = [(c, w) for c, w in zip(self._unsent, self._waiting, strict=True) if not w[0].done()]
        self._unsent[:] = [command for command, _ in live]
        self._waiting = deque(waiter for _, waiter in live)
        self.ready.set_result(None)
        self._send()

    def data_received(self, data: bytes) -> None:
        reader, refusal, good = self._reader, hiredis.ReplyError, False
        self._unread += len(data)
        if self._unread > _MAX_ANSWER:
            self.drop(f"an answer of more than {_MAX_ANSWER} bytes")
            return
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not self:
                self._unread = 0
                if not self.ready.done():
                    self._greet(answer)
                elif self._hear is not None:
                    self._hear(answer)
                elif not self._waiting:
                    self.drop("an answer to no question", broken=True)
                else:
                    future, _ = self._waiting.popleft()
                    if type(answer) is refusal:
                        good = not self._refuse(future, RedisReplyError(answer)) or good
                    else:
                        good = True
                        if not future.done():
                            future.set_result(answer)
                if self.lost.done():
                    return
        except hiredis.ProtocolError:
            self.drop("what answers there does not speak its protocol", broken=True)
            return
        if good:
            self._owner.answered()
        if self._retired and not self._waiting:
            self.drop("retired")

    def _greet(self, answer: Any) -> None:
        if isinstance(answer, hiredis.ReplyError):
            self.drop(str(RedisReplyError(answer)).removeprefix("Redis "))
            return
        self._greeted += 1
        if self._greeted == len(self._greeting):
            self._begin()

    def _refuse(self, future: asyncio.Future[Any], error: RedisReplyError) -> bool:
        """Whether the whole server is away."""
        if not future.done():
            future.set_exception(error)
        if error.away:
            self._owner.missed(str(error).removeprefix("Redis "))
        elif error.code == "READONLY" and self._loop.time() > self._made_at + _REPLICA_SECONDS:
            # After a failover the same name may lead to the new primary.
            self._retire()
        return error.away

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop("the connection was lost")
