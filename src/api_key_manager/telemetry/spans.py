"""One span per request, by OpenTelemetry's semantic conventions for HTTP servers.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/, but for ``url.path``: a path may hold
a token that somebody put there, so only the route's template is told. No header, no query and no
message of an exception is told either.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api_key_manager.core.models import ADMIN_REALM, Verdict
from api_key_manager.core.presented import Presented
from api_key_manager.core.tally import Tally

if TYPE_CHECKING:
    from api_key_manager.telemetry.tracing import App, Message, Route

__all__ = ["Spans"]

_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_extract = TraceContextTextMapPropagator().extract
_verdicts: ContextVar[list[Verdict] | None] = ContextVar("akm_verdicts", default=None)


class Spans:
    """Traces requests.

    Args:
        tracer: makes the spans.
    """

    on = True

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self.tally: Tally = _Told()

    def around(self, app: App, route: Route) -> App:
        """The app, with a span around each request."""

        async def traced(scope: Message, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            span = self._begin(scope, route(scope["method"], scope["path"]))
            status = 0

            async def sent(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            given: list[Verdict] = []
            outer = _verdicts.set(given)
            # What exceptions say may quote a caller: only their type is told.
            with use_span(span, record_exception=False, set_status_on_exception=False):
                try:
                    await app(scope, receive, sent)
                except BaseException as error:
                    span.set_attribute("error.type", type(error).__qualname__)
                    span.set_status(Status(StatusCode.ERROR))
                    raise
                finally:
                    _verdicts.reset(outer)
                    _end(span, status, given)

        return traced

    def _begin(self, scope: Message, route: str | None) -> Span:
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes = {
            "http.request.method": method,
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        name = "HTTP" if method == "_OTHER" else method
        if route is not None:
            attributes["http.route"] = route
            name = f"{name} {route}"
        return self._tracer.start_span(
            name, _parent(scope), kind=SpanKind.SERVER, attributes=attributes
        )


class _Told(Tally):
    """Lets the span of the current request know of its verdicts too."""

    __slots__ = ()

    def add(self, presented: Presented, verdict: Verdict) -> None:
        super().add(presented, verdict)
        given = _verdicts.get()
        # That an admin token was accepted is no news; of a batch there is no one reason.
        told = presented.realm != ADMIN_REALM or not verdict.valid
        if told and given is not None and len(given) < 2:
            given.append(verdict)


def _parent(scope: Message) -> Context:
    """W3C trace context; of two parents nobody can say which one it is."""
    found: dict[bytes, list[str]] = {b"traceparent": [], b"tracestate": []}
    for name, value in scope["headers"]:
        if name in found:
            found[name].append(value.decode("latin-1"))
    if len(found[b"traceparent"]) != 1:
        return Context()
    carrier = {"traceparent": found[b"traceparent"][0]}
    if found[b"tracestate"]:
        carrier["tracestate"] = ",".join(found[b"tracestate"])
    return _extract(carrier, Context())


def _end(span: Span, status: int, given: list[Verdict]) -> None:
    if status:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
    if len(given) == 1:
        verdict = given[0]
        span.set_attribute("akm.reason", verdict.reason.value)
        # Of a key only once its secret was proved: what else stands there may be anything.
        if verdict.key is not None:
            span.set_attribute("akm.key_id", verdict.key.key_id)
    span.end()
