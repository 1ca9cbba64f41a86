"""Several nodes on one log, and nodes that are killed in the middle of sealing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from api_key_manager.audit.checkpoint import read_text
from api_key_manager.audit.sink import notes_in
from tests.integration.audit_logs import findings, sealed, verified
from tests.integration.places import Child, Place
from tests.integration.postgres_nodes import Shared

KILLS = int(os.environ.get("AKM_KILLS", "5"))
"""On each database. A hundred: ``AKM_KILLS=100``."""


@pytest.fixture
def place(either_place: Place) -> Place:
    return either_place


def sink(tmp_path: Path, name: str) -> dict[str, str]:
    return {"AUDIT_SINK": str(tmp_path / f"checkpoints-{name}")}


def created(lines: list[str]) -> list[str]:
    """The keys that were promised; a line cut off was not."""
    words = [line.split() for line in lines if line.endswith("\n")]
    return [each[1] for each in words if each[0] == "created" and each[2] == "1"]


def killed(child: Child, moment: float) -> list[str]:
    """What a child had promised when it was killed."""
    child.tell("go")
    first = child.hear() + "\n"
    time.sleep(moment)
    os.kill(child.process.pid, signal.SIGKILL)
    return created([first, *child.rest().splitlines(keepends=True)])


async def test_killed_while_sealing(place, tmp_path):
    """After each SIGKILL the log verifies as it is, and against every checkpoint that got out; in
    the end every promised change is in it once."""
    dice = random.Random(11)
    where = sink(tmp_path, "all")
    async with place.open(background=False):
        pass
    promised: list[str] = []
    with ExitStack() as stack:
        children = [stack.enter_context(place.child("crash", "k0", **where))]
        for round_ in range(KILLS):
            child = children.pop()
            assert child.hear() == "ready"
            # The next one starts while this one works and dies.
            children.append(stack.enter_context(place.child("crash", f"k{round_ + 1}", **where)))
            promised += killed(child, dice.uniform(0.1, 0.8))
            assert await verified(place, **where) == []
    async with place.open(create=False, background=False, **where) as deployment:
        await deployment.manager.create_key("last")
        await sealed(deployment)
        assert await findings(deployment) == []
    times = Counter(
        key_id for (key_id,) in place.sql(
            "SELECT key_id FROM audit_events WHERE action = 'key_created'"
        )
    )  # fmt: skip
    assert all(times[key_id] == 1 for key_id in promised)
    assert max(times.values()) == 1
    ((events, size),) = place.sql(
        "SELECT count(*), (SELECT size FROM audit_origins) FROM audit_events"
    )
    assert size == events + 1
    assert len(promised) > 10 * KILLS


async def test_nodes_that_seal_together(place, tmp_path):
    """Two nodes that write and seal at once publish one log: each size has one root, and both
    sinks hold every checkpoint."""
    async with place.open(background=False):
        pass
    names = ["one", "two"]
    with ExitStack() as stack:
        children = [
            stack.enter_context(place.child("crash", name, **sink(tmp_path, name)))
            for name in names
        ]
        for child in children:
            assert child.hear() == "ready"
        for child in children:
            child.tell("go")
        for child in children:
            child.hear()
        await asyncio.sleep(2)
        for child in children:
            os.kill(child.process.pid, signal.SIGKILL)
            child.rest()
    for name in names:
        async with place.open(create=False, background=False, **sink(tmp_path, name)) as deployment:
            await deployment.manager.create_key(f"last-{name}")
            await sealed(deployment)
            assert await findings(deployment) == []
            assert deployment.sealer is not None
            assert deployment.sealer.problems() == []
    kept = {}
    for name in names:
        notes = notes_in((tmp_path / f"checkpoints-{name}").read_text())
        for note in notes:
            known = read_text(note)
            assert kept.setdefault(known.size, known.root) == known.root
    stored = [note for (note,) in place.sql("SELECT note FROM audit_batches ORDER BY first")]
    assert sorted(kept) == [read_text(note).size for note in stored]
    assert len(stored) > 5


async def test_both_nodes_write_into_one_log_in_order(place):
    """Events of several nodes get numbers without a gap, in the order of their ids."""
    async with place.open() as one, place.open() as two:
        for number in range(20):
            await (one if number % 3 else two).manager.create_key(f"k{number}")
        await sealed_by_anybody(one, two)
        assert await findings(one) == []
        assert not [*one.degraded(), *two.degraded()]
    rows = place.sql("SELECT number FROM audit_events ORDER BY id")
    assert [number for (number,) in rows] == list(range(1, len(rows) + 1))
    if isinstance(place, Shared):
        assert len(rows) >= 20


async def sealed_by_anybody(*deployments) -> None:
    for _ in range(100):
        for deployment in deployments:
            await deployment.manager.recorder.flush(deployment.manager.clock())
            if await deployment.sealer.seal():
                return
    raise AssertionError("nobody could seal")
