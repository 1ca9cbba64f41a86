"""Backups: one SQLite file, whichever database it is of, made while that is in use."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.storage import SqliteDriver, upgrade
from api_key_manager.storage.copies import (
    SqliteWriter,
    copy_tables,
    finish,
    new_folder,
    note_backup,
    put_in_place,
)
from api_key_manager.wiring.places import database_path

__all__ = ["backup"]

_NAME: Final = "copy.db"

Progress = Callable[[int, int], None]


def _nobody(done: int, total: int) -> None:
    """Is told of progress that nobody watches."""


async def backup(settings: Settings, target: Path, progress: Progress = _nobody) -> None:
    """Copy the database to a new file while it is in use: one state of it, in one SQLite file that
    only its owner can read. The master key is not in it.

    Args:
        target: must not exist; it does not until the copy is whole and on disk.
        progress: called with how much is done and how much there is: pages, or rows.

    Raises:
        ConfigurationError: no database, or the target exists or cannot be written.
        StorageError: the copy failed; nothing is left of it.
    """
    path = database_path(settings)
    if path is None and not settings.on_network:
        raise ConfigurationError("DATABASE_URL: memory:// has no file to look after")
    if path is not None and not path.exists():
        raise ConfigurationError(f"there is no database at {path}")
    with new_folder(_free(target), "partial") as folder:
        made, now = folder / _NAME, time.time_ns() * MICROSECONDS // 10**9
        if path is not None:
            await asyncio.to_thread(_copy_file, path, made, progress)
        else:
            await _copy_postgres(settings.DATABASE_URL, made, progress)
        note_backup(made, now)
        await asyncio.to_thread(finish, made)
        put_in_place(made, _free(target))


def _free(target: Path) -> Path:
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} exists already: name a new file")
    return target.absolute()


def _copy_file(path: Path, made: Path, progress: Progress) -> None:
    os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    driver = SqliteDriver(path)
    try:
        driver.backup(made, lambda left, total: progress(total - left, total))
    finally:
        driver.close_now()


async def _copy_postgres(url: str, made: Path, progress: Progress) -> None:
    # Its driver is slow to import.
    from api_key_manager.storage.postgres_copies import read_postgres

    async with read_postgres(url) as reader:
        upgrade(made)
        writer = SqliteWriter(made)
        try:
            await copy_tables(reader, writer.put, progress)
            writer.finish(await reader.last_event())
        finally:
            writer.close()
