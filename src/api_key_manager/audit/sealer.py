"""Seals what was written, within a second of its commit, and notices what does not fit.

Several nodes may do it at once: each adds to the log that it has seen, and only if it still is
that one. Who comes late leaves it to the others for a second.

Nothing that an editor of the database does stops it for good. A row that does not fit is passed
over and named; a number without its event is noted in the log as missing; a log whose past does
not fit is left as it is, and a new one is started that cites the last checkpoint of the old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from api_key_manager.audit.sealing import Addition, Found, Notary
from api_key_manager.audit.sink import Courier
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.models import AuditEvent, canonical_json
from api_key_manager.core.sealed import LogBatch, LogState, LogView

__all__ = ["LogTables", "Sealer"]

_log = logging.getLogger(__name__)

_BATCH: Final = 512
_PAUSE_SECONDS: Final = 0.5
_YIELD_SECONDS: Final = 1.0
_BREATH_SECONDS: Final = 0.001
_LATE_SECONDS: Final = 0.003
_BUSY_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 10.0
_MOST_SHOWN: Final = 10
_MOST_NAMED: Final = 1000


class LogTables(Protocol):
    """Where a log is kept."""

    async def glance(self) -> tuple[Any, ...]: ...

    async def view(self, after: int | None, limit: int) -> LogView: ...

    async def begin(
        self, state: LogState, batch: LogBatch, event: AuditEvent | None, written: int
    ) -> bool: ...

    async def publish(
        self, old: LogState, new: LogState, batch: LogBatch, nodes: Sequence[tuple[int, int, bytes]]
    ) -> bool: ...

    async def repair_head(self, written: int) -> None: ...

    async def note_at(self, origin: int, size: int) -> str | None: ...

    async def batch_of(self, origin: int, index: int) -> LogBatch | None: ...


class Sealer:
    """Keeps the log of one database.

    Args:
        tables: of the log.
        notary: makes and vouches for what is added.
        clock: Unix seconds.
        courier: brings checkpoints out of the database, if there is a place for them. What is there
            already is asked for before anything is sealed.

    Attributes:
        state: of the log, when it was last looked at.
        note: its newest checkpoint then.
        trouble: what was found, in words; it stays until the process ends.
    """

    def __init__(
        self,
        tables: LogTables,
        notary: Notary,
        clock: Callable[[], float],
        courier: Courier | None = None,
    ) -> None:
        self._tables = tables
        self._notary = notary
        self._clock = clock
        self.courier = courier
        self.state: LogState | None = None
        self.note: str | None = None
        self.trouble: list[str] = []
        self._named: set[object] = set()
        self._seen: tuple[Any, ...] | None = None
        self._compared = False
        self._yields = False
        self._outside: str | None = None
        self._why: str | None = None
        self._written = 0
        self._turn = asyncio.Lock()
        self._problem: str | None = None

    def problems(self) -> list[str]:
        """What was found since this process started, and why nothing is sealed right now."""
        behind = None if self.courier is None else self.courier.problem
        return [*self.trouble, *(why for why in (self._problem, behind) if why is not None)]

    async def prepare(self) -> None:
        """Begin the first log of a database, before the first event.

        What an older schema left is sealed while everything runs: there may be millions of events.

        Raises:
            StorageError: the database cannot be used.
        """
        if (await self._tables.glance())[-1] is None:
            view = await self._tables.view(None, 0)
            if await self._sound(view) is None:
                await self._start(view)

    async def look(self) -> list[str]:
        """What is wrong with the log's end, changing nothing.

        Raises:
            StorageError: the database or the sink cannot be asked.
        """
        view = await self._tables.view(None, 0)
        self._why = await self._judge(view)
        self.state = self.state if view.state is None else view.state
        if self._why is None and view.state is not None and view.written < view.state.number:
            self._why = f"the number of the last event was turned back to {view.written}"
        return [] if self._why is None else [self._why]

    async def finish(self) -> None:
        """Seal what is there, if this process has written any of it."""
        if not self._notary.macs.used:
            return
        self._yields = False
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self.seal()
                if self.courier is not None:
                    await self.courier.bring()
        except (StorageError, TimeoutError) as error:
            _log.warning("the last events are sealed, or checkpoints sent, next time: %s", error)

    async def run(self) -> None:
        """Seal what comes, until cancelled."""
        self._yields = True
        while True:
            try:
                patient = await self.seal()
            except StorageError as error:
                if self._problem is None:
                    _log.warning("events cannot be sealed: %s", error)
                self._problem = f"events cannot be sealed: {error}"
                patient = False
            else:
                self._problem = None
            await asyncio.sleep(_PAUSE_SECONDS if patient else _YIELD_SECONDS)

    async def seal(self) -> bool:
        """Seal all that is written; says whether it was all, and not somebody else at it.

        Raises:
            StorageError: the database cannot be used.
        """
        # What was seen before somebody else here sealed would look like a log that lost leaves.
        async with self._turn:
            return await self._seal()

    async def _seal(self) -> bool:
        glance = await self._tables.glance()
        if glance == self._seen:
            return True
        after: int | None = None
        while True:
            view = await self._tables.view(after, _BATCH)
            state = await self._sound(view)
            if state is None:
                after = None
                if not await self._start(view):
                    return False
                continue
            whole = len(view.rows) < _BATCH
            found, addition = await asyncio.to_thread(self._next, view, state, whole)
            self._name_wrong(found)
            if addition is None:
                if whole:
                    break
                after = found.last_id
                continue
            if not await self._publish(state, addition):
                return False
            after = None
            if self._yields:
                await _let_others_go_first()
        self._seen = glance
        return True

    def _next(self, view: LogView, state: LogState, whole: bool) -> tuple[Found, Addition | None]:
        """What comes next, computed aside: hot requests do not wait for it."""
        notary, at = self._notary, int(self._clock() * 1_000_000)
        found = notary.find(state, view.rows, view.written, whole=whole)
        if found.run is not None:
            return found, notary.seal(state, found.run, at)
        if found.missing is not None:
            return found, notary.note_missing(state, *found.missing, at)
        return found, None

    async def _publish(self, state: LogState, addition: Addition) -> bool:
        done = await self._tables.publish(state, *addition)
        if done:
            self.state, self.note = addition.state, addition.batch.note
            if addition.batch.number is None:
                first, last = state.number + 1, addition.state.number
                self._report(
                    ("missing", addition.state.number),
                    f"events {first} to {last} are missing or were edited before they were sealed"
                    f" (noted in the log at index {state.size})",
                )
        return done

    def _name_wrong(self, found: Found) -> None:
        for row_id in found.wrong:
            self._report(row_id, f"row {row_id} of audit_events was not written by this software")

    def _report(self, what: object, words: str) -> None:
        if what in self._named:
            return
        if len(self._named) < _MOST_NAMED:
            self._named.add(what)
        _log.error("the audit log does not fit: %s", words)
        if len(self.trouble) < _MOST_SHOWN:
            self.trouble.append(words)

    async def _sound(self, view: LogView) -> LogState | None:
        """The log's state, if it can be gone on from; else why not is kept for the new one."""
        state = view.state
        self._why = await self._judge(view)
        if self._why is not None and self._outside is not None and not self._compared:
            self.note = self._outside
        self._compared = True
        if state is None or self._why is not None:
            return None
        if self.state is not None and self.state.origin != state.origin:
            self._written = 0  # a restored database gives numbers again
        self.state, self.note = state, view.note
        least = max(state.number, self._written)
        if view.written < least:
            self._report(
                ("head", least), f"the number of the last event was {least}, now it is"
                f" {'gone' if view.written < 0 else view.written}: the last ones may be lost",
            )  # fmt: skip
            await self._tables.repair_head(least)
        self._written = max(least, view.written)
        return state

    async def _judge(self, view: LogView) -> str | None:
        """Why the log cannot be gone on from."""
        state, last = view.state, self.state
        if not self._compared:
            self._outside = None if self.courier is None else await self.courier.newest()
        known = self._notary.read(self._outside) if self._outside is not None else None
        if state is None:
            gone = last is not None or known is not None or view.written > view.legacy_to
            return "the log is gone" if gone else None
        if not self._notary.knows(state):
            return "the log's state was edited"
        if view.end != state.size:
            return f"the log ends at {view.end}, but should at {state.size}"
        if last is not None and _is_behind(state, last):
            return f"the log has lost leaves: it had {last.size}, and has {state.size}"
        if not self._compared and known is not None:
            return await self._against(state, *known)
        return None

    async def _against(self, state: LogState, origin: int, size: int) -> str | None:
        """Why the log is not one that a checkpoint from outside of it can be of."""
        if (origin, size) > (state.origin, state.size):
            return (
                f"a checkpoint outside of the database is of log {origin} with {size} leaves, the"
                f" database has log {state.origin} with {state.size}"
            )
        here, there = await self._tables.note_at(origin, size), self._outside or ""
        if here is None and await self._is_cited(state.origin, origin, size):
            return None
        if here is None or here.split("\n\n")[0] != there.split("\n\n")[0]:
            return f"a checkpoint outside of it, of log {origin} with {size} leaves, is not in it"
        return None

    async def _is_cited(self, latest: int, origin: int, size: int) -> bool:
        """Whether the latest log was begun by somebody who knew of that checkpoint, or of a later
        one: after a restore, or where the end of another log was lost."""
        first = await self._tables.batch_of(latest, 0)
        if first is None or origin >= latest:
            return False
        previous = self._notary.previous(first)
        known = None if previous is None else self._notary.read(previous)
        return known is not None and (origin, size) <= known

    async def _start(self, view: LogView) -> bool:
        """Begin a log: the first one, or one in place of another whose past does not fit."""
        at, old, why = int(self._clock() * 1_000_000), view.state, self._why
        if old is None and self.state is None and why is None:
            addition = self._notary.start(1, None, at, number=0, row_id=0, legacy_to=view.legacy_to)
            await self._tables.begin(addition.state, addition.batch, None, view.written)
            return True
        # What of the old one can be relied on; else all that fits is sealed again.
        sure = old if old is not None and self._notary.knows(old) else self.state
        known = self._notary.read(self._outside) if self._outside is not None else None
        before = [s.origin for s in (old, self.state) if s is not None]
        origin = 1 + max([*before, *([known[0]] if known else [])], default=1)
        number, row_id, legacy_to = (
            (sure.number, sure.row_id, sure.legacy_to) if sure is not None else (0, 0, 0)
        )
        previous = self.note if self.note is not None else view.note
        addition = self._notary.start(
            origin, previous, at, number=number, row_id=row_id, legacy_to=legacy_to
        )
        detail = canonical_json({"log": addition.state.name, "origin": origin})
        event = AuditEvent(at, "log_restarted", actor="system", reason=why, detail_json=detail)
        began = await self._tables.begin(
            addition.state, addition.batch, event, max(view.written, number)
        )
        if began:
            self._report(("origin", origin), f"{why}; {addition.state.name} goes on in its place")
            self.state, self.note = addition.state, addition.batch.note
        return began


async def _let_others_go_first() -> None:
    """Pause when the loop has more to do than it can: requests come before seals, which come later
    than within a second then, and then only."""
    clock = asyncio.get_running_loop().time
    start = clock()
    await asyncio.sleep(_BREATH_SECONDS)
    if clock() - start > _BREATH_SECONDS + _LATE_SECONDS:
        await asyncio.sleep(_BUSY_SECONDS)


def _is_behind(state: LogState, last: LogState) -> bool:
    """Whether a log is shorter than it was, or another one of the same length."""
    here, there = (state.origin, state.size), (last.origin, last.size)
    return here < there or (here == there and state.peaks != last.peaks)
