"""The list of metrics, the alerts and the dashboard name what `/metrics` has: nothing missing or
made up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from api_key_manager.config import Settings
from api_key_manager.telemetry.catalogue import METRICS
from api_key_manager.wiring import open_deployment

DOCS = Path(__file__).resolve().parents[2] / "docs" / "observability"
PARTS = {
    f"{name}_{part}"
    for name, metric in METRICS.items()
    if metric.kind == "histogram"
    for part in ("bucket", "count", "sum")
}
WORD = re.compile(r"\b(?:akm|process)_\w+")


def labels_of(name: str) -> tuple[str, ...]:
    metric = METRICS[re.sub(r"_(bucket|count|sum)$", "", name) if name in PARTS else name]
    return (*metric.labels, *(["worker"] if metric.across == "worker" else []))


def test_table():
    """Each metric with its kind and labels, and no other."""
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", text, re.MULTILINE)
    found = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert found == {name: (metric.kind, labels_of(name)) for name, metric in METRICS.items()}
    assert len(found) == len(rows)


async def test_exposed():
    """What a scrape has is what the list has; but the `process_` ones, on Linux only."""
    settings = Settings.load(DATABASE_URL="memory://")
    async with open_deployment(settings) as deployment:
        text = (await deployment.exposition.text()).decode()
    families = text_string_to_metric_families(text)
    found = {f.name + "_total" * (f.type == "counter"): f.type for f in families}
    kinds = {name: metric.kind for name, metric in METRICS.items()}
    assert found.items() <= kinds.items()
    missing = {name for name in kinds.keys() - found.keys() if name.startswith("akm")}
    assert missing == {
        "akm_shared_records_total", "akm_redis_up", "akm_redis_calls_total",
        "akm_redis_failures_total", "akm_rate_limit_undecided_total",
        "akm_webhook_deliveries_total", "akm_webhook_queue_deliveries",
    }  # fmt: skip


def expressions() -> Iterator[str]:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text(encoding="utf-8"))

    def below(thing: Any) -> Iterator[str]:
        if isinstance(thing, dict):
            yield from (v for k, v in thing.items() if k in ("expr", "definition"))
            for value in thing.values():
                yield from below(value)
        elif isinstance(thing, list):
            for value in thing:
                yield from below(value)

    yield from below(dashboard)
    yield from re.findall(
        r"expr: (>\n(?:          .*\n)+|.*\n)", (DOCS / "alerts.yml").read_text(encoding="utf-8")
    )


def test_expressions():
    """Every expression of the dashboard and of the alerts asks for metrics that are exposed, by
    labels that they have; every metric of ours is shown somewhere."""
    known, shown = METRICS.keys() | PARTS, set()
    for expression in expressions():
        named = set(WORD.findall(expression))
        assert named, expression
        assert named <= known, expression
        shown |= named
        for name, chosen in re.findall(r"\b((?:akm|process)_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)", chosen))
            assert labels <= {*labels_of(name), "job", "instance"}, expression
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            labels = {label.strip() for label in grouped.split(",")}
            has = {label for name in named for label in labels_of(name)}
            assert labels <= {*has, "le"}, expression
    whole = {re.sub(r"_(bucket|count|sum)$", "", n) if n in PARTS else n for n in shown}
    assert {name for name in METRICS if name.startswith("akm")} <= whole


def test_alerts():
    """Each rule is explained, and no other."""
    rules = re.findall(r"- alert: (\w+)", (DOCS / "alerts.yml").read_text(encoding="utf-8"))
    told = re.findall(
        r"^\| `(Akm\w+)` \|", (DOCS / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rules == told
    assert len(rules) > 5


def test_dashboard():
    """It can be imported: ids and places are its own, and the data source is asked for."""
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
