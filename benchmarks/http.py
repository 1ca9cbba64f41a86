"""Validations over HTTP, beside other servers that do the same check: requests a second, latency,
and CPU a request.

One worker pinned to one core, the load generator (wrk) on the others, 64 connections. nginx and
wrk come from the system's packages; without them there is nothing to compare.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx

from api_key_manager import Settings, sign
from api_key_manager.wiring import open_deployment
from benchmarks import competitors

CONNECTIONS = 64
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "4"))
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
_TICKS = os.sysconf("SC_CLK_TCK")


class Keys(NamedTuple):
    """What the load is made of."""

    admin: str
    key_id: str
    secret: str
    bearer: str


@dataclass
class Target:
    """One row: what is asked of which server."""

    name: str
    url: str
    pid: int
    headers: dict[str, str]
    body: str = ""
    per_request: int = 1
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    errors: int = 0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


async def prepare(folder: Path) -> tuple[dict[str, str], Keys]:
    """A database with keys that have limits, and the environment of a server on it."""
    environment = {
        "DATABASE_URL": f"sqlite:///{folder / 'bench.db'}",
        "AKM_MASTER_KEY_FILE": str(folder / "keys" / "bench.key"),
    }
    async with open_deployment(Settings.load(**environment)) as deployment:
        manager = deployment.manager
        token = await manager.create_key(
            kind="bearer", realm="admin", permissions=["validate", "metrics"]
        )
        limits = [{"name": "minute", "limit": 100_000_000, "window_seconds": 60}]
        signed = await manager.create_key("bench", rate_limits=limits, metadata={"plan": "pro"})
        bearer = await manager.create_key(kind="bearer", rate_limits=limits)
    return environment, Keys(token["token"], "bench", signed["secret"], bearer["token"])


_JSON = {"Content-Type": "application/json"}
_CHECK = "/v1/validate"


def ours(url: str, pid: int, keys: Keys) -> list[Target]:
    """What our server is asked, the signed check first."""
    item = _signed(keys)
    admin = _JSON | {"Authorization": f"Bearer {keys.admin}"}
    shown = {"Authorization": f"Bearer {keys.bearer}"}
    token, batch = json.dumps({"token": keys.bearer}), json.dumps({"validations": [item] * 100})
    return [
        Target("ours: /v1/validate, signed", url + _CHECK, pid, admin, json.dumps(item)),
        Target("ours: /v1/validate, bearer", url + _CHECK, pid, admin, token),
        Target("ours: /v1/authorize, bearer", f"{url}/v1/authorize", pid, shown),
        Target("ours: batch of 100", f"{url}{_CHECK}/batch", pid, admin, batch, 100),
    ]


def others(nginx: str, bare: str, framework: str, pids: list[int], keys: Keys) -> list[Target]:
    """The same check elsewhere."""
    one = json.dumps(_signed(keys))
    return [
        Target("nginx, static 200", f"{nginx}/static", pids[0], {}),
        Target("nginx + Lua, the same HMAC check", nginx + _CHECK, pids[0], _JSON, one),
        Target("bare ASGI on uvicorn, the same", bare + _CHECK, pids[1], _JSON, one),
        Target("FastAPI on uvicorn, the same", framework + _CHECK, pids[2], _JSON, one),
    ]


def _signed(keys: Keys) -> dict[str, object]:
    stamp = int(time.time())
    signature = sign(keys.secret, keys.key_id, stamp)
    return {"key": keys.key_id, "signature": signature, "timestamp": stamp}


@contextmanager
def running(command: list[str], environment: dict[str, str], url: str) -> Iterator[int]:
    """A server on one core, until the end of the block."""
    process = subprocess.Popen(
        _pinned(command, CORES[:1]),
        env=os.environ | environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(url, process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _pinned(command: list[str], cores: list[int]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores)), *command]


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        with suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {url}")


def load(target: Target, seconds: int, script: Path, delay_ms: float = 0) -> None:
    """Put load on a target for some seconds, and note what came of it."""
    script.write_text(_script(target, delay_ms))
    before = cpu_seconds(target.pid)
    told = subprocess.run(
        _pinned(
            # Two threads: one alone sleeps between answers, and waking it costs the server.
            ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), target.url],
            CORES[1:] or CORES,
        ),
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    spent = cpu_seconds(target.pid) - before
    numbers = re.search(r"result ([\d.]+) ([\d.]+) ([\d.]+) (\d+) (\d+)", told)
    assert numbers is not None, told
    rate, p50, p99, requests, errors = map(float, numbers.groups())
    if requests == 0:
        raise RuntimeError(f"{target.name}: no answers\n{told}")
    target.requests.append(requests)
    target.errors += int(errors)
    target.rates.append(rate)
    target.p50.append(p50)
    target.p99.append(p99)
    target.cpu.append(spent / requests * 1e6)


def _script(target: Target, delay_ms: float) -> str:
    headers = "".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n"
        for name, value in target.headers.items()
    )
    # Spread, so that the connections do not march in step.
    delay = f"function delay() return math.random(0, {round(2 * delay_ms)}) end" if delay_ms else ""
    body = f"wrk.body = {json.dumps(target.body)}" if target.body else ""
    return f"""
wrk.method = "{"POST" if target.body else "GET"}"
{body}
{headers}
{delay}
function done(summary, latency, requests)
    local errors = summary.errors
    local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("result %f %f %f %d %d\\n", summary.requests / summary.duration * 1e6,
        latency:percentile(50), latency:percentile(99), summary.requests, bad))
end
"""


def cpu_seconds(pid: int) -> float:
    """Of a process and its children, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / _TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_seconds(int(child)) for child in children)


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _uvicorn(app: str, url: str) -> list[str]:
    return [
        sys.executable, "-m", "uvicorn", f"benchmarks.competitors:{app}",
        "--port", url.rpartition(":")[2],
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error",
        "--lifespan", "off",
    ]  # fmt: skip


async def run(folder: Path) -> bool:
    for tool in ("nginx", "wrk", "taskset"):
        if shutil.which(tool) is None:
            print(f"{tool} is not here: there is nothing to compare over HTTP")
            return False
    environment, keys = await prepare(folder)
    mine, nginx, bare, framework = (f"http://127.0.0.1:{free_port()}" for _ in range(4))
    conf = folder / "nginx.conf"
    port = nginx.rpartition(":")[2]
    conf.write_text(
        competitors.NGINX.format(folder=folder, port=port, key_id=keys.key_id, secret=keys.secret)
    )
    secrets = {"BENCH_KEY_ID": keys.key_id, "BENCH_SECRET": keys.secret}
    serve = [sys.executable, "-m", "api_key_manager", "serve"]
    environment |= {"PORT": mine.rpartition(":")[2]}
    lua = ["nginx", "-c", str(conf), "-p", "/usr/share/nginx", "-e", str(folder / "error.log")]
    with ExitStack() as servers:
        start = servers.enter_context
        own = start(running(serve, environment, f"{mine}/healthz"))
        pids = [
            start(running(lua, {}, f"{nginx}/static")),
            start(running(_uvicorn("bare", bare), secrets, bare)),
            start(running(_uvicorn("framework", framework), secrets, framework)),
        ]
        rows = others(nginx, bare, framework, pids, keys) + ours(mine, own, keys)
        return await asyncio.to_thread(_measure, folder, rows)


def _measure(folder: Path, rows: list[Target]) -> bool:
    script = folder / "load.lua"
    rows = [row for row in rows if _answers(row)]
    for row in rows:
        load(row, 1, script)  # warms up
        for values in (row.rates, row.p50, row.p99, row.cpu):
            values.clear()
    for _ in range(ROUNDS):
        for row in rows:
            load(row, SECONDS, script)
    good = _show(rows)
    return _show_half(rows, script) and good


def _answers(row: Target) -> bool:
    method = "POST" if row.body else "GET"
    answer = httpx.request(method, row.url, headers=row.headers, content=row.body or None)
    if answer.status_code != 200 or (row.body and '"valid":true' not in answer.text):
        print(f"{row.name}: {answer.status_code} {answer.text[:200]}")
        return False
    return True


def _show(rows: list[Target]) -> bool:
    lua, framework = rows[1], rows[3]
    print(f"\nOver HTTP, {CONNECTIONS} connections, median of {ROUNDS} rounds of {SECONDS} s\n")
    print(
        f"{'':<36}{'requests/s':>11}{'p50 ms':>8}{'p99 ms':>8}{'CPU µs':>8}"
        f"{'× Lua':>7}{'× FastAPI':>10}{'errors':>8}"
    )
    good = True
    for row in rows:
        by_lua, by_framework = row.rate / lua.rate, row.rate / framework.rate
        missed = ""
        if row.name == "ours: /v1/validate, signed" and (by_lua < 0.6 or by_framework < 6):
            missed, good = "  missed: at least 0.6 and 6", False
        print(
            f"{row.name:<36}{row.rate:>11,.0f}{statistics.median(row.p50) / 1000:>8.2f}"
            f"{statistics.median(row.p99) / 1000:>8.2f}{statistics.median(row.cpu):>8.1f}"
            f"{by_lua:>7.2f}{by_framework:>10.1f}{row.errors:>8}{missed}"
        )
    return good


def _show_half(rows: list[Target], script: Path) -> bool:
    """The latency under half of the load that it can bear."""
    row = next(row for row in rows if row.name == "ours: /v1/validate, signed")
    peak = row.rate
    time.sleep(3)  # until what the row before has left is written
    row.p99.clear()
    row.rates.clear()
    # Each connection waits so long between requests that all of them make half of the peak.
    load(row, SECONDS, script, delay_ms=CONNECTIONS / (peak / 2) * 1000)
    met = row.p99[0] < 5000
    print(
        f"\n{row.name}: at {row.rates[0]:,.0f} requests/s, p99 {row.p99[0] / 1000:.2f} ms"
        f" (at most 5){'' if met else '  missed'}"
    )
    return met
