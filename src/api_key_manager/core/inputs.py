"""What users say of a key, checked and brought into one form before it gets anywhere near it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from api_key_manager.core.addresses import check_allowlist
from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.models import MICROSECONDS, MIN_SCHEMES, canonical_json
from api_key_manager.core.permissions import check_grants
from api_key_manager.core.quotas import REFILLS, Quota, is_zone
from api_key_manager.core.signing import MAX_TIMESTAMP
from api_key_manager.core.tokens import MAX_SECRET_BYTES, holds_a_secret, secret_bytes

__all__ = [
    "check_instant",
    "check_limit",
    "check_limits",
    "check_metadata",
    "check_name",
    "check_overlap",
    "check_quota",
    "check_rate_limits",
    "check_secret",
    "check_text",
    "clean_fields",
]

MAX_METADATA = 16 * 1024
MAX_OVERLAP_SECONDS = 90 * 86_400
MAX_RATE_LIMITS = 8
MAX_RATE = 1_000_000_000
# What every reader of JSON holds without rounding.
MAX_QUOTA = 10**15
MAX_WINDOW = 365 * 86_400
_MAX_DEPTH = 16

_is_limit_name = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}").fullmatch


def check_text(field: str, value: object, longest: int = 128) -> str | None:
    """Printable text of a bounded length, or ``None``.

    Raises:
        ValidationError: anything else.
    """
    if value is None:
        return None
    if type(value) is not str or not 0 < len(value) <= longest or not value.isprintable():
        raise ValidationError(f"{field}: 1 to {longest} printable characters are allowed")
    if holds_a_secret(value):
        raise ValidationError(f"{field}: a secret or token must not stand in it")
    return value


def check_name(field: str, value: object) -> str | None:
    """What keys are grouped by: two names that look alike must not be two groups.

    Raises:
        ValidationError: no text of :func:`check_text`, or with blanks at its ends.
    """
    name = check_text(field, value)
    if name is not None and name != name.strip():
        raise ValidationError(f"{field}: no blanks are allowed at its ends")
    return name


def check_instant(field: str, value: object) -> int | None:
    """An instant in microseconds, from an aware datetime, RFC 3339 text or Unix seconds.

    Raises:
        ValidationError: none of these, or outside the years 1970 to 9999.
    """
    if value is None:
        return None
    if type(value) is str:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, datetime) and value.tzinfo is not None:
        try:
            value = value.timestamp()
        except (OverflowError, ValueError):
            value = None
    if type(value) in (int, float) and 0 <= value <= MAX_TIMESTAMP:  # type: ignore[operator]  # narrowed by type()
        return round(value * MICROSECONDS)  # type: ignore[operator]  # as above
    raise ValidationError(
        f"{field}: RFC 3339 text with an offset, an aware datetime or Unix seconds are allowed"
    )


def check_metadata(value: object) -> str:
    """The canonical JSON text of a metadata object.

    Raises:
        ValidationError: no dict of JSON values with text keys, too deep, or over 16 KiB.
    """
    if value is None:
        return "{}"
    message = f"metadata: a JSON object of at most {MAX_METADATA} bytes is allowed"
    if not isinstance(value, Mapping) or not _is_json(value, _MAX_DEPTH):
        raise ValidationError(message)
    try:
        text = canonical_json(dict(value))
        size = len(text.encode())
    except (TypeError, ValueError):
        raise ValidationError(message) from None
    if size > MAX_METADATA:
        raise ValidationError(message)
    if holds_a_secret(text):
        raise ValidationError("metadata: a secret or token must not stand in it")
    return text


def _is_json(value: object, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth > 0 and all(
            type(key) is str and _is_json(item, depth - 1) for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_json(item, depth - 1) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def check_secret(secret: object) -> str:
    """A usable secret.

    Raises:
        ValidationError: empty, too long, or not text that UTF-8 can write.
    """
    if secret_bytes(secret) is None:
        raise ValidationError(f"secret: text of 1 to {MAX_SECRET_BYTES} bytes is allowed")
    return str(secret)


def check_overlap(value: object) -> int:
    """Seconds during which an old version goes on.

    Raises:
        ValidationError: not a whole number from 0 to 90 days.
    """
    if type(value) is not int or not 0 <= value <= MAX_OVERLAP_SECONDS:
        raise ValidationError(
            f"overlap_seconds: a whole number from 0 to {MAX_OVERLAP_SECONDS} is allowed"
        )
    return value


def check_limit(value: object, most: int) -> int:
    """How many items a page holds.

    Raises:
        ValidationError: not a whole number from 1 to ``most``.
    """
    if type(value) is not int or not 1 <= value <= most:
        raise ValidationError(f"limit: a whole number from 1 to {most} is allowed")
    return value


def check_rate_limits(value: object) -> tuple[RateLimit, ...]:
    """Limits as users write them: objects with ``limit``, ``window_seconds`` and a ``name``.

    A limit without a name is called what it is, such as ``100-per-60s``.

    Raises:
        ValidationError: the message names the item and its field.
    """
    own, shared = check_limits(value)
    if shared:
        raise ValidationError("rate_limits: these are each key's own, leave the scope out")
    return own


def check_limits(value: object) -> tuple[tuple[RateLimit, ...], tuple[RateLimit, ...]]:
    """The same where a limit may have a ``scope``: ``key``, or ``owner`` for one that all keys of
    the owner share.

    Returns:
        The key's own limits, and the shared ones.

    Raises:
        ValidationError: the message names the item and its field.
    """
    if value is None:
        return (), ()
    if not isinstance(value, (list, tuple)) or isinstance(value, RateLimit):
        raise ValidationError("rate_limits: a list of objects is allowed")
    if len(value) > MAX_RATE_LIMITS:
        raise ValidationError(f"rate_limits: at most {MAX_RATE_LIMITS} are allowed")
    limits = [_check_rate_limit(f"rate_limits[{i}]", item) for i, item in enumerate(value)]
    known: set[str] = set()
    for i, (limit, _) in enumerate(limits):
        if limit.name in known:
            raise ValidationError(f"rate_limits[{i}].name: another limit has this name")
        known.add(limit.name)
    own = tuple(limit for limit, scope in limits if scope == "key")
    return own, tuple(limit for limit, scope in limits if scope == "owner")


def _check_rate_limit(where: str, item: object) -> tuple[RateLimit, str]:
    if isinstance(item, RateLimit):
        item = item._asdict()
    if not isinstance(item, Mapping):
        raise ValidationError(f"{where}: an object with limit and window_seconds is allowed")
    for name in item:
        if name != "scope" and name not in RateLimit._fields:
            shown = name[:32] if isinstance(name, str) and name.isidentifier() else "a field"
            raise ValidationError(
                f"{where}: {shown} is not one of name, limit, window_seconds, scope"
            )
    limit = _whole(f"{where}.limit", item.get("limit"), MAX_RATE)
    window = _whole(f"{where}.window_seconds", item.get("window_seconds"), MAX_WINDOW)
    name = item.get("name")
    if name is None:
        name = f"{limit}-per-{window}s"
    elif type(name) is not str or not _is_limit_name(name):
        raise ValidationError(
            f"{where}.name: 1 to 32 of a-z 0-9 _ - are allowed, a letter or digit first"
        )
    scope = item.get("scope")
    if scope not in (None, "key", "owner"):
        raise ValidationError(f"{where}.scope: key or owner is allowed")
    return RateLimit(name, limit, window), scope or "key"


def _whole(field: str, value: object, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValidationError(f"{field}: a whole number from 1 to {most} is allowed")
    return value


def check_quota(value: object) -> Quota | None:
    """A quota as users write it: an object with ``limit`` and ``refill``, and when it is refilled.

    Raises:
        ValidationError: the message names the field.
    """
    if value is None:
        return None
    if isinstance(value, Quota):
        value = value._asdict()
    if not isinstance(value, Mapping):
        raise ValidationError("quota: an object with limit and refill is allowed")
    for name in value:
        if name not in Quota._fields:
            shown = name[:32] if isinstance(name, str) and name.isidentifier() else "a field"
            raise ValidationError(f"quota: {shown} is not one of {', '.join(Quota._fields)}")
    limit = _whole("quota.limit", value.get("limit"), MAX_QUOTA)
    refill = value.get("refill")
    if type(refill) is not str or refill not in REFILLS:
        raise ValidationError(f"quota.refill: {', '.join(REFILLS)} are allowed")
    hour, zone = value.get("hour", 0), value.get("zone", "UTC")
    if type(hour) is not int or not 0 <= hour <= 23:
        raise ValidationError("quota.hour: a whole number from 0 to 23 is allowed")
    if type(zone) is not str or not is_zone(zone):
        raise ValidationError("quota.zone: a time zone such as Europe/Berlin or UTC is allowed")
    if refill == "never" and (hour, zone) != (0, "UTC"):
        raise ValidationError("quota.hour: what is never refilled has no hour and no zone")
    shared = value.get("shared_by_owner", False)
    if type(shared) is not bool:
        raise ValidationError("quota.shared_by_owner: true or false is allowed")
    return Quota(limit, refill, hour, zone, shared)  # type: ignore[arg-type]  # one of REFILLS


def clean_fields(fields: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Fields of a key as users name them, turned into attributes of the record.

    Raises:
        ValidationError: a value that is not allowed, or an unknown field.
    """
    clean: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "metadata":
            clean["metadata_json"] = check_metadata(value)
        elif name == "permissions":
            clean[name] = check_grants(() if value is None else value)
        elif name == "ip_allowlist":
            clean[name] = check_allowlist(() if value is None else value)
        elif name == "rate_limits":
            clean[name], clean["shared_limits"] = check_limits(value)
        elif name == "quota":
            clean[name] = check_quota(value)
        elif name == "expires_at":
            clean[name] = check_instant(name, value)
        elif name in ("owner", "environment"):
            clean[name] = check_name(name, value)
        elif name == "min_scheme":
            clean[name] = _check_min_scheme(value, kind)
        elif name == "disabled":
            if type(value) is not bool:
                raise ValidationError("disabled: true or false is allowed")
            clean[name] = value
        else:
            raise ValidationError(f"{name}: there is no such field")
    return clean


def _check_min_scheme(value: object, kind: str) -> str:
    if value is None:
        return "static"
    if kind == "bearer" and value != "static":
        raise ValidationError("min_scheme: a bearer key is not signed, leave it out")
    if value not in MIN_SCHEMES:
        raise ValidationError(f"min_scheme: {', '.join(MIN_SCHEMES)} are allowed")
    return str(value)
