"""Where things stand on a server, and when they happened, as a URL says it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.tokens import check_key_id

__all__ = ["key_path", "members", "segment"]


def segment(name: str) -> str:
    """An id as one segment of a path.

    Raises:
        ValidationError: no id; nothing else may get into a path.
    """
    quoted = quote(check_key_id(name), safe=":")
    # "." and ".." are ids too, but as such they would not survive in a path.
    return quoted.replace(".", "%2E") if set(quoted) == {"."} else quoted


def key_path(key_id: str, rest: str = "", *, under: str = "keys") -> str:
    """The path of one key.

    Raises:
        ValidationError: as :func:`segment`.
    """
    return f"/v1/{under}/{segment(key_id)}{rest}"


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
