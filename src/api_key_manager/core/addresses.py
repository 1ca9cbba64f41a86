"""Addresses and allowlists: IPv4, IPv6, CIDR, and IPv4 written as IPv6 (RFC 4291, 2.5.5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

from api_key_manager.core.exceptions import ValidationError

__all__ = [
    "Address",
    "Network",
    "allowed",
    "check_allowlist",
    "client_address",
    "host_network",
    "networks",
    "parse_address",
    "vicinity",
]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_ALLOWLIST = 256
_MAPPED = IPv6Network("::ffff:0:0/96")


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """An address without scope; a mapped one as the IPv4 address that it is; else ``None``."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def _parse_network(text: str) -> Network:
    network = ip_network(text, strict=False)
    if isinstance(network, IPv6Network):
        if "%" in text:
            raise ValueError("scope")
        if network.subnet_of(_MAPPED):
            mapped = int(network.network_address) & 0xFFFFFFFF
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def check_allowlist(entries: object) -> tuple[str, ...]:
    """A clean tuple of networks in their usual notation.

    Raises:
        ValidationError: no list, too long, or an entry that is no address and no CIDR network.
    """
    if not isinstance(entries, (list, tuple)) or len(entries) > MAX_ALLOWLIST:
        raise ValidationError(
            f"ip_allowlist: a list of at most {MAX_ALLOWLIST} addresses or networks is allowed"
        )
    clean = []
    for entry in entries:
        try:
            if type(entry) is not str:
                raise ValueError
            clean.append(str(_parse_network(entry)))
        except ValueError:
            raise ValidationError(
                "ip_allowlist: each entry is an IPv4 or IPv6 address or CIDR network,"
                " like 10.0.0.0/8"
            ) from None
    return tuple(dict.fromkeys(clean))


def networks(entries: Sequence[str]) -> tuple[Network, ...]:
    """The networks of a checked allowlist."""
    return tuple(_parse_network(entry) for entry in entries)


def allowed(address: Address | None, allowlist: Sequence[Network]) -> bool:
    """Whether ``address`` lies in one of the networks. No address lies in none."""
    return address is not None and any(address in network for network in allowlist)


@lru_cache(maxsize=4096)
def vicinity(text: str | None) -> str | None:
    """The network that an address's events are told under: IPv4 /24, IPv6 /56."""
    address = parse_address(text) if text else None
    if address is None:
        return None
    bits = 24 if address.version == 4 else 56
    return str(ip_network(f"{address}/{bits}", strict=False))


@lru_cache(maxsize=4096)
def host_network(text: str | None) -> str | None:
    """What one host has to itself: an IPv4 address, or an IPv6 /64 (RFC 4291, 2.5.4)."""
    address = parse_address(text) if text else None
    if address is None or address.version == 4:
        return None if address is None else str(address)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))


def client_address(peer: Any, forwarded: Sequence[bytes], proxies: Sequence[Network]) -> str | None:
    """The caller's address: the peer, or the rightmost hop that is no trusted proxy.

    Args:
        peer: the ASGI ``client``: host and port.
        forwarded: the values of ``X-Forwarded-For``, in order.
        proxies: whose word is taken.

    Returns:
        The address as text, or ``None`` when it cannot be told.
    """
    address = _hop_address(str(peer[0])) if peer else None
    if not forwarded or not allowed(address, proxies):
        return None if address is None else str(address)
    hops = b",".join(forwarded).decode("latin-1").split(",")
    for hop in reversed(hops):
        address = _hop_address(hop.strip())
        if address is None or not allowed(address, proxies):
            break
    return None if address is None else str(address)


def _hop_address(text: str) -> Address | None:
    """An address that may carry a port or a scope: ``10.0.0.1:80``, ``[::1]:80``, ``fe80::1%2``."""
    if len(text) > 64:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return parse_address(text.partition("%")[0])
