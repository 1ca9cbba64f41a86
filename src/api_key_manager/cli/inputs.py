"""What people type, read strictly: durations, instants, JSON, secrets."""

from __future__ import annotations

import getpass
import json
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from api_key_manager.cli.errors import MISUSE, Failure

__all__ = [
    "ask",
    "parse_json_object",
    "present_values",
    "read_duration",
    "read_quota",
    "read_rate_limit",
    "read_secret",
    "read_when",
    "write_quota",
    "write_rate_limit",
]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_MOST_SECRET: Final = 4096
_PERIODS: Final = {"daily": "day", "monthly": "month", "never": "never"}
_REFILLS: Final = {per: refill for refill, per in _PERIODS.items()}


def read_duration(text: str, option: str) -> int:
    """Seconds, from ``90``, ``90s``, ``15m``, ``1h30m``, ``7d`` or ``2w``."""
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return int(text)
    if not _DURATION.fullmatch(text):
        raise Failure(f"{option}: seconds, or a duration such as 15m, 12h, 30d", MISUSE)
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def read_rate_limit(text: str, option: str) -> dict[str, Any]:
    """A rate limit, from ``10/1s``, ``1000/1h``, ``burst=10/1s`` or ``1000/1h@owner``."""
    plain = text.removesuffix("@owner")
    name, named, rest = plain.rpartition("=")
    number, slash, window = rest.partition("/")
    if not (slash and number.isascii() and number.isdecimal() and len(number) <= 10 and window):
        raise Failure(f"{option}: [NAME=]N/TIME such as burst=10/1s or 1000/1h", MISUSE)
    seconds = read_duration(window, option)
    limit: dict[str, Any] = {"limit": int(number), "window_seconds": seconds}
    if plain != text:
        limit["scope"] = "owner"
    return {"name": name.strip(), **limit} if named else limit


def write_rate_limit(limit: dict[str, Any]) -> str:
    """A rate limit as :func:`read_rate_limit` takes it."""
    shared = "@owner" if limit.get("scope") == "owner" else ""
    return f"{limit['name']}={limit['limit']}/{limit['window_seconds']}s{shared}"


def read_quota(
    text: str, hour: int | None, zone: str | None, shared: bool, option: str
) -> dict[str, Any]:
    """A quota, from ``1000/month``, ``100/day`` or ``50/never``, and when it is refilled."""
    number, slash, per = text.partition("/")
    refill = _REFILLS.get(per)
    if not (slash and refill and number.isascii() and number.isdecimal() and len(number) <= 16):
        raise Failure(f"{option}: N/day, N/month or N/never such as 1000/month", MISUSE)
    quota: dict[str, Any] = {"limit": int(number), "refill": refill}
    if hour is not None:
        quota["hour"] = hour
    if zone is not None:
        quota["zone"] = zone
    return {**quota, "shared_by_owner": True} if shared else quota


def write_quota(quota: dict[str, Any]) -> str:
    """A quota in words."""
    told = f"{quota['limit']}/{_PERIODS[quota['refill']]}"
    if quota["refill"] != "never":
        told += f" at {quota['hour']}:00 {quota['zone']}"
    if quota["shared_by_owner"]:
        told += ", shared by the owner's keys"
    return told if quota.get("spent") is None else f"{told}, {quota['spent']} spent"


def read_when(text: str, option: str, *, ago: bool = False) -> str:
    """An instant as RFC 3339 text in UTC.

    Args:
        text: RFC 3339 with an offset, or a duration from now such as ``30d``.
        option: its name, for the message.
        ago: whether a duration counts back from now.
    """
    text = text.strip()
    try:
        if _DURATION.fullmatch(text):
            distance = timedelta(seconds=read_duration(text, option))
            now = datetime.now(UTC)
            return (now - distance if ago else now + distance).isoformat()
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None:
            return instant.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        pass
    raise Failure(
        f"{option}: RFC 3339 with an offset, such as 2030-01-31T12:00:00Z,"
        f" or a duration {'before' if ago else 'from'} now, such as 12h or 30d",
        MISUSE,
    )


def _no_constant(_: str) -> Any:
    raise ValueError("NaN and Infinity are not JSON")


def parse_json_object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: anything else; the message holds none of the text.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one kind of error for one reader
    return value


def present_values(values: Iterable[str]) -> list[str]:
    """The values that are not empty: ``--ip ''`` stands for an empty list."""
    return [value for value in values if value]


def read_secret(name: str, *, hint: str) -> str:
    """A secret from standard input, or from a hidden prompt on a terminal.

    Args:
        name: what to ask for.
        hint: where else it could have come from, for the message.
    """
    if sys.stdin.isatty():
        text = getpass.getpass(f"{name}: ")
    else:
        text = sys.stdin.read(_MOST_SECRET + 1)
        # Only what `echo` or an editor put there: spaces may belong to the secret.
        text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise Failure(f"no {name.lower()} was given: {hint}", MISUSE)
    if len(text) > _MOST_SECRET or not text.isprintable():
        raise Failure(f"{name.lower()}: one line of printable text is expected", MISUSE)
    return text


def ask(question: str) -> None:
    """Go on only after a yes; without a terminal, or without ``--yes``, not at all."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure("--yes is needed, since there is no terminal to ask on", MISUSE)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failure("nothing was changed")
