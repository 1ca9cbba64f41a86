"""What several workers counted, as one: nothing lost, nothing twice, and nothing goes down."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.telemetry.catalogue import METRICS, Readings
from api_key_manager.telemetry.numbers import BOUNDS
from api_key_manager.telemetry.workers import Board

WORKERS = 3
VALID, REFUSED = ("valid", "bearer"), ("revoked", "bearer")


class Process:
    """One incarnation of a worker, with numbers of its own."""

    def __init__(self, number: int, folder: Path, clock: Any) -> None:
        self.board = Board(number, WORKERS, folder, clock=clock)
        self.counts = {VALID: 0, REFUSED: 0}
        self.taken = [0.0] * (len(BOUNDS) + 2)
        self.queue = 0

    def count(self, where: tuple[str, str], times: int) -> None:
        self.counts[where] += times
        self.taken[times % 3] += times
        self.taken[-1] += times / 2
        self.queue = times

    def read(self) -> Readings:
        return {
            "akm_build_info": {("1",): [1]},
            "akm_ready": {(): [1]},
            "akm_validations_total": {w: [n] for w, n in self.counts.items() if n},
            "akm_http_request_duration_seconds": {("POST", "/v1/validate"): list(self.taken)},
            "akm_audit_queue_events": {(): [self.queue]},
            "akm_keys": {("active",): [7]},
        }

    def exchange(self, **more: Any) -> Readings:
        return self.board.exchange(self.read(), **more)


number = st.integers(1, WORKERS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("count"), number, st.sampled_from([VALID, REFUSED]), st.integers(0, 9)),
        st.tuples(st.just("publish"), number),
        st.tuples(st.just("kill"), number),
        st.tuples(st.just("stop"), number),
    ),
    max_size=40,
)


@given(taken=steps)
def test_never_down(taken, tmp_path_factory, clock):
    """Whatever workers count, are asked, die of and are replaced by: no counter that anybody was
    shown goes down, and in the end all that was published is there."""
    folder = tmp_path_factory.mktemp("workers")
    living = {n: Process(n, folder, clock) for n in range(1, WORKERS + 1)}
    published = dict.fromkeys((VALID, REFUSED), 0)
    unpublished = {n: dict.fromkeys((VALID, REFUSED), 0) for n in living}
    shown: Readings = {}

    def publish(n: int, **more: Any) -> None:
        nonlocal shown
        now = living[n].exchange(**more)
        for where, times in unpublished[n].items():
            published[where] += times
            unpublished[n][where] = 0
        for name in ("akm_validations_total", "akm_http_request_duration_seconds"):
            for where, before in shown.get(name, {}).items():
                assert all(a >= b for a, b in zip(now[name][where], before, strict=True))
        shown = now
        assert {w: v for w, (v,) in now["akm_validations_total"].items()} == {
            w: n for w, n in published.items() if n
        }

    for what, n, *more in taken:
        if what == "count":
            living[n].count(*more)
            unpublished[n][more[0]] += more[1]
        elif what == "publish":
            publish(n)
        else:
            if what == "stop":
                publish(n, ended=True)
            unpublished[n] = dict.fromkeys((VALID, REFUSED), 0)
            living[n] = Process(n, folder, clock)
    for n in living:
        publish(n)
    durations = shown["akm_http_request_duration_seconds"]["POST", "/v1/validate"]
    assert sum(durations[:-1]) == sum(published.values())
    assert durations[-1] == sum(published.values()) / 2


def test_gauges(tmp_path, clock):
    """A queue is the sum of the queues of those that live; each says whether it is ready; what is
    the same for all is said once."""
    one, two = (Process(n, tmp_path, clock) for n in (1, 2))
    one.count(VALID, 5)
    two.count(VALID, 3)
    two.exchange()
    seen = one.exchange()
    assert seen["akm_audit_queue_events"] == {(): [8]}
    # The third has not begun.
    assert seen["akm_ready"] == {("1",): [1], ("2",): [1], ("3",): [0]}
    assert seen["akm_keys"] == {("active",): [7]}
    assert seen["akm_build_info"] == {("1",): [1]}
    assert list(seen) == [name for name in METRICS if name in seen]
    clock.advance(11)
    seen = one.exchange()
    assert seen["akm_audit_queue_events"] == {(): [5]}
    assert seen["akm_ready"] == {("1",): [1], ("2",): [0], ("3",): [0]}
    assert seen["akm_validations_total"] == {VALID: [8]}


def test_ended(tmp_path, clock):
    """Of a worker that stopped only what it counted is left, at once."""
    one, two = (Process(n, tmp_path, clock) for n in (1, 2))
    two.count(VALID, 3)
    two.exchange(ended=True)
    seen = one.exchange()
    assert seen["akm_audit_queue_events"] == {(): [0]}
    assert seen["akm_ready"]["2",] == [0]
    assert seen["akm_validations_total"] == {VALID: [3]}


def test_damaged(tmp_path, clock, caplog):
    """A file that cannot be read takes nothing away from what it said before, and is told."""
    one, two = (Process(n, tmp_path, clock) for n in (1, 2))
    two.count(VALID, 3)
    two.exchange()
    assert one.exchange()["akm_validations_total"] == {VALID: [3]}
    (tmp_path / "metrics-2").write_bytes(b"\x00garbage")
    with caplog.at_level(logging.WARNING):
        assert one.exchange()["akm_validations_total"] == {VALID: [3]}
    assert "worker 2" in caplog.text


def test_disk_full(tmp_path, clock, caplog, monkeypatch):
    """What cannot be written is told, and is right where it is asked."""
    one = Process(1, tmp_path, clock)
    one.count(VALID, 3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        assert one.exchange()["akm_validations_total"] == {VALID: [3]}
    assert "No space left" in caplog.text


def test_files(tmp_path, clock):
    """One file for each worker, however often it is replaced."""
    for _ in range(5):
        process = Process(2, tmp_path, clock)
        process.count(VALID, 1)
        process.exchange()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics-2"]
    assert Process(1, tmp_path, clock).exchange()["akm_validations_total"] == {VALID: [5]}


@pytest.mark.parametrize("name", METRICS)
def test_names(name):
    """Prometheus' conventions: a prefix, base units, `_total` on counters and on nothing else, no
    name or label of its own machinery, a help text."""
    metric = METRICS[name]
    assert name.startswith(("akm_", "process_"))
    assert name.endswith("_total") == (metric.kind == "counter")
    assert (
        not name.endswith(("_count", "_sum", "_bucket", "_milliseconds", "_ms", "_kb", "_info"))
        or name == "akm_build_info"
    )
    if metric.kind == "histogram":
        assert name.endswith("_seconds")
    assert metric.told.endswith(".")
    assert not {"le", "quantile", "job", "instance", "key_id", "worker"} & set(metric.labels)
    assert list(metric.labels) == sorted(metric.labels)
