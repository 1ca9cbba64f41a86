"""How long a revoked key lives: from the 200 of the revocation to the last worker's refusal."""

from __future__ import annotations

import asyncio
import random
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import asyncpg

from benchmarks.cluster.crowd import under_load
from benchmarks.cluster.figures import Table, percentile
from benchmarks.cluster.keys import Made, make_keys
from benchmarks.cluster.wire import Connection, reach_each_worker, request
from scripts.cluster import Cluster

BOUND = 2.0


class Pace(NamedTuple):
    """How the revocations go side by side."""

    lanes: int
    poll_seconds: float


# Without wake-ups each takes long, and how exactly it is seen matters less.
_QUICK, _SLOW = Pace(4, 0.003), Pace(16, 0.02)
_LOAD_KEYS = 200
_WARM_ATTEMPTS = 200

METHOD = """\
Each key is validated at every worker of every node, over a connection of its own, until the worker
answers from its cache; then it is left alone. All keys warm, they are revoked in {quick.lanes}
lanes, each at a node by chance, as soon as the one before in its lane is refused everywhere. From
the 200 of the revocation on, every worker is asked every {quick.poll_seconds:g} s until it refuses;
the delay is that of the last worker, until its refusal has arrived. An acceptance counts as late
when it was asked for more than {bound:g} s after the 200. Beside it {load} validations a second of
other keys. Without wake-ups: {slow.lanes} lanes, {slow.poll_seconds:g} s; there the next revocation
comes right after a reading of the feed, which is the worst moment."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--revocations", type=int, default=1000, help="how many keys are revoked")
    parser.add_argument("--load", type=int, default=1000, help="validations a second beside them")


@dataclass
class Seen:
    """What came of the revocations."""

    delays: list[float] = field(default_factory=list)
    late: int = 0


async def run(cluster: Cluster, given: Namespace) -> bool:
    """With wake-ups, then without."""
    table = Table(
        f"Revocation: {given.revocations} quiet, cached keys,"
        f" {len(cluster.nodes)} nodes of {cluster.environment['WORKERS']} workers",
        METHOD.format(
            quick=_QUICK, slow=_SLOW, bound=BOUND, load=given.load
        ),
    )  # fmt: skip
    urls, admin = cluster.node_urls, cluster.material.admin_token
    loaded = await make_keys(urls, admin, _LOAD_KEYS)
    with under_load(urls, admin, [key.token for key in loaded], given.load):
        seen = await _revoke_all(cluster, given.revocations, _QUICK)
        _show(table, "with wake-ups", seen, 0.1)
        async with without_wake_ups(cluster):
            seen = await _revoke_all(cluster, given.revocations, _SLOW)
        _show(table, "Redis down, LISTEN connections killed", seen, None)
    return table.good


def _show(table: Table, name: str, seen: Seen, p99: float | None) -> None:
    values = {share: percentile(seen.delays, share) for share in (0.5, 0.99)}
    table.row(f"{name}: p50", f"{values[0.5] * 1000:.0f} ms")
    met = p99 is None or values[0.99] < p99
    wanted = "" if p99 is None else f"< {p99 * 1000:.0f} ms"
    table.row(f"{name}: p99", f"{values[0.99] * 1000:.0f} ms", wanted, met=met)
    most = max(seen.delays)
    table.row(f"{name}: maximum", f"{most * 1000:.0f} ms", f"< {BOUND:.0f} s", met=most < BOUND)
    table.row(f"{name}: accepted after the bound", str(seen.late), "0", met=seen.late == 0)


async def _revoke_all(cluster: Cluster, count: int, pace: Pace) -> Seen:
    urls, admin = cluster.node_urls, cluster.material.admin_token
    workers = int(cluster.environment["WORKERS"])
    keys = await make_keys(urls, admin, count)
    seen = Seen()
    lanes = [
        [c for url in urls for c in await reach_each_worker(url, workers)]
        for _ in range(pace.lanes)
    ]
    shares = [keys[number :: pace.lanes] for number in range(pace.lanes)]
    await asyncio.gather(*(_warm(*lane, admin) for lane in zip(lanes, shares, strict=True)))
    random.shuffle(shares)
    await asyncio.gather(
        *(
            _revoke(lane, share, admin, seen, pace)
            for lane, share in zip(lanes, shares, strict=True)
        )
    )
    for connection in (c for lane in lanes for c in lane):
        connection.close()
    return seen


async def _warm(workers: list[Connection], keys: list[Made], admin: str) -> None:
    for key in keys:
        raw = request("POST", "/v1/validate", admin, {"token": key.token})
        for worker in workers:
            for _ in range(_WARM_ATTEMPTS):
                if b'"cached":true' in (await worker.ask(raw)).body:
                    break
                await asyncio.sleep(0.01)
            else:
                raise RuntimeError("a worker does not keep keys in its cache")


async def _revoke(
    workers: list[Connection], keys: list[Made], admin: str, seen: Seen, pace: Pace
) -> None:
    for key in keys:
        ask = request("POST", "/v1/validate", admin, {"token": key.token})
        revoke = request("POST", f"/v1/keys/{key.key_id}/revoke", admin, {})
        done = await random.choice(workers).ask(revoke)
        if done.status != 200:
            raise RuntimeError(f"{done.status} {done.body.decode()}")
        ends = await asyncio.gather(*(_refused(w, ask, done.at, seen, pace) for w in workers))
        seen.delays.append(max(ends) - done.at)


async def _refused(worker: Connection, ask: bytes, since: float, seen: Seen, pace: Pace) -> float:
    """Ask until refused; when that was."""
    while True:
        answer = await worker.ask(ask)
        if b'"valid":false' in answer.body or answer.status != 200:
            return answer.at
        if answer.asked - since > BOUND:
            seen.late += 1
        await asyncio.sleep(pace.poll_seconds)


@asynccontextmanager
async def without_wake_ups(cluster: Cluster) -> AsyncIterator[None]:
    """Redis stopped, and every connection that listens ended again and again."""
    cluster.redis.part.stop()
    killing = asyncio.create_task(_keep_killing(cluster.postgres.url))
    await asyncio.sleep(1)
    try:
        yield
    finally:
        killing.cancel()
        with suppress(asyncio.CancelledError):
            await killing
        cluster.redis.start()
        cluster.redis.part.wait()


async def _keep_killing(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        while True:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
            )
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
