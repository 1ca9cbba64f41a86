"""Restore: from a backup into an empty store of either kind, by way of a file nobody else knows.

The backup is copied table by table into a new file, verified there with the master key, compared
with what is known outside of it, and set apart from what it was. Only then does it get its place:
a name, or one transaction. Whatever cuts it off leaves the store empty.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from api_key_manager.audit.sealer import Sealer
from api_key_manager.config import Settings
from api_key_manager.core.changing import Origin
from api_key_manager.core.exceptions import (
    ConfigurationError,
    KeyNotFoundError,
    StorageError,
)
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import (
    MICROSECONDS,
    AuditEvent,
    canonical_json,
    rfc3339,
)
from api_key_manager.core.ports import NONCE_LEASE_SECONDS
from api_key_manager.core.sealed import LogState
from api_key_manager.storage import restoring, scripts
from api_key_manager.storage.copies import (
    EVERY_TABLE,
    SqliteReader,
    copy_tables,
    finish,
    new_folder,
    put_in_place,
)
from api_key_manager.wiring.auditing import notes_of
from api_key_manager.wiring.lost import Closed, Lost, checkpoints_of_sink, compare
from api_key_manager.wiring.places import database_path
from api_key_manager.wiring.staging import Staged, check_log, check_records, opened, stage

__all__ = ["Restore", "Restored", "restore"]

Advance = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Advance]]

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
            made_at = await stage(wanted.source, folder, staged, advance)
        async with opened(settings, target, staged, wanted.source) as backup:
            rows, noted, lost = await _look(settings, wanted, backup)
            restored = Restored(
                None, rfc3339(made_at) if made_at is not None else None, *rows, None, lost, [],
                noted,
            )  # fmt: skip
            if wanted.dry_run or not wanted.consent(lost):
                return restored
            name = await _begin_anew(backup, lost, made_at)
            closed = await _close(backup, lost.closed) if wanted.close_lost else []
            await Sealer(backup.tables, backup.keys.notary, time.time).seal()
        await asyncio.to_thread(finish, staged)
        with wanted.bar("writing") as advance:
            where = await _publish(settings, target, staged, advance)
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


async def _publish(settings: Settings, target: Path | None, staged: Path, advance: Advance) -> str:
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
            await writer.finish(await reader.last_event())
    finally:
        reader.close()
    return name_of(settings.DATABASE_URL)


# The backup


async def _look(
    settings: Settings, wanted: Restore, backup: Staged
) -> tuple[tuple[int, int], list[str], Lost]:
    """Verify a backup, and find out what it does not know.

    Returns:
        How many keys and events it has, what its log notes of its own past, and what is lost.

    Raises:
        StorageError: it was edited or damaged.
    """
    notes = await notes_of(wanted.checkpoints)
    sink = await checkpoints_of_sink(settings, backup)
    notes += sink
    with wanted.bar("records") as advance:
        count, away, wrong = await check_records(backup, advance)
    with wanted.bar("leaves") as advance:
        noted, found = await check_log(backup, notes, advance)
    wrong += found
    if away:
        noted.append(f"secrets of {away} keys could not be had from Vault, and were not checked")
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise StorageError(
            f"{wanted.source} was edited or damaged, nothing was restored:"
            f" {'; '.join(wrong[:_SHOWN])}{more}"
        )
    events = await backup.driver.read_aside(scripts.count_events)
    return (
        (count, events),
        noted,
        await compare(backup, notes, sink, against=wanted.against, audit=wanted.audit),
    )


# A new beginning


async def _begin_anew(backup: Staged, lost: Lost, made_at: int | None) -> str:
    """Start the log that goes on, and set the database apart; the log's name."""
    notary, now = backup.keys.notary, time.time_ns() // 1000
    view = await backup.tables.view(None, 0)
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
        "backup_revision": backup.revision,
        "closed_since": [each.key_id for each in lost.closed][:_SHOWN],
    }
    event = AuditEvent(now, "database_restored", None, _ACTOR, detail_json=canonical_json(detail))
    await backup.driver.write(
        restoring.begin_anew, addition.state, addition.batch, event, notary.macs.stamp,
        max(view.written, state.number),
        revision=backup.revision + restoring.AHEAD,
        birth=now + int(NONCE_LEASE_SECONDS * MICROSECONDS),
    )  # fmt: skip
    return addition.state.name


async def _close(backup: Staged, closed: Sequence[Closed]) -> list[str]:
    """Close again what was closed after the backup; the ids."""
    manager, by, done = KeyManager(store=backup.store, box=backup.box), Origin(_ACTOR), []
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
