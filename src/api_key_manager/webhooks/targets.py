"""Where webhooks may go: strict URLs, and addresses of the public internet only.

Whoever may name a URL must not reach with it what only this server can reach: its own machine, its
network, a cloud's metadata. The name is resolved once, every address must be global, and the
connection goes to one of those very addresses: a name that resolves to another one the next time
(DNS rebinding) changes nothing.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.tokens import holds_a_secret

__all__ = ["MAX_URL", "Address", "Target", "is_public", "parse_target"]

Address = IPv4Address | IPv6Address
MAX_URL: Final = 2048

_read_url = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?)(?P<query>(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)"
).fullmatch
_is_label = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?").fullmatch
_is_number = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*").fullmatch

# IANA's registries of special-purpose addresses, as far as they are not reached by everybody.
_NOT_PUBLIC_4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # a cloud's own services, at an address that looks public
    )
)  # fmt: skip
_UNICAST_6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_6: Final = tuple(
    IPv6Network(text)
    # The first holds Teredo, ORCHID and benchmarks.
    for text in ("2001::/23", "2001:db8::/32", "3fff::/20", "2620:4f:8000::/48")
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")


class Target(NamedTuple):
    """A URL in its parts."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What ``Host`` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"

    @property
    def literal(self) -> Address | None:
        """The address, if the host is one."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parse_target(url: object, *, private: bool) -> Target:
    """Take a URL apart.

    Args:
        url: absolute; the host in ASCII, an international name as ``xn--…``.
        private: whether plain HTTP is allowed, too.

    Raises:
        ValidationError: it is not one that may be used.
    """
    if type(url) is not str or not 0 < len(url) <= MAX_URL:
        raise ValidationError(f"url: 1 to {MAX_URL} characters are allowed")
    found = _read_url(url)
    if found is None:
        raise ValidationError(
            "url: an absolute https URL in ASCII, without user, password or fragment, is allowed"
        )
    if found["scheme"] == "http" and not private:
        raise ValidationError("url: https is needed; http goes with WEBHOOK_ALLOW_PRIVATE=true")
    if holds_a_secret(url):
        raise ValidationError("url: a secret or token must not stand in it")
    port = int(found["port"] or (443 if found["scheme"] == "https" else 80))
    if not 0 < port <= 65_535:
        raise ValidationError("url: a port from 1 to 65535 is allowed")
    host = _host(found["host"])
    return Target(found["scheme"], host, port, (found["path"] or "/") + found["query"])


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except ValueError:
            raise ValidationError("url: the host is no IPv6 address") from None
    labels = text.removesuffix(".").split(".")
    # What ends in a number is an address to whoever resolves it: 127.1, 0x7f000001, 2130706433.
    if _is_number(labels[-1]):
        try:
            return str(IPv4Address(text))
        except ValueError:
            raise ValidationError("url: the host is no IPv4 address of four numbers") from None
    if len(text) > 253 or not all(_is_label(label) for label in labels):
        raise ValidationError("url: the host is no name of the domain name system")
    return text.lower()


def is_public(address: Address) -> bool:
    """Whether everybody on the internet reaches it, also if it is written as another one."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    bits = int(address)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(bits & 0xFFFFFFFF))
    if address in _SIX_TO_FOUR:
        return is_public(IPv4Address(bits >> 80 & 0xFFFFFFFF))
    # Every other form that holds an IPv4 address lies outside, or is among those left out.
    inside = address in _UNICAST_6 and not any(address in network for network in _NOT_PUBLIC_6)
    return inside and address.is_global
