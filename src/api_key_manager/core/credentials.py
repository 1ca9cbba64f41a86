"""What the headers of a request show of a key, and the URL that its sender wrote; without I/O.

One credential: ``Authorization: Bearer``, ``X-Api-Key`` (a bearer token too), or an RFC 9421
signature. Two at once are malformed, as one reader could take the first and another one the
second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from api_key_manager.core.http_signatures import MAX_URL, read_target

__all__ = ["CREDENTIAL_HEADERS", "Fields", "absolute_url", "credential", "is_signed"]

_AUTHORIZATION: Final = b"authorization"
_API_KEY: Final = b"x-api-key"
_INPUT: Final = b"signature-input"
_SIGNATURE: Final = b"signature"
_DIGEST: Final = b"content-digest"

CREDENTIAL_HEADERS: Final = frozenset({_AUTHORIZATION, _API_KEY, _INPUT, _SIGNATURE, _DIGEST})
"""The headers that :func:`credential` looks at."""

Fields = Mapping[bytes, Sequence[bytes]]
"""Header values by lower-case name, in the order in which they came."""

# Checked on its own: a host with a "/" in it would bring a path of its own into the URL.
_is_host = re.compile(
    rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
).fullmatch


def is_signed(fields: Fields) -> bool:
    """Whether there is a signature, or half of one."""
    return _INPUT in fields or _SIGNATURE in fields


def credential(
    fields: Fields,
    method: str | None = None,
    url: str | None = None,
    body_sha256: str | None = None,
) -> dict[str, Any]:
    """The one credential of a request, as arguments of
    :func:`~api_key_manager.core.presented.present`.

    Args:
        fields: at least all headers of :data:`CREDENTIAL_HEADERS` that there are.
        method, url: of the request, as its sender wrote them. A signature without them is
            malformed.
        body_sha256: 64 hex digits, once the body is known.

    Returns:
        Nothing when there is no credential; what ``present`` finds malformed when there are two.
    """
    tokens = list(fields.get(_API_KEY, ()))
    authorization = fields.get(_AUTHORIZATION, ())
    for value in authorization:
        kind, _, token = value.partition(b" ")
        if kind.lower() == b"bearer":
            tokens.append(token.strip())
    shown: dict[str, Any] = {}
    if is_signed(fields):
        lines = [
            (name.decode(), value.decode("latin-1"))
            for name in (_INPUT, _SIGNATURE, _DIGEST)
            for value in fields.get(name, ())
        ]
        request = {"headers": lines, "method": method, "url": url, "body_sha256": body_sha256}
        shown["request"] = {name: value for name, value in request.items() if value is not None}
    # Of two headers of one name nobody can say which one a proxy or the service has looked at.
    if len(tokens) == 1 and len(authorization) <= 1:
        shown["token"] = tokens[0].decode("latin-1")
    elif tokens:
        shown["token"] = ""
    return shown


def absolute_url(scheme: str, host: bytes, target: bytes) -> str | None:
    """The URL that a request was sent to.

    Args:
        scheme: ``http`` or ``https``.
        host: the ``Host`` header: a name or an address, and maybe a port.
        target: path and query as in the request line, undecoded.

    Returns:
        ``None`` when one of them cannot be what it should be.
    """
    if (
        scheme not in ("http", "https") or not _is_host(host) or not target.startswith(b"/")
        or len(target) > MAX_URL or not target.isascii()
    ):  # fmt: skip
        return None
    url = f"{scheme}://{host.decode()}{target.decode()}"
    return None if read_target(url) is None else url
