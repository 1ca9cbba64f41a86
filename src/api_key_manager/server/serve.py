"""``akm serve``: one process that listens, prints where, and stops without losing anything."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import uvicorn

from api_key_manager.core.addresses import parse_address
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.server.fastlane import FastProtocol
from api_key_manager.server.greeting import greeting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from api_key_manager.config.settings import Settings
    from api_key_manager.wiring import Deployment

__all__ = ["serve"]

_KEEP_ALIVE_SECONDS: Final = 65
_GRACE_SECONDS: Final = 10
# uvicorn asks OpenSSL for its defaults otherwise, which still hold suites without forward secrecy.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


def serve(settings: Settings) -> int:
    """Serve until told to stop.

    Args:
        settings: checked settings.

    Returns:
        The exit code: 0 after an orderly stop.

    Raises:
        ConfigurationError: an address, port, certificate or store that cannot be used.
    """
    settings.require_built()
    _set_up_logging(settings)
    _check_tls(settings)
    bound = _bind(settings)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, bound))
    except KeyboardInterrupt:  # before the server took the signals over: nothing was running yet
        return 0
    finally:
        bound.close()
    return 0


async def _serve(settings: Settings, bound: socket.socket) -> None:
    # Here, so that a port in use is told without waiting for the rest.
    from api_key_manager.server.app import build_app
    from api_key_manager.wiring import open_deployment

    terminal = sys.stdout.isatty()
    async with open_deployment(settings) as deployment:
        await deployment.mint_first_token(on_terminal=terminal)
        with _token_file(deployment, terminal=terminal):
            bound_to, url = _urls(settings, bound)

            def greet() -> None:
                sys.stdout.write(greeting(deployment, bound_to, url, terminal=terminal))
                sys.stdout.flush()

            # What is there now stays: the collector need not go through it again and again.
            gc.collect()
            gc.freeze()
            server = _Server(_config(build_app(deployment), settings), greet)
            await server.serve(sockets=[bound])


@contextmanager
def _token_file(deployment: Deployment, *, terminal: bool) -> Iterator[None]:
    """A place for the token of keys in memory when no terminal shows it; gone when they are."""
    if terminal or deployment.first_token is None or deployment.first_token_file is not None:
        yield
        return
    descriptor, name = tempfile.mkstemp(prefix="akm-", suffix=".admin-token")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(deployment.first_token + "\n")
        deployment.first_token_file = Path(name)
        yield
    finally:
        Path(name).unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it listens and leaves the stopping to its caller."""

    def __init__(self, config: uvicorn.Config, greet: Callable[[], None]) -> None:
        super().__init__(config)
        self._greet = greet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._greet()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal once more after its own stop, and so end the process
        # before the deployment has written what it still holds.
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


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


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows: the plain loop serves
        return None
    return uvloop.new_event_loop


def _set_up_logging(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.LOG_LEVEL, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Every stranger who sends garbage would be a line; starts and stops are told otherwise.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(max(logging.WARNING, logging.root.level))


def _check_tls(settings: Settings) -> None:
    if not settings.TLS_CERT:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.TLS_CERT, settings.TLS_KEY)
    except OSError as error:  # an SSLError is one
        # Which of the two files it was, OpenSSL does not say.
        told = error.strerror or "they do not fit each other"
        raise ConfigurationError(
            f"TLS_CERT={settings.TLS_CERT} and TLS_KEY={settings.TLS_KEY} cannot be used: {told}"
        ) from None


def _bind(settings: Settings) -> socket.socket:
    """Take the port, before anything else is done."""
    host, port = settings.HOST, settings.PORT
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigurationError(f"HOST={host} cannot be resolved to an address") from None
    _check_plain_http(settings, str(address[0]))
    bound = socket.socket(family, kind)
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigurationError(_why_not_bound(error, host, port)) from None
    bound.setblocking(False)
    return bound


def _check_plain_http(settings: Settings, text: str) -> None:
    address = parse_address(text.partition("%")[0])
    if address is not None and address.is_loopback:
        return
    if not (settings.TLS_CERT or settings.TRUSTED_PROXIES or settings.ALLOW_PLAIN_HTTP):
        raise ConfigurationError(
            f"HOST={settings.HOST} would carry tokens over plain HTTP beyond this machine: set"
            " TLS_CERT and TLS_KEY, or TRUSTED_PROXIES when a proxy does TLS, or"
            " ALLOW_PLAIN_HTTP=true"
        )


def _why_not_bound(error: OSError, host: str, port: int) -> str:
    other = port + 1 if port < 65_535 else port - 1
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use. Stop what uses it, or choose another:"
            f" PORT={other} akm serve"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Port {port} on {host} is not for this user. Choose another: PORT=5000 akm serve"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST={host} is no address of this machine"
    return f"Port {port} on {host} cannot be taken: {error.strerror}"


def _urls(settings: Settings, bound: socket.socket) -> tuple[str, str]:
    """What it listens on, and where this machine reaches it."""
    host, port = bound.getsockname()[:2]
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - looked up, not bound
    scheme = "https" if settings.TLS_CERT else "http"
    first, second = (
        f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"
        for name in (host, near)
    )
    return first, second
