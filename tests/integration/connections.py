"""Keep-alive connections, each of which stays with the worker that took it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.integration.servers import TOKEN

__all__ = ["Answer", "Connection", "connected"]


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]


class Connection:
    """One connection, one request at a time; `OSError` or `EOFError` when it is lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        lines = {
            "Host": "akm.test", "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json", "Content-Length": str(len(content)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }  # fmt: skip
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)

    async def receive(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = (
            int(head.split("content-length:")[1].split()[0]) if "content-length:" in head else 0
        )
        content = await self.reader.readexactly(length)
        return Answer(int(head.split()[1]), json.loads(content or b"{}"))

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        await self.send(method, path, body, **headers)
        return await asyncio.wait_for(self.receive(), 20)


@asynccontextmanager
async def connected(url: str, count: int) -> AsyncIterator[list[Connection]]:
    """So many connections."""
    at = urlsplit(url)
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            stack.callback(writer.close)
            connections.append(Connection(reader, writer))
        yield connections
