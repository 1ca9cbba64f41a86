"""The kinds of text that settings hold: what each accepts, in code and in words."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = [
    "AdminToken",
    "Allowed",
    "DatabaseUrl",
    "Grants",
    "Host",
    "HttpUrl",
    "IssuerUrl",
    "MasterKey",
    "Mount",
    "Names",
    "Networks",
    "Path",
    "Profile",
    "RedisUrl",
    "Sink",
    "Text",
    "TokenPrefix",
    "decode_master_key",
    "names",
    "networks",
]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a text field accepts, in words for an error line and for the documentation."""

    words: str


def decode_master_key(text: str) -> bytes:
    """Decode a master key.

    Args:
        text: base64 of exactly 32 bytes, standard or URL-safe, padded or not.

    Returns:
        The 32 bytes.

    Raises:
        ValueError: the text is something else. The message does not repeat it.
    """
    unpadded = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        key = base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    if len(key) != 32:
        raise ValueError(f"{len(key)} bytes")
    return key


def _check_master_key(text: str) -> str:
    if text:
        decode_master_key(text)
    return text


def _check_database_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if url == "memory://" or (scheme == "postgresql" and rest):
        return url
    path = rest.removeprefix("/")
    # Anything SQLAlchemy would read as an option or as a database in memory is refused:
    # both would be ignored or lost, which is the last thing a key store should do silently.
    usable = rest.startswith("/") and path not in ("", "/", ":memory:") and "?" not in path
    if scheme == "sqlite" and separator and usable and not path.endswith("/"):
        return url
    raise ValueError("not a database URL of ours")


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks of a comma-separated text; ``ValueError`` when one is none."""
    return tuple(ip_network(part.strip()) for part in text.split(",")) if text.strip() else ()


def _check_networks(text: str) -> str:
    networks(text)
    return text


def names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated text; ``ValueError`` when one is empty or there are many."""
    found = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    if not all(found) or len(found) > 32:
        raise ValueError("not names")
    return found


def _check_names(text: str) -> str:
    names(text)
    return text


def _check_sink(where: str) -> str:
    if "://" in where and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", where):
        raise ValueError("no URL of an endpoint")
    return where


Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
Path = Annotated[Text, Allowed("the path of a file")]
AdminToken = Annotated[
    str,
    Field(pattern=r"^([!-~]{32,})?$"),
    Allowed("32 or more printable ASCII characters without spaces"),
]
DatabaseUrl = Annotated[
    Text,
    AfterValidator(_check_database_url),
    Allowed("sqlite:///path/to/file.db, memory:// or postgresql://user:password@host/database"),
]
Host = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.:%-]+$", max_length=255),
    Allowed("an IP address without brackets, or a host name"),
]
HttpUrl = Annotated[
    str,
    Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"),
    Allowed("a URL that starts with http:// or https://, without user name and query"),
]
IssuerUrl = Annotated[
    str,
    Field(
        pattern=r"^(https://[^\s/?#@]+(/[^\s?#]*)?"
        r"|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?(/[^\s?#]*)?)?$"
    ),
    Allowed("an https:// URL without user name and query; http:// on this machine only"),
]
_GRANT = r"[^\x00-\x1f\x7f,=]+=[a-z:+]+(@[^\s,=@]+)?"
Grants = Annotated[
    str,
    Field(pattern=rf"^({_GRANT}(,{_GRANT})*)?$"),
    Allowed("value=scope+scope or value=scope+scope@environment, separated by commas"),
]
MasterKey = Annotated[
    str,
    AfterValidator(_check_master_key),
    Allowed("base64 (standard or URL-safe) of exactly 32 bytes"),
]
Mount = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"),
    Allowed("the name of a mount: letters, digits, `_`, `.`, `-`, `/`"),
]
Names = Annotated[
    Text,
    AfterValidator(_check_names),
    Allowed("1 to 32 names of metadata fields separated by commas"),
]
Networks = Annotated[
    str,
    AfterValidator(_check_networks),
    Allowed("IP addresses and networks (10.0.0.0/8, ::1) separated by commas"),
]
Profile = Annotated[
    str,
    Field(pattern=r"^(nginx|traefik|caddy|envoy)?$"),
    Allowed("nginx, traefik, caddy or envoy"),
]
RedisUrl = Annotated[
    str,
    Field(pattern=r"^((rediss?|unix)://\S+)?$"),
    Allowed("redis://…, rediss://… or unix://…"),
]
Sink = Annotated[
    Text,
    AfterValidator(_check_sink),
    Allowed("the path of a file, or a URL that starts with http:// or https://"),
]
TokenPrefix = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=32),
    Allowed("at most 32 characters: a-z, 0-9, single `_` between them, a letter first"),
]
