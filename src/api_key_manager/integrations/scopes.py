"""ASGI scopes and messages, to and from plain values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple

from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import Verdict
from api_key_manager.integrations.answers import (
    Answer,
    Headers,
    RefusedError,
    content_for,
    problem,
    too_large,
)
from api_key_manager.integrations.guard import Call, Guard

__all__ = [
    "JUDGE_KEY",
    "SCOPE_KEY",
    "App",
    "Body",
    "ClientGoneError",
    "Judgement",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "adding",
    "call_of",
    "judge",
    "refuse_websocket",
    "reply",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY: Final = "api_key"
"""Where the verdict is, in a scope and in its state."""
JUDGE_KEY: Final = "api_key.manager"
"""Where it is said whose verdict that is."""

_REPLY: Final = "websocket.http.response"
_PATIENCE_SECONDS: Final = 30
_POLICY_VIOLATION: Final = 1008


class ClientGoneError(Exception):
    """The client hung up before its body was complete. Nobody is left to be told."""


class Body:
    """The body of one request: read once, and given to the app again.

    Args:
        receive: of the ASGI request.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._replay: Message | None = None
        self.again: Receive = receive

    async def __call__(self, limit: int) -> bytes:
        """All of it.

        Raises:
            RefusedError: it is longer than ``limit`` bytes (413), or too slow (408).
            ClientGoneError: the client hung up.
        """
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        raise ClientGoneError
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise RefusedError(too_large(limit))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise RefusedError(problem(408, "timeout", "The body took too long.")) from None
        body = b"".join(chunks)
        self._replay = {"type": "http.request", "body": body, "more_body": False}
        self.again = self._give
        return body

    async def _give(self) -> Message:
        if self._replay is None:
            return await self._receive()
        given, self._replay = self._replay, None
        return given


class Judgement(NamedTuple):
    """What became of a request that may pass; without a verdict where no key is needed."""

    verdict: Verdict | None = None
    headers: Headers = ()
    """To go with the app's answer."""
    manager: KeyManager | None = None

    def tell(self, scope: Scope) -> Scope:
        """The scope for the app. Whatever stood in these places before does not count."""
        scope.setdefault("state", {})[SCOPE_KEY] = self.verdict
        return {**scope, SCOPE_KEY: self.verdict, JUDGE_KEY: self.manager}


async def judge(
    guard: Guard,
    call: Call,
    read_body: Callable[[int], Awaitable[bytes]],
    manager: Callable[[], KeyManager],
) -> Judgement:
    """The verdict on a request.

    Args:
        guard: the rules.
        call: the request.
        read_body: gives the whole body, of at most so many bytes; asked for signed requests only.
        manager: gives who judges; asked when there is something to be judged.

    Raises:
        RefusedError: it goes no further.
    """
    presented = guard.present(call)
    if presented is None:
        return Judgement()
    if presented.request is not None:
        body = await read_body(guard.max_body)
        presented = guard.present(call, body) or presented
    judging = manager()
    verdict = await judging.verify_presented(presented)
    wait = judging.wait_after(presented, verdict)
    return Judgement(verdict, guard.passed(verdict, wait), judging)


def call_of(scope: Scope) -> Call:
    """The plain values of an ``http`` or ``websocket`` scope."""
    target: bytes | None = scope.get("raw_path")
    if target is not None and scope["query_string"]:
        target = target + b"?" + scope["query_string"]
    scheme: str = scope.get("scheme", "http")
    return Call(
        scope.get("method", "GET"),
        {"ws": "http", "wss": "https"}.get(scheme, scheme),
        scope["path"],
        target,
        scope["headers"],
        scope.get("client"),
    )


def adding(headers: Headers, send: Send) -> Send:
    """A ``send`` that adds headers to the head of the answer."""
    if not headers:
        return send

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_more


async def reply(answer: Answer, method: str, send: Send) -> None:
    """Send a whole answer."""
    await send(
        {"type": "http.response.start", "status": answer.status, "headers": [*answer.headers]}
    )
    await send({"type": "http.response.body", "body": content_for(answer, method)})


async def refuse_websocket(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a handshake: by the answer where the server can send one, else by closing."""
    await receive()
    if _REPLY in (scope.get("extensions") or {}):
        start = {"status": answer.status, "headers": [*answer.headers]}
        await send({"type": f"{_REPLY}.start", **start})
        await send({"type": f"{_REPLY}.body", "body": answer.body})
    else:
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
