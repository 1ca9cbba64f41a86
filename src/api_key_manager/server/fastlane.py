"""The fast lane: a hot request that needs no I/O is answered within the read that completes it.

No ASGI scope, no task, no queue stands between the socket and the steps of
:mod:`api_key_manager.server.front`. Whatever is unusual goes the ASGI way, before or after those
steps have begun; both ways run the same steps, and their answers differ in date and request id
only. While the app works at an answer, whatever comes behind it goes the ASGI way too, which
keeps the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api_key_manager.server.front import EXCHANGE, headers_of
from api_key_manager.server.protocol import BoundedProtocol

if TYPE_CHECKING:
    from api_key_manager.server.exchange import Reply, Request
    from api_key_manager.server.front import Front

__all__ = ["FastProtocol"]

_MAX_BODY: Final = 64 * 1024
_BODY_SECONDS: Final = 30
# Then others get their turn.
_MAX_IN_A_ROW: Final = 64

_ANYTHING: Final = -1
"""A body whose length is not told beforehand."""


class FastProtocol(BoundedProtocol):
    """Answers hot requests for ``config.app.front`` itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._front: Front = self.config.app.front  # type: ignore[union-attr]  # serve() sees to it
        self._body: list[bytes] | None = None
        self._length = 0
        self._unusual = self._told_connection = self._keep_alive = False
        self._in_a_row = 0
        self._path, self._query = "", b""

    def data_received(self, data: bytes) -> None:
        self._in_a_row = 0
        super().data_received(data)

    def on_message_begin(self) -> None:
        # Not uvicorn's: it builds the ASGI scope, which few hot requests need.
        self._head_begins()
        self.url = b""
        self.headers = []
        self._length = 0
        self.expect_100_continue = self._unusual = self._told_connection = False

    def on_header(self, name: bytes, value: bytes) -> None:
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
            self._moved = True

    def on_message_complete(self) -> None:
        chunks, self._body = self._body, None
        if chunks is None:
            super().on_message_complete()
            return
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        front, method = self._front, self.parser.get_method().decode()
        request, exchange = front.begin(
            method, self._path, self._query, self.headers, self.client, body
        )
        reply = front.advance(request, exchange)
        if reply is None:
            self._leave((request, exchange))
            super().on_message_complete()
        else:
            self._answer(reply, request)

    def _is_fast(self) -> bool:
        path, _, self._query = self.url.partition(b"?")
        self._path = path.decode("latin-1")
        if (
            not self._front.is_hot(self._path)
            or self._unusual
            or not 0 <= self._length <= _MAX_BODY
            or self._in_a_row >= _MAX_IN_A_ROW
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

    def _leave(self, begun: Any = None) -> None:
        """Go the ASGI way from the end of the head on."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        if begun is not None:
            self.scope[EXCHANGE] = begun  # type: ignore[typeddict-unknown-key]  # a scope is open
        super().on_headers_complete()

    def _answer(self, reply: Reply, request: Request) -> None:
        lines = [STATUS_LINE[reply.status]]
        for name, value in self.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers_of(reply, request.id):
            lines += (name, b": ", value, b"\r\n")
        if not self._keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", reply.body)
        self.transport.write(b"".join(lines))
        self.server_state.total_requests += 1
        self._in_a_row += 1
        self._moved = True
        self._deadline = self.loop.time() + self.timeout_keep_alive
        if not self._keep_alive:
            self.transport.close()

    def _too_late(self) -> None:
        if self._body is None:
            super()._too_late()
            return
        # The app has its own patience with bodies, and says so when it ends.
        chunks, self._body = self._body, None
        self._leave()
        for chunk in chunks:
            super().on_body(chunk)
        self._look_later()
