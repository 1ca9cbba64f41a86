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
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_key_manager.core.tokens import holds_a_secret
from api_key_manager.server.auth import Admission, Door
from api_key_manager.server.bodies import ClientGoneError, json_body, read_body, replay
from api_key_manager.server.errors import PROBLEM_TYPE, Headers, ProblemError, problem_of
from api_key_manager.server.exchange import Exchange, Reply, Request, Steps
from api_key_manager.server.hot import Single
from api_key_manager.server.principal import PRINCIPAL, Principal
from api_key_manager.telemetry.logs import request_id as logged_id
from api_key_manager.telemetry.numbers import BOUNDS

if TYPE_CHECKING:
    from api_key_manager.core.manager import KeyManager
    from api_key_manager.telemetry.numbers import Durations, Meter

__all__ = [
    "COMMON",
    "OTHER",
    "REQUEST_ID",
    "VISIT",
    "Front",
    "HotHandler",
    "OpenHandler",
    "Routes",
    "Visit",
    "headers_of",
]

REQUEST_ID: Final = "akm.request_id"
VISIT: Final = "akm.visit"
"""The ASGI scope key of a request that was begun outside: what :meth:`Front.begin` gave."""

OTHER: Final = "other"
"""Stands in metrics for every path that there is not, and for methods that no route takes: what
strangers type must not make new time series."""

HotHandler = Callable[[bytes, Principal], Steps[Reply]]
OpenHandler = Callable[[Request], Steps[Reply]]

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
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
COMMON: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Routes:
    """Which paths and methods there are, and the scope that each needs.

    ``None`` as a scope means that everybody may.
    """

    def __init__(self) -> None:
        self.table: dict[str, dict[str, str | None]] = {}
        self.hot: dict[str, HotHandler] = {}
        self.open: dict[str, OpenHandler] = {}
        """Hot too, by every method; they let in for themselves. A path that ends in a slash stands
        for all below it."""
        self._patterns: list[tuple[re.Pattern[str], str, dict[str, str | None]]] = []

    def add(self, method: str, path: str, scope: str | None) -> None:
        """Note a route. ``{name}`` in a path stands for one segment."""
        known = self.table.get(path)
        if known is None:
            known = self.table[path] = {}
            if "{" in path:
                segments = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
                self._patterns.append((re.compile(segments), path, known))
        known[method] = scope

    def find_open(self, path: str) -> OpenHandler | None:
        """The handler of a path that lets in for itself."""
        return self.open.get(path) or self.open.get(self._above(path))

    def _above(self, path: str) -> str:
        """The open route that stands for all below it, if that takes this path in; else nothing."""
        for route in self.open:
            if route[-1] == "/" and path.startswith(route):
                return route
        return ""

    def find(self, method: str, path: str) -> Mapping[str, str | None]:
        """The methods of a path with their scopes; empty when there is no such path."""
        known = self.table.get(path, {})
        if method in known:
            return known
        # A path may be both: POST /v1/keys/revoke, and GET of a key that is called "revoke".
        for pattern, _, methods in self._patterns:
            if pattern.fullmatch(path):
                known = {**methods, **known}
        return known

    def name(self, method: str, path: str) -> tuple[str, str]:
        """The method and the route as they were added, ``{name}`` and all; else :data:`OTHER`."""
        known = self.table.get(path)
        if known is not None and method in known:
            return method, path
        opened = path if path in self.open else self._above(path)
        if opened:
            return (method if method in _METHODS else OTHER), opened
        routes = [] if known is None else [path]
        for pattern, route, methods in self._patterns:
            if pattern.fullmatch(path):
                if method in methods:
                    return method, route
                routes.append(route)
        return OTHER, routes[0] if routes else OTHER

    def template(self, method: str, path: str) -> str | None:
        """The route alone; ``None`` when there is no such path."""
        route = self.name(method, path)[1]
        return None if route == OTHER else route


class Pass(NamedTuple):
    """What the steps say of a request that the app answers."""

    principal: Principal | None
    body: bytes | None = None
    """``None``: not read yet."""

    def __repr__(self) -> str:
        return "Pass()"  # the body may hold a secret


Outcome = Reply | Pass


class Visit:
    """A request on its way, and what is known of it by now."""

    __slots__ = ("admission", "began", "exchange", "hot", "opened", "request", "taken")

    exchange: Exchange[Outcome]

    def __init__(
        self,
        request: Request,
        opened: OpenHandler | None = None,
        hot: HotHandler | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.request = request
        self.opened = opened
        self.hot = hot
        self.admission = admission
        self.began = perf_counter()
        # Where it counts if the answer is a 200.
        self.taken: Durations | None = None


class _Response:
    """What has been sent of an answer of the app; adds the headers that every answer has."""

    __slots__ = ("_id", "_send", "finished", "started", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = request_id
        self.started = self.finished = False
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = [*message["headers"], *_common(self._id)]
            message = {**message, "headers": headers}
        else:
            self.finished = not message.get("more_body", False)
        await self._send(message)

    async def send_whole(self, reply: Reply) -> None:
        """An answer of the front's own."""
        self.started = True
        self.status = reply.status
        await self._send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": headers_of(reply, self._id),
            }
        )
        await self._send({"type": "http.response.body", "body": reply.body})
        self.finished = True


def headers_of(reply: Reply, request_id: str) -> list[tuple[bytes, bytes]]:
    """Every header of a complete answer, in order."""
    return [
        (b"content-type", reply.kind),
        (b"content-length", b"%d" % len(reply.body)),
        *_common(request_id),
        *reply.headers,
    ]


def _common(request_id: str) -> Headers:
    return ((b"x-request-id", request_id.encode()), *COMMON)


class Front:
    """Pure ASGI middleware around the app, which also answers hot requests without ASGI.

    Args:
        app: what answers the routes that are not hot.
        manager: judges.
        routes: what there is.
        door: lets in.
        meter: counts what is answered.
        debug: whether errors are logged with their traceback.
        fast: whether hot requests may be answered without ASGI.
    """

    def __init__(
        self, app: ASGIApp, manager: KeyManager, routes: Routes, door: Door, meter: Meter,
        *, debug: bool, fast: bool,
    ) -> None:  # fmt: skip
        self._app = app
        self._manager = manager
        self._routes = routes
        self._door = door
        self._meter = meter
        self._debug = debug
        self._fast = fast

    def is_hot(self, path: str) -> bool:
        """Whether :meth:`begin` may be asked."""
        if not self._fast:
            return False
        # Where a fragment begins, is for the app's own reader of URLs to say.
        return path in self._routes.hot or (
            self._routes.find_open(path) is not None and "#" not in path
        )

    def begin(
        self, method: str, path: str, query: bytes, headers: Sequence[tuple[bytes, bytes]],
        client: Any, body: bytes,
    ) -> Visit:  # fmt: skip
        """A hot request that is complete; :meth:`advance` answers it."""
        return self._visit(_read_head(method, path, query, headers, client, None), body)

    def again(self, before: Visit, body: bytes) -> tuple[str, Reply | Visit | None]:
        """The next request on a connection, with the very head of the one before.

        Returns:
            Its id, and the answer; or the visit, if that needs to wait; or ``None`` when it has to
            begin like any other, which no part of it has done yet.
        """
        began, manager, request = perf_counter(), self._manager, before.request
        request_id = _request_id(request.head.get(b"x-request-id"))
        hot, admission, now = before.hot, before.admission, manager.clock()
        if hot is None or admission is None:
            if before.opened is None:
                return request_id, None
            visit = Visit(request.with_id(request_id), before.opened)
            visit.exchange = Exchange(manager, before.opened(visit.request), body, now)
        else:
            principal = admission.again(manager, request_id, now)
            if principal is None:
                return request_id, None
            if type(hot) is Single:
                # Nearly all there is. The exchange would do the same, in more steps.
                try:
                    verdict = manager.verify_now(hot.read(body, principal), now)
                except Exception as error:
                    problem = self._problem(error, request.with_id(request_id))
                    self._answered(before, problem.status, began)
                    return request_id, problem
                if verdict is not None:
                    reply = Reply(hot.write(verdict))
                    self._answered(before, reply.status, began)
                    return request_id, reply
            visit = Visit(request.with_id(request_id), None, hot, admission)
            visit.exchange = Exchange(manager, hot(body, principal), body, now)
        visit.began, visit.taken = began, before.taken
        return request_id, self.advance(visit) or visit

    def advance(self, visit: Visit) -> Reply | None:
        """The answer, if there is one without waiting; else hand it on to the ASGI app, under
        :data:`VISIT` in the scope."""
        try:
            outcome = visit.exchange.advance()
        except Exception as error:
            outcome = self._problem(error, visit.request)
        if not isinstance(outcome, Reply):
            return None
        self._answered(visit, outcome.status, visit.began)
        return outcome

    def _visit(self, request: Request, body: bytes | None = None) -> Visit:
        visit = Visit(request)
        visit.exchange = Exchange(self._manager, self._steps(visit), body)
        return visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit: Visit | None = scope.get(VISIT)
        if visit is None:
            head = _read_head(
                scope["method"], scope["path"], scope["query_string"], scope["headers"],
                scope.get("client"), scope.get(PRINCIPAL), scope.get("raw_path"),
            )  # fmt: skip
            visit = self._visit(head)
        request = visit.request
        scope[REQUEST_ID] = request.id
        logged_id.set(request.id)  # never taken back: each request has a task of its own
        response = _Response(send, request.id)
        try:
            outcome = await visit.exchange.finish(lambda: read_body(request.head, receive))
            if isinstance(outcome, Reply):
                await response.send_whole(outcome)
                return
            if outcome.principal is not None:
                scope[PRINCIPAL] = outcome.principal
            if outcome.body is not None:
                receive = replay(outcome.body, receive)
            await self._app(scope, receive, response.send)
        except ClientGoneError:
            return
        except Exception as error:
            problem = self._problem(error, request)
            if response.finished:
                return  # what is inside has answered with the document already
            if response.started:
                raise  # too late for one: the connection is all that can be broken
            await response.send_whole(problem)
        finally:
            if response.started:
                self._answered(visit, response.status, visit.began)

    def _answered(self, visit: Visit, status: int, began: float) -> None:
        """Count an answer to this visit, or to one with the same head."""
        taken = visit.taken
        if taken is None or status != 200:
            where = self._routes.name(visit.request.method, visit.request.path)
            taken = self._meter.requests[*where, status]
            if status == 200:
                visit.taken = taken
        # taken.observe(), written out: a call costs as much as what it does.
        seconds = perf_counter() - began
        taken.counts[bisect_left(BOUNDS, seconds)] += 1
        taken.seconds += seconds

    def _steps(self, visit: Visit) -> Steps[Outcome]:
        request = visit.request
        path = request.path
        opened = self._routes.find_open(path)
        if opened is not None:
            visit.opened = opened
            return (yield from opened(request))
        methods = self._routes.find(request.method, path)
        needed = methods.get(request.method)
        known = request.method in methods
        if known and needed is None:
            return Pass(None)
        admission = yield from self._door.admit(request, needed)
        # Only who has a token learns what there is and what not.
        if not methods:
            raise ProblemError(404, "not_found", "There is nothing at this path.")
        if not known:
            allow = ", ".join(sorted(methods))
            raise ProblemError(
                405, "method_not_allowed", f"This path takes {allow}.",
                headers=[(b"allow", allow.encode())],
            )  # fmt: skip
        body = yield from json_body(request)
        hot = self._routes.hot.get(path)
        if hot is None:
            return Pass(admission.principal, body)
        visit.hot, visit.admission = hot, admission
        return (yield from hot(body, admission.principal))

    def _problem(self, error: Exception, request: Request) -> Reply:
        problem = problem_of(error)
        if problem.status >= 500:
            self._report(error, request)
        return Reply(
            problem.body(request.id), problem.status, PROBLEM_TYPE.encode(), problem.headers
        )

    def _report(self, error: Exception, request: Request) -> None:
        """Never the query, a header or the body; the traceback only when asked for."""
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{frame[0].filename}:{frame[0].lineno}" if frame else "?"
        _log.error(
            "request %s, %s %s: %s at %s",
            request.id, request.method, _quoted(request.path), type(error).__name__, where,
            exc_info=error if self._debug else None, extra={"request_id": request.id},
        )  # fmt: skip


def _read_head(
    method: str, path: str, query: bytes, headers: Sequence[tuple[bytes, bytes]],
    client: Any, ready: Principal | None, raw_path: bytes | None = None,
) -> Request:  # fmt: skip
    head: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _LOOKED_AT:
            head.setdefault(name, []).append(value)
    request_id = _request_id(head.get(b"x-request-id"))
    undecoded = "" if raw_path is None else raw_path.decode("latin-1")
    return Request(method, path, query, headers, head, client, request_id, ready, undecoded)


def _quoted(path: str) -> str:
    """A path as it may stand in a log: anybody can put a line break into one."""
    return repr(path)[:_PATH_SHOWN]


def _request_id(given: Sequence[bytes] | None) -> str:
    if given is not None and len(given) == 1 and _is_request_id(given[0]):
        text = given[0].decode("ascii")
        if not holds_a_secret(text):  # it is logged
            return text
    return f"{_boot}-{next(_count):x}"
