"""Where webhooks may go, form by form; and how they are signed."""

from __future__ import annotations

import base64
from ipaddress import ip_address

import pytest

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.webhooks.sending import Sender
from api_key_manager.webhooks.signing import mint, sign
from api_key_manager.webhooks.targets import is_public, parse_target

PRIVATE = {
    "loopback": "127.0.0.1", "this-network": "0.0.0.0", "ten": "10.1.2.3",
    "cgnat": "100.64.0.1", "link-local": "169.254.169.254", "private-172": "172.16.0.1",
    "private-192": "192.168.1.1", "ietf": "192.0.0.192", "documentation": "203.0.113.7",
    "relay": "192.88.99.1", "benchmark": "198.18.0.1", "multicast": "224.0.0.1",
    "reserved": "240.0.0.1", "broadcast": "255.255.255.255", "cloud": "168.63.129.16",
    "loopback-6": "::1", "unspecified-6": "::", "unique-local": "fd00:ec2::254",
    "link-local-6": "fe80::1", "scoped": "fe80::1%eth0", "multicast-6": "ff0e::1",
    "site-local": "fec0::1", "documentation-6": "2001:db8::1", "documentation-6b": "3fff::1",
    "mapped": "::ffff:127.0.0.1", "mapped-metadata": "::ffff:169.254.169.254",
    "compatible": "::127.0.0.1", "translated": "::ffff:0:127.0.0.1",
    "nat64": "64:ff9b::7f00:1", "nat64-metadata": "64:ff9b::a9fe:a9fe",
    "nat64-local": "64:ff9b:1::808:808", "6to4": "2002:7f00:1::", "6to4-ten": "2002:a00:1::1",
    "teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2", "discard": "100::1",
    "segment-routing": "5f00::1",
}  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE.values(), ids=PRIVATE)
def test_not_public(text):
    """No form of an address that only this server may reach passes."""
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_public(text):
    """What everybody reaches does, however it is written."""
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "https://u:p@example.com/", "//example.com/",
        "https://example.com/#f", "https://example.com:0/", "https://example.com:70000/",
        "https://example.com\\@127.0.0.1/", "https://exa mple.com/", "https://example.com/\r\nx: y",
        "https://bücher.example/", "https://127.1/", "https://2130706433/", "https://0x7f.0.0.1/",
        "https://0177.0.0.1/", "https://[::1", "https://[fe80::1%25eth0]/", "https://-a-.com/",
        "https://a..b/", "https:///x", "https://" + "a" * 64 + ".com/",
        "https://example.com/" + "a" * 2048, "", None, 7,
    ],
)  # fmt: skip
def test_unusable_urls(url):
    """Refused with the name of the field."""
    with pytest.raises(ValidationError, match=r"^url: "):
        parse_target(url, private=False)


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        (["8.8.8.8"], True),
        (["8.8.8.8", "127.0.0.1"], False),
        (["2606:4700::1111", "::ffff:10.0.0.1"], False),
        ([], False),
    ],
)
async def test_every_address_counts(found, allowed):
    """One that is not public among many is enough to refuse."""
    sender = Sender(private=False, resolve=lambda host, port: found)
    if allowed:
        assert (await sender.check("https://example.com/x")).path == "/x"
    else:
        with pytest.raises(ValidationError, match=r"^url: its host"):
            await sender.check("https://example.com/x")


async def test_rebinding(monkeypatch):
    """The name is resolved once per try, and the connection goes to that very address."""
    asked, connected = [], []
    answers = iter([["8.8.8.8"], ["8.8.4.4"], ["127.0.0.1"]])

    def resolve(host, port):
        asked.append(host)
        return next(answers)

    async def connect(host, port, **more):
        connected.append((host, port, more["server_hostname"]))
        raise ConnectionRefusedError

    monkeypatch.setattr("asyncio.open_connection", connect)
    sender = Sender(private=False, resolve=resolve)
    await sender.check("https://rebind.example/")
    assert (await sender.post("https://rebind.example/", {}, b"")).slug == "connect_failed"
    assert (await sender.post("https://rebind.example/", {}, b"")).slug == "address_refused"
    assert connected == [("8.8.4.4", 443, "rebind.example")]
    assert len(asked) == 3


async def test_unknown_name():
    """A name service that knows nothing is an outcome."""

    def resolve(host, port):
        raise OSError

    sender = Sender(private=False, resolve=resolve)
    assert (await sender.post("https://example.com/", {}, b"")).slug == "resolve_failed"


def test_published_example(vectors):
    """The specification's own example."""
    told = vectors("published-examples.json")["standard_webhooks"]
    made = sign(
        ["whsec_" + told["secret_base64"]], told["id"], told["timestamp"], told["body"].encode()
    )
    assert made == told["signature"]


def test_secrets():
    """32 random bytes in the form of the specification."""
    secret = mint()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret[6:], validate=True)) == 32
    assert secret != mint()
