"""The transparency log: how fast events are sealed, and how fast all of it is verified."""

from __future__ import annotations

import os
import time
from pathlib import Path

from api_key_manager.config import Settings
from api_key_manager.core.models import AuditEvent
from api_key_manager.wiring import open_deployment
from api_key_manager.wiring.auditing import log_of

EVENTS = int(os.environ.get("BENCH_AUDIT_EVENTS", "300000"))
_PIECE = 2000
_ROUNDS = 3
_LEAST_VERIFIED = 100_000


async def run(folder: Path) -> bool:
    settings = Settings.load(
        DATABASE_URL=f"sqlite:///{folder / 'data' / 'log.db'}",
        AKM_MASTER_KEY_FILE=str(folder / "keys" / "log.key"),
    )
    print(f"\n{EVENTS} events of validations, SQLite\n")
    async with open_deployment(settings, background=False) as deployment:
        store, sealer = deployment.manager.store, deployment.sealer
        assert sealer is not None
        at = int(time.time() * 1_000_000)
        writing = sealing = 0.0
        for first in range(0, EVENTS, _PIECE):
            events = [
                AuditEvent(
                    at + number, "key_validated", f"client-{number % 997}", "gateway", "valid",
                    "192.0.2.7", f"5f0c1d2e3a4b-{number}", '{"scheme":"bearer","version":1}', 1,
                )
                for number in range(first, first + _PIECE)
            ]  # fmt: skip
            start = time.perf_counter()
            await store.record(events, {})
            written = time.perf_counter()
            await sealer.seal()
            writing += written - start
            sealing += time.perf_counter() - written
        _show("written, with number and MAC", writing)
        _show("sealed", sealing)
        times = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            async for finding in log_of(deployment.backend).verify([]):
                raise AssertionError(finding)
            times.append(time.perf_counter() - start)
        _show("verified", min(times))
        start = time.perf_counter()
        for index in range(1, EVENTS, EVENTS // 100):
            await log_of(deployment.backend).prove(index)
        print(f"a proof: {(time.perf_counter() - start) * 10:.2f} ms")
    fast = EVENTS / min(times) >= _LEAST_VERIFIED
    if not fast:
        print(f"fewer than {_LEAST_VERIFIED} a second were verified")
    return fast


def _show(what: str, seconds: float) -> None:
    print(f"{what}: {EVENTS / seconds:,.0f} a second, {seconds / EVENTS * 1e6:.1f} µs each")
