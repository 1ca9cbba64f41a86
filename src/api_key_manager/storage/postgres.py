"""PostgreSQL: a pool of connections, a transaction for each write, and no wait without an end."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import asyncpg
from sqlalchemy.dialects.postgresql import asyncpg as dialects
from sqlalchemy.engine import Dialect

from api_key_manager.connections import Many, Script
from api_key_manager.core.exceptions import StorageError

__all__ = ["ERRORS", "PostgresDriver", "storage_error"]

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

Connect = Callable[[], Awaitable[Any]]

_LEAST_VERSION: Final = 14
_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.005
_AWAY_SECONDS: Final = 0.5
# Of asyncpg, of the network, and of values that cannot be sent. A time-out is an OSError.
ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError)
# Nothing was committed, and the same again may well succeed: another transaction was in the way,
# or the connection turned out to be gone.
_PASSING = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    ConnectionResetError,
)


class _Unanswered(Exception):  # noqa: N818 - no error of its own: what is behind it is
    """The commit was sent, and nobody knows what became of it."""


class PostgresDriver:
    """Runs scripts on one PostgreSQL database. Made by :meth:`open`.

    A script that writes runs in a transaction of the level READ COMMITTED: changes of keys stand
    in a line behind the one row that holds the revision, and what else two transactions may do to
    each other ends in an error that is passing, after which the whole script runs again. When the
    connection is lost while the commit is under way, it is not run again, since it may have been
    done: the caller is told, and an idempotency key finds out.

    While the server is away, calls fail at once for half a second after each failure, so that
    requests do not pile up behind its time-outs.
    """

    def __init__(self, pool: asyncpg.Pool[Any], connect: Connect, seconds: float) -> None:
        self.dialect: Dialect = dialects.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's
        self._pool = pool
        self._connect = connect
        self._seconds = seconds
        self._away_until = 0.0

    @classmethod
    async def open(cls, url: str, *, connections: int, seconds: float) -> PostgresDriver:
        """Connect.

        Args:
            url: ``postgresql://user:password@host:port/database``, with ``sslmode`` and the other
                parameters of libpq that asyncpg knows.
            connections: at most so many at once.
            seconds: that an operation may take, the wait for a connection included.

        Raises:
            StorageError: the server is not there, refuses the user, or is older than 14.
        """
        limit = f"{int(seconds * 1000)}ms"
        options: dict[str, Any] = {
            "timeout": seconds,
            "command_timeout": seconds,
            "server_settings": {
                "application_name": "api-key-manager",
                "statement_timeout": limit,
                "idle_in_transaction_session_timeout": limit,
                "timezone": "UTC",
            },
        }
        try:
            pool = await asyncpg.create_pool(url, min_size=1, max_size=connections, **options)
            async with pool.acquire() as connection:
                version = connection.get_server_version().major
        except ERRORS as error:
            raise storage_error(error) from None
        if version < _LEAST_VERSION:
            await pool.close()
            raise StorageError(f"PostgreSQL {version} is too old: {_LEAST_VERSION} is needed")
        return cls(pool, partial(asyncpg.connect, url, **options), seconds)

    async def read(self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short script that only reads."""
        return await self._do(lambda connection: self._run(connection, script(*args, **kwargs)))

    async def read_aside(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a long one on one state."""

        async def job(connection: Any) -> T:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await self._run(connection, script(*args, **kwargs))

        return await self._do(job)

    async def write(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a script in a transaction; returns once the server has it on disk.

        Raises:
            StorageError: nothing was written; or, as it then says, perhaps everything was.
        """
        return await self._do(lambda connection: self._commit(connection, script(*args, **kwargs)))

    async def _do(self, job: Callable[[Any], Awaitable[T]]) -> T:
        deadline = time.monotonic() + self._seconds
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._connection() as connection:
                    return await job(connection)
            except _PASSING as error:
                pause = random.uniform(0.5, 1) * _PAUSE_SECONDS * 4**attempt  # noqa: S311 - spreads
                if attempt == _ATTEMPTS or time.monotonic() + pause > deadline:
                    raise storage_error(error) from None
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _commit(self, connection: Any, script: Script[T]) -> T:
        transaction = connection.transaction()
        await transaction.start()
        try:
            result = await self._run(connection, script)
        except BaseException:
            if not connection.is_closed():
                await transaction.rollback()
            raise
        try:
            await transaction.commit()
        except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError, TimeoutError):
            raise _Unanswered from None
        return result

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection for one operation. What goes wrong becomes a ``StorageError``, but for what
        is passing."""
        if time.monotonic() < self._away_until:
            raise StorageError("the database cannot be used: it does not answer")
        connection = None
        try:
            async with asyncio.timeout(self._seconds):
                connection = await self._pool.acquire()
                yield connection
        except _PASSING:
            raise
        except _Unanswered:
            raise StorageError(
                "the database went away during a commit, which may or may not have been done"
            ) from None
        except ERRORS as error:
            if connection is None and self._crowded:
                raise StorageError("all connections to the database are in use") from None
            if isinstance(error, OSError | asyncpg.CannotConnectNowError):
                self._away_until = time.monotonic() + _AWAY_SECONDS
            raise storage_error(error) from None
        finally:
            if connection is not None:
                await self._release(connection)

    @property
    def _crowded(self) -> bool:
        pool = self._pool
        return bool(pool.get_size() >= pool.get_max_size() and not pool.get_idle_size())

    async def _release(self, connection: Any) -> None:
        try:
            # One in the middle of something may have a server behind it that no longer answers,
            # and would keep whoever gives it back waiting as well.
            if time.monotonic() < self._away_until or connection.is_in_transaction():
                connection.terminate()
            await self._pool.release(connection, timeout=1)
        except ERRORS:
            _log.debug("a connection was lost while it was given back")

    async def _run(self, connection: Any, script: Script[T]) -> T:
        dialect = self.dialect
        try:
            step = next(script)
            while True:
                if isinstance(step, Many):
                    await self._insert(connection, step)
                    step = script.send([])
                elif step.statement.only not in (None, dialect.name):
                    step = script.send([])
                else:
                    sql, values = step.statement.bind(dialect, step.values)
                    step = script.send([tuple(row) for row in await connection.fetch(sql, *values)])
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            script.close()

    async def _insert(self, connection: Any, step: Many) -> None:
        target = step.statement.target()
        if not step.rows:
            return
        if target is not None:
            table, columns = target
            await connection.copy_records_to_table(table, records=step.rows, columns=columns)
        else:
            sql = step.statement.bind_one(self.dialect)
            await connection.executemany(sql, step.rows)

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call ``heard`` once it listens and at each notification, until the connection is lost.

        Raises:
            StorageError: it was lost, or could not be made.
        """
        lost = asyncio.Event()
        try:
            connection = await self._connect()
        except ERRORS as error:
            raise storage_error(error) from None
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(channel, lambda *_: heard())
            heard()
            await lost.wait()
        except ERRORS as error:
            raise storage_error(error) from None
        finally:
            connection.terminate()
        raise StorageError("the database cannot be used: the connection was lost")

    async def close(self) -> None:
        """Finish what was begun and close every connection."""
        try:
            await asyncio.wait_for(self._pool.close(), self._seconds)
        except ERRORS:
            self._pool.terminate()


def storage_error(error: BaseException) -> StorageError:
    """What there is to say of an error, without an address, a value or a password: PostgreSQL's
    own messages may quote what they were given."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error"))
        what = f"{words.lower()} ({error.sqlstate})"
    elif isinstance(error, TimeoutError):
        what = "it did not answer in time"
    elif isinstance(error, OSError):
        what = error.strerror or "it cannot be reached"
    else:
        what = "the connection failed"
    return StorageError(f"the database cannot be used: {what}")
