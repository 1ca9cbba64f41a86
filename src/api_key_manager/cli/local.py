"""The server's own application in this process, over the local database, as the user ``cli``."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from api_key_manager.cli.errors import MISUSE, Failure
from api_key_manager.config import Settings

__all__ = ["load_settings", "local_transport"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


def load_settings() -> Settings:
    """The settings of a command that works on the database itself.

    Raises:
        ConfigurationError: a wrong one.
        Failure: the keys live in the memory of another process.
    """
    settings = Settings.load()
    if settings.DATABASE_URL == "memory://":
        raise Failure(
            "DATABASE_URL=memory:// keeps keys in the memory of the server: name it with --url",
            MISUSE,
        )
    log_to_stderr(settings)
    return settings


def log_to_stderr(settings: Settings) -> None:
    """What the rooms below have to say goes to standard error, under the name of the command."""
    root = logging.getLogger()
    if root.handlers:
        return  # whoever runs this in a program of their own has decided already
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("akm: %(message)s"))
    if not settings.DEBUG:
        # A request that fails here is reported by the command itself.
        handler.addFilter(lambda record: not record.name.startswith("api_key_manager.server"))
    root.addHandler(handler)


@asynccontextmanager
async def local_transport() -> AsyncIterator[httpx.AsyncBaseTransport]:
    """Calls into the application. Who may read the database and the master key needs no token."""
    settings = load_settings()
    from api_key_manager.server.app import build_app
    from api_key_manager.server.principal import Principal
    from api_key_manager.wiring import open_deployment

    async with open_deployment(settings, create=False, background=False) as deployment:
        app = _signed_in(build_app(deployment), Principal("cli", ("admin",)))
        yield httpx.ASGITransport(app=app)


def _signed_in(app: _App, principal: object) -> _App:
    async def call(scope: _Scope, receive: _Receive, send: _Send) -> None:
        # There is no client address: an audit event shall not claim one.
        await app({**scope, "akm.principal": principal, "client": None}, receive, send)

    return call
