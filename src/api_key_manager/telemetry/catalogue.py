"""Every metric there is: its name, kind, labels, and what it becomes with several workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

__all__ = ["METRICS", "Metric", "Readings", "Series"]

Series = dict[tuple[str, ...], list[float]]
"""By the labels' values: one number, or of a histogram the list of ``Durations.values``."""

Readings = dict[str, Series]
"""By the metric's name: everything that is exposed, at one instant."""


class Metric(NamedTuple):
    """A metric by Prometheus' conventions.

    Attributes:
        kind: of the metric.
        told: the help text.
        labels: their names; no value of them may be for callers to choose, and of what operators
            choose only so many are shown.
        across: what is shown of several workers: their sum, one series per worker with its
            number as the label ``worker``, or only what the answering one says.
    """

    kind: Literal["counter", "gauge", "histogram"]
    told: str
    labels: tuple[str, ...] = ()
    across: Literal["sum", "worker", "own"] = "sum"


METRICS: Final[Mapping[str, Metric]] = {
    "akm_build_info": Metric("gauge", "The version of this server.", ("version",), "own"),
    "akm_ready": Metric(
        "gauge", "1 while this process should get requests, as /readyz says.", (), "worker"
    ),
    "akm_validations_total": Metric(
        "counter", "Verdicts on callers' credentials, each of a batch counted.",
        ("reason", "scheme"),
    ),
    "akm_environment_validations_total": Metric(
        "counter",
        "Verdicts on credentials of keys with an environment, of which the secret was proved.",
        ("environment", "result"),
    ),
    "akm_admin_token_refusals_total": Metric("counter", "Refused admin tokens.", ("reason",)),
    "akm_failures_slowed_total": Metric(
        "counter",
        "Refused credentials that were answered 429, as their address, or all addresses together,"
        " fail too often.",
        ("limit",),
    ),
    "akm_nonces_refused_total": Metric(
        "counter", "Nonces that were replayed, or could not be claimed.", ("reason",)
    ),
    "akm_rate_limit_decisions_total": Metric(
        "counter", "Decisions of the rate limiter on credentials that passed all else.",
        ("decision",),
    ),
    "akm_record_cache_hits_total": Metric(
        "counter", "Validations that found the key's record in memory."
    ),
    "akm_record_cache_misses_total": Metric(
        "counter", "Validations that asked the store for the key's record."
    ),
    "akm_record_cache_evictions_total": Metric("counter", "Records that made room for others."),
    "akm_record_cache_entries": Metric("gauge", "Records in memory."),
    "akm_shared_records_total": Metric(
        "counter", "Records that memory did not have and Redis was asked for.", ("result",)
    ),
    "akm_redis_up": Metric("gauge", "1 while Redis answers.", (), "worker"),
    "akm_redis_calls_total": Metric("counter", "Calls to Redis."),
    "akm_redis_failures_total": Metric(
        "counter", "Calls to Redis that had no answer, or were refused."
    ),
    "akm_rate_limit_undecided_total": Metric(
        "counter", "Credentials that ON_LIMITER_OUTAGE decided, since Redis could not."
    ),
    "akm_audit_queue_events": Metric("gauge", "Events that wait to be written."),
    "akm_audit_queue_refusals_total": Metric(
        "counter", "Validations that were unavailable since the audit queue had no room for them."
    ),
    "akm_store_operation_duration_seconds": Metric(
        "histogram", "How long callers waited for the store.", ("access", "operation")
    ),
    "akm_keys": Metric("gauge", "Keys, without admin tokens and deleted ones.", ("state",), "own"),
    "akm_webhook_deliveries_total": Metric(
        "counter", "Tries to deliver a webhook.", ("outcome",)
    ),
    "akm_webhook_queue_deliveries": Metric(
        "gauge", "Deliveries that wait, and those that were given up.", ("state",), "own"
    ),
    "akm_http_requests_total": Metric(
        "counter", "Answered requests.", ("method", "route", "status")
    ),
    "akm_http_request_duration_seconds": Metric(
        "histogram", "From the head of a request to the end of its answer.", ("method", "route")
    ),
    "process_cpu_seconds_total": Metric("counter", "CPU time of the process.", (), "worker"),
    "process_resident_memory_bytes": Metric("gauge", "Memory of the process.", (), "worker"),
    "process_virtual_memory_bytes": Metric(
        "gauge", "Address space of the process.", (), "worker"
    ),
    "process_start_time_seconds": Metric(
        "gauge", "When the process started, in Unix seconds.", (), "worker"
    ),
    "process_open_fds": Metric("gauge", "Open files and connections.", (), "worker"),
    "process_max_fds": Metric("gauge", "How many files it may open.", (), "worker"),
}  # fmt: skip
