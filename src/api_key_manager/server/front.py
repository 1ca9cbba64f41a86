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
from typing import Final, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_key_manager.core.tokens import holds_a_secret
from api_key_manager.server.auth import PRINCIPAL, Door, Principal
from api_key_manager.server.bodies import ClientGoneError, read_body, replay
from api_key_manager.server.errors import PROBLEM_TYPE, Headers, ProblemError, problem_of

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
_PATH_SHOWN: Final = 200
_PROBLEM: Final = PROBLEM_TYPE.encode()
_JSON: Final = b"application/json"
_COMMON: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


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

    def find(self, method: str, path: str) -> Mapping[str, str | None]:
        """The methods of a path with their scopes; empty when there is no such path."""
        known = self.table.get(path, {})
        if method in known:
            return known
        # A path may be both: POST /v1/keys/revoke, and GET of a key that is called "revoke".
        for pattern, methods in self._patterns:
            if pattern.fullmatch(path):
                known = {**methods, **known}
        return known


class _Request(NamedTuple):
    scope: Scope
    receive: Receive
    id: str
    head: Mapping[bytes, list[bytes]]

    def __repr__(self) -> str:
        # The headers hold credentials.
        return f"_Request({self.id!r})"


class _Response:
    """What has been sent of an answer of the app; adds the headers that every answer has."""

    __slots__ = ("_id", "_send", "finished", "started")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = request_id
        self.started = self.finished = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [*message["headers"], *_common(self._id)]
            message = {**message, "headers": headers}
        else:
            self.finished = not message.get("more_body", False)
        await self._send(message)

    async def send_whole(self, status: int, kind: bytes, body: bytes, more: Headers = ()) -> None:
        """An answer of the front's own."""
        self.started = True
        headers = [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            *_common(self._id),
            *more,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
        self.finished = True


def _common(request_id: str) -> Headers:
    return ((b"x-request-id", request_id.encode()), *_COMMON)


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
        scope[REQUEST_ID] = request_id
        response = _Response(send, request_id)
        try:
            await self._answer(_Request(scope, receive, request_id, head), response)
        except ClientGoneError:
            return
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                self._report(error, scope, request_id)
            if response.finished:
                return  # what is inside has answered with the document already
            if response.started:
                raise  # too late for one: the connection is all that can be broken
            body = problem.body(request_id)
            await response.send_whole(problem.status, _PROBLEM, body, problem.headers)

    async def _answer(self, request: _Request, response: _Response) -> None:
        scope, path = request.scope, request.scope["path"]
        method = scope["method"]
        methods = self._routes.find(method, path)
        known = method in methods
        needed = methods.get(method)
        if known and needed is None:
            await self._app(scope, request.receive, response.send)
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
        if not methods:
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
            await self._app(scope, replay(body, request.receive), response.send)
        else:
            await response.send_whole(200, _JSON, await hot(body, principal))

    def _report(self, error: Exception, scope: Scope, request_id: str) -> None:
        """Never the query, a header or the body; the traceback only when asked for."""
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{frame[0].filename}:{frame[0].lineno}" if frame else "?"
        _log.error(
            "request %s, %s %s: %s at %s",
            request_id, scope["method"], _quoted(scope["path"]), type(error).__name__, where,
            exc_info=error if self._debug else None,
        )  # fmt: skip


def _quoted(path: str) -> str:
    """A path as it may stand in a log: anybody can put a line break into one."""
    return repr(path)[:_PATH_SHOWN]


def _request_id(given: list[bytes] | None) -> str:
    if given is not None and len(given) == 1 and _is_request_id(given[0]):
        text = given[0].decode("ascii")
        if not holds_a_secret(text):  # it is logged
            return text
    return f"{_boot}-{next(_count):x}"
