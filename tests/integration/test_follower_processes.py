"""The revocation bound between processes that share nothing but the file."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from api_key_manager.core import Reason
from tests.integration.places import BOUND, Place, first_refusal, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_revoked_by_another_process(place):
    """Three revocations in another process are each refused here, warm, within the bound."""
    async with place.open() as deployment:
        manager = deployment.manager
        keys = [await manager.create_key() for _ in range(3)]
        with place.child("revoke") as child:
            assert await asyncio.to_thread(child.hear) == "ready"
            for key in keys:
                await manager.verify(**signed(manager, key))
                assert (await manager.verify(**signed(manager, key))).cached
                child.tell(key["key_id"])
                # The clock is one for all processes of a machine.
                last = asked = time.monotonic()
                while verdict := await manager.verify(**signed(manager, key)):
                    await asyncio.sleep(0.01)
                    last, asked = asked, time.monotonic()
                committed = float((await asyncio.to_thread(child.hear)).split()[1])
                assert verdict.reason is Reason.REVOKED
                assert last - committed <= BOUND


async def test_revoked_here_refused_there(place):
    """A warm manager in another process refuses within the bound what is revoked here."""
    async with place.open() as deployment:
        key = await deployment.manager.create_key()
    with place.child("warm", key["key_id"], key["secret"]) as child:
        for _ in range(3):
            assert (await asyncio.to_thread(child.hear)).startswith("warm")
        async with place.open(background=False) as deployment:
            await deployment.manager.revoke_key(key["key_id"])
            committed = time.monotonic()
        last = committed
        while not (line := await asyncio.to_thread(child.hear)).startswith("refused"):
            last = float(line.split()[1])
        assert line.split()[2] == Reason.REVOKED
        assert last - committed <= BOUND


async def test_revoked_by_the_command_line(place):
    """`akm keys revoke` beside a warm manager ends the key within the bound of its return."""
    async with place.open() as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        await manager.verify(**signed(manager, key))
        done = await asyncio.to_thread(place.akm, "keys", "revoke", "k")
        committed = time.monotonic()
        assert done.returncode == 0, done.stderr
        assert (await first_refusal(manager, key, committed)).reason is Reason.REVOKED
