"""The headers that every answer has, and the sending of answers over ASGI."""

from __future__ import annotations

from typing import Final

from starlette.types import Message, Send

from api_key_manager.server.errors import Headers
from api_key_manager.server.exchange import Reply

__all__ = ["COMMON", "Response", "headers_of"]

COMMON: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Response:
    """What has been sent of an answer of the app; adds the headers that every answer has."""

    __slots__ = ("_id", "_send", "finished", "started", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = request_id
        self.started = self.finished = False
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = [*message["headers"], *_common(self._id)]
            message = {**message, "headers": headers}
        else:
            self.finished = not message.get("more_body", False)
        await self._send(message)

    async def send_whole(self, reply: Reply) -> None:
        """An answer of the front's own."""
        self.started = True
        self.status = reply.status
        await self._send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": headers_of(reply, self._id),
            }
        )
        await self._send({"type": "http.response.body", "body": reply.body})
        self.finished = True


def headers_of(reply: Reply, request_id: str) -> list[tuple[bytes, bytes]]:
    """Every header of a complete answer, in order."""
    return [
        (b"content-type", reply.kind),
        (b"content-length", b"%d" % len(reply.body)),
        *_common(request_id),
        *reply.headers,
    ]


def _common(request_id: str) -> Headers:
    return ((b"x-request-id", request_id.encode()), *COMMON)
