"""One of several workers, a process of its own: ``python -m api_key_manager.server.worker FD``.

``FD`` is one end of a socket pair. The parent sends one line of JSON with all that the worker
needs, secrets among it, which so stand in no list of processes; then orders, a line each. The
worker says once that it listens. When the parent is gone, by whatever death, the channel ends, and
the worker stops as if it had been told to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import APIKeyManagerException
from api_key_manager.wiring.worker import Worker

if TYPE_CHECKING:
    from api_key_manager.server.listening import Server

__all__ = ["FORCE", "LISTENING", "STOP", "start_line"]

STOP: Final = b"stop\n"
FORCE: Final = b"force\n"
LISTENING: Final = b"listening\n"

_LONGEST_LINE: Final = 1 << 20
_log = logging.getLogger(__name__)


def start_line(settings: Settings, worker: Worker, listener: int) -> bytes:
    """What a worker is told first.

    Args:
        settings: those of the parent, so that a replaced worker has no others.
        worker: which one it is.
        listener: the file descriptor of a bound socket, inherited.
    """
    start = {
        "settings": settings.model_dump(mode="json"),
        "worker": [worker.number, worker.count, str(worker.folder)],
        "listener": listener,
    }
    return json.dumps(start).encode() + b"\n"


def main(channel: int) -> int:
    """Serve until told to stop; the exit code is 0 when it was, 1 when it could not."""
    from api_key_manager.server.listening import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_work(socket.socket(fileno=channel)))


async def _work(channel: socket.socket) -> int:
    from api_key_manager.server.listening import set_up_logging

    reader, writer = await asyncio.open_unix_connection(sock=channel, limit=_LONGEST_LINE)
    try:
        line = await reader.readline()
        if not line:  # the parent is gone already
            return 0
        start = json.loads(line)
        # Checked by the parent; a broken .env must not stop a replacement.
        settings = Settings.model_construct(**start["settings"])
        set_up_logging(settings)
        number, count, folder = start["worker"]
        try:
            with socket.socket(fileno=start["listener"]) as bound:
                await _serve(settings, Worker(number, count, Path(folder)), bound, reader, writer)
        except Exception as error:
            why = _explain(error)
            _log.error("worker %d cannot go on: %s", number, why, exc_info=settings.DEBUG)
            return 1
    finally:
        writer.close()
    return 0


async def _serve(
    settings: Settings,
    worker: Worker,
    bound: socket.socket,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    from api_key_manager.server.app import build_app
    from api_key_manager.server.listening import Server
    from api_key_manager.wiring import open_deployment

    async with open_deployment(
        settings, create=False, worker=worker, opentelemetry=True
    ) as deployment:
        server = Server(build_app(deployment), settings, lambda: writer.write(LISTENING))
        obeying = asyncio.create_task(_obey(reader, server))
        await server.serve(sockets=[bound])
        obeying.cancel()


def _explain(error: Exception) -> str:
    if isinstance(error, APIKeyManagerException):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__  # its text may hold what must not be shown


async def _obey(reader: asyncio.StreamReader, server: Server) -> None:
    """Do as the parent says; its end is an order to stop."""
    with suppress(ConnectionError):
        while line := await reader.readline():
            server.stop(now=line == FORCE)
    server.stop()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
