"""ASGI: keys in front of Starlette, FastAPI, Litestar, Django, or any other app.

The app finds the verdict in ``scope["api_key"]`` and, as Starlette's ``request.state.api_key``, in
``scope["state"]``; ``None`` where it was reached without a key. The body of a signed request is
read before the app is called and given to it again; any other is not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.core.manager import KeyManager
from api_key_manager.integrations.answers import RefusedError, unavailable
from api_key_manager.integrations.guard import MAX_BODY, Guard
from api_key_manager.integrations.scopes import (
    App,
    Body,
    ClientGoneError,
    Message,
    Receive,
    Scope,
    Send,
    adding,
    call_of,
    judge,
    refuse_websocket,
    reply,
)

__all__ = ["ApiKeyMiddleware", "ManagerSource"]

ManagerSource = KeyManager | AbstractAsyncContextManager[KeyManager] | Callable[[], KeyManager]
"""A manager that is open; or what opens one, as ``open_manager(url)``; or what says, at each
request, which one it is."""


_log = logging.getLogger(__name__)


class ApiKeyMiddleware:
    """Lets nobody through to an app without a key.

    Args:
        app: an ASGI app.
        manager: judges. An async context manager, as ``open_manager("sqlite:///keys.db")``, is
            opened and closed with the app by the lifespan protocol; a call without arguments is
            asked at each request, as ``lambda: app.state.manager``.
        permissions: what every key must hold: an expression, or a list that is needed whole.
        exempt: decoded paths that need no key: exact ones, or with ``/*`` all below one.
        require: whether a request without a credential is refused; a bad one always is.
        base_url: what callers write before the path, where a proxy changes scheme, host or path.
        trusted_proxies: whose ``X-Forwarded-For`` is believed.
        max_body: of signed requests, in bytes.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """

    def __init__(
        self,
        app: App,
        *,
        manager: ManagerSource,
        permissions: str | Sequence[str] | None = None,
        exempt: Sequence[str] = (),
        require: bool = True,
        base_url: str | None = None,
        trusted_proxies: Sequence[str] = (),
        max_body: int = MAX_BODY,
    ) -> None:
        self._app = app
        self._guard = Guard(
            permissions=permissions, exempt=exempt, require=require, base_url=base_url,
            trusted_proxies=trusted_proxies, max_body=max_body,
        )  # fmt: skip
        self._opens: AbstractAsyncContextManager[KeyManager] | None = None
        self._manager: KeyManager | Callable[[], KeyManager] | None = None
        # What `open_manager` returns can be called too: as a decorator.
        if isinstance(manager, AbstractAsyncContextManager):
            self._opens = manager
        elif isinstance(manager, KeyManager) or callable(manager):
            self._manager = manager
        else:
            raise ConfigurationError("manager: a KeyManager, or what opens or returns one")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one WebSocket, or the life of the app."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(scope, receive, send)
        elif kind == "http":
            await self._pass_http(scope, receive, send)
        elif kind == "websocket":
            await self._pass_websocket(scope, receive, send)
        else:
            raise RuntimeError(f"what is {kind!r}? Nothing passes that cannot be checked")

    async def _pass_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = Body(receive)
        try:
            judged = await judge(self._guard, call_of(scope), read, self._current)
        except RefusedError as refused:
            await reply(refused.answer, scope["method"], send)
        except ClientGoneError:
            return
        else:
            await self._app(judged.tell(scope), read.again, adding(judged.headers, send))

    async def _pass_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def nothing(limit: int) -> bytes:
            return b""  # a handshake has no content

        try:
            judged = await judge(self._guard, call_of(scope), nothing, self._current)
        except RefusedError as refused:
            await refuse_websocket(refused.answer, scope, receive, send)
        else:
            await self._app(judged.tell(scope), receive, send)

    def _current(self) -> KeyManager:
        manager = self._manager
        if manager is None:
            _log.error("the key manager is not open: does this server run the lifespan of apps?")
            raise RefusedError(unavailable())
        return manager if isinstance(manager, KeyManager) else manager()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._opens is None:
            await self._app(scope, receive, send)
            return
        started = await receive()
        try:
            self._manager = await self._opens.__aenter__()
        except Exception as error:
            _log.exception("the key manager cannot be opened")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        try:
            await _live_inside(self._app, scope, started, receive, send, self._close)
        finally:
            await self._close()

    async def _close(self) -> None:
        if self._opens is not None and self._manager is not None:
            self._manager = None
            await self._opens.__aexit__(None, None, None)


async def _live_inside(
    app: App,
    scope: Scope,
    started: Message,
    receive: Receive,
    send: Send,
    close: Callable[[], Awaitable[None]],
) -> None:
    """Run the app's own lifespan, or what the server needs when it has none."""
    waiting: list[Message] = [started]
    said: list[str] = []

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    async def send_on(message: Message) -> None:
        said.append(message["type"])
        if message["type"].startswith("lifespan.shutdown."):
            # Once this is said, nobody waits any longer: what is in the audit queue would be lost.
            await close()
        await send(message)

    try:
        await app(scope, receive_again, send_on)
    except Exception:
        if said:
            raise
        # As the specification has it: an app that raises before it answers has no lifespan.
    if not said:
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send_on({"type": "lifespan.shutdown.complete"})
