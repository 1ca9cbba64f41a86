"""What tracing is to the rest, which imports nothing of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Literal, Protocol

from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.core.tally import Tally

__all__ = ["App", "Route", "Signal", "Tracing", "Untraced", "signals_wanted"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
"""An ASGI application."""

Route = Callable[[str, str], str | None]
"""From a method and a path to the route's template; ``None`` when there is no route."""

Signal = Literal["traces", "metrics"]
_SIGNALS: tuple[Signal, ...] = ("traces", "metrics")


class Tracing(Protocol):
    """Makes a span of each request.

    Attributes:
        on: whether it does. Then every request goes through the ASGI app.
        tally: counts verdicts, and lets spans know of them.
    """

    on: bool
    tally: Tally

    def around(self, app: App, route: Route) -> App:
        """The same app, traced."""
        ...


class Untraced:
    """No tracing, at no cost."""

    on = False

    def __init__(self) -> None:
        self.tally = Tally()

    def around(self, app: App, route: Route) -> App:
        return app


def signals_wanted(environ: Mapping[str, str]) -> list[Signal]:
    """What OpenTelemetry's own variables ask for.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/; those that
    are not looked at here are read by its SDK. Without an endpoint nothing is sent anywhere.

    Raises:
        ConfigurationError: an exporter or protocol that is not built.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    wanted: list[Signal] = []
    for signal in _SIGNALS:
        upper = signal.upper()
        kind = _one_of(environ, [f"OTEL_{upper}_EXPORTER"], "otlp", "none")
        endpoint = environ.get(f"OTEL_EXPORTER_OTLP_{upper}_ENDPOINT") or environ.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
        if endpoint and kind == "otlp":
            protocols = [f"OTEL_EXPORTER_OTLP_{upper}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]
            _one_of(environ, protocols, "http/protobuf")
            wanted.append(signal)
    return wanted


def _one_of(environ: Mapping[str, str], names: list[str], *allowed: str) -> str:
    for name in names:
        value = environ.get(name)
        if value:
            if value not in allowed:
                raise ConfigurationError(f"{name}={value}: {' or '.join(allowed)} is allowed")
            return value
    return allowed[0]
