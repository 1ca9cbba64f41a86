"""From the command to the first answer, and what an idle server holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks.table import Case, show


def _start(folder: Path) -> tuple[float, float]:
    """Seconds to the first answer, resident MiB of the idle process."""
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{folder / 'data' / 'serve.db'}",
        "AKM_MASTER_KEY_FILE": str(folder / "keys" / "serve.key"),
        "PORT": "0",
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "api_key_manager", "serve"],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = next(
            word for line in process.stdout for word in line.split() if word.startswith("http://")
        )
        with urllib.request.urlopen(f"{url}/healthz") as answer:
            assert answer.status == 200
        took = time.perf_counter() - start
        time.sleep(1)
        return took, _resident(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def run(folder: Path) -> bool:
    first, *rest = [_start(folder) for _ in range(4)]
    cases = []
    for name, took, limit in (
        ("akm serve, new database, to the first answer", [first[0]], 2e6),
        ("akm serve, later start, to the first answer", [took for took, _ in rest], 2e6),
    ):
        case = Case(name, None, 1, target_us=limit)  # type: ignore[arg-type]  # nothing to run
        case.times = [seconds * 1e6 for seconds in took]
        cases.append(case)
    good = show("Start", cases)
    memory = max(megabytes for _, megabytes in rest)
    print(f"{'idle memory of one worker, MiB':<58}{memory:>10.0f}{'':>18}{'120':>9}")
    return good and not memory > 120
