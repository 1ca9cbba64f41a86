"""One process that serves: its loop, its log, and uvicorn as we want it."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING, Final

import uvicorn

from api_key_manager.server.fastlane import FastProtocol
from api_key_manager.telemetry.logs import formatter

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from api_key_manager.config.settings import Settings

__all__ = ["Server", "loop_factory", "set_up_logging"]

_KEEP_ALIVE_SECONDS: Final = 65
_GRACE_SECONDS: Final = 10
# uvicorn asks OpenSSL for its defaults otherwise, which still hold suites without forward secrecy.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens and leaves the stopping to its caller.

    Args:
        app: what is served.
        settings: checked settings.
        greet: called once it listens.
    """

    def __init__(self, app: FastAPI, settings: Settings, greet: Callable[[], None]) -> None:
        super().__init__(_config(app, settings))
        self._greet = greet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # What is there now stays: the collector need not go through it again and again.
        gc.collect()
        gc.freeze()
        await super().startup(sockets)
        if self.started:
            self._greet()

    def stop(self, *, now: bool = False) -> None:
        """Stop: take no new connections, finish what is under way, unless it must be ``now``."""
        if now:
            self.force_exit = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal once more after its own stop, and so end the process
        # before the deployment has written what it still holds.
        self.stop(now=self.should_exit and sig == signal.SIGINT)


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=FastProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # The front decides whose X-Forwarded-For is believed.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ssl_certfile=settings.TLS_CERT or None,
        ssl_keyfile=settings.TLS_KEY or None,
        ssl_ciphers=_CIPHERS,
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop to run on: that of uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # Windows: the plain loop serves
        return None
    return uvloop.new_event_loop


def set_up_logging(settings: Settings) -> None:
    """Write log lines to standard error, as ``LOG_LEVEL`` and ``LOG_FORMAT`` say."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(settings.LOG_FORMAT, debug=settings.DEBUG))
    logging.basicConfig(level=settings.LOG_LEVEL, handlers=[handler])
    # Every stranger who sends garbage would be a line; starts and stops are told otherwise.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # The last two write URLs and headers into the log.
    for name in ("alembic", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
