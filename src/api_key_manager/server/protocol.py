"""uvicorn's httptools protocol, with the bounds that it lacks: on the number of connections, of
requests that wait on one, on the size of a request's head, and on the time until it is complete.
Without them a stranger fills the memory, or every connection.

One deadline runs whenever nothing is asked of this server: from the connection on, within a head,
and behind an answer. No byte prolongs it but the first of a request: blank lines, or a body that
nobody reads, rather shorten it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from api_key_manager.server.errors import PROBLEM_TYPE, RETRY_SECONDS, ProblemError

__all__ = ["HEAD_SECONDS", "MAX_CONNECTIONS", "MAX_HEAD", "MAX_PIPELINED", "BoundedProtocol"]

MAX_HEAD: Final = 64 * 1024
MAX_CONNECTIONS: Final = 4096
MAX_PIPELINED: Final = 256
"""Requests behind one that is being answered; a connection that sends more is closed."""
HEAD_SECONDS: Final = 15

_NEVER: Final = float("inf")
_CROWDED: Final = ProblemError(
    503, "unavailable", "There are too many connections. Try again in a moment.",
    headers=[(b"retry-after", b"%d" % RETRY_SECONDS)],
)  # fmt: skip


class _TooManyError(Exception):
    """Makes the parser stop within what was read."""


class _Flow(FlowControl):
    """Reads no more while requests wait: uvicorn would, with every answer."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """A head that comes whole in one read, as nearly all do, costs a few comparisons."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_size = 0
        # Whether the last read was part of what somebody waits for.
        self._moved = False
        self._deadline = _NEVER
        self._watch: asyncio.TimerHandle | None = None

    @property
    def _busy(self) -> bool:
        """Whether the app works at an answer."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(_CROWDED)
            return
        self._deadline = self.loop.time() + HEAD_SECONDS
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own may say so
        """Whether the connection stays: the client sends no more, but waits for an answer."""
        if not self._busy or self.scheme == "https":  # TLS knows no half of a connection
            return False
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        was_in_head, self._moved = self._in_head, False
        super().data_received(data)
        if self._in_head:
            # The read in which a head begins may hold the end of another body: not counted.
            self._head_size += len(data) if was_in_head else 0
            if self._head_size > MAX_HEAD and not self.transport.is_closing():
                self._refuse(
                    ProblemError(431, "too_large", f"A head has at most {MAX_HEAD} bytes.")
                )
        elif not (self._moved or self._busy):
            self._deadline = min(self._deadline, self.loop.time() + HEAD_SECONDS)

    def on_message_begin(self) -> None:
        self._head_begins()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_ends()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _TooManyError
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._busy:
            seconds = HEAD_SECONDS if self._in_head else self.timeout_keep_alive
            self._deadline = self.loop.time() + seconds

    def send_400_response(self, msg: str) -> None:
        cycle = self.cycle
        if self._busy and (self.pipeline or not cycle.more_body or cycle.response_started):
            # It would be taken for the answer to a request before.
            self.transport.close()
        else:
            self._refuse(ProblemError(400, "malformed", "This is not HTTP."))

    def _head_begins(self) -> None:
        self._in_head = self._moved = True
        self._head_size = 0
        self._deadline = self.loop.time() + HEAD_SECONDS

    def _head_ends(self) -> None:
        self._in_head = False
        self._moved = True
        self._deadline = _NEVER

    def _refuse(self, problem: ProblemError) -> None:
        """Say what is wrong with the connection itself, and end it."""
        body = problem.body(None)
        lines = [
            b"content-type: %b\r\n" % PROBLEM_TYPE.encode(),
            b"content-length: %d\r\n" % len(body),
            *(b"%b: %b\r\n" % header for header in problem.headers),
            b"connection: close\r\n\r\n",
        ]
        self.transport.write(b"".join([STATUS_LINE[problem.status], *lines, body]))
        self.transport.close()

    def _look_later(self) -> None:
        # One timer a connection that looks now and then, not one a request.
        self._watch = self.loop.call_later(HEAD_SECONDS / 3, self._look)

    def _look(self) -> None:
        self._watch = None
        if self.transport.is_closing():
            return
        if self.loop.time() >= self._deadline and not self._busy:
            self._too_late()
        else:
            self._look_later()

    def _too_late(self) -> None:
        self.transport.close()
