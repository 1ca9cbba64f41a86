"""One validation in process, against the bare cryptography it cannot do without."""

from __future__ import annotations

import asyncio
import hmac
import time
from pathlib import Path
from typing import Any

from api_key_manager import AsyncAPIKeyValidator, KeyManager, open_manager, sign
from benchmarks.table import Case, Work, measure, show

KEY, SECRET = "client-123", "super-secret-key-of-usual-length-0001"
LIMITED = "client-456"
LIMITS = [{"limit": 10**9, "window_seconds": 1}, {"limit": 10**9, "window_seconds": 3600}]
COUNT = 2000
WARM = 20_000


def bare(timestamp: int) -> Work:
    secret, message = SECRET.encode(), f"AKM1\n{KEY}\n{timestamp}\n".encode()
    expected = hmac.digest(secret, message, "sha256")

    async def work() -> None:
        for _ in range(COUNT):
            hmac.compare_digest(hmac.digest(secret, message, "sha256"), expected)

    return work


def validate(validator: AsyncAPIKeyValidator, timestamp: int | None, *, cache: bool) -> Work:
    signature = sign(SECRET, KEY, timestamp)

    async def work() -> None:
        for _ in range(COUNT):
            await validator.validate(KEY, signature, SECRET, timestamp, cache)

    return work


def batch(validator: AsyncAPIKeyValidator, timestamp: int) -> tuple[Work, Work]:
    """Batches of 100, never the same twice in a row, and a plain loop of as many bare checks."""

    def items(name: str) -> list[dict[str, Any]]:
        ids = [f"{name}-{i}" for i in range(100)]
        return [
            {
                "key": key, "secret": SECRET, "timestamp": timestamp,
                "signature": sign(SECRET, key, timestamp),
            }
            for key in ids
        ]  # fmt: skip

    one, other = items("key"), items("client")
    plain = [
        (
            SECRET.encode(),
            f"AKM1\n{i['key']}\n{timestamp}\n".encode(),
            bytes.fromhex(i["signature"]),
        )
        for i in one
    ]

    async def together() -> None:
        for _ in range(10):
            await validator.batch_validate(one)
            await validator.batch_validate(other)

    async def one_by_one() -> None:
        for _ in range(20):
            for secret, message, expected in plain:
                hmac.compare_digest(hmac.digest(secret, message, "sha256"), expected)

    return together, one_by_one


def warm(manager: KeyManager, timestamp: int, key: str = KEY) -> Work:
    """With pauses, as every program has them: the audit log is written meanwhile."""
    signature = sign(SECRET, key, timestamp)

    async def work() -> None:
        for i in range(WARM):
            await manager.validate_key(key, signature, timestamp)
            if i % 100 == 0:
                await asyncio.sleep(0)

    return work


def cold(manager: KeyManager, timestamp: int) -> Work:
    signature = sign(SECRET, KEY, timestamp)

    async def work() -> None:
        for _ in range(200):
            manager.records.changed([KEY])
            await manager.validate_key(KEY, signature, timestamp)

    return work


async def run(folder: Path) -> bool:
    now = int(time.time())
    validator = AsyncAPIKeyValidator()
    together, one_by_one = batch(AsyncAPIKeyValidator(), now)
    database = f"sqlite:///{folder / 'data' / 'bench.db'}"
    key_file = str(folder / "keys" / "bench.key")
    async with open_manager(database, AKM_MASTER_KEY_FILE=key_file) as manager:
        in_memory = KeyManager()
        for one in (manager, in_memory):
            await one.create_key(KEY, SECRET)
            await one.validate_key(KEY, sign(SECRET, KEY, now), now)
        await manager.create_key(LIMITED, SECRET, rate_limits=LIMITS)
        await manager.validate_key(LIMITED, sign(SECRET, LIMITED, now), now)

        async def settle() -> None:
            # What the last case left to be written is not this one's to pay for.
            await manager.recorder.flush(time.time())

        bare_name = "bare hmac.digest + compare_digest"
        cases = [
            Case(bare_name, bare(now), COUNT),
            Case("validate, timestamped, not cached", validate(validator, now, cache=False), COUNT,
                 bare_name, 2.0),
            Case("validate, static, not cached", validate(validator, None, cache=False), COUNT,
                 bare_name, 2.0),
            Case("validate, timestamped, cached", validate(validator, now, cache=True), COUNT,
                 bare_name, 0.5),
            Case("plain loop of 100 bare checks, per check", one_by_one, COUNT),
            Case("batch_validate of 100, nothing cached, per item", together, COUNT,
                 "plain loop of 100 bare checks, per check", 1.5),
            Case("KeyManager.validate_key, memory, audit on", warm(in_memory, now), WARM,
                 bare_name),
            Case("KeyManager.validate_key, SQLite, warm, audit on", warm(manager, now), WARM,
                 bare_name, 6.0),
            Case("the same, CPU of all threads", warm(manager, now), WARM, bare_name, cpu=True),
            Case("KeyManager.validate_key, SQLite, warm, two rate limits",
                 warm(manager, now, LIMITED), WARM, bare_name, before=settle),
            Case("KeyManager.validate_key, SQLite, cold, CPU", cold(manager, now), 200,
                 before=settle, cpu=True, target_us=100),
        ]  # fmt: skip
        await measure(cases)
        return show("In process", cases)
