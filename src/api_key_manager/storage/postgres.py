"""PostgreSQL: a pool of connections, a transaction for each write, and no wait without an end."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

import asyncpg
from sqlalchemy.dialects.postgresql import asyncpg as dialects
from sqlalchemy.engine import Dialect

from api_key_manager.connections import Many, Script
from api_key_manager.core.exceptions import StorageError
from api_key_manager.storage.postgres_errors import (
    AWAY,
    ERRORS,
    OPEN,
    PASSING,
    SPOILING,
    check_server,
    is_lost,
    only_primary,
    storage_error,
)

__all__ = ["PostgresDriver"]

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

Pool: TypeAlias = "asyncpg.Pool[Any]"
Connect = Callable[[], Awaitable[Any]]
Job = Callable[[Any, "_Attempt"], Awaitable[T]]

_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.005
_AWAY_SECONDS: Final = 0.5
# The server gives up a little earlier than we do: so it can be told from one that is silent.
_SERVER_SHARE: Final = 0.9
_ALIVE_SECONDS: Final = 10.0
_FEW_ROWS: Final = 16


class _Passing(Exception):  # noqa: N818 - no error of its own: it carries one
    """Nothing was committed, and the same again may well succeed."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """One of the pool, which nothing here leaves in another state than it was: no session's locks,
    cursors, listeners or settings. What asyncpg would reset costs a round trip each time."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        return ""


class _Attempt:
    """One run of a script.

    Attributes:
        asked_at: when the server was asked for what it has not answered yet, by the loop's clock;
            ``None`` before it was asked for anything.
        commit_sent: whether that is a commit.
    """

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self.commit_sent = False

    def ask(self) -> None:
        self.asked_at = asyncio.get_running_loop().time()


class PostgresDriver:
    """Runs scripts on one PostgreSQL database. Made by :meth:`open`.

    A script that writes runs in a transaction of the level READ COMMITTED: changes of keys stand
    in a line behind the one row that holds the revision, and what else two transactions may do to
    each other ends in an error that is passing, after which the whole script runs again. When the
    connection is lost, or the time is up, while the commit is under way, it is not run again, since
    it may have been done: the caller is told, and an idempotency key finds out.

    While the server is away, calls fail at once for half a second after each failure, so that
    requests do not pile up behind its time-outs.
    """

    def __init__(
        self,
        pool: Pool,
        make_pool: Callable[[], Awaitable[Pool]],
        connect: Connect,
        connections: int,
        seconds: float,
    ) -> None:
        self.dialect: Dialect = dialects.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's
        self._pool = pool
        self._make_pool = make_pool
        self._retired: list[Pool] = []
        self._connect = connect
        # Of callers, so that who waits for another one is told from who waits for the server.
        self._slots = asyncio.Semaphore(connections)
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
        limit = f"{int(seconds * _SERVER_SHARE * 1000)}ms"
        options: dict[str, Any] = {
            **only_primary(url),
            "timeout": seconds,
            "command_timeout": seconds,
            "server_settings": {
                "application_name": "api-key-manager",
                "statement_timeout": limit,
                "idle_in_transaction_session_timeout": limit,
                "timezone": "UTC",
            },
        }
        make_pool = partial(
            asyncpg.create_pool, url, min_size=0, max_size=connections,
            connection_class=_Connection, **options,
        )  # fmt: skip
        try:
            pool = await make_pool()
            async with pool.acquire() as connection:
                check_server(connection)
        except ERRORS as error:
            raise storage_error(error) from None
        except StorageError:
            pool.terminate()
            raise
        connect = partial(asyncpg.connect, url, **options)
        return cls(pool, make_pool, connect, connections, seconds)

    async def read(self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short script that only reads."""

        async def job(connection: Any, attempt: _Attempt) -> T:
            return await self._run(connection, script(*args, **kwargs), attempt)

        return await self._do(job)

    async def read_aside(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a long one on one state."""

        async def job(connection: Any, attempt: _Attempt) -> T:
            transaction = connection.transaction(isolation="repeatable_read", readonly=True)
            result = await self._within(transaction, connection, script(*args, **kwargs), attempt)
            await transaction.commit()
            return result

        return await self._do(job)

    async def write(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a script in a transaction; returns once the server has it on disk.

        Raises:
            StorageError: nothing was written; or, as it then says, perhaps everything was.
        """

        async def job(connection: Any, attempt: _Attempt) -> T:
            transaction = connection.transaction()
            result = await self._within(transaction, connection, script(*args, **kwargs), attempt)
            attempt.ask()
            attempt.commit_sent = True
            await transaction.commit()
            return result

        return await self._do(job)

    async def _do(self, job: Job[T]) -> T:
        # Of the loop's clock. All attempts and the pauses between them share the time.
        deadline = asyncio.get_running_loop().time() + self._seconds
        for number in range(1, _ATTEMPTS + 1):
            attempt = _Attempt()
            try:
                async with self._connection(attempt, deadline) as connection:
                    return await job(connection, attempt)
            except _Passing as passing:
                pause = random.uniform(0.5, 1) * _PAUSE_SECONDS * 4**number  # noqa: S311 - spreads
                late = asyncio.get_running_loop().time() + pause > deadline
                if number == _ATTEMPTS or late:
                    raise storage_error(passing.error) from None
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _within(
        self, transaction: Any, connection: Any, script: Script[T], attempt: _Attempt
    ) -> T:
        """Begin a transaction and run a script in it."""
        await transaction.start()
        try:
            return await self._run(connection, script, attempt)
        except Exception:
            # Not when the time is up: a server that was silent then would be so to this as well.
            # The connection is dropped instead, as is one that cannot do this any more.
            with suppress(*ERRORS):
                await transaction.rollback()
            raise

    @asynccontextmanager
    async def _connection(self, attempt: _Attempt, deadline: float) -> AsyncIterator[Any]:
        """A connection for one attempt. What goes wrong becomes a ``StorageError``, but for what
        is passing."""
        if time.monotonic() < self._away_until:
            raise StorageError("the database cannot be used: it does not answer")
        loop, pool, connection = asyncio.get_running_loop(), self._pool, None
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
                attempt.ask()
                connection = await pool.acquire()
                yield connection
        except ERRORS as error:
            if attempt.asked_at is None:
                raise StorageError("all connections to the database are in use") from None
            passing = isinstance(error, PASSING) or (
                connection is not None
                and isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError)
                and is_lost(connection)
            )
            if isinstance(error, AWAY) and not passing:
                # Whose time went into waiting for others has not given the server time to answer.
                patient = loop.time() - attempt.asked_at >= self._seconds * _SERVER_SHARE
                if patient or not isinstance(error, TimeoutError):
                    self._away_until = time.monotonic() + _AWAY_SECONDS
                    await self._start_over(pool)
            if connection is not None and isinstance(error, SPOILING):
                connection.terminate()
            if attempt.commit_sent and isinstance(error, OPEN):
                raise StorageError(
                    "the database went away during a commit, which may or may not have been done",
                    uncertain=True,
                ) from None
            if passing:
                raise _Passing(error) from None
            raise storage_error(error) from None
        finally:
            try:
                if connection is not None:
                    await self._release(pool, connection)
            finally:
                # Also for a caller who is cancelled while its connection is given back.
                if attempt.asked_at is not None:
                    self._slots.release()

    async def _start_over(self, pool: Pool) -> None:
        """Leave the connections that there are: each may be as dead, and cost somebody a
        time-out."""
        if pool is not self._pool:
            return
        self._pool = await self._make_pool()  # of no connection yet, so this takes no time
        # What is under way on the old ones ends by itself.
        self._retired.append(pool)
        asyncio.get_running_loop().call_later(self._seconds, self._drop, pool)

    def _drop(self, pool: Pool) -> None:
        if pool in self._retired:
            self._retired.remove(pool)
            pool.terminate()

    async def _release(self, pool: Pool, connection: Any) -> None:
        try:
            # One in the middle of something may have a server behind it that no longer answers,
            # and would keep whoever gives it back waiting as well.
            if time.monotonic() < self._away_until or connection.is_in_transaction():
                connection.terminate()
            await pool.release(connection, timeout=1)
        except ERRORS:
            _log.debug("a connection was lost while it was given back")

    async def _run(self, connection: Any, script: Script[T], attempt: _Attempt) -> T:
        dialect = self.dialect
        try:
            step = next(script)
            while True:
                attempt.ask()
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
        # A few rows take one trip there and back by INSERT, and three by COPY.
        if target is not None and len(step.rows) > _FEW_ROWS:
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
            while not lost.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), _ALIVE_SECONDS)
                # A connection that was cut somewhere on the way would be silent for ever.
                await connection.execute("SELECT 1")
        except ERRORS as error:
            raise storage_error(error) from None
        finally:
            connection.terminate()
        raise StorageError("the database cannot be used: the connection was lost")

    async def close(self) -> None:
        """Finish what was begun and close every connection."""
        for pool in [*self._retired]:
            self._drop(pool)
        try:
            await asyncio.wait_for(self._pool.close(), self._seconds)
        except ERRORS:
            self._pool.terminate()
