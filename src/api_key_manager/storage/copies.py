"""Databases table by table: what a backup is made of, and what a restore fills in.

A backup is a SQLite file with our tables, whichever database it was made from, and one row more
that says when. So one code reads it back into either kind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import Table

from api_key_manager.connections.tables import (
    audit_batches,
    audit_events,
    audit_origins,
    changes,
    idempotency,
    metadata,
    nonce_counts,
    nonces,
)
from api_key_manager.core.exceptions import ConfigurationError, StorageError
from api_key_manager.storage.schema import version_of

__all__ = [
    "EVERY_TABLE",
    "MANIFEST",
    "TABLES",
    "Put",
    "SqliteReader",
    "SqliteWriter",
    "TableReader",
    "copy_tables",
    "finish",
    "new_folder",
    "note_backup",
    "put_in_place",
    "quoted",
]

_NOT_COPIED: Final = {table.name for table in (nonces, nonce_counts, idempotency, changes)}
EVERY_TABLE: Final = tuple(metadata.sorted_tables)
"""Tables that others refer to first."""
TABLES: Final = tuple(table for table in EVERY_TABLE if table.name not in _NOT_COPIED)
"""What is copied of another time. Of the rest nothing holds in another time:
used nonces and kept answers are of requests around it, and the change feed is of its readers."""
MANIFEST: Final = "akm_backup"
_BATCH: Final = 5_000
_CACHE_KIB: Final = 65_536
_LATEST: Final = 1 << 53
_EVENTS: Final = audit_events.name

Rows = list[tuple[Any, ...]]
Put = Callable[[Table, Rows], Awaitable[None]]


class TableReader(Protocol):
    """Reads tables, all on one state. Raises ``StorageError`` when it cannot."""

    async def count(self, table: Table) -> int:
        """How many rows a table has."""
        ...

    def rows(
        self, table: Table, columns: Sequence[str] = (), *, since: int | None = None
    ) -> AsyncIterator[Rows]:
        """Rows in some pieces: these columns or all, and of keys those of a later revision."""
        ...

    async def last_event(self) -> int:
        """The last id that an event got, also if that event was dropped."""
        ...


async def copy_tables(
    reader: TableReader,
    put: Put,
    progress: Callable[[int, int], None],
    tables: Sequence[Table] = TABLES,
) -> None:
    """Copy tables.

    Args:
        reader: where from.
        put: takes rows of a table.
        progress: called with rows copied, and rows in all.
        tables: which ones.

    Raises:
        StorageError: they cannot be read or written.
    """
    total = sum([await reader.count(table) for table in tables])
    done = 0
    progress(done, total)
    for table in tables:
        async for rows in reader.rows(table):
            await put(table, rows)
            done += len(rows)
            progress(done, total)


def quoted(names: Sequence[str]) -> str:
    """Names of columns for any of the databases."""
    return ", ".join(f'"{name}"' for name in names)


class SqliteReader:
    """Reads a SQLite file, and writes nothing: neither to it nor beside it.

    Args:
        path: of the file.
        alone: whether nobody else has it open: then nothing is locked, and its folder may be one
            that cannot be written to.

    Raises:
        ConfigurationError: there is no such file, it is in use, or no database of ours.
    """

    def __init__(self, path: Path, *, alone: bool = True) -> None:
        self.path = path
        if not path.is_file():
            raise ConfigurationError(f"there is no file {path}")
        if alone and any(_beside(path)):
            raise ConfigurationError(
                f"{path} is a database in use, or one that was cut off: `akm db backup` makes a"
                " copy of it that is whole"
            )
        options = "mode=ro&immutable=1" if alone else "mode=ro"
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?{options}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.execute("BEGIN")
        except sqlite3.Error as error:
            raise ConfigurationError(f"{path} cannot be opened: {error}") from None
        try:
            self.schema = version_of(self._connection, str(path))
            if self.schema is None:
                raise ConfigurationError(f"{path} is empty")
        except BaseException:
            self.close()
            raise

    async def count(self, table: Table) -> int:
        (count,) = self._one(f"SELECT count(*) FROM {table.name}")  # noqa: S608 - our own name
        return int(count)

    async def rows(
        self, table: Table, columns: Sequence[str] = (), *, since: int | None = None
    ) -> AsyncIterator[Rows]:
        names = columns or [column.name for column in table.columns]
        later = "" if since is None else f" WHERE revision > {since:d}"
        sql = f"SELECT {quoted(names)} FROM {table.name}{later}"  # noqa: S608 - our own names
        try:
            cursor = self._connection.execute(sql)
            while rows := cursor.fetchmany(_BATCH):
                yield rows
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    async def last_event(self) -> int:
        if not self._one("SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_sequence'")[0]:
            return 0
        found = self._one(f"SELECT max(seq) FROM sqlite_sequence WHERE name = '{_EVENTS}'")[0]  # noqa: S608
        return found if isinstance(found, int) else 0

    def require_whole(self) -> None:
        """See that nothing is cut off, and that its pages fit each other.

        Raises:
            StorageError: it is damaged.
        """
        with self.path.open("rb") as file:
            head = file.read(32)
            size = file.seek(0, os.SEEK_END)
        # Of the file format: the size of a page, where 1 stands for 65,536, and how many there are.
        page, count = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
        (found,) = self._one("PRAGMA quick_check(1)")
        if size < count * (page if page > 1 else 65_536) or found != "ok":
            raise StorageError(f"{self.path} was cut off or damaged")

    def revision(self) -> tuple[str, int]:
        """The origin of this database, and its revision.

        Raises:
            StorageError: it does not say.
        """
        origin, revision = self._one("SELECT origin, revision FROM deployment")
        if not isinstance(origin, str) or not isinstance(revision, int):
            raise StorageError(f"{self.path} cannot be read: its row of `deployment` was edited")
        return origin, revision

    def made_at(self) -> int | None:
        """When (µs) it was copied, by what it says itself; ``None`` when it is no backup of ours,
        but a whole database that was moved away."""
        try:
            found = self._connection.execute(f"SELECT made_at FROM {MANIFEST}").fetchone()  # noqa: S608
        except sqlite3.Error:
            return None
        at = found[0] if found is not None else None
        return at if isinstance(at, int) and 0 <= at < _LATEST else None

    def _one(self, sql: str) -> tuple[Any, ...]:
        try:
            row: tuple[Any, ...] | None = self._connection.execute(sql).fetchone()
        except sqlite3.Error as error:
            raise self._unreadable(error) from None
        if row is None:
            raise StorageError(f"{self.path} cannot be read: a row is missing")
        return row

    def _unreadable(self, error: sqlite3.Error) -> StorageError:
        return StorageError(f"{self.path} cannot be read, it was cut off or damaged: {error}")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


class SqliteWriter:
    """Fills a new database file, which nobody else knows yet.

    Args:
        path: of a database of our newest schema; what its first migration put there goes.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        # Should the machine fail, the file is not there under its name: nothing is lost.
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")  # for the indexes
        self._connection.execute("BEGIN IMMEDIATE")
        for table in reversed(metadata.sorted_tables):
            self._connection.execute(f"DELETE FROM {table.name}")  # noqa: S608 - our own name
        self._inserts = {
            table.name: f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(table.columns))})"  # noqa: S608
            for table in TABLES
        }

    async def put(self, table: Table, rows: Rows) -> None:
        """Write rows of all columns.

        Raises:
            StorageError: the disk is full, or what was read is not what these tables hold.
        """
        try:
            self._connection.executemany(self._inserts[table.name], rows)
        except sqlite3.Error as error:
            raise StorageError(f"rows of {table.name} cannot be written: {error}") from None

    def finish(self, last_event: int) -> None:
        """Commit. Later events get ids behind ``last_event``, and behind whatever is there.

        Raises:
            StorageError: the disk is full.
        """
        run = self._connection.execute
        try:
            known = [last_event]
            for column in (audit_events.c.id, audit_origins.c.row_id, audit_batches.c.last_id):
                table = column.table.description
                found = run(f"SELECT max({column.name}) FROM {table}").fetchone()[0]  # noqa: S608
                known.append(found if isinstance(found, int) else 0)
            run("DELETE FROM sqlite_sequence WHERE name = ?", (_EVENTS,))
            run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (_EVENTS, max(known)))
            run("COMMIT")
        except sqlite3.Error as error:
            raise StorageError(f"the copy cannot be written: {error}") from None

    def close(self) -> None:
        """Let go of the file; what was not committed is gone."""
        self._connection.close()


def _beside(path: Path) -> Iterator[Path]:
    """What SQLite left beside a file that was not closed. The last of who had it open removes it
    all, so a write-ahead log of no length is none."""
    for end in ("-wal", "-journal"):
        other = path.with_name(path.name + end)
        with contextlib.suppress(OSError):
            if other.stat().st_size:
                yield other


def note_backup(path: Path, now: int) -> None:
    """Write into a copy when it was made (µs).

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"CREATE TABLE {MANIFEST} (made_at INTEGER NOT NULL)")
            connection.execute(f"INSERT INTO {MANIFEST} VALUES (?)", (now,))  # noqa: S608
    except sqlite3.Error as error:
        raise StorageError(f"the copy cannot be written: {error}") from None


def finish(path: Path) -> None:
    """Make one plain file of a database that nobody has open, and bring it to disk.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        if mode != "delete":
            raise StorageError(f"the copy cannot be finished: {path} is in use")
        _sync(path)
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"the copy cannot be written: {error}") from None


def put_in_place(made: Path, target: Path) -> None:
    """Give a finished file its name, which nothing may have, and bring that to disk.

    Raises:
        ConfigurationError: something has the name by now.
        StorageError: it cannot be written.
    """
    try:
        try:
            os.link(made, target)
        except FileExistsError:
            raise
        except OSError:
            # A file system without links: somebody else could take the name just now.
            if os.path.lexists(target):
                raise FileExistsError from None
            made.rename(target)
        if os.name == "posix":
            _sync(target.parent)
    except FileExistsError:
        raise ConfigurationError(f"{target} exists already: name a new file") from None
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(target: Path, what: str) -> Iterator[Path]:
    """A private folder beside a file that is to be, gone afterwards. One that a killed process
    left behind holds nothing that looks whole.

    Raises:
        ConfigurationError: it cannot be made.
    """
    folder = target.with_name(f".{target.name}.{what}-{secrets.token_hex(4)}")
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from None
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
