"""Restore: from a backup into an empty store of either kind, by way of a file nobody else knows.

The backup is copied table by table into a new file, verified there with the master key, compared
with what is known outside of it, and set apart from what it was. Only then does it get its place:
a name, or one transaction. Whatever cuts it off leaves the store empty.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from api_key_manager.audit.sealer import Sealer
from api_key_manager.audit.sink import notes_in, open_sink
from api_key_manager.config import Settings
from api_key_manager.core.changing import Origin
from api_key_manager.core.exceptions import (
    ConfigurationError,
    EncryptionError,
    KeyNotFoundError,
    StorageError,
)
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import (
    MICROSECONDS,
    ApiKey,
    AuditEvent,
    canonical_json,
    rfc3339,
)
from api_key_manager.core.ports import NONCE_LEASE_SECONDS, SecretBox
from api_key_manager.core.records import open_record
from api_key_manager.core.sealed import LogState
from api_key_manager.storage import SqliteDriver, SqliteStore, restoring, scripts, upgrade
from api_key_manager.storage import log_reading as log_scripts
from api_key_manager.storage.copies import (
    EVERY_TABLE,
    SqliteReader,
    SqliteWriter,
    TableReader,
    copy_tables,
    finish,
    new_folder,
    put_in_place,
)
from api_key_manager.storage.log import SqlLog
from api_key_manager.storage.schema import HEAD, KNOWN
from api_key_manager.wiring.auditing import Log, notes_of
from api_key_manager.wiring.backend import Backend
from api_key_manager.wiring.keyring import StoredKeyring, open_box
from api_key_manager.wiring.lost import Closed, Lost, events_of, lost_by_events, lost_by_records
from api_key_manager.wiring.places import database_path
from api_key_manager.wiring.providers import find_providers
from api_key_manager.wiring.vault import keep_secrets

__all__ = ["Restore", "Restored", "restore"]

Advance = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Advance]]

_PAGE: Final = 500
_SHOWN: Final = 10
_MOST_LOGS_LEFT_OUT: Final = 1 << 20
_ACTOR: Final = "cli"
_REASON: Final = "closed after the backup that was restored"


def _no_bar(label: str) -> AbstractContextManager[Advance]:
    return nullcontext(lambda done, total: None)


@dataclass(frozen=True)
class Restore:
    """What is asked for.

    Attributes:
        source: the backup.
        checkpoints: files with checkpoints that were kept elsewhere, besides ``AUDIT_SINK``'s.
        against: the URL of the old database, if it can still be read.
        audit: a file with an export of its log.
        close_lost: whether keys that were closed after the backup are closed again.
        consent: is told what is lost, and says whether to go on.
        bar: shows what is done.
        dry_run: whether only to look.
    """

    source: Path
    consent: Callable[[Lost], bool]
    checkpoints: Sequence[Path] = ()
    against: str | None = None
    audit: Path | None = None
    close_lost: bool = False
    bar: Bar = _no_bar
    dry_run: bool = False


class Restored(NamedTuple):
    """What was done.

    Attributes:
        database: which is there now, in words; ``None`` when it was only looked at, or was not
            wanted.
        made_at: when the backup was made, RFC 3339; ``None`` when it does not say.
        keys, events: how many there are.
        log: the name of its new log; its number is behind the last slash.
        lost: what the backup did not know.
        closed: ids of keys that were closed again.
        noted: what its log says of its own past, and what could not be checked.
    """

    database: str | None
    made_at: str | None
    keys: int
    events: int
    log: str | None
    lost: Lost
    closed: list[str]
    noted: list[str]


class _Staged(NamedTuple):
    """A backup in a file of its own, open."""

    driver: SqliteDriver
    store: SqliteStore
    box: SecretBox
    keys: StoredKeyring
    tables: SqlLog
    revision: int


async def restore(settings: Settings, wanted: Restore) -> Restored:
    """Restore a backup.

    Raises:
        ConfigurationError: the store is not empty, the backup is none, the master key is missing
            or another one, or what it is to be compared with cannot be read.
        StorageError: the backup was cut off, damaged or edited, or the store cannot be written.
    """
    target = await _empty_target(settings)
    with _stage_folder(target) as folder:
        staged = folder / "restored.db"
        with wanted.bar("copying") as advance:
            made_at, last_event = await _stage(wanted.source, folder, staged, advance)
        async with _opened(settings, target, staged, wanted.source) as stage:
            done = await _look(settings, wanted, stage)
            rows, noted, lost = done
            restored = Restored(
                None, rfc3339(made_at) if made_at is not None else None, *rows, None, lost, [],
                noted,
            )  # fmt: skip
            if wanted.dry_run or not wanted.consent(lost):
                return restored
            name = await _begin_anew(stage, lost, made_at, noted)
            closed = await _close(stage, lost.closed) if wanted.close_lost else []
            await Sealer(stage.tables, stage.keys.notary, time.time).seal()
        await asyncio.to_thread(finish, staged)
        with wanted.bar("writing") as advance:
            where = await _publish(settings, target, staged, last_event, advance)
    return restored._replace(database=where, log=name, closed=closed)


# The store


async def _empty_target(settings: Settings) -> Path | None:
    """The file that is to be; ``None`` for a database on the network, which is empty.

    Raises:
        ConfigurationError: there is something already.
    """
    if settings.on_network:
        from api_key_manager.storage.postgres_copies import require_empty

        await require_empty(settings.DATABASE_URL)
        return None
    path = database_path(settings)
    if path is None:
        raise ConfigurationError("DATABASE_URL: memory:// cannot be restored into")
    _require_no_file(path)
    return path


def _require_no_file(path: Path) -> None:
    # SQLite would take an old write-ahead log for that of the new file.
    for end in ("", "-wal", "-shm", "-journal"):
        other = path.with_name(path.name + end)
        if os.path.lexists(other):
            raise ConfigurationError(
                f"{other} is there: move it away, with all that begins with {path.name}, and keep"
                " it until you are done"
            )


@contextmanager
def _stage_folder(target: Path | None) -> Iterator[Path]:
    if target is None:
        with tempfile.TemporaryDirectory(prefix="akm-restore-") as folder:
            yield Path(folder)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from None
    with new_folder(target, "restoring") as folder:
        yield folder


async def _publish(
    settings: Settings, target: Path | None, staged: Path, last_event: int, advance: Advance
) -> str:
    """Give what was made ready its place."""
    if target is not None:
        put_in_place(staged, target)
        return str(target)
    from api_key_manager.storage.postgres_copies import write_postgres
    from api_key_manager.storage.postgres_schema import name_of

    reader = SqliteReader(staged)
    try:
        async with write_postgres(settings.DATABASE_URL) as writer:
            await copy_tables(reader, writer.put, advance, EVERY_TABLE)
            await writer.finish(max(last_event, await reader.last_event()))
    finally:
        reader.close()
    return name_of(settings.DATABASE_URL)


# The backup


async def _stage(
    source: Path, folder: Path, staged: Path, advance: Advance
) -> tuple[int | None, int]:
    """Copy a backup into a new file of our newest schema.

    Returns:
        When it was made (µs), if it says so, and the last id of an event.
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
            last_event = await reader.last_event()
            writer.finish(last_event)
        finally:
            writer.close()
    finally:
        reader.close()
    return made_at, last_event


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
async def _opened(
    settings: Settings, target: Path | None, staged: Path, source: Path
) -> AsyncIterator[_Staged]:
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
                yield _Staged(driver, store, backend.box, keys, SqlLog(driver, stamp), revision)
            finally:
                if vault is not None:
                    await vault.close()
        finally:
            await keys.providers.close()
    finally:
        await driver.close()


async def _look(
    settings: Settings, wanted: Restore, stage: _Staged
) -> tuple[tuple[int, int], list[str], Lost]:
    """Verify a backup, and find out what it does not know.

    Returns:
        How many keys and events it has, what its log notes of its own past, and what is lost.

    Raises:
        StorageError: it was edited or damaged.
    """
    notes = await notes_of(wanted.checkpoints)
    newest = await _of_sink(settings, stage)
    notes += newest
    with wanted.bar("records") as advance:
        count, away, wrong = await _check_records(stage, advance)
    with wanted.bar("leaves") as advance:
        noted, found = await _check_log(stage, notes, advance)
    wrong += found
    if away:
        noted.append(f"secrets of {away} keys could not be had from Vault, and were not checked")
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise StorageError(
            f"{wanted.source} was edited or damaged, nothing was restored:"
            f" {'; '.join(wrong[:_SHOWN])}{more}"
        )
    events = await stage.driver.read_aside(scripts.count_events)
    return (count, events), noted, await _compare(wanted, stage, notes, newest)


async def _check_records(stage: _Staged, advance: Advance) -> tuple[int, int, list[str]]:
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


async def _check_log(
    stage: _Staged, notes: list[str], advance: Advance
) -> tuple[list[str], list[str]]:
    """What the log notes of its own past, and what does not fit."""
    sizes = {}
    for origin in await stage.driver.read(log_scripts.origins):
        state = await stage.driver.read(log_scripts.state_of, origin)
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


async def _of_sink(settings: Settings, stage: _Staged) -> list[str]:
    """All that ``AUDIT_SINK`` has, as far as it can say."""
    where = settings.AUDIT_SINK
    if not where:
        return []
    if "://" not in where:
        try:
            return notes_in(await asyncio.to_thread(Path(where).read_text, "utf-8", "replace"))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigurationError(f"{where} cannot be read: {error.strerror}") from None
    newest = await open_sink(where, stage.keys.notary.read).newest()
    return [] if newest is None else [newest]


async def _compare(wanted: Restore, stage: _Staged, notes: list[str], sink: list[str]) -> Lost:
    """What is known outside of the backup."""
    read = stage.keys.notary.read
    view = await stage.tables.view(None, 0)
    here = (0, 0) if view.state is None else (view.state.origin, view.state.size)
    lost = Lost(here)
    known = [(place, note) for note in notes if (place := read(note)) is not None]
    lost.newest = max(known, default=None)
    ahead = lost.newest is not None and lost.newest[0] > here
    if not ahead and any(read(note) == here for note in sink):
        lost.nothing = "it ends with the newest checkpoint of AUDIT_SINK"

    async def find(key_ids: Sequence[str]) -> list[ApiKey | None]:
        return await stage.driver.read_aside(scripts.load_many, key_ids)

    if wanted.audit is not None:
        lost.closed = await lost_by_events(await asyncio.to_thread(events_of, wanted.audit), find)
        lost.told = f"by {wanted.audit}"
    if wanted.against is not None:
        now = time.time_ns() // 1000
        async with _against(wanted.against) as (reader, origin, revision):
            if origin != stage.keys.origin:
                raise ConfigurationError("--against: it is another database than the backup's")
            by_records, lost.others = await lost_by_records(reader, find, stage.revision, now)
        lost.told = "by the old database"
        lost.nothing = None
        if revision == stage.revision and not ahead:
            lost.nothing = "no key was changed after the backup, as the old database has it"
        there = {closed.key_id for closed in by_records}
        lost.closed = by_records + [each for each in lost.closed if each.key_id not in there]
    if lost.closed:
        lost.nothing = None
    return lost


@asynccontextmanager
async def _against(url: str) -> AsyncIterator[tuple[TableReader, str, int]]:
    """The old database, with its origin and revision."""
    if "://" in url and not url.startswith(("postgresql://", "sqlite:///")):
        raise ConfigurationError("--against: sqlite:///path/to/file.db or postgresql://… is taken")
    if url.startswith("postgresql://"):
        from api_key_manager.storage.postgres_copies import read_postgres

        async with read_postgres(url) as postgres:
            yield postgres, *await postgres.revision()
        return
    reader = SqliteReader(Path(url.removeprefix("sqlite:///")), alone=False)
    try:
        yield reader, *reader.revision()
    finally:
        reader.close()


# A new beginning


async def _begin_anew(stage: _Staged, lost: Lost, made_at: int | None, noted: Sequence[str]) -> str:
    """Start the log that goes on, and set the database apart; the log's name."""
    notary, now = stage.keys.notary, time.time_ns() // 1000
    view = await stage.tables.view(None, 0)
    state = view.state or LogState(0, "", 0, 0, 0, view.legacy_to, 0, b"")
    number, previous = state.origin, view.note
    if lost.newest is not None and lost.newest[0] > lost.backup:
        (number, _), previous = lost.newest
    # Some numbers are left out: should this be done again, the two logs have different names.
    origin = number + 1 + secrets.randbelow(_MOST_LOGS_LEFT_OUT)
    addition = notary.start(
        origin, previous, now,
        number=state.number, row_id=state.row_id, legacy_to=state.legacy_to,
    )  # fmt: skip
    detail = {
        "log": addition.state.name,
        "backup_made_at": None if made_at is None else rfc3339(made_at),
        "backup_revision": stage.revision,
        "closed_since": [each.key_id for each in lost.closed][:_SHOWN],
    }
    event = AuditEvent(now, "database_restored", None, _ACTOR, detail_json=canonical_json(detail))
    await stage.driver.write(
        restoring.begin_anew, addition.state, addition.batch, event, notary.macs.stamp,
        max(view.written, state.number),
        revision=stage.revision + restoring.AHEAD,
        birth=now + int(NONCE_LEASE_SECONDS * MICROSECONDS),
    )  # fmt: skip
    return addition.state.name


async def _close(stage: _Staged, closed: Sequence[Closed]) -> list[str]:
    """Close again what was closed after the backup; the ids."""
    manager, by, done = KeyManager(store=stage.store, box=stage.box), Origin(_ACTOR), []
    for key_id, realm, how, at in closed:
        try:
            if how == "deleted":
                await manager.delete_key(key_id, realm=realm, by=by)
            elif how == "disabled":
                await manager.update_key(key_id, realm=realm, by=by, disabled=True)
            else:
                when = None if at is None else at / MICROSECONDS
                await manager.revoke_key(key_id, _REASON, when, realm=realm, by=by)
        except KeyNotFoundError:
            continue
        done.append(key_id)
    return done
