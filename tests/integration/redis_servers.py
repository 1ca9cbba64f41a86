"""A real redis-server on a port of its own, and what can befall it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest

from tests.services import free_port

__all__ = ["RedisServer", "StandIn", "redis_program", "redis_server", "standing_in"]


def redis_program() -> str:
    """The path of redis-server; without it the test is skipped, or fails where it must be there."""
    path = shutil.which("redis-server") or shutil.which("valkey-server")
    if path is None:
        missing = "redis-server is not installed: what is kept in Redis is not tested"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


class RedisServer:
    """A server that may be stopped, killed and started again on the same port."""

    def __init__(self, folder: Path, *options: str, password: str | None = None) -> None:
        self.folder = folder
        self.password = password
        self.port = free_port()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    def start(self, *options: str) -> None:
        """Start it and wait until it has loaded what it kept."""
        if self.password:
            options = ("--requirepass", self.password, *options)
        command = [
            redis_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir",
            str(self.folder), "--unixsocket", str(self.socket), "--save", "", *self.options,
            *options,
        ]  # fmt: skip
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                if not str(self("PING")).startswith("LOADING"):
                    return
            ended = self._process.poll() is not None
            assert not ended, (self.folder / "redis.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)

    def __call__(self, *command: str | int) -> Any:
        """What an operator does at the server, by its socket; errors come back as values."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(5)
            line.connect(str(self.socket))
            reader = hiredis.Reader(encoding="utf-8")
            answer: Any = None
            for one in [("AUTH", self.password), command] if self.password else [command]:
                line.sendall(hiredis.pack_command(one))
                while (answer := reader.gets()) is False:
                    data = line.recv(65_536)
                    if not data:
                        raise ConnectionError("redis-server has closed the connection")
                    reader.feed(data)
            return answer

    def signal(self, which: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(which)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)


@contextmanager
def redis_server(folder: Path, *options: str, password: str | None = None) -> Iterator[RedisServer]:
    """A server until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, *options, password=password)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class StandIn:
    """Something that listens and answers each read with the next of its answers, the last one
    again and again. ``None`` is silence."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.heard = b""
        self.connections = 0
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                self.heard += data
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def standing_in(*answers: bytes | None) -> Any:
    """A stand-in for Redis, for what a real one cannot be made to do."""
    stand_in = StandIn(*answers)
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", 0)
    stand_in.port = server.sockets[0].getsockname()[1]
    try:
        yield stand_in
    finally:
        server.close()
        for writer in stand_in.writers:
            writer.close()
        await asyncio.sleep(0.01)
