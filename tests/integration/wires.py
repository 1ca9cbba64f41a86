"""A server on a real socket, by one lane or by both, and a client that writes raw bytes."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import uvicorn

from api_key_manager.server.app import build_app
from api_key_manager.server.fastlane import FastProtocol
from api_key_manager.server.protocol import BoundedProtocol
from api_key_manager.wiring import Deployment

_PATIENCE = 10


class Heard(NamedTuple):
    """One response as it stood on the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known == name), None)


class Wire:
    """Where the server listens, and its application."""

    def __init__(self, port: int, app: Any, server: uvicorn.Server) -> None:
        self.port = port
        self.app = app
        self.server = server

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def talk(
        self, pieces: Iterable[bytes], count: int, *, heads: Iterable[int] = ()
    ) -> list[Heard]:
        """Write pieces on a connection of their own, each once the answer to the one before is
        there if `count` is 0, and read `count` answers (those in `heads` without a body)."""
        reader, writer = await self.open()
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return [await hear(reader, head=i in heads) for i in range(count)]
        finally:
            writer.close()

    async def last_words(self, sent: bytes) -> bytes:
        """Everything that comes back for some bytes and the end of the connection behind them."""
        reader, writer = await self.open()
        with suppress(ConnectionError):
            writer.write(sent)
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), _PATIENCE)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


async def hear(reader: asyncio.StreamReader, *, head: bool = False) -> Heard:
    """Read one response."""
    raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    found = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]*", first)
    assert found, first
    headers = [(n.lower(), v) for n, _, v in (line.partition(": ") for line in lines)]
    told = Heard(int(found[1]), headers, b"")
    length = 0 if head or told.status == 100 else int(told.header("content-length") or 0)
    body = await asyncio.wait_for(reader.readexactly(length), _PATIENCE)
    return told._replace(body=body)


def split(raw: bytes) -> list[Heard]:
    """Every response in what a connection gave until its end; none is cut short."""
    found = []
    while raw:
        head, mark, rest = raw.partition(b"\r\n\r\n")
        assert mark, raw[:200]
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [(n.lower(), v) for n, _, v in (line.partition(": ") for line in lines)]
        told = Heard(int(first.split(" ")[1]), headers, b"")
        length = int(told.header("content-length") or 0)
        assert len(rest) >= length, raw[:200]
        found.append(told._replace(body=rest[:length]))
        raw = rest[length:]
    return found


@asynccontextmanager
async def on_a_wire(deployment: Deployment, *, fast: bool = True) -> AsyncIterator[Wire]:
    """Serve a deployment on a free port: by both lanes, or by the ASGI lane alone."""
    app = build_app(deployment)
    config = uvicorn.Config(
        app, http=FastProtocol if fast else BoundedProtocol, ws="none", lifespan="off",
        log_config=None, access_log=False, proxy_headers=False, server_header=False,
    )  # fmt: skip
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield Wire(bound.getsockname()[1], app, server)
        finally:
            server.should_exit = True
            await task


def request(
    method: str = "POST",
    path: str = "/v1/validate",
    body: bytes = b"",
    headers: Iterable[tuple[str, str]] = (),
    *,
    version: str = "1.1",
    chunked: bool = False,
) -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/{version}", "Host: akm.test"]
    lines += [f"{name}: {value}" for name, value in headers]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    elif body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
