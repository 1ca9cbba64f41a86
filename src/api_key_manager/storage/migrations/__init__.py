"""Runs the Alembic migrations of this folder."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, create_engine, event, exc
from sqlalchemy.pool import NullPool

from api_key_manager.core.exceptions import StorageError

__all__ = ["config", "migrate", "run"]

_BUSY_SECONDS = 30.0


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; no ini file, so that an installed wheel can migrate."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    settings.attributes["connection"] = connection
    return settings


def migrate(connection: Connection) -> None:
    """Run what is missing, in the transaction that was begun on this connection."""
    command.upgrade(config(connection), "head")


def run(path: Path) -> None:
    """Migrate a SQLite file to the newest version.

    Raises:
        StorageError: it cannot be written.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"timeout": _BUSY_SECONDS, "isolation_level": None},
    )

    # Transactional DDL: the driver must not begin or commit by itself, and the write lock is
    # taken first, so that of two starts at once one migrates and the other finds it done.
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        _switch_to_wal(path)
        with engine.begin() as connection:
            migrate(connection)
    except (exc.SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        raise StorageError(f"{path} cannot be migrated: {cause}") from None
    finally:
        engine.dispose()


def _switch_to_wal(path: Path) -> None:
    """Before anything is written. SQLite's own time-out does not wait for this lock, so that of
    several first starts at once all but one would fail."""
    connection = sqlite3.connect(path, isolation_level=None)
    deadline = time.monotonic() + _BUSY_SECONDS
    try:
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    finally:
        connection.close()
