"""Minutes of load on one worker: is its memory flat, and every answer in the audit log?"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import httpx

from benchmarks import http

SECONDS = int(os.environ.get("BENCH_SOAK_SECONDS", "300"))
_STEP = 30
_MOST_GROWTH_MIB = 40


async def run(folder: Path) -> bool:
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            print(f"{tool} is not here: there is no load to bear")
            return False
    environment, keys = await http.prepare(folder)
    port = http.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "api_key_manager", "serve"]
    print(f"\n{SECONDS} s of load, {http.CONNECTIONS} connections, one worker on one core\n")
    with http.running(command, environment | {"PORT": str(port)}, f"{url}/healthz") as pid:
        row = http.ours(url, pid, keys)[0]
        answered, sizes = await asyncio.to_thread(_load, row, folder / "load.lua")
        counted = _counted(url, keys)
    with closing(sqlite3.connect(folder / "bench.db")) as database:
        (events,) = database.execute(
            "SELECT coalesce(sum(count), 0) FROM audit_events WHERE action = 'key_validated'"
        ).fetchone()
    growth = sizes[-1] - sizes[1 if len(sizes) > 1 else 0]
    flat, exact = growth <= _MOST_GROWTH_MIB, events == counted
    print(f"answers that came back            {answered:>12,.0f}")
    print(f"valid verdicts by /metrics        {counted:>12,.0f}")
    print(f"events in the audit log           {events:>12,.0f}{'' if exact else '  missed'}")
    print(f"growth after the first {_STEP} s, MiB    {growth:>9.1f}{'' if flat else '  missed'}")
    return flat and exact


def _load(row: http.Target, script: Path) -> tuple[float, list[float]]:
    answered, sizes = 0.0, [http.resident_mib(row.pid)]
    for at in range(0, SECONDS, _STEP):
        http.load(row, min(_STEP, SECONDS - at), script)
        answered += row.requests[-1]
        sizes.append(http.resident_mib(row.pid))
        print(f"  {at + _STEP:>4} s  {row.rates[-1]:>8,.0f} requests/s  {sizes[-1]:>7.1f} MiB")
    return answered, sizes


def _counted(url: str, keys: http.Keys) -> float:
    """What the server says that it has answered, once all is quiet."""
    headers = {"Authorization": f"Bearer {keys.admin}"}
    text = httpx.get(f"{url}/metrics", headers=headers).text
    line = r'^akm_validations_total\{reason="valid",scheme="timestamped"\} (\S+)$'
    found = re.search(line, text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])
