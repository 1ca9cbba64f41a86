"""A Redis of the cluster's own: what it was told survives a restart."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import hiredis

from scripts.cluster.parts import Part
from scripts.cluster.programs import find, require

__all__ = ["Redis", "ask"]

_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
daemonize no
# Limits and used nonces outlive a restart; a power cut may take the last second.
appendonly yes
appendfsync everysec
save ""
# An evicted nonce could be used a second time: better an error than a replay.
maxmemory 256mb
maxmemory-policy noeviction
"""


class Redis:
    """The Redis server.

    Args:
        folder: for the data; made when it is not there.
        log: what it prints goes here.
        port: on loopback.
        password: of the default user.
    """

    def __init__(self, folder: Path, log: Path, port: int, password: str) -> None:
        require(["redis-server"])
        self.port = port
        self._folder = folder
        self._password = password
        program = find("redis-server") or "redis-server"
        # In the file and not in the arguments, where all users of the machine would read it.
        self._config = folder / "redis.conf"
        self.part = Part("Redis", [program, str(self._config)], log, self._answers)

    @property
    def url(self) -> str:
        """For `REDIS_URL`."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = _CONFIG.format(
            port=self.port, password=self._password, folder=self._folder.absolute()
        )
        descriptor = os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        self.part.start()

    def ask(self, *words: str) -> Any:
        """Run one command: see :func:`ask`."""
        return ask(self.port, *words, password=self._password)

    def _answers(self) -> bool:
        """Whether it serves: not while it still reads its file."""
        try:
            return bool(self.ask("PING") == "PONG")
        except (OSError, hiredis.HiredisError):
            return False


def ask(port: int, *words: str, password: str | None = None) -> Any:
    """Run one command of a Redis on loopback; what it answers.

    Raises:
        OSError: nobody answers.
        hiredis.ReplyError: it answers with an error.
    """
    commands = [words] if password is None else [("AUTH", password), words]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        reader = hiredis.Reader(encoding="utf-8")
        answer: Any = None
        for command in commands:
            line.sendall(hiredis.pack_command(command))
            while (answer := reader.gets()) is False:
                data = line.recv(65_536)
                if not data:
                    raise ConnectionError("Redis has closed the connection")
                reader.feed(data)
            if isinstance(answer, hiredis.ReplyError):
                raise answer
        return answer
