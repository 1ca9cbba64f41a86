"""`kill -9` in the middle of writes, again and again, on one database."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import pytest

from api_key_manager.core import Reason, sign
from api_key_manager.core.records import open_record
from tests.integration.places import Child, Place, until

ROUNDS = 50
Told = list[tuple[str, str, int, str, str]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def kill_mid_write(child: Child, promises: int, moment: float) -> Told:
    """What the child had promised when it was killed, a moment after it had promised so much. A
    line cut off was not promised."""
    assert child.hear() == "ready"
    child.tell("go")
    lines = [child.hear() + "\n" for _ in range(promises)]
    time.sleep(moment)
    os.kill(child.process.pid, signal.SIGKILL)
    told = []
    for line in [*lines, *child.rest().splitlines(keepends=True)]:
        words = line.split()
        if line.endswith("\n"):
            told.append((words[0], words[1], int(words[2]), words[3], "".join(words[4:])))
    assert child.process.returncode == -signal.SIGKILL, child.process.communicate()[1]
    return told


@pytest.mark.slow
async def test_killed_fifty_times(place):
    """After each of 50 kills the file opens, every record fits its MAC, and each promise holds:
    what was created works, what was revoked is revoked, and a used nonce stays used."""
    random.seed(7)
    async with place.open():
        pass
    promised = 0
    with ExitStack() as children:
        # Starting takes longest: the next ones do it while this one works and dies.
        waiting = deque(children.enter_context(place.child("crash", f"r{i}")) for i in range(3))
        for round_ in range(3, ROUNDS + 3):
            promises, moment = random.randrange(60), random.uniform(0, 0.05)
            told = kill_mid_write(waiting.popleft(), promises, moment)
            waiting.append(children.enter_context(place.child("crash", f"r{round_}")))
            promised += len(told)
            async with place.open(create=False, background=False) as deployment:
                await check(deployment.manager, told)
    assert promised > 20 * ROUNDS
    assert place.sql("PRAGMA integrity_check") == [("ok",)]
    ((revision, changes),) = place.sql(
        "SELECT revision, (SELECT count(*) FROM changes) FROM deployment"
    )
    assert revision == changes
    async with place.open(create=False) as deployment:
        for key in deployment.manager.list_keys(active_only=False):
            (record,) = await deployment.manager.store.load([key["key_id"]])
            open_record(record, deployment.manager.box)


async def check(manager, told: Told) -> None:
    revoked = {key_id for what, key_id, *_ in told if what == "revoked"}
    newest = {key_id: secret for what, key_id, _, secret, _ in told if what == "created"}
    wanted, items = [], []
    for key_id, secret in newest.items():
        wanted.append("revoked" if key_id in revoked else "valid")
        items.append({"key_id": key_id, "signature": sign(secret, key_id)})
    for what, key_id, at, secret, nonce in told:
        if what == "claimed":
            wanted.append(Reason.REPLAYED)
            signature = sign(secret, key_id, at, nonce)
            items.append(
                {"key_id": key_id, "signature": signature, "timestamp": at, "nonce": nonce}
            )
    answers = await manager.batch_validate(items)
    for item, answer, reason in zip(items, answers, wanted, strict=True):
        # A change that was under way when the process died may have happened or not.
        unsaid = {"revoked", "bad_signature"} if reason == "valid" else set()
        assert answer["reason"] in {reason, *unsaid}, item
        if reason == "valid" and answer["reason"] != "valid":
            rounds = [what for what, of, *_ in told if of == item["key_id"]]
            assert rounds == ["created"], "only the very next step can have been under way"


@pytest.mark.slow
async def test_killed_while_spending(place):
    """Processes that are killed while they spend a quota never spend more of it together than there
    is, and each loses one block at most: what a restart gives back is nothing."""
    limit, block, killed = 2000, 20, 6
    async with place.open() as deployment:
        quota = {"limit": limit, "refill": "never"}
        token = (await deployment.manager.create_key("k", kind="bearer", quota=quota))["token"]
    accepted = 0
    for _ in range(killed):
        with place.child("use_up", token) as child:
            assert child.hear() == "ready"
            child.tell("go")
            lines = [child.hear() for _ in range(random.randrange(1, 150))]
            os.kill(child.process.pid, signal.SIGKILL)
            accepted += [*lines, *child.rest().splitlines()].count("spent")
    with ExitStack() as children:
        last = [children.enter_context(place.child("use_up", token)) for _ in range(2)]
        for child in last:
            assert child.hear() == "ready"
        for child in last:
            child.tell("go")
        for child in last:
            lines = child.done()
            assert lines[-1] == "used up"
            accepted += lines.count("spent")
    # Of each killed one also the acceptance that it had no time to say.
    assert limit - killed * (block + 1) <= accepted <= limit
    assert place.sql("SELECT spent FROM quota_use") == [(limit,)]


@pytest.mark.parametrize("moment", [0, 0.02, 0.05, 0.1, 0.2, 0.4])
async def test_killed_while_starting(place, moment):
    """A first start that is killed at any moment leaves nothing that stops the next one."""
    with place.child("found", "a") as child:
        assert child.hear() == "ready"
        child.tell("go")
        if moment:
            until(lambda: place.file.exists() or child.process.poll() is not None)
            await asyncio.sleep(moment)
        os.kill(child.process.pid, signal.SIGKILL)
    async with place.open() as deployment:
        key = await deployment.manager.create_key()
        signature = sign(key["secret"], key["key_id"])
        assert await deployment.manager.verify(key["key_id"], signature)
