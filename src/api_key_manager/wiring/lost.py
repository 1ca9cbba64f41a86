"""What a backup does not know: how it was found out, and which keys it would bring back to life."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from api_key_manager.audit.checkpoint import read_text
from api_key_manager.audit.sink import notes_in, open_sink
from api_key_manager.config import Settings
from api_key_manager.connections.tables import key_versions, keys
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.core.models import ADMIN_REALM, ApiKey
from api_key_manager.storage import scripts
from api_key_manager.storage.copies import SqliteReader, TableReader
from api_key_manager.wiring.staging import Staged

__all__ = ["Closed", "Lost", "checkpoints_of_sink", "compare"]

Find = Callable[[Sequence[str]], Awaitable[list[ApiKey | None]]]
"""Records of the backup by their ids; ``None`` for one that is unknown or deleted there."""

_KEY: Final = ("key_id", "realm", "revoked", "revoked_at", "disabled", "deleted_at", "revision")
_VERSION: Final = ("key_id", "version", "ends_at", "ended")
_PAGE: Final = 200
_SHOWN: Final = 20


class Closed(NamedTuple):
    """A key that works in the backup and was closed since.

    ``how``: ``revoked``, ``deleted``, ``disabled``, ``rotated`` (a secret that the backup takes for
    good was replaced), or ``scheduled`` to be revoked ``at`` (µs).
    """

    key_id: str
    realm: str
    how: str
    at: int | None = None

    def __str__(self) -> str:
        what = "admin token " if self.realm == ADMIN_REALM else ""
        return f"{what}{self.key_id} ({self.how})"


@dataclass
class Lost:
    """What happened after the backup was made.

    Attributes:
        backup: the log and its leaves, as the backup ends.
        newest: the same of the newest checkpoint that is known, and the checkpoint.
        nothing: why it is known that the backup is the newest state; ``None`` when it isn't.
        told: by whom it is known which keys were changed; ``None`` when nobody tells.
        closed: keys that would work again.
        others: how many other keys were made or changed; ``None`` when nobody tells.
    """

    backup: tuple[int, int]
    newest: tuple[tuple[int, int], str] | None = None
    nothing: str | None = None
    told: str | None = None
    closed: list[Closed] = field(default_factory=list)
    others: int | None = None

    def words(self) -> Iterator[str]:
        """All that there is to say, a line each."""
        if self.nothing is not None:
            yield f"nothing is lost: {self.nothing}"
        elif self.newest is not None and self.newest[0] > self.backup:
            yield (
                f"the newest checkpoint known is {_brief(self.newest[1])}, the backup ends with log"
                f" {self.backup[0]} at {self.backup[1]}: what was changed and recorded between them"
                " is lost"
            )
        elif self.others is None:
            yield (
                "nothing shows that the backup is the newest state: whatever was changed after it"
                " is lost"
            )
        if self.others:
            yield f"keys that were made or changed after the backup, which is lost: {self.others}"
        if self.closed:
            some = ", ".join(map(str, self.closed[:_SHOWN]))
            more = len(self.closed) - _SHOWN
            yield (
                f"keys that were closed after the backup ({self.told}), and work in it:"
                f" {some}" + (f" and {more} more" if more > 0 else "")
            )
        elif self.nothing is None and self.told is not None:
            yield f"no key was closed after the backup ({self.told})"
        elif self.nothing is None:
            yield (
                "which keys were revoked, deleted or rotated after it, and would work again, is not"
                " known: --against the old database, or --audit with an export of its log, tells"
            )


def _brief(note: str) -> str:
    known = read_text(note)
    return f"{known.origin} with {known.size} leaves"


async def _lost_by_records(
    reader: TableReader, find: Find, revision: int, now: int
) -> tuple[list[Closed], int]:
    """What another state of the same database knows better than a backup.

    Args:
        reader: of the other one. What it says is not verified: it can close keys, nothing else.
        find: records of the backup.
        revision: of the backup.
        now: in µs.

    Returns:
        Keys that were closed since, and how many others were made or changed.
    """
    changed: dict[str, dict[str, Any]] = {}
    async for rows in reader.rows(keys, _KEY, since=revision):
        changed.update((str(row[0]), dict(zip(_KEY, row, strict=True))) for row in rows)
    ended: dict[str, set[int]] = {}
    if changed:
        async for rows in reader.rows(key_versions, _VERSION):
            for key_id, number, ends_at, over in rows:
                if key_id in changed and (over or (ends_at is not None and ends_at <= now)):
                    ended.setdefault(key_id, set()).add(number)
    closed = []
    for some in _pages(sorted(changed)):
        for key_id, record in zip(some, await find(some), strict=True):
            how = record and _how(record, changed[key_id], ended.get(key_id, set()), now)
            if how and record:
                at = changed[key_id]["revoked_at"] if how == "scheduled" else None
                closed.append(Closed(key_id, record.realm, how, at))
    return closed, len(changed) - len(closed)


def _how(record: ApiKey, then: Mapping[str, Any], ended: set[int], now: int) -> str | None:
    """How a key that works in the backup was closed."""
    if then["deleted_at"] is not None:
        return "deleted"
    if record.revoked:
        return None
    if then["revoked"] or (then["revoked_at"] is not None and then["revoked_at"] <= now):
        return "revoked"
    if any(version.version in ended for version in record.versions):
        return "rotated"
    if then["revoked_at"] is not None and record.revoked_at is None:
        return "scheduled"
    return "disabled" if then["disabled"] and not record.disabled else None


async def _lost_by_events(events: Sequence[Mapping[str, Any]], find: Find) -> list[Closed]:
    """What an export of the log knows better than a backup; see :func:`_events_of`."""
    found: dict[str, str] = {}
    newest: dict[str, int] = {}
    ended: dict[str, set[int]] = {}
    for event in events:
        key_id, verb = str(event["key_id"]), str(event["action"]).rpartition("_")[2]
        detail = event.get("detail") or {}
        done = detail.get("action") if verb == "leaked" else verb
        number = detail.get("version")
        if done in ("revoked", "deleted"):
            found[key_id] = "deleted" if "deleted" in (done, found.get(key_id)) else "revoked"
        elif done == "rotated" and isinstance(number, int):
            newest[key_id] = max(newest.get(key_id, 0), number)
        elif done in ("ended", "version_ended") and isinstance(number, int):
            ended.setdefault(key_id, set()).add(number)
    closed = []
    for some in _pages(sorted({*found, *newest, *ended})):
        for key_id, record in zip(some, await find(some), strict=True):
            if record is None:
                continue
            how = found.get(key_id)
            over = ended.get(key_id, set())
            if how is None and (
                newest.get(key_id, 0) > record.version
                or any(version.version in over for version in record.versions)
            ):
                how = "rotated"
            if how == "deleted" or (how is not None and not record.revoked):
                closed.append(Closed(key_id, record.realm, how))
    return closed


def _events_of(path: Path) -> list[dict[str, Any]]:
    """The events of keys in an export, as ``akm audit export`` writes it.

    Raises:
        ConfigurationError: it cannot be read, or is something else.
    """
    found, number = [], 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                event = json.loads(line)
                if not isinstance(event, dict) or "action" not in event:
                    raise ValueError
                if event.get("key_id") is not None:
                    found.append(event)
    except OSError as error:
        raise ConfigurationError(f"--audit: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigurationError(
            f"--audit: line {number} of {path} is no event: a file of `akm audit export` is taken"
        ) from None
    return found


def _pages(key_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(key_ids), _PAGE):
        yield key_ids[at : at + _PAGE]


# Asking


async def checkpoints_of_sink(settings: Settings, stage: Staged) -> list[str]:
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


async def compare(
    stage: Staged, notes: list[str], sink: list[str], *, against: str | None, audit: Path | None
) -> Lost:
    """What is known outside of a backup.

    Args:
        stage: the backup.
        notes: checkpoints that were kept elsewhere.
        sink: those of them that ``AUDIT_SINK`` has.
        against: the URL of the old database.
        audit: an export of its log.

    Raises:
        ConfigurationError: one of them cannot be read, or is of another database.
        StorageError: the old database cannot be read.
    """
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

    if audit is not None:
        lost.closed = await _lost_by_events(await asyncio.to_thread(_events_of, audit), find)
        lost.told = f"by {audit}"
    if against is not None:
        now = time.time_ns() // 1000
        async with _against(against) as (reader, origin, revision):
            if origin != stage.keys.origin:
                raise ConfigurationError("--against: it is another database than the backup's")
            by_records, lost.others = await _lost_by_records(reader, find, stage.revision, now)
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
