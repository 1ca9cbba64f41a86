"""How throughput grows with nodes on the cores of this machine, and where it stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NamedTuple

from benchmarks.cluster.figures import Table
from benchmarks.cluster.keys import make_keys
from benchmarks.http import CORES, cpu_seconds
from scripts.cluster import Cluster

METHOD = """\
Each node has one worker, so it can use one core. wrk (one thread for each node, {connections}
connections to it) asks for {seconds} s for validations of a bearer key, straight at the nodes;
then through nginx. CPU is that of all processes of a part, in cores. This machine has {cores}
cores, which nodes, stores and wrk share."""
_CONNECTIONS = 32


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement of `nodes`")


class Load(NamedTuple):
    rate: float
    errors: int


async def run(cluster: Cluster, given: Namespace) -> bool:
    """One, two, three nodes, then all through nginx; a key without limits and one with."""
    wrk = shutil.which("wrk")
    if wrk is None:
        print("wrk is not here: throughput of nodes is not measured (Debian: apt-get install wrk)")
        return False
    table = Table(
        "Nodes: throughput",
        METHOD.format(connections=_CONNECTIONS, seconds=given.seconds, cores=len(CORES)),
    )
    admin = cluster.material.admin_token
    limits = [{"name": "minute", "limit": 1_000_000_000, "window_seconds": 60}]
    for name, fields in (("no limit", {}), ("one limit", {"rate_limits": limits})):
        (key,) = await make_keys(cluster.node_urls[:1], admin, 1, **fields)
        script = cluster.folder / "load.lua"
        script.write_text(_script(admin, key.token), encoding="utf-8")
        rates: list[float] = []
        ways = [cluster.node_urls[:count] for count in range(1, len(cluster.nodes) + 1)]
        for urls in [*ways, [cluster.url]]:
            connections = _CONNECTIONS * (len(cluster.nodes) if urls == [cluster.url] else 1)
            before = _cpu(cluster)
            loads = await asyncio.gather(
                *(_measure(wrk, url, given.seconds, script, connections) for url in urls)
            )
            used = {n: (v - before[n]) / given.seconds for n, v in _cpu(cluster).items()}
            rate, errors = sum(load.rate for load in loads), sum(load.errors for load in loads)
            where = "through nginx" if urls == [cluster.url] else f"{len(urls)} nodes"
            rates.append(rate)
            cores = ", ".join(f"{part} {value:.1f}" for part, value in used.items() if value > 0.05)
            table.row(f"{name}, {where}", f"{rate:,.0f}/s", f"× {rate / rates[0]:.2f}")
            print(f"      cores: {cores}")
            if errors:
                table.row(f"{name}, {where}: errors", str(errors), "0", met=False)
        script.unlink()
    return table.good


def _script(admin: str, token: str) -> str:
    return f"""
wrk.method = "POST"
wrk.body = {json.dumps(json.dumps({"token": token}))}
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {admin}"
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format("result %f %d\\n", summary.requests / summary.duration * 1e6,
        e.connect + e.read + e.write + e.status + e.timeout))
end
"""


async def _measure(wrk: str, url: str, seconds: int, script: Path, connections: int) -> Load:
    process = await asyncio.create_subprocess_exec(
        wrk, f"-t{connections // _CONNECTIONS}", f"-c{connections}", f"-d{seconds}s",
        "-s", str(script), f"{url}/v1/validate",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told = (await process.communicate())[0].decode()
    found = re.search(r"result ([\d.]+) (\d+)", told)
    if found is None:
        raise RuntimeError(told)
    return Load(float(found[1]), int(found[2]))


def _cpu(cluster: Cluster) -> dict[str, float]:
    """Seconds of CPU of each part and its children, and of everything on this machine."""
    fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    busy = sum(fields[:8]) - fields[3] - fields[4]  # all but idle and waiting for a disk
    used = {part.name: cpu_seconds(part.pid) for part in cluster.parts}
    return used | {"all of the machine": busy / os.sysconf("SC_CLK_TCK")}
