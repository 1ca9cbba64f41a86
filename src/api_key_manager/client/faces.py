"""The blocking and the asynchronous client. All that they differ in is here: how to send, how to
wait, how to go through a list.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

import httpx

from api_key_manager.client.asking import Listing
from api_key_manager.client.exchange import Answer, Lost, Operation, Outcome, Retries, Send, strange
from api_key_manager.client.operations import Operations
from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.urls import check_url

__all__ = ["LOOPBACK", "AsyncClient", "Client"]

T = TypeVar("T")
P = ParamSpec("P")
Transport = TypeVar("Transport")

LOOPBACK: Final = tuple(f"all://{host}" for host in ("127.0.0.1", "localhost", "[::1]"))
"""What httpx would send through ``HTTP_PROXY`` as well, the token included."""

TIMEOUT_SECONDS: Final = 10.0
MAX_ANSWER: Final = 64 * 1024 * 1024
_NOTHING_SENT: Final = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError,
)  # fmt: skip


class _Body:
    """The body of an answer as it arrives, within its bounds."""

    def __init__(self, step: Send, where: str) -> None:
        self._until = time.monotonic() + step.seconds
        self._where = where
        self.content = bytearray()

    def add(self, chunk: bytes) -> None:
        self.content += chunk
        if len(self.content) > MAX_ANSWER:
            raise strange(self._where)
        if time.monotonic() > self._until:
            raise httpx.ReadTimeout("the deadline has passed")


class _Face(ABC, Generic[Transport]):
    """What both are made from.

    Args:
        url: of the server, such as ``https://keys.example.com``.
        token: an admin token with the scopes that are needed.
        retries: how often and how long to try.
        timeout: seconds for each wait of an attempt: to connect, to write, for the next bytes.
        verify: an ``ssl.SSLContext`` for a certificate authority of your own.
        transport: an httpx transport to send by: another proxy, a Unix socket, an app in this
            process. Without it httpx's default is used, which follows ``HTTPS_PROXY`` and its
            like, but not to reach this machine.

    Raises:
        ValidationError: a URL or token that cannot be one.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        retries: Retries | None = None,
        timeout: float = TIMEOUT_SECONDS,
        verify: ssl.SSLContext | bool = True,
        transport: Transport | None = None,
    ) -> None:
        self._url = check_url(url)
        if not token or not (token.isascii() and token.isprintable()) or " " in token:
            raise ValidationError("token: printable ASCII without spaces is allowed")
        if not 0 < timeout < float("inf"):
            raise ValidationError("timeout: a positive number of seconds is allowed")
        self._timeout = timeout
        self._operations = Operations(retries or Retries(), self._url)
        options: dict[str, Any] = {
            "base_url": self._url,
            "headers": {"Authorization": f"Bearer {token}", "User-Agent": "api-key-manager-client"},
            "verify": verify,
            "transport": transport,
            "mounts": dict.fromkeys(LOOPBACK) if transport is None else None,
            "follow_redirects": False,
        }
        self._open(options)

    @abstractmethod
    def _open(self, options: dict[str, Any]) -> None:
        """Make the httpx client."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def _arguments(self, step: Send) -> dict[str, Any]:
        return {
            "method": step.method,
            "url": step.path,
            "params": step.query or None,
            "headers": step.headers,
            "content": step.content or None,
            "timeout": min(self._timeout, step.seconds),
        }

    def _lost(self, error: httpx.RequestError) -> Lost:
        sent = not isinstance(error, _NOTHING_SENT)
        if isinstance(error, httpx.TimeoutException):
            told = "took too long to answer" if sent else "cannot be reached in time"
        elif isinstance(error, httpx.TransportError):
            told = "broke the connection off" if sent else f"cannot be reached: {error}"
        else:
            raise strange(self._url) from error
        return Lost(error, told, sent)


def _answer(response: httpx.Response, body: _Body) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, response.reason_phrase, headers, bytes(body.content))


def _blocking(
    operation: Callable[Concatenate[Operations, P], Operation[T]],
) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(operation(self._operations, *args, **kwargs))

    return method


def _blocking_each(
    listing: Callable[Concatenate[Operations, P], Listing[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    @functools.wraps(listing)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._each(listing(self._operations, *args, **kwargs))

    return method


def _awaited(
    operation: Callable[Concatenate[Operations, P], Operation[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(operation(self._operations, *args, **kwargs))

    return method


def _awaited_each(
    listing: Callable[Concatenate[Operations, P], Listing[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    @functools.wraps(listing)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._each(listing(self._operations, *args, **kwargs))

    return method


class Client(_Face[httpx.BaseTransport]):
    """A server's API, blocking: ``with Client(url, token) as server: server.validate(...)``.

    May be shared by threads.
    """

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client cannot be used any more."""
        self._http.close()

    def _run(self, operation: Operation[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = operation.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            if isinstance(step, Send):
                outcome = self._send(step)
            else:
                outcome = None
                time.sleep(step)

    def _send(self, step: Send) -> Answer | Lost:
        body = _Body(step, self._url)
        try:
            with self._http.stream(**self._arguments(step)) as response:
                for chunk in response.iter_bytes():
                    body.add(chunk)
        except httpx.RequestError as error:
            return self._lost(error)
        return _answer(response, body)

    def _each(self, listing: Listing[T]) -> Iterator[T]:
        cursor: str | None = None
        while True:
            page = self._run(self._operations.page(listing, cursor))
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    validate = _blocking(Operations.validate)
    validate_batch = _blocking(Operations.validate_batch)
    create_key = _blocking(Operations.create_key)
    get_key = _blocking(Operations.get_key)
    list_keys = _blocking_each(Operations.list_keys)
    update_key = _blocking(Operations.update_key)
    rotate_key = _blocking(Operations.rotate_key)
    revoke_key = _blocking(Operations.revoke_key)
    revoke_keys = _blocking(Operations.revoke_keys)
    delete_key = _blocking(Operations.delete_key)
    key_versions = _blocking(Operations.key_versions)
    create_token = _blocking(Operations.create_token)
    list_tokens = _blocking_each(Operations.list_tokens)
    rotate_token = _blocking(Operations.rotate_token)
    revoke_token = _blocking(Operations.revoke_token)
    list_audit = _blocking_each(Operations.list_audit)
    audit_proof = _blocking(Operations.audit_proof)
    report_leak = _blocking(Operations.report_leak)
    create_webhook = _blocking(Operations.create_webhook)
    list_webhooks = _blocking(Operations.list_webhooks)
    get_webhook = _blocking(Operations.get_webhook)
    update_webhook = _blocking(Operations.update_webhook)
    delete_webhook = _blocking(Operations.delete_webhook)
    rotate_webhook_secret = _blocking(Operations.rotate_webhook_secret)
    test_webhook = _blocking(Operations.test_webhook)
    list_webhook_deliveries = _blocking_each(Operations.list_webhook_deliveries)
    replay_delivery = _blocking(Operations.replay_delivery)
    replay_webhook = _blocking(Operations.replay_webhook)
    get_stats = _blocking(Operations.get_stats)
    is_healthy = _blocking(Operations.is_healthy)
    is_ready = _blocking(Operations.is_ready)


class AsyncClient(_Face[httpx.AsyncBaseTransport]):
    """A server's API for asyncio: ``async with AsyncClient(url, token) as server: ...``."""

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. The client cannot be used any more."""
        await self._http.aclose()

    async def _run(self, operation: Operation[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = operation.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            if isinstance(step, Send):
                outcome = await self._send(step)
            else:
                outcome = None
                await asyncio.sleep(step)

    async def _send(self, step: Send) -> Answer | Lost:
        body = _Body(step, self._url)
        try:
            async with self._http.stream(**self._arguments(step)) as response:
                async for chunk in response.aiter_bytes():
                    body.add(chunk)
        except httpx.RequestError as error:
            return self._lost(error)
        return _answer(response, body)

    async def _each(self, listing: Listing[T]) -> AsyncIterator[T]:
        cursor: str | None = None
        while True:
            page = await self._run(self._operations.page(listing, cursor))
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    validate = _awaited(Operations.validate)
    validate_batch = _awaited(Operations.validate_batch)
    create_key = _awaited(Operations.create_key)
    get_key = _awaited(Operations.get_key)
    list_keys = _awaited_each(Operations.list_keys)
    update_key = _awaited(Operations.update_key)
    rotate_key = _awaited(Operations.rotate_key)
    revoke_key = _awaited(Operations.revoke_key)
    revoke_keys = _awaited(Operations.revoke_keys)
    delete_key = _awaited(Operations.delete_key)
    key_versions = _awaited(Operations.key_versions)
    create_token = _awaited(Operations.create_token)
    list_tokens = _awaited_each(Operations.list_tokens)
    rotate_token = _awaited(Operations.rotate_token)
    revoke_token = _awaited(Operations.revoke_token)
    list_audit = _awaited_each(Operations.list_audit)
    audit_proof = _awaited(Operations.audit_proof)
    report_leak = _awaited(Operations.report_leak)
    create_webhook = _awaited(Operations.create_webhook)
    list_webhooks = _awaited(Operations.list_webhooks)
    get_webhook = _awaited(Operations.get_webhook)
    update_webhook = _awaited(Operations.update_webhook)
    delete_webhook = _awaited(Operations.delete_webhook)
    rotate_webhook_secret = _awaited(Operations.rotate_webhook_secret)
    test_webhook = _awaited(Operations.test_webhook)
    list_webhook_deliveries = _awaited_each(Operations.list_webhook_deliveries)
    replay_delivery = _awaited(Operations.replay_delivery)
    replay_webhook = _awaited(Operations.replay_webhook)
    get_stats = _awaited(Operations.get_stats)
    is_healthy = _awaited(Operations.is_healthy)
    is_ready = _awaited(Operations.is_ready)
