"""A small HTTP client for measuring: one connection, which stays with one worker of one node.

Answers come in the order of the requests, so that several may be under way at once.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

__all__ = ["Answer", "Connection", "reach_each_worker", "request"]


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes
    asked: float
    """When its request was sent, on the loop's clock."""
    at: float
    """When it had arrived."""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def worker(self) -> str:
        """Which process answered: each one's request ids begin with a text of its own."""
        for line in self.head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"x-request-id":
                return value.strip().decode().partition("-")[0]
        raise RuntimeError("the answer has no X-Request-Id")


def request(method: str, path: str, token: str, body: Any = None) -> bytes:
    """The bytes of a request."""
    content = b"" if body is None else json.dumps(body).encode()
    kind = "" if body is None else "content-type: application/json\r\n"
    return (
        f"{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n"
        f"{kind}content-length: {len(content)}\r\n\r\n"
    ).encode() + content


class Connection(asyncio.Protocol):
    """One connection; opened by :meth:`open`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[asyncio.Future[Answer], float]] = deque()
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to a server of this machine."""
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        host, port = address.hostname or "127.0.0.1", address.port or 80
        _, made = await loop.create_connection(cls, host, port)
        return made

    def ask(self, raw: bytes) -> asyncio.Future[Answer]:
        """Send a request; its answer, or a ``ConnectionError``."""
        answer: asyncio.Future[Answer] = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():
            answer.set_exception(ConnectionResetError("the connection is closed"))
            return answer
        self._waiting.append((answer, self._loop.time()))
        self._transport.write(raw)
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        for answer, _ in self._waiting:
            if not answer.done():
                answer.set_exception(ConnectionResetError("the server closed the connection"))
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            length = _length(head)
            if len(self._received) < end + 4 + length:
                return
            body = bytes(self._received[end + 4 : end + 4 + length])
            del self._received[: end + 4 + length]
            answer, asked = self._waiting.popleft()
            if not answer.done():
                status = int(head[9:12])
                answer.set_result(Answer(status, head, body, asked, self._loop.time()))


def _length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    end = head.find(b"\r\n", at + 2)
    return int(head[at + 17 : end if end > 0 else len(head)])


_MOST_ATTEMPTS = 50
_AT_ONCE = 8


async def reach_each_worker(url: str, workers: int) -> list[Connection]:
    """One connection to each worker of a node.

    They share a port, and the kernel chooses whose a connection is; so connections are opened
    until all have answered.

    Raises:
        RuntimeError: not all could be found.
    """
    found: dict[str, Connection] = {}
    for _ in range(_MOST_ATTEMPTS):
        # Several at once: one after the other, the worker that was idle last may get them all.
        opened = await asyncio.gather(*(Connection.open(url) for _ in range(_AT_ONCE)))
        ask = b"GET /healthz HTTP/1.1\r\nhost: bench\r\n\r\n"
        answers = await asyncio.gather(*(connection.ask(ask) for connection in opened))
        for connection, answer in zip(opened, answers, strict=True):
            if found.setdefault(answer.worker, connection) is not connection:
                connection.close()
        if len(found) == workers:
            return list(found.values())
    for connection in found.values():
        connection.close()
    raise RuntimeError(f"{len(found)} of {workers} workers of {url} were found")
