"""Leaves: the exact bytes that the log commits to, and the MACs of events that wait for it.

A leaf is one JSON object in the form of RFC 8785 (members in order, no spaces, nothing escaped
that need not be). Three kinds: ``event``, the columns of one row; ``missing``, numbers that were
given to events which are not there, or not as they were written; ``origin``, the first of a log.
The random salt keeps a hash from telling what a leaf says to who guesses it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from hmac import compare_digest
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

__all__ = [
    "EVENT_FIELDS",
    "SALTED_BYTES",
    "EventMacs",
    "event_body",
    "missing_leaf",
    "new_salts",
    "origin_leaf",
    "read_leaf",
    "salted",
    "split_salt",
]

EVENT_FIELDS: Final = (
    "at", "action", "key_id", "actor", "reason", "ip", "request_id", "detail", "count",
    "environment", "revision",
)  # fmt: skip
"""What happened: the columns of ``audit_events`` in their order, without id, number and MAC."""

_SALT_BYTES: Final = 16
_MOST_FRESH: Final = 50_000
_TAIL: Final = re.compile(rb'"salt":"[0-9a-f]{32}"\}')
_TAIL_BYTES: Final = len('"salt":""}') + 2 * _SALT_BYTES

SALTED_BYTES: Final = _TAIL_BYTES + len(",")
"""By how much a leaf is longer than without its salt and the brace behind that."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_PLAIN = frozenset({int, str, type(None)})


class _Event(msgspec.Struct, frozen=True, gc=False):
    """In the order of names, which is RFC 8785's."""

    action: str
    actor: str | None
    at: int
    count: int
    detail: str | None
    environment: str | None
    id: int
    index: int
    ip: str | None
    key_id: str | None
    kind: str
    number: int | None
    reason: str | None
    request_id: str | None
    revision: int | None


class _Missing(msgspec.Struct, frozen=True, gc=False):
    at: int
    first: int
    index: int
    kind: str
    last: int


class _Origin(msgspec.Struct, frozen=True, gc=False):
    at: int
    index: int
    kind: str
    name: str
    previous: str | None


def new_salts(count: int) -> Iterable[bytes]:
    """So many salts, in hex."""
    text = secrets.token_hex(_SALT_BYTES * count).encode()
    width = 2 * _SALT_BYTES
    return [text[at : at + width] for at in range(0, len(text), width)]


def salted(body: bytes, salt: bytes) -> bytes:
    """A leaf, from its JSON object without a salt."""
    return b'%b,"salt":"%b"}' % (body[:-1], salt)


def split_salt(leaf: bytes) -> bytes | None:
    """The JSON object of a leaf without its salt; ``None`` when it has none at its end."""
    if _TAIL.fullmatch(leaf, len(leaf) - _TAIL_BYTES) is None:
        return None
    return leaf[: -_TAIL_BYTES - 1] + b"}"


def event_body(index: int, row: Sequence[Any]) -> bytes:
    """The leaf of an event without its salt.

    Args:
        index: of the leaf.
        row: of ``audit_events``, without its MAC.
    """
    (
        id_, at, action, key_id, actor, reason, ip, request_id, detail, count, environment,
        revision, number,
    ) = row  # fmt: skip
    return _encode(
        _Event(
            action, actor, at, count, detail, environment, id_, index, ip, key_id, "event", number,
            reason, request_id, revision,
        )
    )  # fmt: skip


def missing_leaf(index: int, first: int, last: int, at: int) -> bytes:
    """The leaf that says which numbers have no event, and when (µs) that was seen."""
    body = _encode(_Missing(at, first, index, "missing", last))
    return salted(body, secrets.token_hex(_SALT_BYTES).encode())


def origin_leaf(name: str, previous: str | None, at: int) -> bytes:
    """The first leaf: which log this is, when (µs) it began, and the last checkpoint before it."""
    body = _encode(_Origin(at, 0, "origin", name, previous))
    return salted(body, secrets.token_hex(_SALT_BYTES).encode())


def read_leaf(leaf: bytes) -> dict[str, Any]:
    """What a leaf says.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        return _decode(leaf)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError("a leaf that is no JSON object") from error


class EventMacs:
    """Numbers events and seals each with a MAC while it waits for the log.

    An editor of the database has no key: a row that he inserts or edits does not fit, and one that
    he deletes leaves its number open.

    Args:
        key: 32 bytes.

    Attributes:
        used: whether any event was stamped here.
    """

    __slots__ = ("_fresh", "_keyed", "used")

    def __init__(self, key: bytes) -> None:
        # Keyed once: a million events are verified by it.
        self._keyed = HMAC(key, SHA256())
        self._fresh: dict[int, tuple[Any, ...]] = {}
        self.used = False

    def __repr__(self) -> str:
        return "EventMacs()"

    def _digest(self, message: bytes) -> bytes:
        state = self._keyed.copy()
        state.update(message)
        return state.finalize()

    def stamp(
        self, first: int, events: Iterable[tuple[Sequence[Any], int | None]]
    ) -> list[tuple[Any, ...]]:
        """Rows of ``audit_events`` without their ids.

        Args:
            first: the number of the first event.
            events: the columns of each from ``at`` to ``environment``, and its revision.
        """
        self.used = True
        digest = self._digest
        rows = []
        for number, (columns, revision) in enumerate(events, first):
            row = (*columns[:10], revision, number)
            rows.append((*row, digest(_encode(("akm-event-1", *row)))))
        if len(self._fresh) > _MOST_FRESH:
            self._fresh.clear()  # somebody else seals them
        self._fresh.update(zip(range(first, first + len(rows)), rows, strict=True))
        return rows

    def fits_fresh(self, row: Sequence[Any]) -> bool:
        """The same as :meth:`fits`, once and sooner for a row that was stamped here lately."""
        return self._fresh.pop(row[-2], None) == row[1:] or self.fits(row)

    def fits(self, row: Sequence[Any]) -> bool:
        """Whether a row of ``audit_events`` is as it was written, but for its id."""
        *columns, mac = row[1:]
        if type(mac) is not bytes or not _PLAIN.issuperset(map(type, columns)):
            return False
        return compare_digest(mac, self._digest(_encode(("akm-event-1", *columns))))

    def of(self, *values: object) -> bytes:
        """The MAC of other values of the log; the first one says what they are."""
        return self._digest(_encode(values))

    def vouches(self, mac: object, *values: object) -> bool:
        """Whether a MAC is theirs."""
        return type(mac) is bytes and compare_digest(mac, self.of(*values))
