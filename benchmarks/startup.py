"""From the command to the first answer, and what an idle server holds."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


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
    rows = [
        ("akm serve to the first answer, new database, s", first[0], 2.0),
        ("akm serve to the first answer, later, s", statistics.median(s for s, _ in rest), 2.0),
        ("idle memory of one worker, MiB", max(mebibytes for _, mebibytes in rest), 120.0),
    ]
    print(f"\nStart\n\n{'':<58}{'':>10}{'at most':>27}")
    for name, value, limit in rows:
        print(f"{name:<58}{value:>10.2f}{limit:>27.0f}{'' if value <= limit else '  missed'}")
    return all(value <= limit for _, value, limit in rows)
