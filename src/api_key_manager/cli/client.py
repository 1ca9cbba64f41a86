"""The one client behind every command that talks of keys: HTTP to a server, or to the same
application in this process, over the local database.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import httpx

from api_key_manager import __version__
from api_key_manager.cli.errors import MISUSE, REFUSED, Failure
from api_key_manager.cli.urls import check_url
from api_key_manager.client.faces import LOOPBACK
from api_key_manager.client.paths import key_path

__all__ = ["Api", "connect", "key_path", "run", "single"]

T = TypeVar("T")

PAGE: Final = 1000
_TIMEOUT: Final = httpx.Timeout(30, connect=5)
# What the server says of the call itself: its token, its form. The rest is a refusal.
_MISUSE_STATUSES: Final = frozenset({400, 401, 405, 413, 415, 422})


def run(job: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(job)


class Api:
    """Calls, their answers, and what they mean when they are no success."""

    def __init__(self, http: httpx.AsyncClient, where: str, *, remote: bool) -> None:
        self._http = http
        self._where = where
        self._remote = remote

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        once: bool = False,
    ) -> Any:
        """Make one call.

        Args:
            method: of HTTP.
            path: from the root, quoted.
            body: sent as JSON.
            query: parameters; those that are ``None`` are left out.
            once: whether a repeated call would do harm. Then the call carries an
                ``Idempotency-Key``, and is tried again when its answer got lost: the answer may
                hold a secret that is shown only once.

        Returns:
            The JSON object of the answer; ``None`` when it has no body.

        Raises:
            Failure: no answer, or a refusal.
        """
        params = {name: value for name, value in (query or {}).items() if value is not None}
        headers = {"Idempotency-Key": uuid.uuid4().hex} if once and self._remote else {}
        for last in (not headers, True):
            try:
                response = await self._http.request(
                    method, path, json=body, params=params, headers=headers
                )
                break
            except httpx.ConnectError as error:
                raise Failure(f"{self._where} cannot be reached{_why(error)}", MISUSE) from None
            except httpx.TransportError as error:
                if last:
                    what = "took too long" if isinstance(error, httpx.TimeoutException) else "broke"
                    raise Failure(f"the connection to {self._where} {what}", MISUSE) from None
        return self._read(response)

    def _read(self, response: httpx.Response) -> Any:
        if response.is_success:
            if not response.content:
                return None
            answer = _json_object(response)
            if answer is None:
                raise self._strange()
            return answer
        status = response.status_code
        if status == 401 and self._remote:
            raise Failure(f"{self._where} does not accept AKM_TOKEN", MISUSE, status=status)
        if response.is_redirect:
            # Not followed: the token is for the server that was named.
            raise Failure(f"{self._where} redirects elsewhere, name the final --url", MISUSE)
        if status == 500 and not self._remote:
            raise Failure("internal error; DEBUG=true shows the traceback", status=status)
        code = MISUSE if status in _MISUSE_STATUSES else REFUSED
        raise Failure(_problem(response), code, status=status)

    def _strange(self) -> Failure:
        return Failure(f"{self._where} does not answer as an API key manager does", MISUSE)

    async def pages(
        self, path: str, query: Mapping[str, Any], *, most: int | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Every item of a list, page by page.

        Args:
            path: of the list.
            query: its filters.
            most: stop after so many items.
        """
        cursor: str | None = None
        left = most
        while left is None or left > 0:
            limit = PAGE if left is None else min(PAGE, left)
            answer = await self.call("GET", path, query={**query, "limit": limit, "cursor": cursor})
            items = answer.get("items")
            if not isinstance(items, list):
                raise self._strange()
            yield items
            cursor = answer.get("next_cursor")
            if cursor is None:
                return
            left = None if left is None else left - len(items)

    async def all(
        self, path: str, query: Mapping[str, Any], *, most: int | None = None
    ) -> list[dict[str, Any]]:
        """Every item of a list."""
        return [item async for page in self.pages(path, query, most=most) for item in page]


def _why(error: httpx.ConnectError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f": {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return f": {error}" if str(error) else ""


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        value = response.json()
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _problem(response: httpx.Response) -> str:
    """What a problem document (RFC 9457) says; the status for anything else."""
    problem = _json_object(response) or {}
    said = problem.get("detail")
    if not isinstance(said, str) or not said:
        return f"the server answered {response.status_code} {response.reason_phrase}"
    field, request_id = problem.get("field"), problem.get("request_id")
    if isinstance(field, str) and not said.startswith(field):
        said = f"{field}: {said}"
    # Whoever runs the server finds the rest under this id.
    return f"{said} (request_id {request_id})" if response.is_server_error and request_id else said


@asynccontextmanager
async def connect(url: str | None) -> AsyncIterator[Api]:
    """The server at ``url``, or the local database.

    Raises:
        Failure: there is no token, or no server.
        ConfigurationError: there is no local database, or its settings are wrong.
    """
    if url is None:
        from api_key_manager.cli.local import local_transport

        async with (
            local_transport() as transport,
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
        ):
            yield Api(http, "the local database", remote=False)
        return
    base = check_url(url)
    token = os.environ.get("AKM_TOKEN", "")
    if not token:
        raise Failure("AKM_TOKEN is not set: put an admin token of the server into it", MISUSE)
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise Failure("AKM_TOKEN is no token: printable ASCII without spaces is expected", MISUSE)
    headers = {"Authorization": f"Bearer {token}", "User-Agent": f"akm/{__version__}"}
    async with httpx.AsyncClient(
        base_url=base, headers=headers, timeout=_TIMEOUT, mounts=dict.fromkeys(LOOPBACK)
    ) as http:
        yield Api(http, base, remote=True)


def single(url: str | None, method: str, path: str, **call: Any) -> Any:
    """Connect, make one call as :meth:`Api.call` does, and return its answer."""

    async def job() -> Any:
        async with connect(url) as api:
            return await api.call(method, path, **call)

    return run(job())
