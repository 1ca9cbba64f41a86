"""What hvac sends its requests by: bounded in time and size, repeated only where that is harmless.

Imports requests, which is slow: only who makes a client imports this.

- The token goes to the address that was named, and nowhere else: no redirect is followed, no proxy
  and no ``.netrc`` of the environment is heeded.
- An answer holds at most a mebibyte, is not compressed, and has to be complete in time.
- A request that surely was not carried out is sent again, and so is one that may be carried out
  twice; a write or a login that may have been carried out is not. Waits are random below a bound
  that doubles ("full jitter"), so that many clients do not come back as one.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import random
import re
import time
from collections.abc import Callable
from functools import partialmethod
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter

from api_key_manager.core.exceptions import VaultError
from api_key_manager.vault_integration.errors import (
    RATE_LIMITED,
    STANDBY,
    UNAVAILABLE,
    error_of,
)

__all__ = ["Transport"]

_MOST_BYTES: Final = 1 << 20
_PIECE: Final = 1 << 16
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 2.0
_POOL: Final = 8
# What a POST computes or prolongs: to do it twice is to do it once.
_HARMLESS: Final = re.compile(r"^/v1/(.+/(encrypt|decrypt)/[^/]+|auth/token/renew-self)$")


class Transport:
    """Sends one request at a time per thread.

    Args:
        address: of Vault.
        namespace: of Vault Enterprise or OpenBao; empty for the root.
        verify: a file of certificate authorities, or ``True`` for those of the system.
        timeout: seconds for one attempt.
        attempts: how often a request is sent at most.
        pause: waits so many seconds.
    """

    def __init__(
        self,
        address: str,
        *,
        namespace: str,
        verify: str | bool,
        timeout: float,
        attempts: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = address.rstrip("/")
        self._headers = {"X-Vault-Request": "true", "Accept-Encoding": "identity"}
        if namespace:
            self._headers["X-Vault-Namespace"] = namespace
        self._timeout, self._attempts, self._pause = timeout, attempts, pause
        self._verify = verify
        self.token = ""
        self._session = requests.Session()
        self._session.trust_env = False
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=_POOL, max_retries=0))

    def __repr__(self) -> str:
        return f"Transport({self._address!r})"

    def request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        params: dict[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """One request, as hvac asks for it; the JSON object of the answer, empty for none.

        Raises:
            VaultError: it was refused, or there was no answer.
        """
        what = f"{method.upper()} {url}"
        repeatable = method in ("get", "list", "delete") or _HARMLESS.match(url) is not None
        for attempt in range(self._attempts):
            last = attempt + 1 == self._attempts
            try:
                status, body, after = self._send(method, url, json, params)
            except requests.RequestException as error:
                if last or not (repeatable or _unsent(error)):
                    raise VaultError(
                        f"{what}: no answer from Vault at {self._address} ({_why(error)})",
                        reason=UNAVAILABLE,
                    ) from None
                self._pause(_wait(attempt, 0))
                continue
            if 200 <= status < 300:
                return body
            problem = error_of(status, body, what, self.token)
            undone = status in (412, 429, 472, 473)
            passing = problem.reason in (UNAVAILABLE, RATE_LIMITED, STANDBY) and status >= 400
            if last or not passing or not (undone or repeatable):
                raise problem
            self._pause(_wait(attempt, after))
        raise AssertionError("at least one attempt is made")

    get = partialmethod(request, "get")
    post = partialmethod(request, "post")
    put = partialmethod(request, "put")
    delete = partialmethod(request, "delete")
    list = partialmethod(request, "list")

    def login(self, url: str, use_token: bool = True, **more: Any) -> dict[str, Any]:
        """A login; whose token it is to be is for the client to say."""
        return self.request("post", url, **more)

    def health(self) -> int:
        """The status of ``/v1/sys/health``, which tells a node's state and needs no token.

        Raises:
            VaultError: there was no answer.
        """
        try:
            return self._send("get", "/v1/sys/health", None, None, plain=True)[0]
        except requests.RequestException as error:
            raise VaultError(
                f"no answer from Vault at {self._address} ({_why(error)})", reason=UNAVAILABLE
            ) from None

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()

    def _send(
        self,
        method: str,
        url: str,
        json: Any,
        params: dict[str, Any] | None,
        *,
        plain: bool = False,
    ) -> tuple[int, dict[str, Any], float]:
        """Status, body, and the seconds after which Vault wants to be asked again."""
        deadline = time.monotonic() + self._timeout
        headers = {} if plain else dict(self._headers)
        if self.token and not plain:
            headers["X-Vault-Token"] = self.token
        if method == "list":  # which not every proxy lets through
            method, params = "get", {**(params or {}), "list": "true"}
        response = self._session.request(
            method.upper(), self._address + url, json=json, params=params, headers=headers,
            timeout=self._timeout, allow_redirects=False, stream=True, verify=self._verify,
        )  # fmt: skip
        with contextlib.closing(response):
            body = _read(response, deadline)
            after = response.headers.get("Retry-After", "")
        return response.status_code, _object(body), float(after) if after.isdecimal() else 0.0


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, unless it is too long or comes too slowly."""
    body = bytearray()
    # What has come, piece by piece: read() would wait for a whole piece of one that trickles.
    while piece := response.raw.read1(_PIECE):
        body += piece
        if len(body) > _MOST_BYTES:
            raise requests.RequestException("the answer is too long")
        if time.monotonic() > deadline:
            raise requests.Timeout
    return bytes(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = jsonlib.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _unsent(error: requests.RequestException) -> bool:
    """Whether there was no connection, so that nothing can have been done."""
    return "NewConnectionError" in repr(error) or isinstance(error, requests.ConnectTimeout)


def _why(error: requests.RequestException) -> str:
    """In words of ours: theirs hold the URL."""
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.Timeout):
        return "it took too long"
    if isinstance(error, requests.ConnectionError):
        return "the connection was refused or lost"
    return str(error) if str(error).startswith("the answer") else type(error).__name__


def _wait(attempt: int, asked: float) -> float:
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt)
    jitter = random.uniform(0, longest)  # noqa: S311 - no secret
    return min(_LONGEST_WAIT, asked) + jitter
