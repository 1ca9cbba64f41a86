"""Somebody who can read and write all of Redis, and nothing else."""

from __future__ import annotations

import pytest

from api_key_manager.core import Reason
from tests.integration.places import Place, signed
from tests.integration.redis_servers import RedisServer
from tests.integration.test_follower import held

LIMIT = [{"name": "few", "limit": 1, "window_seconds": 3600}]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


async def test_gained_limits_and_nonces(place, redis_at: RedisServer):
    """By deleting single entries of a running server: full rate limits, and one more acceptance of
    a request that he captured and that is still within its window."""
    async with place.open(REDIS_URL=redis_at.url) as node:
        manager = node.manager
        limited = await manager.create_key("limited", rate_limits=LIMIT)
        key = await manager.create_key("k")
        once = signed(manager, key, "nonce-0123456789abcdef")
        assert await manager.verify(**once)
        assert (await manager.verify(**once)).reason is Reason.REPLAYED
        assert await manager.verify(**signed(manager, limited))
        assert (await manager.verify(**signed(manager, limited))).reason is Reason.RATE_LIMITED
        for name in redis_at("KEYS", "*"):
            if name.endswith((":nonces:k", ":limits:limited")):
                redis_at("DEL", name)
        assert await manager.verify(**signed(manager, limited))
        assert await manager.verify(**once)


async def test_no_revoked_key_comes_back(place, redis_at: RedisServer):
    """An entry from before a revocation, put back after it, is believed by nobody."""
    async with place.open(REDIS_URL=redis_at.url) as one, place.open(REDIS_URL=redis_at.url) as two:
        key = await one.manager.create_key("gone")
        followers = [await held(one), await held(two)]
        assert await one.manager.verify(**signed(one.manager, key))
        assert one.shared is not None
        await one.shared.records.flushed()
        (name,) = redis_at("KEYS", "akm:*:record:*")
        redis_at("COPY", name, "kept")
        await one.manager.revoke_key("gone")
        for follower in followers:
            await follower.catch_up()
        redis_at("COPY", "kept", name, "REPLACE")
        for node in (one, two):
            reason = (await node.manager.verify(**signed(node.manager, key))).reason
            assert reason is Reason.REVOKED
