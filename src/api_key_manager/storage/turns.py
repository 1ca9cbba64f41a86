"""Whose turn it is to write, when several processes write to one SQLite file without pause.

SQLite's own wait tries again after ever longer sleeps, and a process that writes group upon group
leaves the file free for microseconds only: of two busy workers one waited for seconds. Here, who
wants to write holds the turn from the moment it starts to wait for the file until it has it. The
one that has just written needs the turn too before it can wait, so the others come first.

It is about fairness alone: a process that cannot get the turn writes all the same, later.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final

if sys.platform != "win32":  # where there are no several workers
    import fcntl

__all__ = ["Turns"]

_PATIENCE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.001
# SQLite sleeps 1 and 2 ms of it without the interpreter's lock, which a busy main thread lends
# every 5 ms only; by itself it would go on to 5, 10, ... 100 ms.
_BUSY_MILLISECONDS: Final = 3


class Turns:
    """Starts the writing transactions of one process.

    Args:
        folder: one that all the processes know; its advisory lock is the turn.
        writer: the connection that writes.
    """

    def __init__(self, folder: Path, writer: sqlite3.Connection) -> None:
        self._folder = os.open(folder, os.O_RDONLY)
        self._writer = writer
        writer.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")

    def begin(self) -> None:
        """Begin a transaction when it is this process's turn.

        Raises:
            sqlite3.OperationalError: the file is still busy after 5 s.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        self._take(deadline)
        try:
            while not self._begun(deadline):
                pass
        finally:
            fcntl.flock(self._folder, fcntl.LOCK_UN)

    def _take(self, deadline: float) -> None:
        # Asked for again and again: a lock that is waited for has no deadline, and its holder may
        # have been stopped.
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _begun(self, deadline: float) -> bool:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            return False
        return True

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._folder)
