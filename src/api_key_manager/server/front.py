"""The front: every request passes here before anything else of the app sees it.

It gives the request an id, lets in only who shows a token with the scope of the route, reads the
body within bounds, answers the hot routes itself, and turns whatever goes wrong into a problem
document. What stands in no route is not passed on, so that nothing is open by oversight.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_key_manager.server.auth import PRINCIPAL, Door, Principal
from api_key_manager.server.bodies import ClientGoneError, read_body, replay
from api_key_manager.server.errors import PROBLEM_TYPE, ProblemError, problem_of

__all__ = ["REQUEST_ID", "Front", "HotHandler", "Routes"]

REQUEST_ID: Final = "akm.request_id"

HotHandler = Callable[[bytes, Principal], Awaitable[bytes]]

_log = logging.getLogger(__name__)
_is_request_id = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch
_boot = secrets.token_hex(6)
_count = itertools.count(1)

_LOOKED_AT: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-request-id",
    }
)
_NOBODY: Final = Principal("nobody", ())
_COMMON: Final = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class Routes:
    """Which paths and methods there are, and the scope that each needs.

    ``None`` as a scope means that everybody may.
    """

    def __init__(self) -> None:
        self.table: dict[str, dict[str, str | None]] = {}
        self.hot: dict[str, HotHandler] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, str | None]]] = []

    def add(self, method: str, path: str, scope: str | None) -> None:
        """Note a route. ``{name}`` in a path stands for one segment."""
        known = self.table.get(path)
        if known is None:
            known = self.table[path] = {}
            if "{" in path:
                segments = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
                self._patterns.append((re.compile(segments), known))
        known[method] = scope

    def find(self, path: str) -> dict[str, str | None] | None:
        """The methods of a path and their scopes."""
        known = self.table.get(path)
        if known is None:
            for pattern, methods in self._patterns:
                if pattern.fullmatch(path):
                    return methods
        return known


class _Request(NamedTuple):
    scope: Scope
    receive: Receive
    send: Send
    id: str
    head: Mapping[bytes, list[bytes]]


class Front:
    """Pure ASGI middleware around the app.

    Args:
        app: what answers the routes that are not hot.
        routes: what there is.
        door: lets in.
        debug: whether errors are logged with their traceback.
    """

    def __init__(self, app: ASGIApp, routes: Routes, door: Door, *, debug: bool) -> None:
        self._app = app
        self._routes = routes
        self._door = door
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        head: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _LOOKED_AT:
                head.setdefault(name, []).append(value)
        request_id = _request_id(head.get(b"x-request-id"))
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                names = {name for name, _ in headers}
                headers.extend(pair for pair in _COMMON if pair[0] not in names)
                message = {**message, "headers": headers}
            await send(message)

        scope[REQUEST_ID] = request_id
        try:
            await self._answer(_Request(scope, receive, send_on, request_id, head))
        except ClientGoneError:
            return
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                self._report(error, scope, request_id)
            if started:
                raise  # too late for a document: the connection is all that can be broken
            await _send_problem(problem, request_id, send_on)

    async def _answer(self, request: _Request) -> None:
        scope, path = request.scope, request.scope["path"]
        methods = self._routes.find(path)
        method = scope["method"]
        known = methods is not None and method in methods
        needed = methods[method] if methods is not None and known else None
        if known and needed is None:
            await self._app(scope, request.receive, request.send)
            return
        head = request.head
        principal = await self._door.admit(
            scope,
            needed,
            head.get(b"authorization", ()),
            head.get(b"x-forwarded-for", ()),
            request.id,
        )
        # Only who has a token learns what there is and what not.
        if methods is None:
            raise ProblemError(404, "not_found", "There is nothing at this path.")
        if not known:
            allow = ", ".join(sorted(methods))
            raise ProblemError(
                405, "method_not_allowed", f"This path takes {allow}.",
                headers=[(b"allow", allow.encode())],
            )  # fmt: skip
        body = await read_body(head, request.receive)
        hot = self._routes.hot.get(path)
        if hot is None:
            scope[PRINCIPAL] = principal
            await self._app(scope, replay(body, request.receive), request.send)
        else:
            await _send(200, b"application/json", await hot(body, principal), (), request.send)

    def _report(self, error: Exception, scope: Scope, request_id: str) -> None:
        """Never the query, a header or the body; the traceback only when asked for."""
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{frame[0].filename}:{frame[0].lineno}" if frame else "?"
        _log.error(
            "request %s, %s %s: %s at %s",
            request_id, scope["method"], scope["path"], type(error).__name__, where,
            exc_info=error if self._debug else None,
        )  # fmt: skip


def _request_id(given: list[bytes] | None) -> str:
    if given is not None and len(given) == 1 and _is_request_id(given[0]):
        return given[0].decode("ascii")
    return f"{_boot}-{next(_count):x}"


async def _send_problem(problem: ProblemError, request_id: str, send: Send) -> None:
    body = problem.body(request_id)
    await _send(problem.status, PROBLEM_TYPE.encode(), body, problem.headers, send)


async def _send(status: int, kind: bytes, body: bytes, more: Any, send: Send) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", kind),
                (b"content-length", b"%d" % len(body)),
                *more,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
