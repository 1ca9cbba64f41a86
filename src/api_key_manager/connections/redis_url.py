"""Where Redis is: its URL, read strictly, and the one place that opens sockets to it.

A parameter that is not understood is refused, since what somebody believes to have set (a
certificate to check, a database) must not silently be something else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from api_key_manager.core.exceptions import ConfigurationError

__all__ = ["RedisAddress", "read_url"]

_ALLOWED: Final = (
    "redis://[user:password@]host[:port][/db], rediss://… for TLS, or"
    " unix://[user:password@]/path[?db=0]"
)
_PORT: Final = 6379
_PLAIN: Final = frozenset({"db"})
_TLS: Final = _PLAIN | {"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"}
_MAX_DATABASE: Final = 65_535

P = TypeVar("P", bound=asyncio.BaseProtocol)


class RedisAddress(NamedTuple):
    """One server and who one is there. Its text holds no credential."""

    host: str
    """A path when it is a socket of this machine."""
    port: int | None
    """``None`` for such a socket."""
    database: int
    user: str | None
    password: str | None
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return f"RedisAddress({str(self)!r})"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}{'' if self.port is None else f':{self.port}'}/{self.database}"

    @property
    def greeting(self) -> list[tuple[str, ...]]:
        """The commands that a connection begins with."""
        commands: list[tuple[str, ...]] = []
        if self.password is not None:
            user = () if self.user is None else (self.user,)
            commands.append(("AUTH", *user, self.password))
        if self.database:
            commands.append(("SELECT", str(self.database)))
        return commands

    async def connect(self, make: Callable[[], P]) -> P:
        """Open a connection, with TLS if the URL says so; raises ``OSError``."""
        loop = asyncio.get_running_loop()
        if self.port is None:
            _, protocol = await loop.create_unix_connection(make, self.host)
        else:
            _, protocol = await loop.create_connection(make, self.host, self.port, ssl=self.tls)
        return protocol


def read_url(url: str) -> RedisAddress:
    """Read a URL of Redis.

    Raises:
        ConfigurationError: what is wrong with it, without repeating any of its values.
    """
    if not url.isprintable() or " " in url:
        raise _wrong(f"spaces and control characters are not allowed: {_ALLOWED}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _wrong(f"that is no URL with a port from 1 to 65535: {_ALLOWED}") from None
    if parts.scheme not in ("redis", "rediss", "unix") or parts.fragment or port == 0:
        raise _wrong(_ALLOWED)
    options = _options(parts.query, _TLS if parts.scheme == "rediss" else _PLAIN)
    user, password = _credentials(parts.username, parts.password)
    if parts.scheme == "unix":
        if parts.hostname or port or len(parts.path) < 2:
            raise _wrong(f"unix:// takes a path that begins with a slash: {_ALLOWED}")
        database = _database(options.get("db", "0"))
        return RedisAddress(unquote(parts.path), None, database, user, password, None)
    if not parts.hostname:
        raise _wrong(f"the host is missing: {_ALLOWED}")
    path = parts.path.removeprefix("/")
    if path and "db" in options:
        raise _wrong("the database stands in the path or in db=, not in both")
    return RedisAddress(
        unquote(parts.hostname),
        port or _PORT,
        _database(path or options.get("db", "0")),
        user,
        password,
        _context(options) if parts.scheme == "rediss" else None,
    )


def _wrong(message: str) -> ConfigurationError:
    return ConfigurationError(f"REDIS_URL: {message}")


def _options(query: str, allowed: frozenset[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise _wrong("what follows the question mark is no list of name=value") from None
    options: dict[str, str] = {}
    for name, value in pairs:
        # A name that is unknown may be half of a password: it is not repeated.
        if name not in allowed:
            raise _wrong(f"an unknown parameter; allowed are {', '.join(sorted(allowed))}")
        if name in options or not value:
            raise _wrong(f"{name}: given once, with a value")
        options[name] = value
    return options


def _credentials(user: str | None, password: str | None) -> tuple[str | None, str | None]:
    if user and password is None:
        raise _wrong("a user without a password: user:password@, or :password@")
    if password == "":
        raise _wrong("the password is empty; leave out the @ and all before it to have none")
    return unquote(user) if user else None, None if password is None else unquote(password)


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= _MAX_DATABASE):
        raise _wrong(f"the database is a number from 0 to {_MAX_DATABASE}")
    return int(text)


def _context(options: dict[str, str]) -> ssl.SSLContext:
    check = options.get("ssl_cert_reqs", "required")
    if check not in ("required", "none"):
        raise _wrong("ssl_cert_reqs: required or none")
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    except (OSError, ssl.SSLError):
        raise _wrong("ssl_ca_certs: a file of certificates in PEM that can be read") from None
    if check == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise _wrong("ssl_keyfile: goes with ssl_certfile")
    if "ssl_certfile" in options:
        try:
            # Without a pass phrase: asking for one would hold up the start.
            context.load_cert_chain(
                options["ssl_certfile"], options.get("ssl_keyfile"), password=lambda: ""
            )
        except (OSError, ssl.SSLError):
            raise _wrong(
                "ssl_certfile, ssl_keyfile: a certificate and its key in PEM, readable and not"
                " encrypted"
            ) from None
    return context
