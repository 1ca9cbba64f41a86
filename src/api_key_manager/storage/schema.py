"""Brings a database to this version's schema, or refuses it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from api_key_manager.core.exceptions import ConfigurationError, StorageError

__all__ = ["HEAD", "KNOWN", "check_version", "current", "upgrade", "version_of"]

KNOWN = ("0001", "0002", "0003")
"""Every schema version this code knows, oldest first; a test compares them with the scripts."""

HEAD = KNOWN[-1]


def current(path: Path) -> str | None:
    """The schema version of a SQLite file, ``None`` for an empty one.

    It may be newer than :data:`HEAD`, where that version let this one go on.

    Raises:
        ConfigurationError: not a database, or made by a newer version of this software, on whose
            schema this one cannot run.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            return version_of(connection, str(path))
    except sqlite3.Error as error:
        raise ConfigurationError(f"{path} cannot be read as a database: {error}") from None


def version_of(connection: sqlite3.Connection, where: str) -> str | None:
    """The same of an open file.

    Raises:
        ConfigurationError: as :func:`current`.
    """
    try:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in found.fetchall()}
        rows = (
            connection.execute("SELECT version_num FROM alembic_version").fetchall()
            if "alembic_version" in tables
            else []
        )
        version = str(rows[0][0]) if rows else None
        bearable = version in (None, *KNOWN) or _least(connection) in KNOWN
    except sqlite3.Error as error:
        raise ConfigurationError(f"{where} cannot be read as a database: {error}") from None
    return check_version(where, tables, version, bearable=bearable)


def check_version(
    where: str, tables: set[str], version: str | None, *, bearable: bool
) -> str | None:
    """The schema version, if this code can run on it.

    Args:
        where: the database, in words.
        tables: the names of all that it has.
        version: what it says of itself.
        bearable: whether this version is known, or says that one that is known may run on it.

    Raises:
        ConfigurationError: it is of something else, or of a newer version of this software.
    """
    if version is None and tables - {"alembic_version"}:
        raise ConfigurationError(f"{where} is a database of something else")
    if not bearable:
        raise ConfigurationError(
            f"{where} was made by a newer version (schema {version}, this one knows {HEAD}):"
            " upgrade api-key-manager-pro, or use the version that made it"
        )
    return version


def _least(connection: sqlite3.Connection) -> str | None:
    """The oldest schema whose code may run on this database, where it says so."""
    try:
        rows = connection.execute("SELECT least_schema FROM deployment").fetchall()
    except sqlite3.OperationalError:
        return None
    return str(rows[0][0]) if len(rows) == 1 else None


def upgrade(path: Path) -> bool:
    """Run the migrations that are missing; says whether there were any.

    A newer schema that this code may run on is left as it is, so that nodes of both versions serve
    while one after the other is upgraded.

    Raises:
        ConfigurationError: it is no database of this software, or a newer one.
        StorageError: it cannot be opened or written.
    """
    found = current(path) if path.exists() else None
    if found is not None and (found == HEAD or found not in KNOWN):
        return False
    # Alembic is slow to import and needed once per schema version.
    from api_key_manager.storage.migrations import run

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            path.touch(mode=0o600)
        run(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be made: {error.strerror}") from None
    return True
