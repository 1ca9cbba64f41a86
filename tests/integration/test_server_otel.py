"""OpenTelemetry: one span per request, the same numbers as `/metrics`, and no secret in either."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from api_key_manager import __version__
from api_key_manager.config import Settings
from api_key_manager.core import ConfigurationError, StorageError
from api_key_manager.core.tokens import mint_token
from api_key_manager.telemetry import otel
from api_key_manager.telemetry.catalogue import METRICS
from api_key_manager.telemetry.tracing import signals_wanted
from api_key_manager.wiring import open_deployment
from tests.integration.conftest import Api, serving, signed
from tests.integration.scrapes import of, scrape
from tests.integration.test_server_serve import TOKEN, started

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


class Traced:
    """A server that traces into memory; the spans are there once it has stopped."""

    def __init__(self, api: Api, exporter: InMemorySpanExporter) -> None:
        self.api = api
        self._exporter = exporter

    def span(self) -> ReadableSpan:
        """The newest one that has ended."""
        tracing = self.api.deployment.observing
        tracing._otel._tracer_provider.force_flush()
        return self._exporter.get_finished_spans()[-1]


@pytest.fixture
async def traced(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(otel, "OTLPSpanExporter", lambda: exporter)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
    async with serving(opentelemetry=True) as api:
        yield Traced(api, exporter)


async def test_span(traced: Traced):
    """Named by the route; its attributes are those of the conventions, and the reason and key of
    the one credential that was judged."""
    assert traced.api.deployment.observing.tracing.on
    key = await traced.api.key(key_id="signing")
    await traced.api("POST", "/v1/validate", signed(key))
    span = traced.span()
    assert (span.name, span.kind) == ("POST /v1/validate", SpanKind.SERVER)
    assert span.parent is None
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST", "http.route": "/v1/validate", "url.scheme": "http",
        "network.protocol.version": "1.1", "http.response.status_code": 200,
        "akm.reason": "valid", "akm.key_id": "signing",
    }  # fmt: skip
    assert span.status.status_code is StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "api-key-manager"
    assert span.resource.attributes["service.version"] == __version__
    await traced.api("GET", f"/v1/keys/{key['key_id']}")
    assert traced.span().name == "GET /v1/keys/{key_id}"


async def test_refused(traced: Traced):
    """The reason of a refusal shows; the id of a key only once its secret was proved."""
    key = await traced.api.key(key_id="signing", permissions=["a"])
    wrong = {**signed(key), "signature": "0" * 64}
    for body, reason, key_id in (
        (wrong, "bad_signature", None),
        ({"key": "nobody", "signature": "0" * 64}, "not_found", None),
        ({**signed(key), "permissions": "b"}, "forbidden", "signing"),
    ):
        await traced.api("POST", "/v1/validate", body)
        attributes = traced.span().attributes or {}
        assert (attributes["akm.reason"], attributes.get("akm.key_id")) == (reason, key_id)
    await traced.api("POST", "/v1/validate", wrong, token=mint_token("akm", "nobody"))
    attributes = traced.span().attributes or {}
    assert attributes["akm.reason"] == "not_found"
    assert attributes["http.response.status_code"] == 401


async def test_batch(traced: Traced):
    """Of many credentials there is no one reason; of one in a batch there is."""
    key = await traced.api.key(kind="bearer")
    item = {"token": key["token"]}
    await traced.api("POST", "/v1/validate/batch", {"validations": [item, item, item]})
    assert "akm.reason" not in (traced.span().attributes or {})
    await traced.api("POST", "/v1/validate/batch", {"validations": [item]})
    assert (traced.span().attributes or {})["akm.reason"] == "valid"


async def test_parent(traced: Traced):
    """The caller's trace goes on here, with its state."""
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=x"}
    await traced.api("GET", "/healthz", headers=headers)
    span = traced.span()
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.parent.is_remote
    assert span.context.trace_state.get("vendor") == "x"


@pytest.mark.parametrize(
    "given",
    [
        "", "garbage", TRACEPARENT.upper(), f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{PARENT}", f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-1", f"00-{TRACE[:-1]}g-{PARENT}-01",
    ],
)  # fmt: skip
async def test_bad_parent(traced: Traced, given: str):
    """A header that does not follow the standard begins a new trace, and harms nothing."""
    assert (await traced.api("GET", "/healthz", headers={"traceparent": given})).status_code == 200
    span = traced.span()
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


async def test_two_parents(traced: Traced):
    """Of two headers nobody can say which one a proxy has set."""
    pair = [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT[:-1] + "0")]
    answer = await traced.api.client.request("GET", "/healthz", headers=pair)
    assert answer.status_code == 200
    assert traced.span().parent is None


async def test_not_sampled(traced: Traced):
    """A caller who does not trace is not traced."""
    await traced.api("GET", "/readyz")
    before = traced.span()
    await traced.api("GET", "/healthz", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert traced.span() is before


async def test_unknown(traced: Traced):
    """What strangers make up names no span and stands in none."""
    await traced.api("BREW", "/no/such/path")
    span = traced.span()
    assert span.name == "HTTP"
    assert (span.attributes or {})["http.request.method"] == "_OTHER"
    assert "http.route" not in (span.attributes or {})


async def test_defect(traced: Traced, monkeypatch: pytest.MonkeyPatch):
    """An answer of 5xx is an error of the span; what the exception says is not told."""

    async def broken(*_: Any) -> Any:
        raise StorageError("CANARY")

    monkeypatch.setattr(traced.api.deployment.manager.store, "find", broken)
    assert (await traced.api("GET", "/v1/keys")).status_code == 503
    span = traced.span()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "503"
    assert "CANARY" not in span.to_json()


async def test_no_secret(traced: Traced):
    """Wherever a caller puts a secret, no span has it."""
    key = await traced.api.key(kind="bearer")
    secret = key["token"]
    for method, path, body in (
        ("POST", "/v1/validate", {"token": secret}),
        ("POST", "/v1/validate", {"key": secret, "signature": "0" * 64}),
        ("GET", f"/v1/keys/{secret}", None),
        ("GET", f"/{secret}?token={secret}", None),
    ):
        await traced.api(
            method, path, body,
            headers={"X-Request-Id": secret, "User-Agent": secret, "tracestate": f"a={secret}"},
        )  # fmt: skip
        told = traced.span().to_json()
        for hidden in (secret, secret[-36:], traced.api.token):
            assert hidden not in told


class Sink(http.server.ThreadingHTTPServer):
    """A collector: keeps what it is sent, decoded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.headers.append(dict(self.headers))
        if self.path == "/v1/traces":
            self.server.traces.append(ExportTraceServiceRequest.FromString(body))
        else:
            assert self.path == "/v1/metrics"
            self.server.metrics.append(ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def collected(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> Sink:
    port = sink.server_address[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-the-collector")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "the-keys")
    return sink


async def test_over_http(collected: Sink):
    """Spans and numbers reach a collector when the server stops; the numbers are those that
    `/metrics` tells."""
    async with serving(opentelemetry=True) as api:
        key = await api.key(kind="bearer")
        for _ in range(3):
            await api("POST", "/v1/validate", {"token": key["token"]})
        await api("POST", "/v1/validate", {"token": "wrong"}, headers={"traceparent": TRACEPARENT})
        await api.deployment.exposition.publish(keys=True)
        seen = await scrape(api)
    (spans,) = [s for request in collected.traces for s in request.resource_spans]
    assert {a.key: a.value.string_value for a in spans.resource.attributes}["service.name"] == (
        "the-keys"
    )
    names = [span.name for scope in spans.scope_spans for span in scope.spans]
    assert names.count("POST /v1/validate") == 4
    assert [s.trace_id.hex() for scope in spans.scope_spans for s in scope.spans][-2] == TRACE
    assert all(h["authorization"] == "Bearer of-the-collector" for h in collected.headers)

    metrics = {
        metric.name: metric
        for request in collected.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    with_points = {name for name, metric in METRICS.items() if name in {n for n, _ in seen}}
    # The last numbers are without what only a live store says.
    assert with_points - {"akm_keys"} <= {
        name for name in METRICS if name.removesuffix("_total") in metrics
    }
    validations = metrics["akm_validations"]
    assert validations.sum.is_monotonic
    assert {
        tuple(a.value.string_value for a in sorted(p.attributes, key=lambda a: a.key)):
            p.as_int or p.as_double
        for p in validations.sum.data_points
    } == of(seen, "akm_validations_total")  # fmt: skip
    durations = metrics["akm_http_request_duration_seconds"]
    assert durations.unit == "s"
    point = next(
        p for p in durations.histogram.data_points
        if "/v1/validate" in [a.value.string_value for a in p.attributes]
    )  # fmt: skip
    assert point.count == 4 == sum(point.bucket_counts)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert point.sum > 0
    assert not point.HasField("min")
    told = str(collected.metrics) + str(collected.traces)
    assert key["token"] not in told
    assert key["key_id"] not in str(collected.metrics)


async def test_while_it_runs(collected: Sink, monkeypatch: pytest.MonkeyPatch):
    """Numbers go out as often as OTEL_METRIC_EXPORT_INTERVAL says, and only they when traces are
    not wanted."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    async with serving(opentelemetry=True) as api:
        assert not api.deployment.observing.tracing.on
        deadline = time.monotonic() + 20
        while len(collected.metrics) < 3:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        told = str(collected.metrics[-1])
    assert "akm_keys" in told
    assert not collected.traces


async def test_no_collector(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Where nobody listens, requests are answered all the same, and the stop does not hang."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-the-collector")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with serving(opentelemetry=True) as api:
        key = await api.key(kind="bearer")
        answer = await api("POST", "/v1/validate", {"token": key["token"]})
        assert answer.json()["valid"]
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 20
    assert "of-the-collector" not in caplog.text
    assert key["token"] not in caplog.text


def test_the_server_sends(sink: Sink, tmp_path: Path):
    """`akm serve` heeds the variables: every request has its span, the fast lane's routes too."""
    port = sink.server_address[1]
    with started(
        tmp_path, AKM_ADMIN_TOKEN=TOKEN, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}"
    ) as server:
        headers = {"Authorization": f"Bearer {TOKEN}", "traceparent": TRACEPARENT}
        with httpx.Client(base_url=server.url, headers=headers) as client:
            key = client.post("/v1/keys", json={"kind": "bearer"}).json()
            for _ in range(4):
                client.post("/v1/validate", json={"token": key["token"]})
        assert server.stop() == 0
    spans = [
        span
        for request in sink.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [s.name for s in spans] == ["POST /v1/keys"] + ["POST /v1/validate"] * 4
    assert {s.trace_id.hex() for s in spans} == {TRACE}
    assert {s.parent_span_id.hex() for s in spans} == {PARENT}
    assert sink.metrics


def test_wanted():
    """Only an endpoint asks; `OTEL_SDK_DISABLED` and an exporter `none` take it back."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
    assert signals_wanted({}) == []
    assert signals_wanted({"OTEL_TRACES_EXPORTER": "otlp"}) == []
    assert signals_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) == []
    assert signals_wanted(endpoint) == ["traces", "metrics"]
    assert signals_wanted({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/m"}) == ["metrics"]
    assert signals_wanted({**endpoint, "OTEL_SDK_DISABLED": "TRUE"}) == []
    assert signals_wanted({**endpoint, "OTEL_SDK_DISABLED": "no"}) == ["traces", "metrics"]
    assert signals_wanted({**endpoint, "OTEL_METRICS_EXPORTER": "none"}) == ["traces"]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("OTEL_TRACES_EXPORTER", "console", "otlp or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json", "http/protobuf"),
    ],
)
async def test_not_built(name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch):
    """What is not built stops the start and names the variable and what is allowed."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name}={value}: {allowed} is allowed"):
        async with serving(opentelemetry=True):
            pass


async def test_not_asked(monkeypatch: pytest.MonkeyPatch):
    """A program that opens a manager in its own process keeps its telemetry to itself."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    async with open_deployment(Settings.load(DATABASE_URL="memory://")) as deployment:
        assert not deployment.observing.sends
        assert not deployment.observing.tracing.on


async def test_not_installed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Without the extra the server serves, and says what would be needed."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "api_key_manager.telemetry.otel")
    with caplog.at_level(logging.WARNING):
        async with serving(opentelemetry=True) as api:
            assert not api.deployment.observing.tracing.on
            assert (await api("GET", "/readyz")).status_code == 200
    assert "pip install 'api-key-manager-pro[otel]'" in caplog.text


def test_no_foreign_spans():
    """A framework that finds a provider of the surrounding program traces nothing by itself."""
    program = (
        "import asyncio, httpx\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "from api_key_manager.config import Settings\n"
        "from api_key_manager.server.app import build_app\n"
        "from api_key_manager.wiring import open_deployment\n"
        "exporter = InMemorySpanExporter()\n"
        "trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))\n"
        "trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))\n"
        "async def main():\n"
        "    async with open_deployment(Settings.load(DATABASE_URL='memory://')) as deployment:\n"
        "        transport = httpx.ASGITransport(build_app(deployment))\n"
        "        async with httpx.AsyncClient(transport=transport) as client:\n"
        "            assert (await client.get('http://a/healthz')).status_code == 200\n"
        "asyncio.run(main())\n"
        "found = exporter.get_finished_spans()\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_not_imported():
    """Nobody who did not ask pays for it."""
    program = (
        "import asyncio, sys\n"
        "from api_key_manager.config import Settings\n"
        "from api_key_manager.server import app, serve\n"
        "from api_key_manager.wiring import open_deployment\n"
        "async def main():\n"
        "    settings = Settings.load(DATABASE_URL='memory://')\n"
        "    async with open_deployment(settings, opentelemetry=True) as deployment:\n"
        "        app.build_app(deployment)\n"
        "asyncio.run(main())\n"
        "ours = ('api_key_manager.telemetry.otel', 'api_key_manager.telemetry.spans')\n"
        "theirs = ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests')\n"
        "found = [name for name in sys.modules if name.startswith(ours + theirs)]\n"
        "assert not found, found\n"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
