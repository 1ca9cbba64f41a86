"""The front: every request passes here before anything else of the app sees it.

It gives the request an id, lets in only who shows a token with the scope of the route, reads the
body within bounds, answers the hot routes itself, and turns whatever goes wrong into a problem
document. What stands in no route is not passed on, so that nothing is open by oversight.
"""

from __future__ import annotations

import logging
import time
import traceback
from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from api_key_manager.server.auth import Door
from api_key_manager.server.bodies import ClientGoneError, json_body, read_body, replay
from api_key_manager.server.errors import PROBLEM_TYPE, ProblemError, problem_of
from api_key_manager.server.exchange import Exchange, Reply, Request, Steps
from api_key_manager.server.hot import validate, validate_now, validate_read
from api_key_manager.server.principal import PRINCIPAL
from api_key_manager.server.responses import Response
from api_key_manager.server.routes import Routes
from api_key_manager.server.visits import Outcome, Pass, Visit, new_id, read_head
from api_key_manager.telemetry.logs import request_id as logged_id
from api_key_manager.telemetry.numbers import BOUNDS

if TYPE_CHECKING:
    from api_key_manager.core.manager import KeyManager
    from api_key_manager.telemetry.numbers import Meter

__all__ = ["REQUEST_ID", "Front"]

REQUEST_ID: Final = "akm.request_id"

_log = logging.getLogger(__name__)
_PATH_SHOWN: Final = 200
_OUTAGE_SECONDS: Final = 10.0


class Front:
    """Pure ASGI middleware around the app, which also answers hot requests without ASGI.

    ``begin`` or ``again``, then ``advance``, and ``finish`` if that has no answer yet.

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
        self._quiet_until = 0.0
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
        return self._visit(read_head(method, path, query, headers, client, None), body)

    def again(self, before: Visit, body: bytes) -> tuple[str, bytes | Reply | Visit | None]:
        """The next request on a connection, with the very head of the one before.

        Returns:
            Its id, and the answer, of which the usual one is its body only; or the visit, if that
            needs to wait; or ``None`` when it has to begin like any other, which no part of it has
            done yet.
        """
        began, manager, request = perf_counter(), self._manager, before.request
        request_id = new_id(request.head.get(b"x-request-id"))
        hot, admission, now = before.hot, before.admission, manager.clock()
        if hot is None or admission is None:
            if before.opened is None:
                return request_id, None
            visit = Visit(request.with_id(request_id), before.opened)
            visit.exchange = Exchange(manager, before.opened(visit.request), body, now)
        else:
            if not admission.again(manager, now):
                return request_id, None
            principal = admission.principal
            if hot is validate:
                try:
                    read = validate_now(manager, body, principal, request_id, now)
                except Exception as error:
                    problem = self._problem(error, request.with_id(request_id))
                    self._answered(before, problem.status, began)
                    return request_id, problem
                if isinstance(read, bytes):
                    self._answered(before, 200, began)
                    return request_id, read
                steps = validate_read(read)
            else:
                steps = hot(body, principal.anew(request_id))
            visit = Visit(request.with_id(request_id), None, hot, admission)
            visit.exchange = Exchange(manager, steps, body, now)
        visit.began, visit.taken = began, before.taken
        return request_id, self.advance(visit) or visit

    def advance(self, visit: Visit) -> Reply | None:
        """The answer, if there is one without waiting; else :meth:`finish` has it."""
        try:
            outcome = visit.exchange.advance()
        except Exception as error:
            outcome = self._problem(error, visit.request)
        if not isinstance(outcome, Reply):
            return None
        self._answered(visit, outcome.status, visit.began)
        return outcome

    async def finish(self, visit: Visit) -> Reply:
        """The answer to what :meth:`advance` had none for, with whatever I/O that takes. To be run
        in a task of its own, for its log lines to have the request's id."""
        request = visit.request
        logged_id.set(request.id)
        try:
            outcome = await visit.exchange.finish(_has_come)
            if not isinstance(outcome, Reply):
                raise TypeError("a hot request was not answered by its handler")
        except Exception as error:
            outcome = self._problem(error, request)
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
        request = read_head(
            scope["method"], scope["path"], scope["query_string"], scope["headers"],
            scope.get("client"), scope.get(PRINCIPAL), scope.get("raw_path"),
        )  # fmt: skip
        visit = self._visit(request)
        scope[REQUEST_ID] = request.id
        logged_id.set(request.id)  # never taken back: each request has a task of its own
        response = Response(send, request.id)
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
        # That a node is not ready is no failure of who asked whether it is.
        told = problem.reason == "not_ready" or (
            problem.status == 503 and not self._may_tell_outage()
        )
        if problem.status >= 500 and not told:
            self._report(error, request)
        return Reply(
            problem.body(request.id), problem.status, PROBLEM_TYPE.encode(), problem.headers
        )

    def _may_tell_outage(self) -> bool:
        """Whoever relies on what is down says so once: of the requests that meet it, one every few
        seconds is told, as an example."""
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + _OUTAGE_SECONDS
        return True

    def _report(self, error: Exception, request: Request) -> None:
        """Never the query, a header or the body; the traceback only when asked for."""
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{frame[0].filename}:{frame[0].lineno}" if frame else "?"
        _log.error(
            "request %s, %s %s: %s at %s",
            request.id, request.method, _quoted(request.path), type(error).__name__, where,
            exc_info=error if self._debug else None, extra={"request_id": request.id},
        )  # fmt: skip


async def _has_come() -> bytes:
    """Reads a body, where it is known before anything begins."""
    raise RuntimeError("the body was not handed over")


def _quoted(path: str) -> str:
    """A path as it may stand in a log: anybody can put a line break into one."""
    return repr(path)[:_PATH_SHOWN]
