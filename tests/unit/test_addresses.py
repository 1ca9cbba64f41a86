"""Addresses and allowlists: one address has one meaning, however it is written."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import ValidationError
from api_key_manager.core.addresses import (
    MAX_ALLOWLIST,
    allowed,
    check_allowlist,
    host_network,
    networks,
    parse_address,
    vicinity,
)

v4 = st.ip_addresses(v=4)
v6 = st.ip_addresses(v=6)


def admits(entries: list[str], address: str) -> bool:
    return allowed(parse_address(address), networks(check_allowlist(entries)))


@pytest.mark.parametrize(
    ("entry", "address", "yes"),
    [
        ("10.0.0.0/8", "10.255.255.255", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:b01:203", False),
        ("::ffff:10.0.0.0/104", "10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "::ffff:10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "11.0.0.1", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7/24", "192.0.2.8", True),
        ("2001:db8::/32", "2001:0db8:0:0::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("0.0.0.0/0", "203.0.113.9", True),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "2001:db8::1", True),
        ("::/0", "203.0.113.9", False),
        ("::/0", "::ffff:203.0.113.9", False),
    ],
)
def test_allowlist(entry: str, address: str, yes: bool):
    """CIDR in both families; a mapped address is the IPv4 address that it is."""
    assert admits([entry], address) is yes
    assert admits(["198.51.100.1", entry], address) is yes


@given(v4, st.integers(0, 32), v4)
def test_cidr_is_a_mask(base, bits: int, address):
    """An address is inside when the leading bits agree, plain or mapped, and only then."""
    inside = (int(base) ^ int(address)) >> (32 - bits) == 0
    assert admits([f"{base}/{bits}"], str(address)) is inside
    assert admits([f"{base}/{bits}"], f"::ffff:{address}") is inside
    assert admits([f"::ffff:{base}/{96 + bits}"], str(address)) is inside


@given(v6, st.integers(0, 128), v6)
def test_cidr_is_a_mask_in_ipv6(base, bits: int, address):
    """The same in IPv6."""
    if base.ipv4_mapped is None and address.ipv4_mapped is None:
        inside = (int(base) ^ int(address)) >> (128 - bits) == 0
        assert admits([f"{base}/{bits}"], str(address)) is inside
        assert admits([f"{base}/{bits}"], address.exploded.upper()) is inside


def test_no_address_is_nowhere():
    """An allowlist and no address: refused."""
    assert not allowed(None, networks(("0.0.0.0/0", "::/0")))


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.4 ", " 1.2.3.4", "1.2.3.4/32",
        "1.2.3.4:80", "[::1]", "::1%eth0", "fe80::1%1", "::ffff:1.2.3.4%1", "1.2.3.4\n",
        "1.2.3.4\x00", "٠.0.0.0", "0x7f.1", "2130706433",
    ],
)  # fmt: skip
def test_unreadable_addresses(text: str):
    """Scope ids, ports, brackets, spaces and odd notations are no addresses."""
    assert parse_address(text) is None


def test_mapped_address_is_ipv4():
    """So that one client has one address."""
    assert parse_address("::ffff:192.0.2.1") == ipaddress.ip_address("192.0.2.1")
    assert parse_address("::FFFF:C000:0201") == ipaddress.ip_address("192.0.2.1")


@pytest.mark.parametrize(
    "entries",
    [
        "10.0.0.0/8", None, [10], ["10.0.0.0/33"], ["::/129"], ["fe80::%eth0/10"], ["fe80::1%1"],
        ["10.0.0.0/-1"], [""], ["a"], [b"\x0a\x00\x00\x01"], ["10.0.0.0 /8"],
        ["192.0.2.1"] * (MAX_ALLOWLIST + 1),
    ],
)  # fmt: skip
def test_bad_allowlists(entries: object):
    """An entry that cannot be read is refused at once, not when somebody is locked out."""
    with pytest.raises(ValidationError, match="ip_allowlist"):
        check_allowlist(entries)


def test_allowlist_is_canonical():
    """One network has one notation, and stands there once."""
    entries = ["10.1.2.3/8", "10.0.0.0/8", "::FFFF:10.0.0.0/104", "2001:DB8::1/32", "192.0.2.1"]
    assert check_allowlist(entries) == ("10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32")
    assert check_allowlist(check_allowlist(entries)) == check_allowlist(entries)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2ff::9", "2001:db8:1:200::/56"),
        ("nonsense", None),
        (None, None),
    ],
)
def test_vicinity(text: str | None, network: str | None):
    """Refusals are counted by /24 and /56: what one caller usually has."""
    assert vicinity(text) == network


@given(address=v6, other=st.integers(0, 2**64 - 1))
def test_one_host_one_network(address: ipaddress.IPv6Address, other: int):
    """What a host may choose of its IPv6 address gives it no second count; IPv4 has one each."""
    neighbour = ipaddress.IPv6Address((int(address) >> 64 << 64) | other)
    if parse_address(str(address)) == address and parse_address(str(neighbour)) == neighbour:
        found = host_network(str(address))
        assert found == host_network(str(neighbour))
        assert found is not None
        assert address in ipaddress.ip_network(found)


@pytest.mark.parametrize(
    ("text", "network"),
    [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"),
     ("2001:db8::1", "2001:db8::/64"),
     ("nonsense", None), ("", None), (None, None)],
)  # fmt: skip
def test_host_network(text: str | None, network: str | None):
    """One address has one count, however it is written."""
    assert host_network(text) == network
