"""The fast lane: a hot request is answered within the read that completes it, if it needs no I/O.

No ASGI scope, no task, no queue stands between the socket and the steps of
:mod:`api_key_manager.server.front`. Where those have to wait, a task awaits the rest of them, one
per connection, and whatever comes behind it goes the ASGI way, in its turn. So does whatever is
unusual; both ways run the same steps, and their answers differ in date and request id only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from api_key_manager.server.exchange import JSON, Reply
from api_key_manager.server.protocol import HEAD_SECONDS, NEVER, BoundedProtocol
from api_key_manager.server.responses import COMMON

if TYPE_CHECKING:
    from api_key_manager.server.errors import Headers, ProblemError
    from api_key_manager.server.front import Front
    from api_key_manager.server.visits import Visit

__all__ = ["FastProtocol"]

_MAX_BODY: Final = 64 * 1024
_MAX_BODY_KEPT: Final = 4096
"""Of a body that comes in pieces, for whoever sends it has not yet shown who it is."""
_BODY_SECONDS: Final = 30
_MAX_HEAD_KEPT: Final = 4096
_END: Final = b"\r\n\r\n"

_ANYTHING: Final = -1
"""A body whose length is not told beforehand."""


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_COMMON: Final = _lines(COMMON)
_NOBODY_WAITS: Final = asyncio.Event()
_usual: Final[list[Any]] = [None, b""]
"""uvicorn's headers of all answers, and the usual answer's start with them."""


class _Outbox:
    """Answers that wait for the end of the loop's turn, then all are sent.

    A turn reads from every connection that has something. Sent one by one in between, each answer
    would wake its client, for more than it costs to make it.
    """

    def __init__(self) -> None:
        self._waiting: list[FastProtocol] = []

    def add(self, protocol: FastProtocol, loop: asyncio.AbstractEventLoop) -> None:
        """Have :meth:`FastProtocol.flush` called soon."""
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(protocol)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for protocol in waiting:
            protocol.flush()


_outboxes: Final[WeakKeyDictionary[ServerState, _Outbox]] = WeakKeyDictionary()


class _Last(NamedTuple):
    """The head of the request before, which came whole and alone."""

    head: bytes
    size: int
    """Of the whole request."""
    visit: Visit

    def __repr__(self) -> str:
        return "_Last()"  # the head holds credentials


class _Waiting(RequestResponseCycle):
    """A request of this lane that waits for I/O, as uvicorn knows those of the app: to it the
    connection is busy, and what comes behind is put off until this one is answered."""

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.disconnected = self.response_started = self.response_complete = False
        self.more_body = False
        self.message_event = _NOBODY_WAITS


class FastProtocol(BoundedProtocol):
    """Answers hot requests for ``config.app.front`` itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._front: Front = self.config.app.front  # type: ignore[union-attr]  # serve() sees to it
        self._body: list[bytes] | None = None
        self._length = 0
        self._unusual = self._told_connection = self._keep_alive = False
        self._path, self._query = "", b""
        # Whether nothing is under way: the last request was answered here, nothing has come since.
        self._rests = True
        self._whole = b""
        self._last: _Last | None = None
        self._outbox = _outboxes.setdefault(self.server_state, _Outbox())
        self._out: list[bytes] = []
        self._waits = False

    def data_received(self, data: bytes) -> None:
        # Clients that keep a connection send the same head again and again: what was read from it,
        # and who was let in by it, need not be found out anew.
        last = self._last
        if last is not None:
            if (
                len(data) == last.size
                and data.startswith(last.head)
                and self._rests
                and not self._waits
                and not self.flow.write_paused
            ):
                request_id, outcome = self._front.again(last.visit, data[len(last.head) :])
                if isinstance(outcome, bytes):
                    start = self._start_of_usual()
                    self._send(
                        b"%b%d\r\nx-request-id: %b\r\n%b\r\n%b"
                        % (start, len(outcome), request_id.encode(), _COMMON, outcome)
                    )
                    return
                if isinstance(outcome, Reply):
                    self._answer(outcome, request_id)
                    return
                if outcome is not None:
                    self._wait(outcome)
                    return
            self._last = None
        self._whole = data if self._rests else b""
        super().data_received(data)
        if self._body is not None and self._length > _MAX_BODY_KEPT:
            self._hand_over()

    def on_message_begin(self) -> None:
        # Not uvicorn's: it builds the ASGI scope, which few hot requests need.
        self._head_begins()
        self._rests = False
        self.url = b""
        self.headers = []
        self._length = 0
        self.expect_100_continue = self._unusual = self._told_connection = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return
        name = name.lower()
        if name == b"content-length":
            # The parser takes digits only, and no second one.
            self._length = int(value) if len(value) < 9 else _ANYTHING
        elif name == b"connection":
            self._told_connection = True
        elif name == b"expect":
            self._unusual = True
            self.expect_100_continue = value.lower() == b"100-continue"
        elif name in (b"transfer-encoding", b"upgrade"):
            self._unusual = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._is_fast():
            self._leave()
            return
        self._head_ends()
        self._deadline = self.loop.time() + _BODY_SECONDS
        self._body = []

    def on_body(self, body: bytes) -> None:
        if self._body is None:
            super().on_body(body)
        else:
            self._body.append(body)
            self._moved = self._took_some = True

    def on_message_complete(self) -> None:
        chunks, self._body = self._body, None
        if chunks is None:
            super().on_message_complete()
            return
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        visit = self._front.begin(
            self.parser.get_method().decode(),
            self._path, self._query, self.headers, self.client, body,
        )  # fmt: skip
        reply = self._front.advance(visit)
        if reply is None:
            self._wait(visit)
        else:
            self._answer(reply, visit.request.id)
        self._remember(visit, body)

    def _wait(self, visit: Visit) -> None:
        """Answer once that can be done; whatever comes before that goes the ASGI way, in turn."""
        self.cycle = waiting = _Waiting(keep_alive=self._keep_alive)
        self._waits = self._rests = self._moved = True
        self._deadline = NEVER
        # A task, as there are libraries that cannot wait without one; uvicorn waits for these
        # before it stops.
        task = self.loop.create_task(self._finish(visit, waiting))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _finish(self, visit: Visit, waiting: _Waiting) -> None:
        try:
            reply = await self._front.finish(visit)
        except BaseException:  # it was cancelled: the server does not wait any longer
            self.transport.close()
            raise
        self._waits, waiting.response_complete = False, True
        if self.transport.is_closing():
            return
        rests, self._keep_alive = self._rests, waiting.keep_alive
        self._answer(reply, visit.request.id)
        self._rests = rests
        if self._in_head:
            self._deadline = self.loop.time() + HEAD_SECONDS
        if self.pipeline and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())

    def _remember(self, visit: Visit, body: bytes) -> None:
        """Keep the head of a request that came whole and alone."""
        whole = self._whole
        size = len(whole) - len(body)
        if self._keep_alive and 0 < size <= _MAX_HEAD_KEPT and whole.find(_END) == size - 4:
            self._last = _Last(whole[:size], len(whole), visit)

    def _is_fast(self) -> bool:
        path, _, self._query = self.url.partition(b"?")
        self._path = path.decode("latin-1")
        if (
            not self._front.is_hot(self._path)
            or self._unusual
            or not 0 <= self._length <= _MAX_BODY
            or self._busy
            or self.transport.is_closing()
            or self.flow.write_paused
            or b"#" in self._query
        ):
            return False
        # Of HTTP/1.0 uvicorn keeps no connection, whatever the client would like.
        self._keep_alive = self.parser.should_keep_alive() and not (
            self._told_connection and self.parser.get_http_version() == "1.0"
        )
        return self.parser.get_method() != b"HEAD"

    def _leave(self) -> None:
        """Go the ASGI way from the end of the head on."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()

    def _answer(self, reply: Reply, request_id: str) -> None:
        body, status, kind, more = reply
        # What uvicorn writes for `headers_of(reply)`, in one go.
        self._send(
            b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b%b\r\n%b"
            % (
                STATUS_LINE[status],
                _lines(self.server_state.default_headers),
                kind,
                len(body),
                request_id.encode(),
                _COMMON,
                _lines(more),
                b"" if self._keep_alive else b"connection: close\r\n",
                body,
            )
        )
        if not self._keep_alive:
            self.flush()
            self.transport.close()

    def _start_of_usual(self) -> bytes:
        """The same for a 200 with JSON on a connection that is kept, up to its length."""
        shared = self.server_state.default_headers
        # uvicorn makes a new list every second.
        if shared is not _usual[0]:
            kind = b"content-type: %b\r\ncontent-length: " % JSON
            _usual[:] = shared, STATUS_LINE[200] + _lines(shared) + kind
        start: bytes = _usual[1]
        return start

    def _send(self, answer: bytes) -> None:
        if not self._out:
            self._outbox.add(self, self.loop)
        self._out.append(answer)
        self.server_state.total_requests += 1
        self._moved = self._rests = True
        self._deadline = self.loop.time() + self.timeout_keep_alive

    def flush(self) -> None:
        """Send what was answered here."""
        if self._out:
            out, self._out = self._out, []
            if not self.transport.is_closing():
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    # Whatever else is written, or ends the connection, comes behind.

    def eof_received(self) -> bool:  # type: ignore[override]  # as in the base class
        self.flush()
        return super().eof_received()

    def shutdown(self) -> None:
        self.flush()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self.flush()
        super().send_400_response(msg)

    def _refuse(self, problem: ProblemError) -> None:
        self.flush()
        super()._refuse(problem)

    def _too_late(self) -> None:
        if self._body is None:
            super()._too_late()
            return
        # The app has its own patience with bodies, and says so when it ends.
        self._hand_over()

    def _hand_over(self) -> None:
        """Leave a body that is not complete to the app, which asks for a token first."""
        chunks, self._body = self._body or [], None
        self._leave()
        for chunk in chunks:
            super().on_body(chunk)
