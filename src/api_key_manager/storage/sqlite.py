"""SQLite: reads where they are asked for, writes in one thread with group commit.

A row by its key takes 8 µs in the calling thread and 50 to 130 µs by way of another one, and in
WAL mode a reader never waits for a writer. Writes of many callers share a commit: the thread
takes all that waits, gives each its own savepoint, and tells nobody "done" before the one
commit is on disk (``synchronous=FULL``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect

from api_key_manager.connections import Many, Script
from api_key_manager.core.exceptions import APIKeyManagerException, StorageError
from api_key_manager.storage.turns import Turns

__all__ = ["SqliteDriver"]

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_LEAST_VERSION = (3, 35, 0)
_BUSY_SECONDS = 5.0
_GROUP = 1000
_MOST_ROWS = 256


class _Job:
    """A script that waits for the writer, and who waits for it."""

    __slots__ = ("error", "future", "result", "script")

    def __init__(self, script: Script[Any]) -> None:
        self.script = script
        self.future: Future[Any] = Future()
        # A write cannot be called back: whoever stops waiting for it does not stop it.
        self.future.set_running_or_notify_cancel()
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class SqliteDriver:
    """Runs scripts on one SQLite file.

    Args:
        path: an existing database, migrated.
        turns: a folder known to all processes that write to it without pause, if there are several.

    Raises:
        StorageError: it cannot be opened.
    """

    def __init__(self, path: Path, *, turns: Path | None = None) -> None:
        if sqlite3.sqlite_version_info < _LEAST_VERSION:
            raise StorageError(
                f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed"
            )
        self.path = path
        self.dialect: Dialect = sqlite.dialect(paramstyle="qmark")
        with contextlib.ExitStack() as opened:
            self._reader, self._long_reader, self._watcher, self._writer = (
                opened.enter_context(contextlib.closing(self._connect(read_only=read_only)))
                for read_only in (True, True, True, False)
            )
            self._turns = None if turns is None else Turns(turns, self._writer)
            opened.pop_all()  # only when one of them cannot be opened are the others closed
        self._reading = threading.Lock()
        self._aside = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="akm-sqlite", daemon=True)
        self._thread.start()

    def _connect(self, *, read_only: bool) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                if sys.platform == "darwin":
                    connection.execute("PRAGMA fullfsync=ON")
                if read_only:
                    connection.execute("PRAGMA query_only=ON")
            except sqlite3.Error:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise StorageError(f"{self.path} cannot be opened: {error}") from None
        return connection

    async def read(self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Read in this very thread: an indexed row costs less than a trip to another one."""
        return self.read_now(script, *args, **kwargs)

    def read_now(self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The same by a plain call."""
        with self._reading:
            return self._read(self._reader, script(*args, **kwargs), snapshot=False)

    async def read_aside(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Read at length and on one state, in another thread; hot reads do not wait for it."""
        return await asyncio.to_thread(self.read_aside_now, script, *args, **kwargs)

    def read_aside_now(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same in whatever thread calls."""
        with self._aside:
            return self._read(self._long_reader, script(*args, **kwargs), snapshot=True)

    def _read(self, connection: sqlite3.Connection, script: Script[T], *, snapshot: bool) -> T:
        try:
            if not snapshot:
                return self._run(connection, script)
            connection.execute("BEGIN")
            try:
                return self._run(connection, script)
            finally:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _storage_error(error) from None

    async def write(
        self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a script in the writer's next transaction; returns once that is on disk.

        Raises:
            StorageError: nothing of the script was written.
        """
        result: T = await asyncio.wrap_future(self._submit(script(*args, **kwargs)))
        return result

    def write_now(self, script: Callable[P, Script[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The same by a plain call, which blocks its thread."""
        result: T = self._submit(script(*args, **kwargs)).result()
        return result

    def _submit(self, script: Script[T]) -> Future[T]:
        job = _Job(script)
        with self._submitting:
            # Behind the last job nothing would ever be settled.
            if self._closed or not self._thread.is_alive():
                raise StorageError("the database is closed")
            self._jobs.put(job)
        return job.future

    def data_version(self) -> int:
        """A number that changes when any other connection has changed the file.

        Raises:
            StorageError: the database cannot be read.
        """
        try:
            return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise _storage_error(error) from None

    def backup(self, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy the database, consistent and while it is in use.

        Args:
            target: a new file.
            progress: called with pages left and pages in all.

        Raises:
            StorageError: it cannot be read or written.
        """
        source = self._connect(read_only=True)
        try:
            copy = sqlite3.connect(target)
            try:
                # One state from the first page to the last: else every commit of somebody else
                # would make it begin again.
                source.execute("BEGIN")
                source.execute("SELECT count(*) FROM sqlite_master").fetchone()
                source.backup(
                    copy,
                    pages=1024,
                    progress=(lambda _, left, whole: progress(left, whole)) if progress else None,
                )
            finally:
                copy.close()
        except sqlite3.Error as error:
            raise _storage_error(error) from None
        finally:
            source.close()

    async def close(self) -> None:
        """Write what waits, then let go of the file."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """The same by a plain call, which blocks its thread."""
        with self._submitting:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        for connection in (self._watcher, self._writer):
            connection.close()
        with self._reading:
            self._reader.close()
        with self._aside:
            self._long_reader.close()
        if self._turns is not None:
            self._turns.close()

    # The writer's thread

    def _write_all(self) -> None:
        running = True
        while running:
            jobs: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                jobs.append(job)
                if len(jobs) >= _GROUP:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            else:
                running = False
            self._commit(jobs)
            for job in jobs:
                job.settle()

    def _commit(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        try:
            self._begin()
            for job in jobs:
                self._try(job)
            self._writer.execute("COMMIT")
        # Whatever it was: this thread must live, and everybody who waits must hear of it.
        except Exception as error:
            known = isinstance(error, sqlite3.Error)
            failure = _storage_error(error) if known else StorageError("the write failed")
            for job in jobs:
                job.error = failure
            with contextlib.suppress(sqlite3.Error):
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def _begin(self) -> None:
        if self._turns is None:
            self._writer.execute("BEGIN IMMEDIATE")
        else:
            self._turns.begin()

    def _try(self, job: _Job) -> None:
        """Run one job in a savepoint, so that it fails alone."""
        self._writer.execute("SAVEPOINT job")
        try:
            job.result = self._run(self._writer, job.script)
        except sqlite3.OperationalError:
            raise  # the disk or the file, not the script: nobody in this group is safe
        except Exception as error:
            self._writer.execute("ROLLBACK TO job")
            known = isinstance(error, APIKeyManagerException)
            if not known:
                _log.error("a write failed: %s", type(error).__name__)
            job.error = error if known else StorageError("the write failed")
        self._writer.execute("RELEASE job")

    def _run(self, connection: sqlite3.Connection, script: Script[T]) -> T:
        dialect = self.dialect
        try:
            step = next(script)
            while True:
                if isinstance(step, Many):
                    for some in _pieces(step.rows):
                        connection.execute(*step.statement.bind_rows(dialect, some))
                    step = script.send([])
                elif step.statement.only not in (None, dialect.name):
                    step = script.send([])
                else:
                    bound = step.statement.bind(dialect, step.values)
                    step = script.send(connection.execute(*bound).fetchall())
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            script.close()


def _pieces(rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    """Rows for one statement each, as many as go: a statement gives up the interpreter's lock
    and takes it back, and a busy main thread lends it every 5 ms only. In powers of two, so
    that few different statements are ever prepared."""
    at = 0
    while at < len(rows):
        size = min(_MOST_ROWS, 1 << ((len(rows) - at).bit_length() - 1))
        yield rows[at : at + size]
        at += size


@lru_cache(maxsize=64)
def _words(code: str) -> str:
    return code.removeprefix("SQLITE_").replace("_", " ").lower()


def _storage_error(error: Exception) -> StorageError:
    """What SQLite says, without values; its own messages name columns only."""
    code = getattr(error, "sqlite_errorname", None)
    what = f"{error}" + (f" ({_words(code)})" if code else "")
    return StorageError(f"the database cannot be used: {what}")
