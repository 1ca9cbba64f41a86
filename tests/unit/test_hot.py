"""A large batch leaves the event loop to others, and says what each of it would be told alone."""

from __future__ import annotations

import asyncio
import json

import pytest

from api_key_manager.core import AsyncAPIKeyValidator, KeyManager, sign
from api_key_manager.server.errors import ProblemError
from api_key_manager.server.exchange import Exchange
from api_key_manager.server.hot import validate_batch
from api_key_manager.server.principal import Principal

STAMP = 1_760_000_000
CALLER = Principal("gateway", ("validate",))


@pytest.fixture
def manager(clock) -> KeyManager:
    return KeyManager(AsyncAPIKeyValidator(clock=clock))


async def ask(manager: KeyManager, items: list[dict]) -> list[dict]:
    body = json.dumps({"validations": items}).encode()
    exchange = Exchange(manager, validate_batch(body, CALLER))
    return json.loads((await exchange.finish(never)).body)["results"]


async def never() -> bytes:
    raise AssertionError("the body was in")


async def turns_during(work) -> tuple[list[dict], int]:
    """What the work gives, and how often somebody else had a turn meanwhile."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(other())
    await asyncio.sleep(0)
    turns = 0
    try:
        return await work, turns
    finally:
        task.cancel()


@pytest.mark.parametrize(("count", "least", "most"), [(1000, 12, 24), (20, 0, 1)])
async def test_a_large_batch_breathes(manager, count: int, least: int, most: int):
    """Others get a turn between every 128 items of a large batch; a small one goes in one go."""
    token = (await manager.create_key("app", kind="bearer", permissions=["p", "q.*"]))["token"]
    await manager.verify(token=token)
    wishes = ["p", "q.x or z", "z", "("]
    told = ["valid", "valid", "forbidden", "malformed"]
    items = [{"token": token, "permissions": wishes[i % 4]} for i in range(count)]
    results, turns = await turns_during(ask(manager, items))
    assert [result["reason"] for result in results] == [told[i % 4] for i in range(count)]
    assert least <= turns <= most


async def test_a_nonce_is_taken_once_in_a_large_batch(manager):
    """Of the same nonce at both ends of a large batch the first is taken."""
    secret = (await manager.create_key("k"))["secret"]
    nonces = [f"nonce-{i:016}" for i in range(999)]
    items = [
        {"key": "k", "signature": sign(secret, "k", STAMP, n), "timestamp": STAMP, "nonce": n}
        for n in [*nonces, nonces[0]]
    ]
    results = await ask(manager, items)
    assert [r["reason"] for r in results] == ["valid"] * 999 + ["replayed"]


async def test_a_body_that_misfits_uses_up_nothing(manager):
    """An item at the end that is no credential refuses the batch before any nonce is taken."""
    secret = (await manager.create_key("k"))["secret"]
    nonce = "n" * 16
    signature = sign(secret, "k", STAMP, nonce)
    item = {"key": "k", "signature": signature, "timestamp": STAMP, "nonce": nonce}
    with pytest.raises(ProblemError, match=r"validations\[600\]\.key"):
        await ask(manager, [item, *[{"token": "x"}] * 599, {}])
    assert [r["reason"] for r in await ask(manager, [item])] == ["valid"]
