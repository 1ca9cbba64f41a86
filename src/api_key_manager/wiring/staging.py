"""A backup in a file of its own, which nobody else knows: filled, opened and verified."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError, EncryptionError, StorageError
from api_key_manager.core.ports import SecretBox
from api_key_manager.core.records import open_record
from api_key_manager.storage import SqliteDriver, SqliteStore, log_reading, scripts, upgrade
from api_key_manager.storage.copies import SqliteReader, SqliteWriter, copy_tables, finish
from api_key_manager.storage.log import SqlLog
from api_key_manager.storage.schema import HEAD, KNOWN
from api_key_manager.wiring.auditing import Log
from api_key_manager.wiring.backend import Backend
from api_key_manager.wiring.keyring import StoredKeyring, open_box
from api_key_manager.wiring.providers import find_providers
from api_key_manager.wiring.vault import keep_secrets

__all__ = ["Staged", "check_log", "check_records", "opened", "stage"]

Advance = Callable[[int, int], None]

_PAGE: Final = 500


class Staged(NamedTuple):
    """A backup in a file of its own, open."""

    driver: SqliteDriver
    store: SqliteStore
    box: SecretBox
    keys: StoredKeyring
    tables: SqlLog
    revision: int


async def stage(source: Path, folder: Path, staged: Path, advance: Advance) -> int | None:
    """Copy a backup into a new file of our newest schema.

    Args:
        source: the backup.
        folder: for what is needed on the way.
        staged: the new file.
        advance: called with rows copied, and rows in all.

    Returns:
        When it was made (µs), if it says so.

    Raises:
        ConfigurationError: it is none, or one of a newer version.
        StorageError: it was cut off or damaged, or the new file cannot be written.
    """
    reader = SqliteReader(source)
    try:
        await asyncio.to_thread(reader.require_whole)
        made_at = reader.made_at()
        if reader.schema not in KNOWN:
            raise ConfigurationError(
                f"{source} was made by a newer version (schema {reader.schema}, this one knows"
                f" {HEAD}): use that one"
            )
        if reader.schema != HEAD:
            reader.close()
            reader = await asyncio.to_thread(_upgraded, source, folder)
        await asyncio.to_thread(upgrade, staged)
        writer = SqliteWriter(staged)
        try:
            await copy_tables(reader, writer.put, advance)
            writer.finish(await reader.last_event())
        finally:
            writer.close()
    finally:
        reader.close()
    return made_at


def _upgraded(source: Path, folder: Path) -> SqliteReader:
    copy = folder / "upgraded.db"
    try:
        shutil.copyfile(source, copy)
    except OSError as error:
        raise StorageError(f"{source} cannot be copied: {error.strerror}") from None
    upgrade(copy)
    finish(copy)
    return SqliteReader(copy)


@asynccontextmanager
async def opened(
    settings: Settings, target: Path | None, staged: Path, source: Path
) -> AsyncIterator[Staged]:
    """Open what was staged.

    Args:
        settings: with the master key.
        target: the file that it is to be; ``None`` for a database on the network.
        staged: the file that it is.
        source: the backup, for what there is to say of it.

    Raises:
        ConfigurationError: the master key is missing, or another one.
        StorageError: it was edited.
    """
    driver = SqliteDriver(staged)
    try:
        facts: tuple[object, ...] = await driver.read(scripts.describe)
        origin, revision, _ = facts
        # The only row that nothing vouches for; the name of the key's file is made of it.
        if not (isinstance(revision, int) and isinstance(origin, str) and origin.isalnum()):
            raise StorageError(f"{source} was edited: its row of `deployment` is none of ours")
        keys = await open_box(
            driver, str(source), partial(find_providers, settings, target), create=False
        )
        try:
            stamp = keys.notary.macs.stamp
            store = SqliteStore(driver, stamp=stamp)
            backend = Backend(store, store, str(source), keys.providers.current.source)
            backend.box = keys.box
            vault = keep_secrets(settings, backend)
            try:
                yield Staged(driver, store, backend.box, keys, SqlLog(driver, stamp), revision)
            finally:
                if vault is not None:
                    await vault.close()
        finally:
            await keys.providers.close()
    finally:
        await driver.close()


async def check_records(stage: Staged, advance: Advance) -> tuple[int, int, list[str]]:
    """Every record must fit its MAC and open, and be what the log has it for.

    Returns:
        How many there are, of how many Vault does not give the secret, and what is wrong.
    """
    wrong, count, away, last = [], 0, 0, ""
    while page := await stage.driver.read_aside(scripts.every, last, _PAGE):
        await stage.box.fetch(page)
        for record in page:
            try:
                open_record(record, stage.box)
            except EncryptionError as error:
                if error.reason == "unavailable":
                    away += 1
                else:
                    wrong.append(str(error))
        last, count = page[-1].key_id, count + len(page)
        advance(count, 0)
    for key_id, _, row in await stage.driver.read_aside(scripts.rolled_back, _PAGE):
        what = "removed" if row is None else "rolled back to an older state"
        wrong.append(f"key {key_id} was {what}")
    return count, away, wrong


async def check_log(
    stage: Staged, notes: list[str], advance: Advance
) -> tuple[list[str], list[str]]:
    """What the log notes of its own past, and what does not fit."""
    sizes = {}
    for origin in await stage.driver.read(log_reading.origins):
        state = await stage.driver.read(log_reading.state_of, origin)
        sizes[origin] = 0 if state is None else state.size
    # What is not in the backup yet, or was lost before an older restore, is no sign of an editor.
    places = [(stage.keys.notary.read(note), note) for note in notes]
    inside = [
        note for place, note in places if place is None or place[1] <= sizes.get(place[0], -1)
    ]
    noted: list[str] = []
    wrong: list[str] = []
    reader = Log(stage.tables, stage.keys.notary)
    async for finding in reader.verify(inside, progress=advance):
        (noted if finding.noted else wrong).append(str(finding))
    return noted, wrong
