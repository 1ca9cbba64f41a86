"""WSGI: keys in front of Flask, Django, or any other app.

The app finds the verdict in ``environ["api_key"]``; ``None`` where it was reached without a key.
The body of a signed request is read before the app is called and given to it again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import Verdict
from api_key_manager.integrations.answers import (
    Answer,
    Headers,
    RefusedError,
    content_for,
    problem,
    too_large,
    unavailable,
)
from api_key_manager.integrations.guard import HEADERS, MAX_BODY, Call, Guard
from api_key_manager.integrations.loop import ManagerThread

__all__ = ["ApiKeyMiddleware"]

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

ENVIRON_KEY: Final = "api_key"

# What RFC 3986 lets stand in a path as it is. Everybody writes the rest percent-encoded, in upper
# case where the RFC is followed.
_PLAIN: Final = "/-._~!$&'()*+,;=:@"
# Behind these may be an escape that the server has taken away, and who knows which.
_is_ambiguous = re.compile(rb"[%?#\\\x00-\x1f\x7f]").search


class ApiKeyMiddleware:
    """Lets nobody through to an app without a key.

    The manager lives in one thread with an event loop of its own, which starts with the first
    request, hence in the process that serves it, and ends with :meth:`close` or the process.

    Args:
        app: a WSGI app.
        manager: judges; or an async context manager that opens one, as
            ``open_manager("sqlite:///keys.db")``.
        permissions, exempt, require, base_url, trusted_proxies, max_body: as of
            :class:`api_key_manager.integrations.asgi.ApiKeyMiddleware`.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """

    def __init__(
        self,
        app: WsgiApp,
        *,
        manager: KeyManager | AbstractAsyncContextManager[KeyManager],
        permissions: str | Sequence[str] | None = None,
        exempt: Sequence[str] = (),
        require: bool = True,
        base_url: str | None = None,
        trusted_proxies: Sequence[str] = (),
        max_body: int = MAX_BODY,
    ) -> None:
        self._app = app
        self._guard = Guard(
            permissions=permissions, exempt=exempt, require=require, base_url=base_url,
            trusted_proxies=trusted_proxies, max_body=max_body,
        )  # fmt: skip
        self._thread = ManagerThread(manager)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """One request."""
        try:
            verdict, headers = self._judge(environ)
        except RefusedError as refused:
            return _reply(refused.answer, environ["REQUEST_METHOD"], start_response)
        environ[ENVIRON_KEY] = verdict
        return self._app(environ, _adding(headers, start_response))

    def close(self) -> None:
        """Write what waits for the audit log and let go of the store. Nothing passes any more."""
        self._thread.close()

    def _judge(self, environ: Environ) -> tuple[Verdict | None, Headers]:
        guard, call = self._guard, _call_of(environ)
        presented = guard.present(call)
        if presented is None:
            return None, ()
        if presented.request is not None:
            body = _take_body(environ, guard.max_body)
            presented = guard.present(call, body) or presented
        try:
            verdict, wait = self._thread.verify(presented)
        except StorageError:
            raise RefusedError(unavailable()) from None
        return verdict, guard.passed(verdict, wait)


def _call_of(environ: Environ) -> Call:
    path = _path(environ)
    peer = environ.get("REMOTE_ADDR")
    return Call(
        environ["REQUEST_METHOD"],
        environ["wsgi.url_scheme"],
        # What is no UTF-8 is no path of anybody's list.
        "" if path is None else path.decode("utf-8", "replace"),
        None if path is None else _target(environ, path),
        list(_headers(environ)),
        [peer] if peer else None,
    )


def _headers(environ: Environ) -> Iterable[tuple[bytes, bytes]]:
    """Those that count. Servers join repeated ones by commas, of which none of these may hold
    any but for lists of hops."""
    for header in HEADERS:
        name = header.decode().upper().replace("-", "_")
        value = environ.get("CONTENT_LENGTH" if name == "CONTENT_LENGTH" else f"HTTP_{name}")
        if value is not None and (value or name != "CONTENT_LENGTH"):
            yield header, value.encode("latin-1", "replace")


def _path(environ: Environ) -> bytes | None:
    try:
        path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return path.encode("latin-1") or b"/"
    except UnicodeEncodeError:
        return None


def _target(environ: Environ, path: bytes) -> bytes | None:
    """Path and query as they were sent, or ``None``.

    Servers that say so put the line as it came into ``REQUEST_URI`` or ``RAW_URI``. It must agree
    with what the app goes by: somebody between may have written that anew. Of the others the path
    is known without its escapes only, and written anew here.
    """
    query = environ.get("QUERY_STRING", "")
    raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
    try:
        if raw is None:
            if _is_ambiguous(path):
                return None
            written = quote_from_bytes(path, safe=_PLAIN)
            return (f"{written}?{query}" if query else written).encode("latin-1")
        before, _, after = raw.partition("?")
        target: bytes = raw.encode("latin-1")
    except UnicodeEncodeError:
        return None
    return target if unquote_to_bytes(before) == path and after == query else None


def _take_body(environ: Environ, limit: int) -> bytes:
    """Read the body of a request and put it back.

    Raises:
        RefusedError: it is longer than ``limit`` (413), of a length that nobody tells (411), or
            ends too soon (400).
    """
    stream = environ["wsgi.input"]
    said = environ.get("CONTENT_LENGTH") or None
    if "HTTP_TRANSFER_ENCODING" in environ:
        # Only some servers take chunks apart, and say so; others would give us the chunks' frame.
        if not environ.get("wsgi.input_terminated"):
            raise RefusedError(
                problem(411, "length_required", "A signed body needs a Content-Length here.")
            )
        body = _read(stream, limit + 1)
    else:
        length = int(said) if said is not None else 0
        body = _read(stream, length)
        if len(body) < length:
            raise RefusedError(problem(400, "malformed", "The body ends too soon."))
    if len(body) > limit:
        raise RefusedError(too_large(limit))
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["wsgi.input"] = io.BytesIO(body)
    environ["wsgi.input_terminated"] = True
    environ["CONTENT_LENGTH"] = str(len(body))
    return body


def _read(stream: Any, size: int) -> bytes:
    chunks: list[bytes] = []
    while size > 0 and (chunk := stream.read(size)):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _adding(headers: Headers, start_response: StartResponse) -> StartResponse:
    """A ``start_response`` that adds headers."""
    if not headers:
        return start_response
    more = _texts(headers)

    def start_with_more(status: str, given: list[tuple[str, str]], *exc_info: Any) -> Any:
        return start_response(status, [*given, *more], *exc_info)

    return start_with_more


def _reply(answer: Answer, method: str, start_response: StartResponse) -> Iterable[bytes]:
    status = HTTPStatus(answer.status)
    start_response(f"{status.value} {status.phrase}", _texts(answer.headers))
    return [content_for(answer, method)]


def _texts(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode().title(), value.decode("latin-1")) for name, value in headers]
