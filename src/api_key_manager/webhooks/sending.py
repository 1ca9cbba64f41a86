"""One POST to somebody else's server, who is not to be trusted with anything.

HTTP by hand, since all that is read of the answer is a status and one header: no redirects, no
proxies, no cookies, no second resolution of the name, and nothing of the answer is kept.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.webhooks.schedule import DELIVERED, GONE, Outcome
from api_key_manager.webhooks.targets import Address, Target, is_public, parse_target

__all__ = ["Resolve", "Sender", "resolve_name"]

Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host, as text; blocks its thread. Raises ``OSError``."""

_CONNECT_SECONDS: Final = 5.0
_WHOLE_SECONDS: Final = 15.0
_MOST_HEAD: Final = 16 * 1024
_MOST_BODY: Final = 64 * 1024
_MOST_ADDRESSES: Final = 16
_RESOLVING: Final = 32
_read_status = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n").match
_read_patience = re.compile(rb"\r\nretry-after:[ \t]*([0-9]{1,6})[ \t]*\r\n", re.IGNORECASE).search


class _RefusedError(Exception):
    """Why nothing was sent, as a slug."""


def resolve_name(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system resolves it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Sender:
    """Sends to where it is allowed to.

    Args:
        private: whether private addresses and plain HTTP are allowed.
        resolve: the name service.
        context: of TLS; what the system trusts when left out.
    """

    def __init__(
        self,
        *,
        private: bool,
        resolve: Resolve = resolve_name,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.private = private
        self._resolve_name = resolve
        self._context = context
        # Of threads that a name service keeps waiting there are only so many.
        self._resolving = threading.BoundedSemaphore(_RESOLVING)

    async def check(self, url: object) -> Target:
        """Whether something may be sent to a URL, as far as can be told now.

        Raises:
            ValidationError: it may not, or its host cannot be resolved.
        """
        target = parse_target(url, private=self.private)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._addresses(target)
        except (_RefusedError, TimeoutError) as error:
            if str(error) == "address_refused":
                told = "its host has an address that is not public"
                raise ValidationError(f"url: {told}") from None
            raise ValidationError("url: its host cannot be resolved") from None
        return target

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Send a body. Whatever happens is an outcome."""
        try:
            target = parse_target(url, private=self.private)
            async with asyncio.timeout(_WHOLE_SECONDS):
                return await self._exchange(target, headers, body)
        except ValidationError:
            return Outcome("url_refused")
        except TimeoutError:
            return Outcome("timeout")
        except _RefusedError as error:
            return Outcome(str(error))
        except ssl.SSLError:
            return Outcome("tls_failed")
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return Outcome("connection_broken")

    async def _addresses(self, target: Target) -> list[Address]:
        literal = target.literal
        found = [literal] if literal is not None else await self._resolved(target)
        if not self.private and not all(is_public(address) for address in found):
            raise _RefusedError("address_refused")
        return found[:_MOST_ADDRESSES]

    async def _resolved(self, target: Target) -> list[Address]:
        """The addresses of a name, from a thread of its own: those of the loop are for the store,
        and the exit of the process waits for them."""
        if not self._resolving.acquire(blocking=False):
            raise _RefusedError("resolve_failed")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Address]] = loop.create_future()

        def settle(found: list[Address] | None) -> None:
            if answer.done():
                return
            if found:
                answer.set_result(found)
            else:
                answer.set_exception(_RefusedError("resolve_failed"))

        def run() -> None:
            found: list[Address] | None = None
            try:
                texts = self._resolve_name(target.host, target.port)
                found = [ip_address(text) for text in texts]
            except (OSError, ValueError):
                pass
            finally:
                self._resolving.release()
                with suppress(RuntimeError):  # the loop is gone
                    loop.call_soon_threadsafe(settle, found)

        threading.Thread(target=run, name="akm-resolve", daemon=True).start()
        return await answer

    async def _exchange(self, target: Target, headers: Mapping[str, str], body: bytes) -> Outcome:
        addresses = await self._addresses(target)
        reader, writer = await self._connect(target, addresses)
        try:
            lines = {"host": target.authority, **headers, "content-length": str(len(body)),
                     "connection": "close"}  # fmt: skip
            head = f"POST {target.path} HTTP/1.1\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            writer.write(head.encode("ascii") + b"\r\n" + body)
            await writer.drain()
            return await _read_outcome(reader)
        finally:
            writer.transport.abort()

    async def _connect(
        self, target: Target, addresses: Sequence[Address]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = None
        if target.scheme == "https":
            if self._context is None:
                self._context = await asyncio.to_thread(ssl.create_default_context)
            context = self._context
        for address in addresses:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(
                        str(address), target.port, ssl=context, limit=_MOST_HEAD,
                        server_hostname=target.host if context else None,
                    )  # fmt: skip
            except ssl.SSLError:
                raise
            except OSError:  # a TimeoutError, too
                continue
        raise _RefusedError("connect_failed")


async def _read_outcome(reader: asyncio.StreamReader) -> Outcome:
    for _ in range(4):
        head = await reader.readuntil(b"\r\n\r\n")
        found = _read_status(head)
        if found is None:
            return Outcome("bad_answer")
        status = int(found[1])
        if status >= 200:
            break
    else:
        return Outcome("bad_answer")
    # To be polite; what comes of it changes nothing.
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            left = _MOST_BODY
            while left > 0 and (chunk := await reader.read(left)):
                left -= len(chunk)
    patience = _read_patience(head) if status in (429, 503) else None
    return Outcome(_slug(status), status, int(patience[1]) if patience else None)


def _slug(status: int) -> str:
    if status < 300:
        return DELIVERED
    if status < 400:
        return "redirected"
    return GONE if status == 410 else "refused"
