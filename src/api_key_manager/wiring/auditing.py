"""The transparency log as its users ask for it: checked, proved, and compared with the records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from api_key_manager.audit.checkpoint import Verifier, read_text
from api_key_manager.audit.leaf import read_leaf
from api_key_manager.audit.merkle import KEPT_LEVELS, consistency, inclusion
from api_key_manager.audit.proof import consistency_proof, inclusion_proof, needed
from api_key_manager.audit.sealing import Notary
from api_key_manager.audit.sink import notes_in
from api_key_manager.audit.verify import Finding, LogCheck
from api_key_manager.core.exceptions import ConfigurationError, KeyNotFoundError, ValidationError
from api_key_manager.core.sealed import LogBatch, LogState, LogStretch
from api_key_manager.storage import log
from api_key_manager.storage import log_reading as scripts
from api_key_manager.storage.log import SqlLog
from api_key_manager.wiring.backend import Backend

if TYPE_CHECKING:
    from api_key_manager.wiring.deployment import Deployment

__all__ = ["Log", "Proved", "log_of", "notes_of", "notes_outside"]

_BATCHES: Final = 64
_EVENTS: Final = 10_000
_ALL: Final = 2**63 - 1
_LEVELS: Final = range(KEPT_LEVELS, 64, KEPT_LEVELS)
_STRANGE: Final = 1000


class Proved(NamedTuple):
    """A leaf with all that an outsider needs, and the environment of its event."""

    document: dict[str, Any]
    environment: str | None


class Log:
    """The log of one database, to be read.

    Args:
        tables: of the log.
        notary: who vouches for it.
    """

    def __init__(self, tables: SqlLog, notary: Notary) -> None:
        self._driver = tables.driver
        self._notary = notary

    async def newest(self) -> tuple[LogState, str]:
        """The log that goes on, and its newest checkpoint.

        Raises:
            KeyNotFoundError: nothing is sealed yet.
        """
        origins = await self._driver.read(scripts.origins)
        state = await self._driver.read(scripts.state_of, origins[-1]) if origins else None
        batch = (
            await self._driver.read(scripts.batch_of, state.origin, state.size - 1)
            if state is not None
            else None
        )
        if state is None or batch is None:
            raise KeyNotFoundError("nothing is sealed yet")
        return state, batch.note

    def verifier(self, origin: int) -> Verifier:
        """Who checks the checkpoints of a log."""
        return self._notary.verifier(self._notary.name(origin))

    async def index_of(self, row_id: int) -> tuple[int, int]:
        """The log of an event, and its index there.

        Raises:
            KeyNotFoundError: there is no such event, or it is not sealed yet.
        """
        row = await self._driver.read(scripts.event_of, row_id)
        number = row_id if row is None or row[-2] is None else row[-2]
        place = await self._driver.read(scripts.place_of, number)
        if place is None:
            raise KeyNotFoundError("id: there is no such event, or it is not sealed yet")
        return place

    async def prove(
        self, index: int, *, origin: int | None = None, size: int | None = None
    ) -> Proved:
        """That a leaf is in the log.

        Args:
            index: of the leaf.
            origin: of which log; the one that goes on when left out.
            size: of the checkpoint to prove it against; the newest when left out.

        Raises:
            KeyNotFoundError: there is no such leaf, or no checkpoint of that size.
            StorageError: the log cannot be read, or was damaged.
        """
        note = await self._note(origin, size)
        checkpoint = read_text(note)
        number = self._origin(checkpoint.origin)
        batch = await self._driver.read(scripts.batch_of, number, index)
        if batch is None or not 0 <= index < checkpoint.size:
            raise KeyNotFoundError("index: the log has no such leaf yet")
        wanted = needed(inclusion(index, checkpoint.size))
        hashes = await self._driver.read_aside(scripts.hashes_of, number, wanted)
        at = index - batch.first
        proof = inclusion_proof(index, batch.hashes[at * 32 : (at + 1) * 32], note, hashes)
        leaf = None if batch.leaves is None else batch.leaves.split(b"\n")[at]
        said = {} if leaf is None else read_leaf(leaf)
        document = {
            "log": checkpoint.origin,
            "verifier_key": str(self.verifier(number)),
            "checkpoint": note,
            "leaf": None if leaf is None else leaf.decode(),
            **proof,
        }
        return Proved(document, said.get("environment"))

    async def prove_growth(
        self, old: int, *, origin: int | None = None, size: int | None = None
    ) -> dict[str, Any]:
        """That the log of one checkpoint is the start of that of another.

        Raises:
            KeyNotFoundError: there is no such checkpoint.
            ValidationError: the old one is the larger one.
            StorageError: the log cannot be read, or was damaged.
        """
        note = await self._note(origin, size)
        checkpoint = read_text(note)
        if old > checkpoint.size:
            raise ValidationError(f"from: the checkpoint has {checkpoint.size} leaves only")
        number = self._origin(checkpoint.origin)
        before = await self._note(number, old)
        wanted = needed(consistency(old, checkpoint.size))
        hashes = await self._driver.read_aside(scripts.hashes_of, number, wanted)
        return {
            "log": checkpoint.origin,
            "verifier_key": str(self.verifier(number)),
            "old_checkpoint": before,
            "checkpoint": note,
            **consistency_proof(before, note, hashes),
        }

    @staticmethod
    def _origin(name: str) -> int:
        return int(name.rpartition("/")[2])

    async def _note(self, origin: int | None, size: int | None) -> str:
        if origin is None:
            state, note = await self.newest()
            if size is None:
                return note
            origin = state.origin
        if size is None:
            found = await self._driver.read(scripts.state_of, origin)
            if found is None:
                raise KeyNotFoundError("log: there is no such log")
            size = found.size
        known = await self._driver.read(scripts.note_at, origin, size)
        if known is None:
            raise KeyNotFoundError(f"size: there is no checkpoint of {size} leaves")
        return known

    async def verify(
        self,
        notes: list[str],
        *,
        first_log: int = 1,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> AsyncIterator[Finding]:
        """Check all of it; yields what does not fit.

        Args:
            notes: checkpoints from outside of the database.
            first_log: the log to start with; that there is one before it is no finding.
            progress: called with leaves checked, and leaves in all.
        """
        outside: dict[int, dict[int, bytes]] = {}
        for note in notes:
            known = self._notary.read(note)
            if known is None:
                if self._notary.is_named_in(note):
                    yield Finding("a checkpoint outside of the database has a wrong signature")
                continue  # else it is of another database, which may use the same sink
            outside.setdefault(known[0], {})[known[1]] = read_text(note).root
        there = [o for o in await self._driver.read(scripts.origins) if o >= first_log]
        for origin in sorted(o for o in outside if o > max(there, default=0)):
            yield Finding("a checkpoint outside of the database is of a log that is gone", origin)
        total = 0
        for origin in there:
            state = await self._driver.read(scripts.state_of, origin)
            total += 0 if state is None else state.size
        done, last_id = 0, -_ALL
        for origin in there:
            check = LogCheck(self._notary, origin, outside.get(origin, {}))
            async for found in self._check(check, origin, last_id, first_log):
                if found is None:
                    progress(done + check.size, total)
                else:
                    yield found
            for finding in self._beginning(check, origin, first_log, there):
                yield finding
            done, last_id = done + check.size, check.last_id
            if origin == there[-1]:
                async for waits in self._waiting(check):
                    yield waits

    def _beginning(
        self, check: LogCheck, origin: int, first_log: int, there: list[int]
    ) -> Iterator[Finding]:
        """What comes before a log that was started anew. A restore leaves out numbers of logs."""
        cited = None if check.previous is None else self._notary.read(check.previous)
        before = max((o for o in there if o < origin), default=first_log - 1)
        if cited is None and origin > before + 1:
            yield Finding(f"the logs from {before + 1} to {origin - 1} are gone", before + 1)
        elif cited is not None and cited[0] >= first_log and cited[0] not in there:
            # Also where a backup was restored that is older than that log.
            yield Finding("the log that the next one cites is gone", cited[0], noted=True)
        if origin > first_log:
            cites = "no checkpoint" if check.previous is None else _brief(check.previous)
            yield Finding(f"the log was started anew, after {cites}", origin, 0, noted=True)

    async def _check(
        self, check: LogCheck, origin: int, after: int, first_log: int
    ) -> AsyncIterator[Finding | None]:
        """Findings, and ``None`` after each stretch."""
        start = await self._driver.read(scripts.batch_of, origin, 0)
        # A log that was started anew may hold again what an older one holds.
        first, seen = -_ALL, after if start is None else min(after, start.last_id)
        if start is not None and first_log == origin > 1:
            seen = start.last_id  # what comes before it is not asked about

        def read(first: int, seen: int) -> asyncio.Task[LogStretch]:
            some = self._driver.read_aside(scripts.stretch, origin, first, seen, _BATCHES)
            return asyncio.create_task(some)

        reading = read(first, seen)
        try:
            while True:
                stretch = await reading
                state, batches = stretch.state, stretch.batches
                check.legacy_to = state.legacy_to if state is not None else 0
                kept = state.kept_from if state is not None and self._notary.knows(state) else 0
                # Never before the batches: the log may grow meanwhile.
                nodes = await self._nodes(origin, batches)
                # Or their order was spoiled.
                last = stretch.whole or batches[-1].first < first
                if not last:
                    # The database looks for what comes next while this is checked.
                    first = batches[-1].first + 1
                    seen = max([check.last_id, *(batch.last_id for batch in batches)])
                    reading = read(first, seen)
                for found in await asyncio.to_thread(_listed, check, stretch, nodes, kept):
                    yield found
                yield None
                if last:
                    break
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        # Since then it may have grown.
        later, strange = await self._driver.read_aside(
            scripts.nodes_beyond, origin, _LEVELS, _STRANGE
        )
        sure = later is not None and self._notary.knows(later)
        for found in check.end(state, strange if sure else []):
            yield found

    async def _nodes(
        self, origin: int, batches: Sequence[LogBatch]
    ) -> dict[tuple[int, int], bytes]:
        """The kept hashes of subtrees that end in some batches."""
        if not batches:
            return {}
        first, end = batches[0].first, batches[-1].first + batches[-1].length
        spans = [(level, first >> level, end >> level) for level in _LEVELS]
        wanted = [span for span in spans if span[1] < span[2]]
        return await self._driver.read_aside(scripts.hashes_of, origin, wanted)

    async def _waiting(self, check: LogCheck) -> AsyncIterator[Finding]:
        after, whole = check.last_id, False
        while not whole:
            view = await self._driver.read_aside(log.view, after, _EVENTS)
            whole = len(view.rows) < _EVENTS
            if (
                view.state is not None
                and view.state.size != check.size
                and not after - check.last_id
            ):
                return  # sealed meanwhile: what waited is in the log now
            for found in check.waiting(view.rows, view.written, last=whole):
                yield found
            after = view.rows[-1][0] if view.rows else after


def _listed(
    check: LogCheck, stretch: LogStretch, nodes: dict[tuple[int, int], bytes], kept: int
) -> list[Finding]:
    return list(check.check(stretch.batches, stretch.events, nodes, kept))


def _brief(note: str) -> str:
    try:
        known = read_text(note)
    except ValidationError:
        return "an unreadable checkpoint"
    return f"{known.origin} with {known.size} leaves"


def log_of(backend: Backend) -> Log:
    """The log of a backend.

    Raises:
        ConfigurationError: it has none.
    """
    if backend.log is None or backend.notary is None:
        raise ConfigurationError(
            "DATABASE_URL=memory:// has no transparency log: use SQLite or PostgreSQL"
        )
    return Log(backend.log, backend.notary)


async def notes_outside(deployment: Deployment, files: Sequence[Path]) -> list[str]:
    """The checkpoints that are kept outside of the database: in files, and in the sink.

    Raises:
        ConfigurationError: a file cannot be read, or holds none.
        StorageError: the sink cannot say.
    """
    notes = await notes_of(files)
    sealer, where = deployment.sealer, deployment.settings.AUDIT_SINK
    if sealer is None or sealer.courier is None:
        return notes
    if "://" not in where and await asyncio.to_thread(Path(where).exists):
        return notes + await asyncio.to_thread(_read_notes, Path(where))
    newest = await sealer.courier.newest()
    return notes if newest is None else [*notes, newest]


async def notes_of(files: Sequence[Path]) -> list[str]:
    """The checkpoints in files.

    Raises:
        ConfigurationError: a file cannot be read, or holds none.
    """
    notes: list[str] = []
    for path in files:
        found = await asyncio.to_thread(_read_notes, path)
        if not found:
            raise ConfigurationError(f"{path} holds no checkpoint")
        notes += found
    return notes


def _read_notes(path: Path) -> list[str]:
    try:
        return notes_in(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
