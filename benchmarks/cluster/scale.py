"""Whether more keys in the store make anything slower, and whether memory stays bounded."""

from __future__ import annotations

import asyncio
import random
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from api_key_manager.core.lookups import write_cursor
from api_key_manager.core.tokens import ALPHABET
from benchmarks.cluster.bulk import load_keys
from benchmarks.cluster.crowd import Crowd
from benchmarks.cluster.figures import Table, percentile
from benchmarks.cluster.reads import reads
from benchmarks.cluster.wire import Connection, reach_each_worker, request
from benchmarks.http import resident_mib
from scripts.cluster import Cluster

METHOD = """\
Keys are loaded by COPY up to each size, every one with its own token, MAC, row of the change feed
and audit event. At each size {sample} of them are validated, cold and then {rounds} times warm at
each worker of one node, one at a time, over some seconds; of the warm rounds the quietest counts.
Look-ups in `keys` by its primary key, and rows read without an index, are those of PostgreSQL's own
statistics, less what the nodes read all the time. At the end pages of 100 are read at ten depths.
The nodes' caches hold {cache} records here, and are filled twice over."""
CACHE = 5_000
_SAMPLE = 900
_ROUNDS = 5
_WARM_TIMES = 1.2


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--keys", type=int, default=300_000, help="the largest store of `scale`, as 10000000"
    )


def sizes(largest: int) -> list[int]:
    """1,000, 100,000 and the largest."""
    return [*(size for size in (1_000, 100_000) if size < largest), largest]


async def run(cluster: Cluster, given: Namespace) -> bool:
    """Each size in turn, then pages and memory."""
    table = Table(
        f"Scale: up to {given.keys:,} keys in the store",
        METHOD.format(sample=_SAMPLE, rounds=_ROUNDS, cache=CACHE),
    )
    url, admin = cluster.node_urls[0], cluster.material.admin_token
    statistics = await asyncpg.connect(cluster.postgres.url)
    tokens: list[str] = []
    warm: list[float] = []
    there = 0
    try:
        for size in sizes(given.keys):
            loaded = await load_keys(cluster, size - there, 3 * CACHE)
            tokens += loaded.tokens
            if size - there >= 100_000:
                met = loaded.per_second >= 20_000
                rate = f"{loaded.per_second:,.0f}"
                table.row(f"{size:,} keys: loaded a second", rate, "≥ 20,000", met=met)
            there = size
            sample = random.sample(loaded.tokens, _SAMPLE)
            quiet, before = await reads(statistics), await reads(statistics)
            # Anew each time: a server closes connections that are idle for long.
            workers = await reach_each_worker(url, int(cluster.environment["WORKERS"]))
            cold = await _times(workers[0], admin, sample)
            read = (await reads(statistics)).since(before, quiet)
            each = read.look_ups / len(sample)
            warm.append(await _warm(workers, admin, sample))
            for worker in workers:
                worker.close()
            ratio = warm[-1] / warm[0]
            table.row(f"{size:,} keys: cold, p50", f"{percentile(cold, 0.5) * 1e3:.2f} ms")
            table.row(
                f"{size:,} keys: look-ups of a cold key", f"{each:.2f}", "≤ 1.1", met=each <= 1.1
            )
            rows = f"{read.scanned:,}"
            table.row(f"{size:,} keys: rows read without an index", rows, "0", met=not read.scanned)
            table.row(
                f"{size:,} keys: warm, p50",
                f"{warm[-1] * 1e3:.3f} ms",
                f"× {ratio:.2f} ≤ {_WARM_TIMES}",
                met=ratio <= _WARM_TIMES,
            )
        await _pages(table, url, admin, there)
        await _memory(table, cluster, tokens)
    finally:
        await statistics.close()
    return table.good


async def _times(worker: Connection, admin: str, tokens: Sequence[str]) -> list[float]:
    """Seconds of one validation each."""
    times = []
    for token in tokens:
        answer = await worker.ask(request("POST", "/v1/validate", admin, {"token": token}))
        if b'"valid":true' not in answer.body:
            raise RuntimeError(f"{answer.status} {answer.body.decode()}")
        times.append(answer.at - answer.asked)
    return times


async def _warm(workers: Sequence[Connection], admin: str, tokens: Sequence[str]) -> float:
    """The median of warm validations, of the quietest round: what the size of the store costs, it
    costs in every round and at every worker."""
    medians = []
    for number in range((1 + _ROUNDS) * len(workers)):
        times = await _times(workers[number % len(workers)], admin, tokens)
        if number >= len(workers):  # before that it was not warm
            medians.append(percentile(times, 0.5))
        await asyncio.sleep(0.7)  # what disturbs one round should not disturb them all
    return min(medians)


async def _pages(table: Table, url: str, admin: str, count: int) -> None:
    """The list of keys at ten depths: a cursor is a key id, and ids are spread evenly."""
    connection = await Connection.open(url)
    times: list[list[float]] = [[] for _ in range(10)]
    # In turns, so that whatever disturbs the machine disturbs every depth.
    for _ in range(25):
        for tenth in range(10):
            # Not the last of the letters, behind which a page may be short.
            start = ALPHABET[min(tenth * 6 + random.randrange(6), 58)] + "0" * 15
            raw = request("GET", f"/v1/keys?limit=100&cursor={write_cursor(start)}", admin)
            answer = await connection.ask(raw)
            if answer.status != 200 or len(answer.json()["items"]) < min(100, count // 100):
                raise RuntimeError(f"{answer.status} {answer.body[:200].decode()}")
            times[tenth].append(answer.at - answer.asked)
    connection.close()
    medians = [percentile(some, 0.5) for some in times]
    ratio = max(medians) / medians[0]
    table.row(f"{count:,} keys: page of 100, first tenth, p50", f"{medians[0] * 1e3:.1f} ms")
    table.row(
        f"{count:,} keys: the same at the slowest depth", f"{max(medians) * 1e3:.1f} ms",
        f"× {ratio:.2f} ≤ 2", met=ratio <= 2,
    )  # fmt: skip


async def _memory(table: Table, cluster: Cluster, tokens: list[str]) -> None:
    """Fill the caches once, then with other keys: the second time takes nothing more."""
    workers = int(cluster.environment["WORKERS"])
    # Each connection is one worker's, so that every worker sees more keys than it may hold.
    crowd = Crowd(cluster.node_urls[:1], cluster.material.admin_token, 16)
    some = tokens[: 2 * CACHE * workers]
    grown = []
    for _ in range(3):
        start = time.perf_counter()
        await crowd.ask(some)
        await asyncio.sleep(max(1.0, 3 - (time.perf_counter() - start)))
        grown.append(_resident(cluster.nodes[0].pid))
    crowd.close()
    growth = grown[2] - grown[1]
    table.row("memory of a worker, caches full", f"{grown[1]:.0f} MiB")
    table.row("growth by the same again", f"{growth:.1f} MiB", "≤ 5 MiB", met=growth <= 5)


def _resident(pid: int) -> float:
    """The larger of a node's workers, in MiB."""
    children = [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    return max(resident_mib(child) for child in children or [pid])
