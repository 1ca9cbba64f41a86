"""What `/metrics` says, as numbers by name and labels."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Api

__all__ = ["Samples", "of", "read", "scrape", "value"]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(api: Api, **more: Any) -> Samples:
    """Scrape it."""
    answer = await api("GET", "/metrics", **more)
    assert answer.status_code == 200, answer.text
    return read(answer.text)


def read(text: str) -> Samples:
    """Every sample of a scrape by name and labels; none may be there twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            where = (sample.name, frozenset(sample.labels.items()))
            assert where not in found
            found[where] = sample.value
    return found


def of(samples: Samples, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric by its labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(labels)): number
        for (known, labels), number in samples.items()
        if known == name
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]
