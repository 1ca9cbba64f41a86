"""What a gateway in front says of the request it asks about, and when that is believed.

Each profile names the only places from which the original method, scheme, host and URI are taken,
and each of them must be there exactly once. Everything else of that kind (``X-Forwarded-*``,
``X-Original-*``, ``X-Rewrite-URL``, ...) may come from the client and is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Final, NamedTuple

from api_key_manager.core.addresses import Network, allowed, parse_address
from api_key_manager.core.credentials import absolute_url
from api_key_manager.server.exchange import Request

__all__ = ["BELOW", "PATH", "PROFILES", "Gateway", "Original", "Profile"]

PATH: Final = "/v1/authorize"
BELOW: Final = f"{PATH}/"

_LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

_is_method = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}").fullmatch


class Profile(NamedTuple):
    """The headers that hold the original request; ``None``: the request line of the question."""

    method: bytes | None
    scheme: bytes | None
    host: bytes
    uri: bytes | None

    @property
    def headers(self) -> frozenset[bytes]:
        """All that are looked at, in lower case."""
        return frozenset(name for name in self if name is not None)


_FORWARDED: Final = Profile(
    b"x-forwarded-method", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-uri"
)
PROFILES: Final[dict[str, Profile]] = {
    # Nobody in front: the question is the request.
    "": Profile(None, None, b"host", None),
    # None of these is nginx's own: the documented configuration sets all four.
    "nginx": Profile(
        b"x-original-method", b"x-original-scheme", b"x-original-host", b"x-original-uri"
    ),
    "traefik": _FORWARDED,
    "caddy": _FORWARDED,
    # ext_authz sends the request's own line and host, its path behind `path_prefix`.
    "envoy": Profile(None, b"x-forwarded-proto", b"host", None),
}


class Original(NamedTuple):
    """The request that is asked about, as its sender wrote it."""

    method: str
    url: str
    path: str
    """Undecoded, without the query."""


class Gateway:
    """One profile, and who is believed to speak for it.

    Args:
        name: a key of :data:`PROFILES`.
        proxies: who is believed; loopback when there are none and a profile is named.
        tls: whether this server itself speaks TLS.
    """

    def __init__(self, name: str, proxies: Sequence[Network], *, tls: bool) -> None:
        self.name = name
        self.profile = PROFILES[name]
        self.proxies = tuple(proxies) or (_LOOPBACK if name else ())
        self._own_scheme = b"https" if tls else b"http"

    @property
    def sets_path(self) -> bool:
        """Whether the path of the question is the gateway's own, and not the client's."""
        return self.name != "envoy"

    def trusts(self, request: Request) -> bool:
        """Whether the peer speaks for the profile. Without a profile nobody need be believed."""
        if not self.name:
            return True
        peer = request.client
        return peer is not None and allowed(parse_address(str(peer[0])), self.proxies)

    def original(
        self, request: Request, fields: Mapping[bytes, Sequence[bytes]]
    ) -> Original | None:
        """The request that is asked about; ``None`` when anything of it is missing, there twice,
        or cannot be what it should be.

        Args:
            request: the question, of a peer that is trusted.
            fields: the values of the profile's headers by name.
        """
        profile = self.profile
        method = _once(fields, profile.method) if profile.method else request.method.encode()
        scheme = _once(fields, profile.scheme) if profile.scheme else self._own_scheme
        host = _once(fields, profile.host)
        uri = _once(fields, profile.uri) if profile.uri else self._own_uri(request)
        if (
            method is None or scheme is None or host is None or uri is None
            or not _is_method(method)
        ):  # fmt: skip
            return None
        url = absolute_url(scheme.decode("latin-1"), host, uri)
        if url is None:
            return None
        return Original(method.decode(), url, uri.decode().partition("?")[0])

    def _own_uri(self, request: Request) -> bytes | None:
        path = request.undecoded.encode("latin-1")
        if not self.sets_path:
            if not path.startswith(BELOW.encode()):
                return None
            path = path[len(PATH) :]
        return path + b"?" + request.query if request.query else path


def _once(fields: Mapping[bytes, Sequence[bytes]], name: bytes) -> bytes | None:
    values = fields.get(name, ())
    return values[0] if len(values) == 1 else None
