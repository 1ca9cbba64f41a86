"""Marks: how a secret that somebody found is matched with its key.

A signed key's secret names no key. So its version has a mark beside it, a digest under a key that
the database does not hold. What an older schema left has none: it gets one while the server runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import and_, bindparam, or_, select

from api_key_manager.connections import Script, Statement
from api_key_manager.connections.tables import key_versions

__all__ = ["Unmarked", "find", "put", "unmarked"]

_FOUND = 100
_c = key_versions.c
# The literal lets the partial index answer.
_FIND = Statement(
    select(_c.key_id)
    .where(_c.mark == bindparam("b_mark"), _c.mark.is_not(None), _c.ended.is_(False))
    .distinct()
    .limit(_FOUND)
)
_PUT = Statement(
    key_versions.update()
    .where(
        _c.key_id == bindparam("b_key_id"),
        _c.version == bindparam("b_version"),
        # Whoever rotated or deleted the key meanwhile has erased it.
        _c.sealed == bindparam("b_sealed"),
        _c.mark.is_(None),
    )
    .values(mark=bindparam("b_new"))
    .returning(_c.key_id)
)


class Unmarked(NamedTuple):
    """A sealed secret without a mark."""

    key_id: str
    version: int
    sealed: bytes

    def __repr__(self) -> str:
        return f"Unmarked({self.key_id!r}, {self.version})"


def find(mark: bytes) -> Script[list[str]]:
    """The ids of keys with a live version of this mark."""
    rows = yield _FIND(b_mark=mark)
    return [row[0] for row in rows]


def unmarked(after: tuple[str, int], limit: int) -> Script[list[Unmarked]]:
    """Live sealed secrets without a mark that come after a key and version, in their order."""
    key_id, version = after
    statement = (
        select(_c.key_id, _c.version, _c.sealed)
        .where(
            or_(_c.key_id > key_id, and_(_c.key_id == key_id, _c.version > version)),
            _c.sealed.is_not(None), _c.mark.is_(None), _c.ended.is_(False),
        )
        .order_by(_c.key_id, _c.version)
        .limit(limit)
    )  # fmt: skip
    rows = yield Statement(statement)()
    return [Unmarked(*row) for row in rows]


def put(marked: Sequence[tuple[Unmarked, bytes]]) -> Script[int]:
    """Write marks; no revision is bumped, since nothing is judged by them. Returns how many."""
    done = 0
    for secret, mark in marked:
        rows = yield _PUT(
            b_key_id=secret.key_id, b_version=secret.version, b_sealed=secret.sealed, b_new=mark
        )
        done += len(rows)
    return done
