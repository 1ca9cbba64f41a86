"""What somebody who can write to the database does with it, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Boolean, Table

from api_key_manager.connections.tables import key_versions, keys, metadata
from api_key_manager.wiring import diagnose
from tests.integration.audit_logs import blob
from tests.integration.places import Place

__all__ = ["Copy", "copied", "dump", "errors", "literal", "put", "roll_back"]


def literal(place: Place, value: object) -> str:
    """A value as it stands in SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return blob(place, value)
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).upper()


def copied(table: Table, where: str, **changes: str) -> str:
    """An INSERT of a row like another one, but for some columns, which are given as SQL."""
    names = [column.name for column in table.columns]
    values = ", ".join(changes.get(name, name) for name in names)
    into = f"INSERT INTO {table.name} ({', '.join(names)})"
    return f"{into} SELECT {values} FROM {table.name} WHERE {where}"


def dump(place: Place) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    found = {}
    for table in metadata.sorted_tables:
        names = ", ".join(column.name for column in table.columns)
        found[table.name] = place.sql(f"SELECT {names} FROM {table.name}")
    return found


def put(place: Place, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows of any database, in the order of the table's columns."""
    names = ", ".join(column.name for column in table.columns)
    for row in rows:
        values = [
            bool(value) if isinstance(column.type, Boolean) else value
            for column, value in zip(table.columns, row, strict=True)
        ]
        listed = ", ".join(literal(place, value) for value in values)
        place.sql(f"INSERT INTO {table.name} ({names}) VALUES ({listed})")


def roll_back(place: Place, state: Mapping[str, list[tuple[Any, ...]]]) -> None:
    """Make the whole database what it was when it was dumped."""
    for table in reversed(metadata.sorted_tables):
        place.sql(f"DELETE FROM {table.name}")
    for table in metadata.sorted_tables:
        put(place, table, state[table.name])


class Copy:
    """A copy of the keys inside the database, to be put back."""

    def __init__(self, place: Place, name: str = "copy") -> None:
        self._place = place
        self._tables: Mapping[str, str] = {
            table.name: f"{name}_{table.name}" for table in (keys, key_versions)
        }
        for table, kept in self._tables.items():
            place.sql(f"CREATE TABLE {kept} AS SELECT * FROM {table}")

    def back(self, key_id: str | None = None) -> None:
        """Put everything back, or the rows of one key."""
        where = "" if key_id is None else f" WHERE key_id = '{key_id}'"
        for table in reversed(self._tables):
            self._place.sql(f"DELETE FROM {table}{where}")
        for table, kept in self._tables.items():
            self._place.sql(f"INSERT INTO {table} SELECT * FROM {kept}{where}")


async def errors(place: Place) -> list[str]:
    """What doctor finds wrong."""
    found = [each async for each in diagnose(place.settings())]
    return [f"{each.topic}: {each.message}" for each in found if each.level == "error"]
