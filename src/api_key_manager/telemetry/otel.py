"""Traces and metrics for an OpenTelemetry collector, by OTLP over HTTP.

The only modules that import OpenTelemetry are this one and ``spans``. Nothing is put into its
global state: a program that runs the server in its own process keeps its own providers.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from api_key_manager.telemetry.catalogue import METRICS, Readings
from api_key_manager.telemetry.numbers import BOUNDS
from api_key_manager.telemetry.spans import Spans
from api_key_manager.telemetry.tracing import Signal, Tracing, Untraced

__all__ = ["Otel"]

_NAME: Final = "api-key-manager"
_UNITS: Final = {"seconds": "s", "bytes": "By"}

Read = Callable[[], Readings]


class Otel:
    """Sends what the variables of OpenTelemetry ask for, from threads of its own.

    Args:
        signals: what is sent.
        version: of this package.

    Attributes:
        tracing: makes spans, if they are sent.
    """

    def __init__(self, signals: Sequence[Signal], version: str) -> None:
        self._version = version
        self._signals = signals
        self._resource = _resource(version)
        self._tracer_provider: TracerProvider | None = None
        self._meter_provider: MeterProvider | None = None
        self.tracing: Tracing = Untraced()
        if "traces" in signals:
            self._tracer_provider = provider = TracerProvider(
                resource=self._resource, shutdown_on_exit=False
            )
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            self.tracing = Spans(provider.get_tracer("api_key_manager", version))

    def start(self, read: Read) -> None:
        """Send metrics too, if they are asked for.

        Args:
            read: gives readings that nobody changes any more; asked from another thread.
        """
        if "metrics" not in self._signals:
            return
        exporter = _WithHistograms(OTLPMetricExporter(), read)
        provider = MeterProvider(
            [PeriodicExportingMetricReader(exporter)],
            resource=self._resource,
            shutdown_on_exit=False,
        )
        self._meter_provider = provider
        meter = provider.get_meter("api_key_manager", self._version)
        for name, metric in METRICS.items():
            if metric.kind == "histogram":
                continue  # there is no instrument for one that is counted elsewhere
            make = (
                meter.create_observable_counter
                if metric.kind == "counter"
                else meter.create_observable_gauge
            )
            callbacks = [_observer(name, metric.labels, read)]
            make(_otel_name(name), callbacks, _unit(name), metric.told)

    def close(self) -> None:
        """Send what waits. Blocks, at most as long as OpenTelemetry's time-outs say."""
        if self._tracer_provider is not None:
            self._tracer_provider.shutdown()
        if self._meter_provider is not None:
            self._meter_provider.shutdown()


def _resource(version: str) -> Resource:
    """Who sends; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say more."""
    found = Resource.create({"service.version": version, "service.instance.id": str(uuid.uuid4())})
    # The SDK's word for "nobody said it".
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: _NAME}))
    return found


def _observer(
    name: str, labels: tuple[str, ...], read: Read
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for where, (value,) in read().get(name, {}).items():
            yield Observation(value, dict(zip(labels, where, strict=True)))

    return observe


class _WithHistograms(MetricExporter):
    """Adds the histograms to what the instruments say.

    OpenTelemetry's histograms want every single value, which would be counting twice.
    """

    def __init__(self, exporter: MetricExporter, read: Read) -> None:
        # What the reader looks at.
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._read = read
        self._started = time.time_ns()

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Send both."""
        now, read = time.time_ns(), self._read()
        histograms = [
            self._histogram(name, read[name], now)
            for name, metric in METRICS.items()
            if metric.kind == "histogram" and read.get(name)
        ]
        more = [
            ResourceMetrics(
                of.resource,
                [
                    ScopeMetrics(s.scope, [*s.metrics, *histograms], s.schema_url)
                    for s in of.scope_metrics
                ],
                of.schema_url,
            )
            for of in metrics_data.resource_metrics
        ]
        return self._exporter.export(MetricsData(more), timeout_millis, **kwargs)

    def _histogram(self, name: str, series: dict[tuple[str, ...], list[float]], now: int) -> Metric:
        labels = METRICS[name].labels
        points = []
        for where, (*counts, seconds) in series.items():
            counted = [int(count) for count in counts]
            points.append(
                HistogramDataPoint(
                    attributes=dict(zip(labels, where, strict=True)),
                    start_time_unix_nano=self._started,
                    time_unix_nano=now,
                    count=sum(counted),
                    sum=seconds,
                    bucket_counts=counted,
                    explicit_bounds=BOUNDS,
                    # Not known, and optional in the protocol.
                    min=None,  # type: ignore[arg-type]
                    max=None,  # type: ignore[arg-type]
                )
            )
        data = Histogram(points, AggregationTemporality.CUMULATIVE)
        return Metric(_otel_name(name), METRICS[name].told, _unit(name), data)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis)


def _otel_name(name: str) -> str:
    """Without what Prometheus' receivers add again."""
    return name.removesuffix("_total")


def _unit(name: str) -> str:
    return _UNITS.get(_otel_name(name).rpartition("_")[2], "")
