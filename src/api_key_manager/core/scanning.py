"""Finds our secrets and tokens in any bytes, told by their checksum. Does no I/O itself.

Nothing is asked of what stands before or after one: the checksum over prefix, id and secret
decides, which a random text passes once in four thousand million times. A match is at most
``MAX_TOKEN`` long, and that is how far two pieces of a text must overlap.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from api_key_manager.core.tokens import (
    ALPHABET,
    MAX_PREFIX,
    MAX_TOKEN,
    ParsedToken,
    check_prefix,
    parse_token,
)

__all__ = ["ALLOW", "Hit", "Scanner"]

ALLOW: Final = b"akm:allow"
"""On a line of its own accord: what stands on that line is known and not reported."""
_CHUNK: Final = 1 << 22
_LONGEST_LINE: Final = 1 << 16

_DIGITS: Final = {ord(digit): number for number, digit in enumerate(ALPHABET)}

_run = re.compile(rb"[A-Za-z0-9._:-]+").match
_tails = re.compile(rb"_[0-9A-Za-z]{36}").finditer
_prefix_before = re.compile(rb"[a-z0-9_]*\Z").search
_starts = re.compile(rb"[a-z]").finditer


class Hit(NamedTuple):
    """Where something was found, counted from 1 and in bytes, and what it says of itself."""

    line: int
    column: int
    kind: Literal["bearer", "admin", "secret"]
    prefix: str
    key_id: str | None


class _Match(NamedTuple):
    start: int
    end: int
    parsed: ParsedToken


class Scanner:
    """Finds secrets and tokens.

    Args:
        prefixes: those of ours; also found is what goes on behind one, as ``akm_admin`` behind
            ``akm``. ``None``: whatever could be a prefix.

    Raises:
        ValidationError: what is no prefix.
    """

    def __init__(self, prefixes: Sequence[str] | None) -> None:
        self._needles = None
        if prefixes is not None:
            known = sorted({check_prefix(prefix) for prefix in prefixes})
            # One that goes on behind another is found by that one.
            self._needles = [
                f"{prefix}_".encode()
                for prefix in known
                if not any(prefix.startswith(f"{other}_") for other in known)
            ]

    def scan(self, read: Callable[[int], bytes]) -> Iterator[Hit | int]:
        """Go through a content piece by piece, in bounded memory.

        Args:
            read: gives up to so many next bytes; none at the end.

        Yields:
            What was found, in order; and after each piece how many bytes it had.
        """
        kept, line, before = b"", 1, 0
        while True:
            chunk = read(_CHUNK)
            data = kept + chunk
            # Lines stay whole, for their number and what is allowed on them, unless they are huge.
            cut = len(data) if not chunk else data.rfind(b"\n") + 1
            if len(data) - cut > _LONGEST_LINE:
                cut = len(data) - MAX_TOKEN + 1
            counted = 0
            for match in self._find(data):
                if match.start >= cut:
                    break
                line += data.count(b"\n", counted, match.start)
                counted = match.start
                begin = data.rfind(b"\n", 0, match.start) + 1
                if not _is_allowed(data, begin, match):
                    column = match.start - begin + 1 + (0 if begin else before)
                    yield _hit(line, column, match.parsed)
            line += data.count(b"\n", counted, cut)
            newline = data.rfind(b"\n", 0, cut) + 1
            before = cut - newline if newline else before + cut
            kept = data[cut:]
            yield len(chunk)
            if not chunk:
                return

    def _find(self, data: bytes) -> Iterator[_Match]:
        if self._needles is None:
            return _of_any_prefix(data)
        if len(self._needles) == 1:
            return _of_prefix(data, self._needles[0])
        found = (match for needle in self._needles for match in _of_prefix(data, needle))
        return iter(sorted(found, key=lambda match: match[:2]))


def _of_prefix(data: bytes, needle: bytes) -> Iterator[_Match]:
    start = data.find(needle)
    while start >= 0:
        run = _run(data, start, start + MAX_TOKEN)
        end = start if run is None else run.end()
        for tail in _tails(data, start + len(needle), end):
            parsed = _read(data, start, tail.end(), _sum(tail[0]))
            if parsed is not None:
                yield _Match(start, tail.end(), parsed)
        start = data.find(needle, start + 1)


def _of_any_prefix(data: bytes) -> Iterator[_Match]:
    found = []
    for tail in _tails(data):
        middle = tail.start()
        # The id holds no underscore: the prefix ends at the last one before it.
        joint = data.rfind(b"_", max(0, middle - 129), middle)
        if joint < 1:
            continue
        run = _run(data, joint + 1, middle)
        if run is None or run.end() != middle:
            continue
        lowest = max(0, joint - MAX_PREFIX)
        before = _prefix_before(data[lowest:joint])
        first = joint if before is None else lowest + before.start()
        wanted = _sum(tail[0])
        for letter in _starts(data, first, joint):
            parsed = _read(data, letter.start(), tail.end(), wanted)
            if parsed is not None:
                found.append(_Match(letter.start(), tail.end(), parsed))
    return iter(sorted(found, key=lambda match: match[:2]))


def _sum(tail: bytes) -> int:
    """The number that a tail's last six characters say."""
    value = 0
    for digit in tail[-6:]:
        value = value * 62 + _DIGITS[digit]
    return value


def _read(data: bytes, start: int, end: int, wanted: int) -> ParsedToken | None:
    # Before anything that costs more: hostile bytes have many starts that fit in form.
    if zlib.crc32(data[start : end - 6]) != wanted:
        return None
    return parse_token(data[start:end].decode("ascii"))


def _is_allowed(data: bytes, begin: int, match: _Match) -> bool:
    end = data.find(b"\n", match.end, match.end + _LONGEST_LINE)
    upto = match.end + _LONGEST_LINE if end < 0 else end
    return data.find(ALLOW, max(begin, match.start - _LONGEST_LINE), upto) >= 0


def _hit(line: int, column: int, parsed: ParsedToken) -> Hit:
    if parsed.key_id == "secret":
        return Hit(line, column, "secret", parsed.prefix, None)
    kind: Literal["admin", "bearer"] = "admin" if parsed.prefix.endswith("_admin") else "bearer"
    return Hit(line, column, kind, parsed.prefix, parsed.key_id)
