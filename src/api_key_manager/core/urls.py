"""The address of a server, as people name it."""

from __future__ import annotations

from urllib.parse import urlsplit

from api_key_manager.core.exceptions import ValidationError

__all__ = ["check_url"]


def check_url(url: str) -> str:
    """The URL of a server without a slash at its end.

    Raises:
        ValidationError: no URL of a server; one with a password too, which does not belong there.
    """
    message = "url: http:// or https:// with a host, without user name and query"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises when it is no number
    except ValueError:
        raise ValidationError(message) from None
    fits = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    if not fits or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise ValidationError(message)
    return url.rstrip("/")
