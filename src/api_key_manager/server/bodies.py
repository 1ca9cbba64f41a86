"""Reading a request's body: JSON, of a bounded size, in a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final

from starlette.types import Receive

from api_key_manager.server.errors import ProblemError
from api_key_manager.server.exchange import Need, Request, Steps

__all__ = ["MAX_BODY", "ClientGoneError", "json_body", "read_body", "replay"]

MAX_BODY: Final = 1024 * 1024
_PATIENCE_SECONDS: Final = 30

Head = Mapping[bytes, Sequence[bytes]]


class ClientGoneError(Exception):
    """The client hung up before its body was complete. Nobody is left to be told."""


async def read_body(head: Head, receive: Receive) -> bytes:
    """The body, or ``b""`` when there is none.

    Args:
        head: header values by name.
        receive: of the ASGI request.

    Raises:
        ProblemError: too large (413) or too slow (408).
        ClientGoneError: it hung up.
    """
    lengths = head.get(b"content-length")
    if lengths is None and b"transfer-encoding" not in head:
        return b""
    if lengths is not None:
        digits = lengths[0]
        # Before a byte of it is read; what lies is caught below.
        if not digits.isdigit() or len(digits) > 9 or int(digits) > MAX_BODY:
            raise _too_large()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await _collect(receive)
    except TimeoutError:
        raise ProblemError(
            408, "timeout", "The body took too long.", headers=[(b"connection", b"close")]
        ) from None


def json_body(request: Request) -> Steps[bytes]:
    """The body of a request, ``b""`` when it has none.

    Raises:
        ProblemError: no JSON by its own words (415).
    """
    body: bytes = yield Need.BODY
    if body:
        _check_type(request.head)
    return body


async def _collect(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(chunks) + chunk if chunks else bytes(chunk)
        chunks.append(chunk)


def _too_large() -> ProblemError:
    return ProblemError(
        413, "too_large", f"A body has at most {MAX_BODY} bytes.",
        headers=[(b"connection", b"close")],
    )  # fmt: skip


def _check_type(head: Head) -> None:
    """No type at all is taken for JSON; another one than JSON is a mistake somewhere."""
    for value in head.get(b"content-type", ()):
        kind = value.partition(b";")[0].strip().lower()
        if kind != b"application/json" and not (
            kind.startswith(b"application/") and kind.endswith(b"+json")
        ):
            raise ProblemError(
                415, "unsupported_media_type", "Send Content-Type: application/json."
            )
    if head.get(b"content-encoding", [b"identity"]) != [b"identity"]:
        raise ProblemError(415, "unsupported_media_type", "Send the body without an encoding.")


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body that was read, then whatever follows."""
    message: MutableMapping[str, Any] | None = {
        "type": "http.request", "body": body, "more_body": False,
    }  # fmt: skip

    async def receive_again() -> MutableMapping[str, Any]:
        nonlocal message
        if message is None:
            return await receive()
        given, message = message, None
        return given

    return receive_again
