"""Tables of a PostgreSQL database, read on one state and filled in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from sqlalchemy import Boolean, Table

from api_key_manager.connections.tables import audit_events, metadata
from api_key_manager.core.exceptions import ConfigurationError, StorageError
from api_key_manager.storage.copies import Rows, quoted
from api_key_manager.storage.postgres_errors import ERRORS, only_primary, storage_error
from api_key_manager.storage.postgres_schema import current_of, migrated, name_of
from api_key_manager.storage.schema import HEAD

__all__ = ["PostgresReader", "PostgresWriter", "read_postgres", "require_empty", "write_postgres"]

_SECONDS: Final = 10.0
_BATCH: Final = 5_000
_EVENTS: Final = audit_events.name
# Tables of which a database that was only made ready has rows.
_NOT_EMPTY: Final = ("keys", "keyring", "audit_events", "audit_origins")


class PostgresReader:
    """Reads on the snapshot of a transaction. Made by :func:`read_postgres`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def count(self, table: Table) -> int:
        return int(await self._value(f"SELECT count(*) FROM {table.name}"))  # noqa: S608

    async def rows(
        self, table: Table, columns: Sequence[str] = (), *, since: int | None = None
    ) -> AsyncIterator[Rows]:
        names = columns or [column.name for column in table.columns]
        later = "" if since is None else f" WHERE revision > {since:d}"
        sql = f"SELECT {quoted(names)} FROM {table.name}{later}"  # noqa: S608 - our own names
        try:
            cursor = await self._connection.cursor(sql)
            while rows := await cursor.fetch(_BATCH):
                yield [tuple(row) for row in rows]
        except ERRORS as error:
            raise storage_error(error) from None

    async def last_event(self) -> int:
        sequence = await self._value(f"SELECT pg_get_serial_sequence('{_EVENTS}', 'id')")
        last, called = await self._row(f"SELECT last_value, is_called FROM {sequence}")  # noqa: S608
        return int(last) if called else 0

    async def revision(self) -> tuple[str, int]:
        """The origin of this database, and its revision."""
        origin, revision = await self._row("SELECT origin, revision FROM deployment")
        return origin, revision

    async def _value(self, sql: str) -> Any:
        return (await self._row(sql))[0]

    async def _row(self, sql: str) -> Any:
        try:
            return await self._connection.fetchrow(sql)
        except ERRORS as error:
            raise storage_error(error) from None


class PostgresWriter:
    """Fills tables in a transaction. Made by :func:`write_postgres`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def put(self, table: Table, rows: Rows) -> None:
        """Write rows of all columns.

        Raises:
            StorageError: they are not what these tables hold, or the server went away.
        """
        flags = [at for at, column in enumerate(table.columns) if isinstance(column.type, Boolean)]
        if flags:
            rows = [_with_flags(row, flags) for row in rows]
        names = [column.name for column in table.columns]
        try:
            await self._connection.copy_records_to_table(table.name, records=rows, columns=names)
        except (*ERRORS, TypeError) as error:
            why = storage_error(error) if isinstance(error, ERRORS) else "a value does not fit"
            raise StorageError(f"rows of {table.name} cannot be written: {why}") from None

    async def finish(self, last_event: int) -> None:
        """Later events get ids behind ``last_event``."""
        try:
            await self._connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{_EVENTS}', 'id'), $1)", max(last_event, 1)
            )
        except ERRORS as error:
            raise storage_error(error) from None


def _with_flags(row: tuple[Any, ...], flags: Sequence[int]) -> tuple[Any, ...]:
    """SQLite keeps a flag as 0 or 1."""
    values = list(row)
    for at in flags:
        values[at] = bool(values[at]) if values[at] in (0, 1) else values[at]
    return tuple(values)


@asynccontextmanager
async def read_postgres(url: str) -> AsyncIterator[PostgresReader]:
    """One state of a database, for as long as the block runs; others go on meanwhile.

    Raises:
        ConfigurationError: it is empty, of something else, or of another schema than ours.
        StorageError: it cannot be read.
    """
    schema = await current_of(url)
    if schema != HEAD:
        raise ConfigurationError(
            f"{name_of(url)} is empty"
            if schema is None
            else f"{name_of(url)} has schema {schema}, this version needs {HEAD}: run"
            " `akm db upgrade`"
        )
    async with (
        _connected(url) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield PostgresReader(connection)


@asynccontextmanager
async def write_postgres(url: str) -> AsyncIterator[PostgresWriter]:
    """Fill an empty database; all of it is there when the block ends well, else nothing is.

    Raises:
        ConfigurationError: as :func:`require_empty`.
        StorageError: it cannot be written.
    """
    await require_empty(url)
    tables = [table.name for table in reversed(metadata.sorted_tables)]
    try:
        # Tables and rows come into sight together: a server that waits for its database to come
        # back would else begin to write into empty ones.
        async with migrated(url) as connection:
            await connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
            await _refuse_full(connection, url)
            for table in tables:
                await connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own name
            yield PostgresWriter(connection)
    except ERRORS as error:
        raise storage_error(error) from None


async def require_empty(url: str) -> None:
    """See that a restore may fill a database: it has no tables, or ours without anything in them.

    Raises:
        ConfigurationError: it is not empty, of something else, or of another schema than ours.
        StorageError: it cannot be read.
    """
    schema = await current_of(url)
    if schema is None:
        return
    async with _connected(url) as connection:
        await _refuse_full(connection, url)


async def _refuse_full(connection: Any, url: str) -> None:
    present = await connection.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    )
    tables = {row[0] for row in present}
    for name in _NOT_EMPTY:
        if name in tables and await connection.fetchval(f"SELECT 1 FROM {name} LIMIT 1"):  # noqa: S608
            raise ConfigurationError(
                f"{name_of(url)} is not empty: restore into a new database, and keep this one"
                " until you are done"
            )


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    """A connection without a time-out of ours: one statement may be a whole table."""
    try:
        connection = await asyncpg.connect(
            url, timeout=_SECONDS, **only_primary(url),
            server_settings={
                "application_name": "api-key-manager", "timezone": "UTC",
                "statement_timeout": "0", "idle_in_transaction_session_timeout": "0",
            },
        )  # fmt: skip
    except ERRORS as error:
        raise storage_error(error) from None
    try:
        yield connection
    finally:
        connection.terminate()
