"""Statements made of the tables once, compiled per dialect, run on the plain driver.

A *script* is a generator that yields statements and is sent their rows. It does no I/O itself,
so the same script runs in a thread on SQLite and, awaited, on a database across the network.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ClauseElement, Insert
from sqlalchemy.engine import Dialect

__all__ = ["Many", "Rows", "Script", "Statement", "Step"]

T = TypeVar("T")
Rows = list[tuple[Any, ...]]


class Statement:
    """A SQLAlchemy construct and what it compiles to.

    Args:
        construct: with named bind parameters for all that varies.
        columns: which columns an insert or update sets; every one when left out.
        tail: text behind an insert's values, where dialects agree on it (``ON CONFLICT``).
        only: the name of the one dialect that has a use for it; elsewhere it has no rows.
    """

    __slots__ = ("_columns", "_compiled", "_construct", "_inserts", "_tail", "only")

    def __init__(
        self,
        construct: ClauseElement,
        columns: Sequence[str] | None = None,
        tail: str = "",
        *,
        only: str | None = None,
    ) -> None:
        self._construct = construct
        self._columns = columns
        self._tail = tail
        self.only = only
        self._inserts: dict[tuple[str, int], tuple[str, int]] = {}
        self._compiled: dict[str, tuple[str, tuple[str, ...], Mapping[str, Any]]] = {}

    def __call__(self, **values: Any) -> Step:
        """This statement with its values: what a script yields."""
        return Step(self, values)

    def _compile(self, dialect: Dialect) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled = self._construct.compile(
                dialect=dialect,
                column_keys=self._columns,
                compile_kwargs={"render_postcompile": True},
            )
            names = tuple(getattr(compiled, "positiontup", None) or ())
            known = (str(compiled), names, dict(compiled.params))
            self._compiled[dialect.name] = known
        return known

    def bind(self, dialect: Dialect, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """The SQL text for a dialect with positional parameters, and their values."""
        sql, names, defaults = self._compile(dialect)
        bound = tuple([values[n] if n in values else defaults[n] for n in names])
        return sql + self._tail, bound

    def bind_rows(self, dialect: Dialect, rows: Sequence[Sequence[Any]]) -> tuple[str, list[Any]]:
        """An insert of many rows as one statement, and all their values.

        Raises:
            ValueError: the rows have not one value for each column.
        """
        text, width = self._insert_of(dialect, len(rows))
        values = list(chain.from_iterable(rows))
        if len(values) != width * len(rows):
            raise ValueError(f"each row needs {width} values")
        return text, values

    def bind_one(self, dialect: Dialect) -> str:
        """An insert of one row, to be run with many."""
        return self._insert_of(dialect, 1)[0]

    def target(self) -> tuple[str, Sequence[str]] | None:
        """The table and the columns of an insert that is nothing else, so that any other way of
        adding rows does the same; ``None`` when it is more."""
        if self._tail or not isinstance(self._construct, Insert):
            return None
        table = self._construct.table
        return table.description, self._columns or [column.name for column in table.columns]

    def _insert_of(self, dialect: Dialect, count: int) -> tuple[str, int]:
        known = self._inserts.get((dialect.name, count))
        if known is None:
            sql, names, _ = self._compile(dialect)
            head, _, one = sql.rpartition(" VALUES ")
            known = f"{head} VALUES {', '.join([one] * count)}{self._tail}", len(names)
            self._inserts[dialect.name, count] = known
        return known


class Step(NamedTuple):
    """One statement to run; its rows come back."""

    statement: Statement
    values: Mapping[str, Any]


class Many(NamedTuple):
    """One insert of many rows, each in the order of the columns; nothing comes back."""

    statement: Statement
    rows: Sequence[Sequence[Any]]


Script = Generator[Step | Many, Rows, T]
