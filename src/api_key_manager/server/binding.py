"""The port: taken once, before anything else is done, then listened on by every worker."""

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING, Final

from api_key_manager.core.addresses import parse_address
from api_key_manager.core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from api_key_manager.config.settings import Settings

__all__ = ["bind", "for_worker", "urls"]

# Elsewhere the option exists too, but gives all connections to the socket that came last.
_SPREADS: Final = sys.platform == "linux"


def bind(settings: Settings) -> socket.socket:
    """Take the port.

    Raises:
        ConfigurationError: the address or port cannot be used.
    """
    host, port = settings.HOST, settings.PORT
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigurationError(f"HOST={host} cannot be resolved to an address") from None
    _check_plain_http(settings, str(address[0]))
    bound = socket.socket(family, kind)
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigurationError(_why_not_bound(error, host, port)) from None
    bound.setblocking(False)
    return bound


def for_worker(bound: socket.socket) -> socket.socket:
    """A socket for one worker to listen on.

    On Linux each worker has its own on the same port, and the kernel spreads connections evenly
    over those that listen; that of a worker that is gone gets none. On one socket for all, whoever
    wakes first takes what is there (``docs/decisions/0008-workers.md``).

    Args:
        bound: what :func:`bind` took; it must never listen itself.

    Raises:
        OSError: none can be had.
    """
    if not _SPREADS:
        return bound.dup()
    # From here on the port can be had only with this option and by this user, so a second server,
    # which asks without it, is still told that the port is in use.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    own = socket.socket(bound.family, bound.type)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(bound.getsockname())
    except OSError:
        own.close()
        raise
    own.setblocking(False)
    return own


def urls(settings: Settings, bound: socket.socket) -> tuple[str, str]:
    """What it listens on, and where this machine reaches it."""
    host, port = bound.getsockname()[:2]
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - looked up, not bound
    scheme = "https" if settings.TLS_CERT else "http"
    first, second = (
        f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"
        for name in (host, near)
    )
    return first, second


def _check_plain_http(settings: Settings, text: str) -> None:
    address = parse_address(text.partition("%")[0])
    if address is not None and address.is_loopback:
        return
    if not (settings.TLS_CERT or settings.TRUSTED_PROXIES or settings.ALLOW_PLAIN_HTTP):
        raise ConfigurationError(
            f"HOST={settings.HOST} would carry tokens over plain HTTP beyond this machine: set"
            " TLS_CERT and TLS_KEY, or TRUSTED_PROXIES when a proxy does TLS, or"
            " ALLOW_PLAIN_HTTP=true"
        )


def _why_not_bound(error: OSError, host: str, port: int) -> str:
    other = port + 1 if port < 65_535 else port - 1
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use. Stop what uses it, or choose another:"
            f" PORT={other} akm serve"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Port {port} on {host} is not for this user. Choose another: PORT=5000 akm serve"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST={host} is no address of this machine"
    return f"Port {port} on {host} cannot be taken: {error.strerror}"
