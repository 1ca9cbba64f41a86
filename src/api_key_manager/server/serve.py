"""``akm serve``: a server that listens, prints where, and stops without losing anything.

One worker is this process itself. Of several, this process is the parent: it makes the database and
the first token, and looks after them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.server.binding import bind, urls
from api_key_manager.server.greeting import greeting
from api_key_manager.server.listening import Server, loop_factory, set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from api_key_manager.config.settings import Settings
    from api_key_manager.wiring import Deployment

__all__ = ["serve"]


def serve(settings: Settings) -> int:
    """Serve until told to stop.

    Args:
        settings: checked settings.

    Returns:
        The exit code: 0 after an orderly stop, 1 when workers could not be started, or one of them
        had to be killed.

    Raises:
        ConfigurationError: an address, port, certificate or store that cannot be used.
    """
    if settings.WORKERS > 1:
        _check_workers(settings)
    set_up_logging(settings)
    _check_tls(settings)
    bound = bind(settings)
    try:
        if settings.WORKERS > 1:
            # Its own loop: uvloop cannot start a process in a group of its own.
            return asyncio.run(_serve_by_workers(settings, bound))
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(settings, bound))
    except KeyboardInterrupt:  # before the signals were taken over: nothing was running yet
        return 0
    finally:
        bound.close()
    return 0


def _check_workers(settings: Settings) -> None:
    """Refuse what several processes would each do for themselves, and so get wrong."""
    several = f"WORKERS={settings.WORKERS}"
    if sys.platform == "win32":
        raise ConfigurationError(f"{several} is not possible on Windows: use WORKERS=1")
    if settings.DATABASE_URL == "memory://":
        raise ConfigurationError(
            f"{several} with DATABASE_URL=memory:// would give each worker its own keys:"
            " use WORKERS=1, or sqlite:///path/to/file.db"
        )


async def _serve(settings: Settings, bound: socket.socket) -> None:
    # Here, so that a port in use is told without waiting for the rest.
    from api_key_manager.server.app import build_app
    from api_key_manager.wiring import open_deployment

    terminal = sys.stdout.isatty()
    async with open_deployment(settings, opentelemetry=True) as deployment:
        await deployment.mint_first_token(on_terminal=terminal)
        with _token_file(deployment, terminal=terminal):
            greet = _greeter(deployment, bound, terminal=terminal)
            await Server(build_app(deployment), settings, greet).serve(sockets=[bound])


async def _serve_by_workers(settings: Settings, bound: socket.socket) -> int:
    from api_key_manager.server.workers import Workers
    from api_key_manager.wiring import open_deployment, refuse_unshared_limits

    terminal = sys.stdout.isatty()
    async with open_deployment(settings, background=False) as deployment:
        await refuse_unshared_limits(settings, settings.WORKERS, deployment.manager.store)
        await deployment.mint_first_token(on_terminal=terminal)
    greet = _greeter(deployment, bound, terminal=terminal)
    with tempfile.TemporaryDirectory(prefix="akm-", ignore_cleanup_errors=True) as folder:
        return await Workers(settings, bound, Path(folder), greet).run()


def _greeter(deployment: Deployment, bound: socket.socket, *, terminal: bool) -> Callable[[], None]:
    bound_to, url = urls(deployment.settings, bound)

    def greet() -> None:
        sys.stdout.write(greeting(deployment, bound_to, url, terminal=terminal))
        sys.stdout.flush()

    return greet


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
