"""Keys by the API, for the benchmarks that need few."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.cluster.wire import Connection, request

__all__ = ["Made", "make_keys"]


class Made(NamedTuple):
    key_id: str
    token: str


async def make_keys(urls: Sequence[str], admin: str, count: int, **fields: Any) -> list[Made]:
    """Bearer keys, made at all nodes at once.

    Raises:
        RuntimeError: one was refused.
    """
    left = iter(range(count))
    made: list[Made] = []

    async def lane(url: str) -> None:
        connection = await Connection.open(url)
        for _ in left:
            raw = request("POST", "/v1/keys", admin, {"kind": "bearer", **fields})
            answer = await connection.ask(raw)
            if answer.status != 201:
                raise RuntimeError(f"{answer.status} {answer.body.decode()}")
            key = answer.json()
            made.append(Made(key["key_id"], key["token"]))
        connection.close()

    await asyncio.gather(*(lane(url) for url in urls for _ in range(4)))
    return made
