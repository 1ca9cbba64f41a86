"""What other processes do to a database while a test watches. Run as a program: task, arguments.

Each line that is printed is an acknowledgement: what it names has been promised to the caller.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from api_key_manager.config import Settings
from api_key_manager.core import ConflictError, KeyManager, sign
from api_key_manager.storage import migrations
from api_key_manager.wiring import Worker, open_deployment


def say(*words: object) -> None:
    print(*words, flush=True)


def listen() -> str:
    return sys.stdin.readline().strip()


async def found(manager: KeyManager, name: str) -> None:
    """Of several that make one new database at once: say what it looks like from here."""
    token = await manager.create_key(name, kind="bearer")
    assert (await manager.verify(token=token["token"])).valid
    secret = (await manager.create_key(f"{name}-signed"))["secret"]
    say(token["token"], secret)


async def revoke(manager: KeyManager) -> None:
    """Revoke each key that is named, and say when that was committed."""
    say("ready")
    while name := listen():
        before = time.monotonic()
        await manager.revoke_key(name)
        say(before, time.monotonic())


async def warm(manager: KeyManager, key_id: str, secret: str) -> None:
    """Keep asking for a warm key; say when it was answered warm, and when it was first refused."""
    while True:
        at = int(time.time())
        asked = time.monotonic()
        verdict = await manager.verify(key_id, sign(secret, key_id, at), at)
        if not verdict.valid:
            say("refused", asked, verdict.reason)
            return
        if verdict.cached:
            say("warm", asked)
        await asyncio.sleep(0.01)


async def write(manager: KeyManager, name: str, rounds: str) -> None:
    """Create own keys, and change and rotate shared ones beside the other writer."""
    say("ready")
    listen()
    for i in range(int(rounds)):
        await manager.create_key(f"{name}-{i}", metadata={"by": name})
        say("created", f"{name}-{i}")
        for verb in ("update", "rotate"):
            try:
                if verb == "update":
                    await manager.update_key("shared", metadata={"by": name, "round": i})
                else:
                    await manager.rotate_key("shared")
            except ConflictError:
                continue  # told, so nothing is promised
            say("changed", verb)


async def crash(manager: KeyManager, name: str) -> None:
    """Change things as fast as possible until killed; say each only when it is promised."""

    async def lane(lane: int) -> None:
        for i in range(1_000_000):
            key_id = f"{name}-{lane}-{i}"
            secret = (await manager.create_key(key_id))["secret"]
            say("created", key_id, 1, secret)
            kind = random.randrange(3)
            if kind == 0:
                secret = (await manager.rotate_key(key_id))["secret"]
                say("created", key_id, 2, secret)
            elif kind == 1:
                await manager.revoke_key(key_id)
                say("revoked", key_id, 0, secret)
                continue
            at, nonce = int(time.time()), f"nonce-of-{key_id:.<32}".replace(".", "_")
            verdict = await manager.verify(key_id, sign(secret, key_id, at, nonce), at, nonce)
            assert verdict.valid, verdict.reason
            say("claimed", key_id, at, secret, nonce)

    await asyncio.gather(*(lane(n) for n in range(4)))


async def claim(manager: KeyManager, key_id: str, secret: str) -> None:
    """Present each nonce that is named at the instant that is named."""
    say("ready")
    while line := listen():
        nonce, when = line.split()
        at = int(time.time())
        signature = sign(secret, key_id, at, nonce)
        # Warm, so that only the claim itself is between the two processes.
        while time.time() < float(when):
            pass
        say((await manager.verify(key_id, signature, at, nonce)).reason)


async def hog(manager: KeyManager, seconds: str) -> None:
    """Use up nonces without a pause, so that each commit is followed by the next one at once."""
    key = await manager.create_key()
    end = time.monotonic() + float(seconds)
    say("ready")

    async def lane(lane: int) -> None:
        i = 0
        while time.monotonic() < end:
            i, at = i + 1, int(time.time())
            nonce = f"nonce-of-{lane:08}-{i:08}"
            signature = sign(key["secret"], key["key_id"], at, nonce)
            assert await manager.verify(key["key_id"], signature, at, nonce)

    await asyncio.gather(*(lane(n) for n in range(16)))


async def work(manager: KeyManager, token: str) -> None:
    """As worker 2 of 2: validate as often as told, until told nothing."""
    say("ready")
    while line := await asyncio.to_thread(listen):
        for _ in range(int(line)):
            assert await manager.verify(token=token)
        say("done")


async def use_up(manager: KeyManager, token: str) -> None:
    """Spend a quota as fast as possible until it is used up or this is killed; say each one."""
    say("ready")
    listen()
    while (await manager.verify(token=token)).valid:
        say("spent")
    say("used up")


TASKS: dict[str, Callable[..., Awaitable[None]]] = {
    task.__name__: task for task in (found, revoke, warm, write, crash, claim, hog, work, use_up)
}


async def main(task: str, *arguments: str) -> None:
    if task in ("found", "crash"):
        # What a first start needs, so that the race is about the file and not about imports.
        migrations.config()
        say("ready")
        listen()
    # What workers share.
    folder = os.environ.get("WORKERS_FOLDER")
    worker = Worker(2, 2, Path(folder)) if folder else None
    async with open_deployment(Settings.load(), worker=worker) as deployment:
        await TASKS[task](deployment.manager, *arguments)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
