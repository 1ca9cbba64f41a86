"""Brings a PostgreSQL database to this version's schema, or refuses it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from api_key_manager.core.exceptions import StorageError
from api_key_manager.storage.postgres_errors import (
    ERRORS,
    check_server,
    only_primary,
    storage_error,
)
from api_key_manager.storage.schema import HEAD, KNOWN, check_version

__all__ = ["current_of", "migrated", "name_of", "upgrade_at"]

_log = logging.getLogger(__name__)
_CONNECT_SECONDS: Final = 10.0
_MIGRATE_SECONDS: Final = 600.0
# A statement that waits for a table holds up everybody who comes to it later, readers too: it gives
# up soon, lets them through, and comes again.
_LOCK_SECONDS: Final = 2
_PAUSE_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 120.0
# Of advisory locks: whoever migrates holds it to the end of the transaction.
_LOCK: Final = 0x616B6D_6D6967


def name_of(url: str) -> str:
    """The database of a URL, without user and password."""
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def current_of(url: str) -> str | None:
    """The schema version of a database, ``None`` for an empty one.

    Raises:
        ConfigurationError: it is of something else, or of a newer version of this software.
        StorageError: it cannot be read, or the server is too old.
    """
    try:
        connection = await _connect(url)
    except ERRORS as error:
        raise storage_error(error) from None
    try:
        check_server(connection)
        rows = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        )
        tables = {row[0] for row in rows}
        version = (
            await connection.fetchval("SELECT version_num FROM alembic_version")
            if "alembic_version" in tables
            else None
        )
        bearable = version in (None, *KNOWN) or await _least(connection) in KNOWN
    except ERRORS as error:
        raise storage_error(error) from None
    finally:
        connection.terminate()
    return check_version(name_of(url), tables, version, bearable=bearable)


async def _least(connection: Any) -> str | None:
    """The oldest schema whose code may run on this database, where it says so."""
    try:
        least: str | None = await connection.fetchval("SELECT least_schema FROM deployment")
    except (asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError):
        return None
    return least


async def upgrade_at(url: str) -> bool:
    """Run the migrations that are missing, in one transaction; says whether there were any.

    A newer schema that this code may run on is left as it is. Of several nodes that start at once
    one migrates, and the others wait for it. A table that somebody uses for long, as a backup does,
    is waited for two minutes, in short pieces.

    Raises:
        ConfigurationError: it is no database of this software, or a newer one.
        StorageError: it cannot be read or changed, or is in use for too long.
    """
    found = await current_of(url)
    if found is not None and (found == HEAD or found not in KNOWN):
        return False
    clock = asyncio.get_running_loop().time
    deadline = clock() + _PATIENCE_SECONDS
    told = False
    while True:
        try:
            await _migrate(url)
        except asyncpg.LockNotAvailableError:
            if clock() > deadline:
                raise StorageError(
                    f"the database cannot be migrated: for {_PATIENCE_SECONDS:g} s another"
                    " transaction has been using its tables; when it has ended (a backup? see"
                    " pg_stat_activity), start again or run: akm db upgrade"
                ) from None
            if not told:
                told = True
                _log.warning(
                    "the migration waits up to %g s for a transaction that uses the tables",
                    _PATIENCE_SECONDS,
                )
            await asyncio.sleep(_PAUSE_SECONDS)
        except ERRORS as error:
            raise storage_error(error) from None
        else:
            return True


async def _migrate(url: str) -> None:
    async with migrated(url):
        pass


@asynccontextmanager
async def migrated(url: str) -> AsyncIterator[Any]:
    """The driver's connection to a database of our newest schema, in the very transaction that
    brings it there: nobody sees its tables before the block has ended well.

    Raises:
        StorageError: it cannot be migrated.
        asyncpg.PostgresError, OSError: what the server has against it.
    """
    # Slow to import, and needed once per schema version.
    from sqlalchemy import exc, text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    from api_key_manager.storage.migrations import migrate

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: _connect(url), poolclass=NullPool
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
            await connection.run_sync(migrate)
            yield (await connection.get_raw_connection()).driver_connection
    except exc.DBAPIError as error:
        cause = getattr(error.orig, "__cause__", None)
        if not isinstance(cause, ERRORS):
            raise StorageError("the database cannot be migrated") from None
        raise cause from None
    finally:
        await engine.dispose()


async def _connect(url: str) -> Any:
    return await asyncpg.connect(
        url, timeout=_CONNECT_SECONDS, command_timeout=_MIGRATE_SECONDS, **only_primary(url),
        server_settings={"application_name": "api-key-manager", "timezone": "UTC"},
    )  # fmt: skip
