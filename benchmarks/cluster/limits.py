"""Whether a limit holds across nodes: one key, thousands of attempts at once, counted by Redis."""

from __future__ import annotations

import asyncio
import time
from argparse import ArgumentParser, Namespace
from fractions import Fraction

from benchmarks.cluster.figures import Table, percentile
from benchmarks.cluster.keys import make_keys
from benchmarks.cluster.wire import Connection, request
from scripts.cluster import Cluster

LIMIT, WINDOW = 100, 3600
_CONNECTIONS = 25

METHOD = """\
In each round a new key with {limit} requests an hour; {attempts} validations of it are sent at
once, over {connections} connections to each of {nodes} nodes, without waiting for answers.
Allowed are {limit} and what came back between the instants before the first question and after
the last answer, by Redis's own clock. A failover of Redis is not part of it: what its replica had
not heard of is given back."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=50, help="how many keys, one after the other")
    parser.add_argument("--attempts", type=int, default=3000, help="of each key, at once")


async def run(cluster: Cluster, given: Namespace) -> bool:
    """All rounds, then the table."""
    table = Table(
        f"Limits: {given.attempts} attempts at once at {len(cluster.nodes)} nodes,"
        f" {given.rounds} rounds",
        METHOD.format(
            limit=LIMIT, attempts=given.attempts, connections=_CONNECTIONS, nodes=len(cluster.nodes)
        ),
    )  # fmt: skip
    admin = cluster.material.admin_token
    connections = [
        await Connection.open(url) for _ in range(_CONNECTIONS) for url in cluster.node_urls
    ]
    accepted, over, under, others, took = [], 0, 0, 0, []
    for _ in range(given.rounds):
        limits = [{"name": "hour", "limit": LIMIT, "window_seconds": WINDOW}]
        (key,) = await make_keys(cluster.node_urls[:1], admin, 1, rate_limits=limits)
        raw = request("POST", "/v1/validate", admin, {"token": key.token})
        began, start = redis_time(cluster), time.perf_counter()
        answers = await asyncio.gather(
            *(connections[n % len(connections)].ask(raw) for n in range(given.attempts))
        )
        took.append(time.perf_counter() - start)
        passed = redis_time(cluster) - began
        allowed = LIMIT + int(passed * LIMIT / WINDOW)
        count = sum(b'"valid":true' in answer.body for answer in answers)
        limited = sum(b'"rate_limited"' in answer.body for answer in answers)
        accepted.append(count)
        over, under = over + max(0, count - allowed), under + max(0, LIMIT - count)
        others += len(answers) - count - limited
    for connection in connections:
        connection.close()
    table.row("accepted in a round, least", str(min(accepted)), f"{LIMIT}", met=under == 0)
    table.row("accepted in a round, most", str(max(accepted)))
    table.row("accepted beyond what was allowed, all rounds", str(over), "0", met=over == 0)
    table.row("neither accepted nor limited", str(others), "0", met=others == 0)
    table.row("a round, median", f"{percentile(took, 0.5) * 1000:.0f} ms")
    return table.good


def redis_time(cluster: Cluster) -> Fraction:
    """Seconds on the clock of Redis."""
    seconds, microseconds = cluster.redis.ask("TIME")
    return Fraction(int(seconds)) + Fraction(int(microseconds), 1_000_000)
