"""What watches a deployment: counters, and OpenTelemetry where it is asked for."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from api_key_manager import __version__
from api_key_manager.telemetry.numbers import Meter
from api_key_manager.telemetry.tracing import Tracing, Untraced, signals_wanted

if TYPE_CHECKING:
    from api_key_manager.telemetry.otel import Otel
    from api_key_manager.wiring.exposition import Exposition
    from api_key_manager.wiring.worker import Worker

__all__ = ["Observing"]

_log = logging.getLogger(__name__)


class Observing:
    """What counts for one deployment.

    Args:
        worker: which of several processes this is, if there are several.
        opentelemetry: whether OpenTelemetry's variables in the environment are heeded.

    Attributes:
        meter: counts requests, and times the store.
        tracing: makes a span of each request, or nothing; counts verdicts.

    Raises:
        ConfigurationError: a variable asks for an exporter or protocol that is not built.
    """

    def __init__(self, worker: Worker | None, *, opentelemetry: bool) -> None:
        self.worker = worker
        self.meter = Meter()
        self._otel = _open() if opentelemetry else None
        self.tracing: Tracing = Untraced() if self._otel is None else self._otel.tracing

    @property
    def sends(self) -> bool:
        """Whether OpenTelemetry gets something."""
        return self._otel is not None

    @property
    def publishes(self) -> bool:
        """Whether others than who scrapes see the numbers."""
        return self.sends or self.worker is not None

    def start(self, exposition: Exposition) -> None:
        """Let OpenTelemetry see the numbers."""
        if self._otel is not None:
            self._otel.start(lambda: exposition.latest)

    async def close(self) -> None:
        """Send what waits."""
        if self._otel is not None:
            await asyncio.to_thread(self._otel.close)


def _open() -> Otel | None:
    signals = signals_wanted(os.environ)
    if not signals:
        return None
    try:
        from api_key_manager.telemetry.otel import Otel
    except ModuleNotFoundError as error:
        _log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but %s is not installed: nothing is sent."
            " pip install 'api-key-manager-pro[otel]', or set OTEL_SDK_DISABLED=true",
            error.name,
        )
        return None
    return Otel(signals, __version__)
