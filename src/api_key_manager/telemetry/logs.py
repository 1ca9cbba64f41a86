"""Log lines, as text or as JSON.

A line holds what this package's own messages say, and those never hold a secret. What foreign
exceptions say may quote what a caller sent: of them only the type and the place are told.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal

from api_key_manager.core.exceptions import APIKeyManagerException
from api_key_manager.core.tokens import holds_a_secret

__all__ = ["formatter", "request_id"]

request_id: Final[ContextVar[str | None]] = ContextVar("akm_request_id", default=None)
"""The id of the request that the current task serves, where that is known."""

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def formatter(style: Literal["text", "json"], *, debug: bool) -> logging.Formatter:
    """What makes lines of log records.

    Args:
        style: of the lines.
        debug: whether errors get their traceback; else one line says what and where.
    """
    return (_Json if style == "json" else _Text)(debug=debug)


class _Text(logging.Formatter):
    """One line, and below it the traceback if there is one."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        message = "".join(map(_escaped, _message(record)))
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {message}"
        known = _request_id_of(record)
        if known is not None and known not in line:
            line += f" request_id={known}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - the standard library's name
        error = ei[1]
        if error is None:
            return ""
        if self._debug:
            return "\n".join(_told_in_full(error))
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" at {where[0].filename}:{where[0].lineno}" if where else ""
        return f"{_told(error)}{place}"


class _Json(_Text):
    """One object per line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        known = _request_id_of(record)
        if known is not None:
            line["request_id"] = known
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    """Minted secrets stand in no message of ours; this holds for those of other packages too."""
    text = record.getMessage()
    return "(withheld: it held a secret)" if holds_a_secret(text) else text


def _escaped(character: str) -> str:
    """Nothing in a message can begin another line."""
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def _request_id_of(record: logging.LogRecord) -> str | None:
    known: str | None = getattr(record, "request_id", None) or request_id.get()
    return known


def _told(error: BaseException) -> str:
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return f"{name}: {error}" if isinstance(error, APIKeyManagerException) else name


def _told_in_full(error: BaseException) -> Iterator[str]:
    """Causes first, as Python prints them."""
    chain: list[BaseException] = []
    met: BaseException | None = error
    while met is not None and met not in chain:
        chain.append(met)
        met = met.__cause__ or (None if met.__suppress_context__ else met.__context__)
    for one in reversed(chain):
        yield "Traceback (most recent call last):"
        for frame in traceback.format_tb(one.__traceback__):
            yield frame.rstrip("\n")
        yield _told(one)
