"""Where things stand on a server, and when they happened, as a URL says it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.tokens import check_key_id

__all__ = ["check_url", "key_path", "members"]


def key_path(key_id: str, rest: str = "", *, under: str = "keys") -> str:
    """The path of one key.

    Raises:
        ValidationError: no key id; nothing else may get into a path.
    """
    segment = quote(check_key_id(key_id), safe=":")
    # "." and ".." are ids too, but as such they would not survive in a path.
    if set(segment) == {"."}:
        segment = segment.replace(".", "%2E")
    return f"/v1/{under}/{segment}{rest}"


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


def members(given: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a body or query, with instants as text.

    Raises:
        ValidationError: an instant without a time zone.
    """
    found = dict(given)
    for name, value in given.items():
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValidationError(f"{name}: a datetime with a time zone is needed")
            found[name] = value.isoformat()
    return found
