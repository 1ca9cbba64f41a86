"""Who may pass: every decision of the middleware, in plain values, without I/O.

A face (ASGI, WSGI, a FastAPI dependency) asks three times::

    presented = guard.present(call)                 # None: nobody need show a key here
    if presented.request is not None:               # signed: the body counts
        presented = guard.present(call, body)
    verdict = await manager.verify_presented(presented)
    wait = manager.wait_after(presented, verdict)
    headers = guard.passed(verdict, wait)           # or RefusedError
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from api_key_manager.core.addresses import check_allowlist, client_address, networks
from api_key_manager.core.credentials import CREDENTIAL_HEADERS, Fields, absolute_url, credential
from api_key_manager.core.exceptions import ConfigurationError, ValidationError
from api_key_manager.core.http_signatures import read_target
from api_key_manager.core.limits import ratelimit_headers
from api_key_manager.core.models import Verdict
from api_key_manager.core.permissions import compile_expression
from api_key_manager.core.presented import Presented, present
from api_key_manager.integrations.answers import Headers, RefusedError, refusal, too_large

__all__ = ["HEADERS", "MAX_BODY", "Call", "Guard", "has_permissions"]

MAX_BODY: Final = 1024 * 1024

_ACTOR: Final = "middleware"
_FORWARDED: Final = b"x-forwarded-for"
_HOST: Final = b"host"
_LENGTH: Final = b"content-length"

HEADERS: Final = CREDENTIAL_HEADERS | {_FORWARDED, _HOST, _LENGTH}
"""All headers that are looked at."""

# What one reader takes for another path than the next one: empty and dot segments, backslashes,
# what is escaped twice, control characters.
_is_doubtful = re.compile(r"//|/\.{1,2}(?:/|$)|[\\%\x00-\x1f\x7f]").search


class Call(NamedTuple):
    """A request as its server read it."""

    method: str
    scheme: str
    """``http`` or ``https``, as the server says."""
    path: str
    """Decoded and whole, as apps route by it."""
    target: bytes | None
    """Path and query as they stand in the request line; ``None`` when that cannot be told."""
    headers: Iterable[tuple[bytes, bytes]]
    """At least those of :data:`HEADERS`."""
    peer: Sequence[Any] | None
    """Host and port of who is connected."""


class Guard:
    """One set of rules for one app.

    Args:
        permissions: what every key must hold: an expression, or a list that is needed whole.
        exempt: paths that need no key, decoded: exact ones (``/healthz``), or all below one
            (``/public/*``).
        require: whether a request without a credential is refused. A bad one always is.
        base_url: what callers write before the path, as ``https://api.example.com``, where a proxy
            in front changes scheme, host or path. The ``Host`` header counts for nothing then.
        trusted_proxies: addresses and networks whose ``X-Forwarded-For`` is believed. Nobody's is
            when left out.
        max_body: of signed requests, in bytes.

    Raises:
        ConfigurationError: an argument that cannot be used; the message names it.
    """

    def __init__(
        self,
        *,
        permissions: str | Sequence[str] | None = None,
        exempt: Sequence[str] = (),
        require: bool = True,
        base_url: str | None = None,
        trusted_proxies: Sequence[str] = (),
        max_body: int = MAX_BODY,
    ) -> None:
        if permissions is not None:
            try:
                compile_expression(permissions)
            except ValidationError as error:
                raise ConfigurationError(str(error)) from None
            if not require:
                raise ConfigurationError(
                    "permissions: without require, who shows no key would pass and who lacks a"
                    " permission would not: ask for permissions where they are needed"
                )
        if type(max_body) is not int or max_body < 0:
            raise ConfigurationError("max_body: bytes, 0 or more, are allowed")
        self.max_body = max_body
        self._permissions = permissions
        self._require = require
        self._base = None if base_url is None else _check_base(base_url)
        try:
            self._proxies = networks(check_allowlist(trusted_proxies))
        except ValidationError as error:
            allowed = str(error).partition(": ")[2]
            raise ConfigurationError(f"trusted_proxies: {allowed}") from None
        paths = _check_exempt(exempt)
        self._exempt = frozenset(path for path in paths if not path.endswith("/*"))
        self._exempt_below = tuple(path[:-1] for path in paths if path.endswith("/*"))

    def present(self, call: Call, body: bytes | None = None) -> Presented | None:
        """The credential of a request, to be judged.

        Args:
            call: the request.
            body: all of it; of a signed request it must be given, at the second time of asking at
                the latest.

        Returns:
            ``None`` when no key is needed: the path is exempt, or nothing is shown and that is
            allowed. Something malformed for what cannot be a credential.

        Raises:
            RefusedError: the body is said to be, or is, too large.
        """
        if self._is_exempt(call.path):
            return None
        fields: dict[bytes, list[bytes]] = {}
        for name, value in call.headers:
            if (known := name.lower()) in HEADERS:
                fields.setdefault(known, []).append(value)
        digest = None if body is None else hashlib.sha256(body).hexdigest()
        shown = credential(fields, call.method, self._url(call, fields), digest)
        if not shown and not self._require:
            return None
        presented = present(
            **shown,
            ip=client_address(call.peer, fields.get(_FORWARDED, ()), self._proxies),
            permissions=self._permissions,
            actor=_ACTOR,
        )
        if presented.request is not None:
            said = fields.get(_LENGTH, ())
            if any(not _fits(length, self.max_body) for length in said) or (
                body is not None and len(body) > self.max_body
            ):
                raise RefusedError(too_large(self.max_body))
        return presented

    def passed(self, verdict: Verdict, wait: int) -> Headers:
        """The headers that go with the app's answer.

        Args:
            verdict: on the request's credential.
            wait: how long its sender has to, having failed too often; in seconds.

        Raises:
            RefusedError: the verdict is no acceptance.
        """
        if not verdict.valid:
            raise RefusedError(refusal(verdict, wait))
        if verdict.scheme == "request" and not verdict.body_verified:
            # A face that forgot the body must not become one that lets every body pass.
            raise RuntimeError("a signed request was judged without its body")
        if verdict.rate_limit is None:
            return ()
        return ratelimit_headers(verdict.rate_limit.states)

    def _is_exempt(self, path: str) -> bool:
        if path in self._exempt:
            return True
        return path.startswith(self._exempt_below) and not _is_doubtful(path)

    def _url(self, call: Call, fields: Fields) -> str | None:
        if call.target is None:
            return None
        if self._base is not None:
            scheme, host, prefix = self._base
            # The target is checked before anything is put in front of it.
            if not call.target.startswith(b"/"):
                return None
            return absolute_url(scheme, host, prefix + call.target)
        hosts = fields.get(_HOST, ())
        return absolute_url(call.scheme, hosts[0], call.target) if len(hosts) == 1 else None


def has_permissions(verdict: Verdict | None, wanted: str | Sequence[str]) -> bool:
    """Whether a verdict is an acceptance, of a key that holds what is wanted.

    Args:
        verdict: what a middleware left for the app; ``None`` holds nothing.
        wanted: an expression as ``documents.read and not trial``, or a list that is needed whole.

    Raises:
        ValidationError: ``wanted`` cannot be read.
    """
    test = compile_expression(wanted)
    if verdict is None or not verdict.valid or verdict.key is None:
        return False
    return test(verdict.key.permissions)


def _fits(length: bytes, limit: int) -> bool:
    return length.isdigit() and len(length) <= 12 and int(length) <= limit


def _check_base(url: object) -> tuple[str, bytes, bytes]:
    if isinstance(url, str) and read_target(url) is not None and "?" not in url:
        scheme, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        if not rest.endswith("/") and absolute_url(scheme, host.encode(), b"/") is not None:
            return scheme, host.encode(), f"/{path}".encode() if path else b""
    raise ConfigurationError(
        "base_url: http:// or https:// in lower case, a host, and maybe a path without a slash at"
        " its end are allowed, like https://api.example.com"
    )


def _check_exempt(paths: object) -> tuple[str, ...]:
    if isinstance(paths, (list, tuple, set, frozenset)) and all(
        isinstance(path, str)
        and path.startswith("/")
        and "*" not in path.removesuffix("/*")
        and not _is_doubtful(path)
        for path in paths
    ):
        return tuple(paths)
    raise ConfigurationError(
        "exempt: a list of decoded paths is allowed, like /healthz, or /public/* for all below"
    )
