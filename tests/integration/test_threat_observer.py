"""Somebody who has seen one request, and sends it again."""

from __future__ import annotations

from typing import Any

import pytest

from api_key_manager.core import AsyncAPIKeyValidator, KeyManager, Reason, sign
from tests.integration.places import signed

WINDOW = 360 * 60


@pytest.fixture
def manager(clock) -> KeyManager:
    manager = KeyManager(AsyncAPIKeyValidator(clock=clock))
    # Keys in memory lose their nonces with the process: let its start be long ago.
    clock.advance(3600)
    return manager


async def ask(manager: KeyManager, seen: dict[str, Any]) -> Reason:
    return (await manager.verify(**seen)).reason


async def test_a_bearer_token_or_a_static_signature(manager, clock):
    """Whoever has seen it has the key, at any later time, until it is rotated or revoked."""
    bearer = await manager.create_key("b", kind="bearer")
    static = await manager.create_key("s")
    seen = [
        {"token": bearer["token"]},
        {"key_id": "s", "signature": sign(static["secret"], "s")},
    ]
    assert {await ask(manager, each) for each in seen} == {Reason.VALID}
    clock.advance(30 * WINDOW)
    assert {await ask(manager, each) for each in seen} == {Reason.VALID}
    await manager.rotate_key("s")
    await manager.revoke_key("b")
    assert [await ask(manager, each) for each in seen] == [Reason.REVOKED, Reason.BAD_SIGNATURE]


async def test_a_timestamped_signature(manager, clock):
    """That request again, within the window; no other timestamp, no other key."""
    key = await manager.create_key("k")
    other = await manager.create_key("other")
    seen = signed(manager, key)
    assert await ask(manager, seen) is Reason.VALID
    clock.advance(WINDOW - 1)
    assert await ask(manager, seen) is Reason.VALID
    newer = {**seen, "timestamp": seen["timestamp"] + 1}
    assert await ask(manager, newer) is Reason.BAD_SIGNATURE
    assert await ask(manager, {**seen, "key_id": other["key_id"]}) is Reason.BAD_SIGNATURE
    clock.advance(2 + 60)
    assert await ask(manager, seen) is Reason.STALE_TIMESTAMP


async def test_a_nonce(manager, clock):
    """Nothing: it is accepted once, and without its nonce or with another one not at all."""
    key = await manager.create_key("k")
    seen = signed(manager, key, "nonce-0123456789abcdef")
    assert await ask(manager, seen) is Reason.VALID
    assert await ask(manager, seen) is Reason.REPLAYED
    for nonce in (None, "nonce-fedcba9876543210"):
        assert await ask(manager, {**seen, "nonce": nonce}) is Reason.BAD_SIGNATURE
