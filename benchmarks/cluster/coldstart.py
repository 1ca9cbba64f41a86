"""What a restart costs: many distinct keys at once, when no node knows any."""

from __future__ import annotations

import asyncio
import time
from argparse import ArgumentParser, Namespace

import asyncpg

from benchmarks.cluster.bulk import load_keys
from benchmarks.cluster.crowd import Crowd
from benchmarks.cluster.figures import Table, percentile
from benchmarks.cluster.reads import most_connections, reads
from scripts.cluster import Cluster

METHOD = """\
{keys} keys are loaded; all nodes are stopped and started again{flushed}. Then each key is validated
once, over {connections} connections spread over the nodes, as fast as the answers come; then all
once more over the same connections, which is the steady state. Look-ups in `keys` by its primary
key, and rows read without an index, are those of PostgreSQL's own statistics, less what the nodes
read all the time."""
_CONNECTIONS = 192


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--cold-keys", type=int, default=100_000, help="distinct keys after the restart"
    )


async def run(cluster: Cluster, given: Namespace) -> bool:
    """With an empty Redis, then with what Redis has kept."""
    count = given.cold_keys
    tokens = (await load_keys(cluster, count)).tokens
    good = True
    for flushed in (True, False):
        good = await _restart_and_ask(cluster, tokens, flushed=flushed) and good
    return good


async def _restart_and_ask(cluster: Cluster, tokens: list[str], *, flushed: bool) -> bool:
    table = Table(
        f"Cold start: {len(tokens)} distinct keys at once, "
        f"{'nothing' if flushed else 'their records'} in Redis",
        METHOD.format(
            keys=len(tokens), connections=_CONNECTIONS,
            flushed=", Redis is emptied" if flushed else "",
        ),
    )  # fmt: skip
    for node in cluster.nodes:
        node.ask_to_stop()
    for node in cluster.nodes:
        node.stop()
    if flushed:
        cluster.redis.ask("FLUSHALL")
    start = time.perf_counter()
    for node in cluster.nodes:
        node.start()
    for node in cluster.nodes:
        await asyncio.to_thread(node.wait)
    table.row("until all nodes are ready", f"{time.perf_counter() - start:.1f} s")
    urls, admin = cluster.node_urls, cluster.material.admin_token
    statistics = await asyncpg.connect(cluster.postgres.url)
    try:
        quiet, before = await reads(statistics), await reads(statistics)
        most = asyncio.create_task(most_connections(statistics))
        crowd = Crowd(urls, admin, _CONNECTIONS)
        cold = await crowd.ask(tokens)
        most.cancel()
        connections = await most
        read = (await reads(statistics)).since(before, quiet)
        warm = await crowd.ask(tokens)
        crowd.close()
    finally:
        await statistics.close()
    errors = cold.errors + cold.refused
    table.row("errors and refusals", str(errors), "0", met=errors == 0)
    table.row("answers a second, cold", f"{len(tokens) / cold.seconds:,.0f}")
    table.row("answers a second, second pass", f"{len(tokens) / warm.seconds:,.0f}")
    for share in (0.5, 0.99):
        value = percentile(cold.latencies, share) * 1000
        table.row(f"cold, p{share * 100:.0f}", f"{value:.1f} ms")
    each = read.look_ups / len(tokens)
    table.row("look-ups by primary key, for each key", f"{each:.2f}", "≤ 1.1", met=each <= 1.1)
    table.row("rows read without an index", f"{read.scanned:,}", "0", met=not read.scanned)
    table.row("connections to PostgreSQL, most", str(connections))
    table.row("until every key was answered, and the state is steady", f"{cold.seconds:.1f} s")
    return table.good
