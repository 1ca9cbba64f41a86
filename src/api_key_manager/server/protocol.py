"""uvicorn's httptools protocol, with the bounds that it lacks: on the number of connections, of
requests that wait on one, on the size of a request's head, and on the time until it is complete.
Without them a stranger fills the memory, or every connection.

One deadline runs whenever nothing is asked of this server: from the connection on, within a head,
and behind an answer. No byte prolongs it but the first of a request: blank lines, or a body that
nobody reads, rather shorten it. Another one runs while a client does not take its answers.

What stands behind a chunked body is no part of the head, whatever it is called (RFC 9110 section
6.5.1): a proxy that cleans heads lets trailers through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Any, Final

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from api_key_manager.server.errors import PROBLEM_TYPE, RETRY_SECONDS, ProblemError

__all__ = [
    "HEAD_SECONDS",
    "MAX_CONNECTIONS",
    "MAX_FIELDS",
    "MAX_HEAD",
    "MAX_PIPELINED",
    "NEVER",
    "UNREAD_SECONDS",
    "BoundedProtocol",
]

MAX_HEAD: Final = 64 * 1024
MAX_FIELDS: Final = 128
"""Header lines of a request: a short one takes twenty times its length in memory."""
MAX_CONNECTIONS: Final = 4096
MAX_PIPELINED: Final = 256
"""Requests behind one that is being answered; a connection that sends more is closed."""
HEAD_SECONDS: Final = 15
UNREAD_SECONDS: Final = 60
"""For so long a client may leave its answers untaken."""

NEVER: Final = float("inf")
_CROWDED: Final = ProblemError(
    503, "unavailable", "There are too many connections. Try again in a moment.",
    headers=[(b"retry-after", b"%d" % RETRY_SECONDS)],
)  # fmt: skip


_NO_HTTP: Final = ProblemError(400, "malformed", "This is not HTTP.")
_TOO_LARGE: Final = ProblemError(
    431, "too_large", f"A head has at most {MAX_HEAD} bytes in {MAX_FIELDS} lines."
)


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


class _Rest:
    """Hands on what a parser reads, but for the first head, which was read before."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self._behind = False
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self._behind:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._behind:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._behind:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._behind:
            self._protocol.on_headers_complete()
        self._behind = True


class BoundedProtocol(HttpToolsProtocol):
    """A head that comes whole in one read, as nearly all do, costs a few comparisons."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_size = 0
        # Whether the last read was part of what somebody waits for.
        self._moved = False
        # Bytes since the last read that held some of a head or body: chunk extensions, trailers.
        self._idle_size = 0
        self._took_some = False
        # Whether the last read held the end of a head.
        self._ended_one = False
        self.headers = []
        self._deadline = self._unread_until = NEVER
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

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_until = self.loop.time() + UNREAD_SECONDS

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_until = NEVER

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        self._moved = self._took_some = self._ended_one = False
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._in_head:
            # The read in which a head begins may hold much that is before it: not counted.
            self._head_size += len(data) if was_in_head and not self._ended_one else 0
            if self._head_size > MAX_HEAD or self._has_too_many_fields():
                self._refuse_next(_TOO_LARGE)
            return
        self._idle_size = 0 if self._took_some or was_in_head else self._idle_size + len(data)
        if self._idle_size > MAX_HEAD:
            self.transport.close()
        if not (self._moved or self._busy):
            self._deadline = min(self._deadline, self.loop.time() + HEAD_SECONDS)

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Not taken up, and so HTTP goes on behind it (RFC 9110 section 7.8).
                data = data[upgrade.args[0] :]
                if framing := self._framing():
                    self._read_body_of_upgrade(framing)
            except httptools.HttpParserError:
                self._refuse_next(_NO_HTTP)
                return
            else:
                return

    def on_message_begin(self) -> None:
        self._head_begins()
        super().on_message_begin()

    def _framing(self) -> bytes:
        """The lines of the head that say where the request ends."""
        return b"".join(
            b"%b: %b\r\n" % (name, value)
            for name, value in self.headers
            if name in (b"content-length", b"transfer-encoding")
        )

    def _read_body_of_upgrade(self, framing: bytes) -> None:
        """Go on with a parser that knows of no upgrade. The one before would take the body, which
        anybody can write, for the next request."""
        self.parser = httptools.HttpRequestParser(_Rest(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)

    def on_message_complete(self) -> None:
        if not (self.parser.should_upgrade() and self._framing()):
            super().on_message_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._took_some = True
        super().on_body(body)

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

    def _head_begins(self) -> None:
        self._in_head = self._moved = self._took_some = True
        self._head_size = 0
        self._deadline = self.loop.time() + HEAD_SECONDS

    def _head_ends(self) -> None:
        if self._has_too_many_fields():
            self._refuse_next(_TOO_LARGE)
            raise _TooManyError
        self._in_head = False
        self._moved = self._ended_one = True
        self._deadline = NEVER

    def _has_too_many_fields(self) -> bool:
        return len(self.headers) > MAX_FIELDS

    def _refuse_next(self, problem: ProblemError) -> None:
        """Refuse the request that is being read, unless that would be taken for the answer to one
        before it."""
        cycle = self.cycle
        if self._busy and (self.pipeline or not cycle.more_body or cycle.response_started):
            self.transport.close()
        elif not self.transport.is_closing():
            self._refuse(problem)

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
        now = self.loop.time()
        if now >= self._unread_until:
            self.transport.abort()
            return
        if self.transport.is_closing():
            # It stays open until its last answer is taken, which may be never.
            self._unread_until = min(self._unread_until, now + UNREAD_SECONDS)
        elif now >= self._deadline and not self._busy:
            self._too_late()
        self._look_later()

    def _too_late(self) -> None:
        self.transport.close()
