"""`kill -9` while the keys under a database are changed, again and again, on one database."""

from __future__ import annotations

import base64
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from api_key_manager.core.records import open_record
from api_key_manager.encryption import DATA, new_key, wrap
from tests.integration.places import Child, Place, signed

# More by hand: AKM_TEST_KILLS=100.
KILLS = int(os.environ.get("AKM_TEST_KILLS", "4"))
ROWS, TOKENS = 300, 100
PROGRAM = Path(__file__).with_name("rotating.py")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def start(place: Place, *arguments: str, **env: str) -> Child:
    environment = place.environment(**env)
    if "AKM_MASTER_KEY" in env:
        del environment["AKM_MASTER_KEY_FILE"]
    return Child(
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments], cwd=place.folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
    )  # fmt: skip


def kill_underway(child: Child, steps: int, moment: float) -> bool:
    """Whether it was killed before its end, a moment after so many steps."""
    child.tell("go")
    assert child.process.stdout is not None
    for _ in range(steps):
        if not child.process.stdout.readline():
            break
    time.sleep(moment)
    child.process.send_signal(signal.SIGKILL)
    child.rest()
    assert child.process.returncode in (0, -signal.SIGKILL), child.process.communicate()[1]
    return child.process.returncode != 0


async def kill_again_and_again(
    place: Place, begin: Callable[[int], Child], most_steps: int, check: Callable[[int], object]
) -> int:
    """How many were killed under way."""
    killed = 0
    with ExitStack() as children:
        # Starting takes longest: the next one does it while this one works and dies.
        waiting = deque([children.enter_context(begin(0))])
        for round_ in range(KILLS):
            child = waiting.popleft()
            assert child.hear() == "ready"
            waiting.append(children.enter_context(begin(round_ + 1)))
            moment = random.uniform(0, 0.01)
            killed += kill_underway(child, random.randrange(most_steps), moment)
            await check(round_)  # type: ignore[misc]  # an async function
    return killed


@pytest.mark.slow
async def test_killed_while_rewrapping(place):
    """However often the rewrapping is killed, every key opens with the two key-encryption keys, is
    what it was, and the next run goes on; at its end one of them is enough."""
    random.seed(11)
    one, two = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    async with place.open(AKM_MASTER_KEY=one) as deployment:
        key = await deployment.manager.create_key()
        keys = deployment.backend.keys
        for number in range(2, ROWS):
            row = await wrap(keys.providers.current, keys.keyring, DATA, number, new_key())
            place.sql(
                "INSERT INTO keyring (kind, number, wrapped, kek, seal, created_at)"
                " VALUES (?, ?, ?, ?, ?, 1)",
                *row[:5],
            )
    expected = None

    def settings(round_: int) -> dict[str, str]:
        # To and fro, so that there is always something to do.
        current, previous = (one, two) if round_ % 2 else (two, one)
        return {"AKM_MASTER_KEY": current, "AKM_PREVIOUS_MASTER_KEY": previous}

    async def check(round_: int) -> None:
        nonlocal expected
        async with place.open(create=False, background=False, **settings(round_)) as deployment:
            ring = deployment.backend.keys.keyring
            found = {number: ring.get(DATA, number) for number in ring.numbers(DATA)}
            expected = expected or found
            assert found == expected
            assert await deployment.manager.verify(**signed(deployment.manager, key))

    killed = await kill_again_and_again(
        place, lambda round_: start(place, "kek", **settings(round_)), ROWS // 50, check
    )
    assert killed >= KILLS // 2
    with start(place, "kek", **settings(0)) as child:
        assert child.hear() == "ready"
        child.tell("go")
        child.done()
    async with place.open(create=False, AKM_MASTER_KEY=two) as deployment:
        assert await deployment.manager.verify(**signed(deployment.manager, key))
    names = place.sql("SELECT DISTINCT kek FROM keyring")
    assert len(names) == 1


@pytest.mark.slow
async def test_killed_while_peppers_are_rotated(place):
    """However often a rotation of the pepper, the moving of digests and a retirement are killed,
    every token that was used works, and every record fits its MAC."""
    random.seed(12)
    async with place.open() as deployment:
        made = [await deployment.manager.create_key(kind="bearer") for _ in range(TOKENS)]
    tokens = place.folder / "tokens"
    tokens.write_text("\n".join(key["token"] for key in made))

    async def check(round_: int) -> None:
        async with place.open(create=False, background=False) as deployment:
            manager = deployment.manager
            records = await manager.store.load([key["key_id"] for key in made])
            for record in records:
                open_record(record, manager.box)
            answers = [await manager.verify(token=key["token"]) for key in made]
            assert all(answers), round_
            assert sum((await deployment.backend.keys.digests()).values()) == TOKENS

    killed = await kill_again_and_again(
        place, lambda _: start(place, "pepper", str(tokens)), TOKENS // 10 + 2, check
    )
    assert killed >= KILLS // 2
    with start(place, "pepper", str(tokens)) as child:
        assert child.hear() == "ready"
        child.tell("go")
        child.done()
    assert place.sql("SELECT count(*) FROM keyring WHERE kind = 'pepper'") == [(1,)]
    moved = place.sql("SELECT count(*) FROM audit_events WHERE action = 'key_digest_moved'")
    changed = place.sql("SELECT count(*) FROM changes")
    assert changed == [(moved[0][0] + TOKENS,)], "each change is in the log, and nothing else"
