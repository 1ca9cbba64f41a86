"""One app behind the middleware, on real servers: ASGI by uvicorn, WSGI by two servers that differ
in what they say of a request."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import uvicorn
from werkzeug.serving import WSGIRequestHandler as WerkzeugHandler
from werkzeug.serving import make_server as make_werkzeug

from api_key_manager import sign_request
from api_key_manager.integrations import asgi, wsgi

__all__ = ["FACES", "Answered", "App", "Service", "serving_asgi", "serving_wsgi"]


class App:
    """Answers what it was called with; the same over ASGI and WSGI."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def _answer(self, method: str, path: str, verdict: Any, body: bytes) -> bytes:
        told = {
            "method": method,
            "path": path,
            "key": None if verdict is None else verdict.key_id,
            "verified": None if verdict is None else verdict.body_verified,
            "body": body.decode("latin-1"),
        }
        self.calls.append(told)
        return json.dumps(told).encode()

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        assert scope["state"]["api_key"] is scope["api_key"]
        content = self._answer(scope["method"], scope["path"], scope["api_key"], body)
        head = [(b"x-app", b"yes"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": content})

    def wsgi(self, environ: Any, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
        content = self._answer(environ["REQUEST_METHOD"], path, environ["api_key"], body)
        start_response("200 OK", [("X-App", "yes"), ("Content-Length", str(len(content)))])
        return [content]


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """The running app, spoken to by whole requests that nobody tidies up."""

    def __init__(self, port: int, app: App) -> None:
        self.host = f"127.0.0.1:{port}"
        self.app = app
        self._port = port

    def send(
        self,
        method: str = "GET",
        target: str = "/",
        headers: list[tuple[str, str]] | dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        host: str | None = None,
        chunks: int = 0,
    ) -> Answered:
        """`chunks`: send the body in so many, without a length."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host or self.host)
            pairs = headers.items() if isinstance(headers, dict) else headers or []
            for name, value in pairs:
                connection.putheader(name, value)
            if chunks:
                connection.putheader("Transfer-Encoding", "chunked")
            elif body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            with suppress(OSError):  # it was refused before the body was in
                self._send_body(connection, body or b"", chunks)
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, told, answer.read())
        finally:
            connection.close()

    @staticmethod
    def _send_body(connection: http.client.HTTPConnection, body: bytes, chunks: int) -> None:
        if not chunks:
            connection.send(body)
            return
        size = max(1, -(-len(body) // chunks))
        for start in range(0, len(body), size):
            part = body[start : start + size]
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
        connection.send(b"0\r\n\r\n")

    def signed(
        self,
        key: dict[str, Any],
        method: str = "GET",
        target: str = "/",
        body: bytes = b"",
        *,
        base: str | None = None,
    ) -> dict[str, str]:
        """The headers of a signed request to this service."""
        return sign_request(
            key["secret"], key["key_id"], method, f"{base or 'http://' + self.host}{target}", body,
            created=int(time.time()), nonce=secrets.token_urlsafe(16),
        )  # fmt: skip


@contextmanager
def serving_asgi(app: Any, **options: Any) -> Iterator[int]:
    """An ASGI app under uvicorn; gives its port."""
    config = uvicorn.Config(app, port=0, log_level="critical", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


class _QuietWerkzeug(WerkzeugHandler):
    def log(self, *_: Any) -> None: ...


def _wsgiref(app: Any) -> Any:
    return make_server("127.0.0.1", 0, app, _Threads, _Quiet)


def _werkzeug(app: Any) -> Any:
    return make_werkzeug("127.0.0.1", 0, app, threaded=True, request_handler=_QuietWerkzeug)


@contextmanager
def serving_wsgi(app: Any, make: Callable[[Any], Any] = _wsgiref) -> Iterator[int]:
    """A WSGI app; gives its port."""
    server = make(app)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


@contextmanager
def _asgi(**options: Any) -> Iterator[Service]:
    app = App()
    how = options.pop("http")
    guarded = asgi.ApiKeyMiddleware(app.asgi, **options)
    # By itself uvicorn believes what loopback says of the client's address.
    with serving_asgi(guarded, http=how, proxy_headers=False) as port:
        yield Service(port, app)


@contextmanager
def _wsgi(**options: Any) -> Iterator[Service]:
    app, make = App(), options.pop("make")
    guarded = wsgi.ApiKeyMiddleware(app.wsgi, **options)
    try:
        with serving_wsgi(guarded, make) as port:
            yield Service(port, app)
    finally:
        guarded.close()


FACES: dict[str, Any] = {
    "asgi-httptools": lambda **options: _asgi(http="httptools", **options),
    "asgi-h11": lambda **options: _asgi(http="h11", **options),
    # The first one says nothing of the request line, and takes no chunks apart.
    "wsgi-wsgiref": lambda **options: _wsgi(make=_wsgiref, **options),
    "wsgi-werkzeug": lambda **options: _wsgi(make=_werkzeug, **options),
}
