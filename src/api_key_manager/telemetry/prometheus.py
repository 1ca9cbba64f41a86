"""The numbers in Prometheus' text format.

The objects of prometheus-client are made when somebody scrapes, and its global registry is not
used: two deployments in one process know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from api_key_manager.telemetry.catalogue import METRICS, Readings, Series
from api_key_manager.telemetry.numbers import BOUNDS

__all__ = ["CONTENT_TYPE", "expose", "read_process"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_LIMITS: Final = [*(str(bound) for bound in BOUNDS), "+Inf"]
_process: Final = ProcessCollector(registry=CollectorRegistry())


def expose(readings: Readings) -> bytes:
    """The exposition of what the workers say together."""
    return generate_latest(_Readings(readings))


def read_process() -> Readings:
    """What the operating system says of this process; nothing but on Linux."""
    return {
        sample.name: {(): [sample.value]}
        for family in _process.collect()
        for sample in family.samples
        if sample.name in METRICS
    }


class _Readings(Collector):
    def __init__(self, readings: Mapping[str, Series]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        for name, series in self._readings.items():
            yield _family(name, series)


def _family(name: str, series: Series) -> Metric:
    metric = METRICS[name]
    labels = [*metric.labels, "worker"] if metric.across == "worker" else metric.labels
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.told, labels=labels)
        for where, (*counts, seconds) in sorted(series.items()):
            buckets = list(zip(_LIMITS, accumulate(counts), strict=True))
            histogram.add_metric(where, buckets, seconds)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.told, labels=labels)
    for where, (value,) in sorted(series.items()):
        family.add_metric(where, value)
    return family
