"""What runs in the background: watched, started again, stopped without a loss."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from api_key_manager.core import ConfigurationError, StorageError
from api_key_manager.wiring import supervisor as module
from api_key_manager.wiring.supervisor import Supervisor
from tests.integration.places import Place, first_refusal, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def eventually(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_dead_task_is_named_and_started_again(monkeypatch, caplog):
    """A task that dies is a problem until it runs again, which it does by itself."""
    monkeypatch.setattr(module, "_RESTART_SECONDS", 0.1)
    supervisor, runs, alive = Supervisor(), [], asyncio.Event()

    async def work() -> None:
        runs.append(time.monotonic())
        if len(runs) < 3:
            raise RuntimeError("SECRET-DETAIL")
        alive.set()
        await asyncio.sleep(3600)

    supervisor.start("worker", work)
    await eventually(supervisor.problems)
    assert supervisor.problems() == ["the worker task died of RuntimeError"]
    assert not alive.is_set()
    await asyncio.wait_for(alive.wait(), 10)
    assert supervisor.problems() == []
    assert len(runs) == 3
    assert runs[1] - runs[0] >= 0.09, "not in a tight circle"
    assert "the worker task died" in caplog.text
    await supervisor.stop()


async def test_stop_ends_everything():
    """Stopping cancels each task and waits for its end."""
    supervisor, ended = Supervisor(), []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            ended.append(1)

    for i in range(3):
        supervisor.start(str(i), work)
    await asyncio.sleep(0)
    await supervisor.stop()
    assert len(ended) == 3


@pytest.mark.parametrize("name", ["follower", "audit", "sweeper"])
async def test_each_task_of_a_deployment_heals(place, monkeypatch, name):
    """Whichever task dies of a defect: the node says so, and works on by itself afterwards."""
    monkeypatch.setattr(module, "_RESTART_SECONDS", 0.1)
    async with place.open(AUDIT_FLUSH_SECONDS=0.02) as deployment:
        manager = deployment.manager
        monkeypatch.setattr("api_key_manager.wiring.deployment._SWEEP_SECONDS", 0.05)
        target, method = {
            "follower": (deployment.follower._feed, "changed"),
            "audit": (manager.recorder, "flush"),
            "sweeper": (manager, "sweep"),
        }[name]
        right, fail = getattr(target, method), [True]

        def once(*arguments, **more):
            if fail:
                fail.clear()
                raise RuntimeError("a defect")
            return right(*arguments, **more)

        monkeypatch.setattr(target, method, once)
        await eventually(deployment.problems)
        assert deployment.problems()[0] == f"the {name} task died of RuntimeError"
        await eventually(lambda: not deployment.problems())
        key = await manager.create_key()
        async with place.open(background=False) as other:
            assert await manager.verify(**signed(manager, key))
            await other.manager.revoke_key(key["key_id"])
        assert not await first_refusal(manager, key, time.monotonic())


async def test_stopped_follower_is_a_red_light(place, monkeypatch):
    """As long as the follower is down, the cache is not believed past the bound."""
    async with place.open(REVOCATION_BOUND_SECONDS=0.2) as deployment:
        manager = deployment.manager
        key = await manager.create_key()

        def fail() -> bool:
            raise StorageError("a test says no")

        monkeypatch.setattr(deployment.follower._feed, "changed", fail)
        await eventually(deployment.problems)
        async with place.open(background=False) as other:
            await other.manager.revoke_key(key["key_id"])
        await asyncio.sleep(0.25)
        assert not await manager.verify(**signed(manager, key))


async def test_closing_writes_what_waits_and_lets_go(place):
    """After the close no thread, task or connection is left, and everything is on disk."""
    tasks = len(asyncio.all_tasks())
    async with place.open(AUDIT_FLUSH_SECONDS=10) as deployment:
        key = await deployment.manager.create_key()
        await asyncio.sleep(0.02)
        await deployment.manager.verify(**signed(deployment.manager, key))
        assert len(asyncio.all_tasks()) > tasks
    assert len(asyncio.all_tasks()) == tasks
    assert not [thread for thread in threading.enumerate() if thread.name == "akm-sqlite"]
    assert place.sql("SELECT action FROM audit_events ORDER BY id") == [
        ("key_created",), ("key_validated",)
    ]  # fmt: skip
    assert not list(place.file.parent.glob("*-wal")), "the last one out folds the log in"


async def test_failed_start_lets_go_too(place):
    """A start that is refused leaves no thread behind."""
    async with place.open():
        pass
    place.key_file.write_text("wrong")
    for _ in range(3):
        with pytest.raises(ConfigurationError):
            async with place.open():
                pass
    assert not [thread for thread in threading.enumerate() if thread.name == "akm-sqlite"]


async def test_ends_are_made_permanent(place):
    """What has ended by the clock is written down by the sweeper, so that a clock that steps back
    revives nothing, nor does a restart."""
    async with place.open() as deployment:
        manager = deployment.manager
        now = time.time()
        key = await manager.create_key("k", expires_at=now + 60)
        old = await manager.create_key("rotated")
        await manager.rotate_key("rotated", 60)
        for alive in (key, old):
            assert await manager.verify(**signed(manager, alive))
        manager.clock = lambda: time.time() + 120
        await eventually(
            lambda: (
                place.sql("SELECT expired FROM keys WHERE key_id = 'k'") == [(1,)]
                and place.sql("SELECT ended, sealed FROM key_versions WHERE key_id = 'rotated'")[0]
                == (1, None)
            )
        )
    async with place.open() as deployment:
        manager = deployment.manager
        manager.clock = lambda: now - 100
        for dead in (key, old):
            assert not await manager.verify(**signed(manager, dead))
