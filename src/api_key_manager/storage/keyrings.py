"""The keyring as it is stored: scripts, for every SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, select

from api_key_manager.connections import Many, Script, Statement
from api_key_manager.connections.tables import deployment, keyring

__all__ = ["Row", "found_keyring", "read_keyring", "seed_keyring"]

_LEAST_SCHEMA: Final = "0003"


class Row(NamedTuple):
    """One row, without the time when it was made."""

    kind: str
    number: int
    wrapped: bytes
    kek: str | None
    seal: bytes | None
    since: int


_COLUMNS: Final = Row._fields
_READ = Statement(select(*(keyring.c[name] for name in _COLUMNS)))
_INSERT = Statement(keyring.insert())
_PLACE = (keyring.c.kind == bindparam("b_kind"), keyring.c.number == bindparam("b_number"))
_SEAL = Statement(
    keyring.update().where(*_PLACE).values(kek=bindparam("b_kek"), seal=bindparam("b_seal"))
)
# Whoever changes the keyring holds this row to commit; code of an older schema derived from the
# master key what is in the keyring now, and would find records damaged that are not.
_HOLD = Statement(deployment.update().values(revision=deployment.c.revision))
_RAISE_LEAST = Statement(
    deployment.update()
    .where(deployment.c.least_schema < _LEAST_SCHEMA)
    .values(least_schema=_LEAST_SCHEMA)
)


def read_keyring() -> Script[list[Row]]:
    """Every key, in order."""
    rows = yield _READ()
    return sorted(Row(*row) for row in rows)


def found_keyring(minted: Sequence[Row], now: int) -> Script[list[Row]]:
    """Put in the first keys, unless somebody was faster; what is there then. ``now`` in µs."""
    yield _HOLD()
    known = yield from read_keyring()
    if known:
        return known
    yield _insert(minted, now)
    yield _RAISE_LEAST()
    return list(minted)


def seed_keyring(rows: Sequence[Row], now: int) -> Script[list[Row]]:
    """Bring the keyring of an older schema up to date, unless somebody was faster.

    Args:
        rows: what is to be there: those that are there get their ``kek`` and ``seal``.
        now: in µs.

    Returns:
        What is there then.
    """
    yield _HOLD()
    known = yield from read_keyring()
    if any(row.seal is not None for row in known):
        return known
    there = {(row.kind, row.number) for row in known}
    for row in rows:
        if (row.kind, row.number) in there:
            yield _SEAL(b_kind=row.kind, b_number=row.number, b_kek=row.kek, b_seal=row.seal)
    yield _insert([row for row in rows if (row.kind, row.number) not in there], now)
    return (yield from read_keyring())


def _insert(rows: Sequence[Row], now: int) -> Many:
    """Values in the order of the table's columns."""
    return Many(_INSERT, [(*row[:3], now, *row[3:]) for row in rows])
