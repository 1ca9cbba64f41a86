"""A receiver of webhooks on real HTTPS, whose certificate an authority of the test's signs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

__all__ = ["Received", "Receiver", "receiving"]


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came, and what is answered: bytes, or something that is done with the connection."""

    url: str
    context: ssl.SSLContext
    answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n"
    answers: list[bytes] = field(default_factory=list)
    do: Callable[[Any], Awaitable[None]] | None = None
    got: list[Received] = field(default_factory=list)

    def say(self, status: int, *headers: str) -> None:
        self.answer = answer(status, *headers)


def answer(status: int, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in ("Content-Length: 0", *headers))
    return f"HTTP/1.1 {status} So\r\n{lines}\r\n".encode()


@asynccontextmanager
async def receiving(
    *, name: str = "127.0.0.1", save: Path | None = None
) -> AsyncIterator[Receiver]:
    """A receiver under a name; `save` is where its authority's certificate is written."""
    authority = trustme.CA()
    if save is not None:
        authority.cert_pem.write_to_path(save)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(served)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    receiver = Receiver("", trusting)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in lines[1:] if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            receiver.got.append(Received(lines[0].split()[1], headers, body))
            if receiver.do is not None:
                await receiver.do(writer)
            else:
                said = receiver.answers.pop(0) if receiver.answers else receiver.answer
                writer.write(said)
                await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=served)
    receiver.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=1"
    try:
        yield receiver
    finally:
        server.close()
