"""Writers in several processes that take turns, so that none of them is left out for long."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from api_key_manager.core import StorageError
from api_key_manager.storage import turns
from api_key_manager.wiring import Worker
from tests.integration.places import Place, until


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "workers").mkdir()
    return Place(tmp_path)


def worker(place: Place) -> Worker:
    return Worker(2, 2, place.folder / "workers")


@contextmanager
def turn_taken(place: Place) -> Iterator[None]:
    """Somebody else has the turn, and does nothing with it."""
    descriptor = os.open(place.folder / "workers", os.O_RDONLY)

    def take() -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    try:
        until(take, 5)
        yield
    finally:
        os.close(descriptor)


async def test_nobody_is_left_out(place):
    """Beside two processes that write without a pause, the long waits of a third are not much
    longer than the usual ones: 3 times, but over 70 times by SQLite's own waiting, up to 3 s."""
    async with place.open(worker=worker(place)) as deployment:
        manager = deployment.manager
        shared = {"WORKERS_FOLDER": str(worker(place).folder)}
        with place.child("hog", 4, **shared) as a, place.child("hog", 4, **shared) as b:
            for child in (a, b):
                assert await asyncio.to_thread(child.hear) == "ready"
            waits = []
            while a.process.poll() is None and b.process.poll() is None:
                begun = time.monotonic()
                await manager.create_key()
                waits.append(time.monotonic() - begun)
            for child in (a, b):
                await asyncio.to_thread(child.done)
    waits.sort()
    usual, long = waits[len(waits) // 2], waits[len(waits) * 98 // 100]
    assert long < 20 * usual, (usual, long)


async def test_a_turn_that_is_not_used(place, monkeypatch):
    """A process that was stopped while it had the turn delays the others, no more."""
    monkeypatch.setattr(turns, "_PATIENCE_SECONDS", 0.3)
    async with place.open(worker=worker(place)) as deployment:
        with turn_taken(place):
            begun = time.monotonic()
            await deployment.manager.create_key("k")
            assert 0.2 < time.monotonic() - begun < 2
        begun = time.monotonic()
        await deployment.manager.create_key("l")
        assert time.monotonic() - begun < 0.2


async def test_a_file_that_stays_busy(place, monkeypatch):
    """After the time that a write may wait it fails, and the turn is given back."""
    monkeypatch.setattr(turns, "_PATIENCE_SECONDS", 0.3)
    async with place.open(worker=worker(place)) as deployment:
        with closing(sqlite3.connect(place.file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="busy"):
                await deployment.manager.create_key("k")
            with turn_taken(place):
                other.execute("ROLLBACK")
        await deployment.manager.create_key("k")
