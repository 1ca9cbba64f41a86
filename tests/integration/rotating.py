"""Changes the keys under a database until it is killed. Run as a program: task, arguments.

Each line that is printed says how far it has come.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from api_key_manager.config import Settings
from api_key_manager.core.changing import Origin
from api_key_manager.wiring import Deployment, open_deployment
from api_key_manager.wiring.retiring import retire


def say(*words: object) -> None:
    print(*words, flush=True)


def quiet(done: int, total: int | None) -> None:
    """Said elsewhere."""


async def kek(deployment: Deployment) -> None:
    """Wrap every key anew."""
    assert deployment.backend.keys is not None
    await deployment.backend.keys.rewrap("test", say)


async def pepper(deployment: Deployment, tokens: str) -> None:
    """Mint a pepper, use every token, and retire the older ones."""
    keys, manager = deployment.backend.keys, deployment.manager
    assert keys is not None
    newest = await keys.rotate_pepper("test")
    say("minted", newest)
    text = await asyncio.to_thread(Path(tokens).read_text)
    for at, token in enumerate(text.split()):
        assert await manager.verify(token=token)
        if at % 10 == 9:
            await manager.move_digests()
            say("moved", at)
    await manager.move_digests()
    await retire(deployment, keys, newest, Origin("test"), quiet)
    say("retired")


async def main(task: str, *arguments: str) -> None:
    async with open_deployment(Settings.load(), create=False) as deployment:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        await {"kek": kek, "pepper": pepper}[task](deployment, *arguments)  # type: ignore[operator]  # their arguments differ


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
