"""Notes what was validated and refused, off the hot path, and hands it to the store in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal

from api_key_manager.core.addresses import vicinity
from api_key_manager.core.exceptions import Reason, StorageError
from api_key_manager.core.models import (
    ADMIN_REALM,
    MICROSECONDS,
    AuditEvent,
    Use,
    Verdict,
    canonical_json,
)
from api_key_manager.core.ports import EmbeddedStore, KeyStore
from api_key_manager.core.presented import Presented
from api_key_manager.core.signing import parse_signature

__all__ = ["Recorder", "detail_of"]

_log = logging.getLogger(__name__)

# An enum gives its members slowly.
_VALID = Reason.VALID
_new = tuple.__new__
_UNAUTHENTICATED = frozenset({Reason.MALFORMED, Reason.NOT_FOUND, Reason.BAD_SIGNATURE})
_UNPROVED = frozenset({Reason.MALFORMED, Reason.NOT_FOUND})
_SLOWED = "address_slowed"
_ALL_SLOWED = "failures_slowed"
_LIMITED = Reason.RATE_LIMITED.value
_IDS_SHOWN = 8
_MOST_TOLD = 10_000
_USED_UP = frozenset({Reason.RATE_LIMITED, Reason.QUOTA_EXCEEDED})
_USES_SECONDS = 5.0
_PIECE = 2048
_PLENTY = 1024
_FOLDED_SHARE = 4


class _Folded:
    """Refusals of one kind from one neighbourhood in one second: one event, an exact count."""

    __slots__ = ("count", "event", "ids")

    def __init__(self, event: AuditEvent) -> None:
        self.event = event
        self.count = 1
        self.ids: dict[str | None, None] = {event.key_id: None}

    def add(self, key_id: str | None) -> None:
        self.count += 1
        if len(self.ids) < _IDS_SHOWN:
            self.ids[key_id] = None

    def to_event(self) -> AuditEvent:
        if len(self.ids) == 1:
            return self.event._replace(times=self.count)
        ids = [key_id for key_id in self.ids if key_id is not None]
        detail = canonical_json({"key_ids": ids})
        return self.event._replace(key_id=None, detail_json=detail, times=self.count)


class Recorder:
    """Queue between validation and the audit log.

    Refusals of callers who proved nothing fold into one event per reason, key, neighbourhood and
    second, so that a flood of garbage costs a constant; ids that do not exist count as one key.
    Together these take at most a quarter of the room. Whoever has many addresses may need more:
    then those of one reason and second, of whatever key and neighbourhood, fold into one.

    Args:
        store: where events and last uses go.
        validations: ``all``, ``failures`` or ``none``.
        capacity: how many events may wait; past that :attr:`full` is true.

    Attributes:
        refused: for how many events :meth:`reserve` found no room.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        validations: Literal["all", "failures", "none"] = "all",
        capacity: int = 40_000,
    ) -> None:
        self._store = store
        self.all = validations == "all"
        self._failures = validations != "none"
        self._capacity = capacity
        self._most_folded = max(1, capacity // _FOLDED_SHARE)
        self._events: list[AuditEvent] = []
        self._folded: dict[tuple[Any, ...], _Folded] = {}
        # What was told of in this minute.
        self._told: set[tuple[str, str]] = set()
        self._minute = 0
        self._used: dict[str, int] = {}
        self._used_static: dict[str, int] = {}
        self._uses_due = 0.0
        self._flushing = asyncio.Lock()
        self._reserved = self._landing = self.refused = 0
        self._room = asyncio.Event()
        self._plenty = asyncio.Event()
        self._under_way: tuple[asyncio.Future[None], list[AuditEvent], dict[str, Use]] | None = None
        self._making_room: asyncio.Task[bool] | None = None

    @property
    def depth(self) -> int:
        """How many events wait to be written, or are being written."""
        return len(self._events) + len(self._folded) + self._landing

    @property
    def full(self) -> bool:
        waiting = len(self._events) + len(self._folded) + self._landing
        return waiting + self._reserved >= self._capacity

    def note(
        self, presented: Presented, verdict: Verdict, now: float, environment: str | None = None
    ) -> None:
        """Note one verdict, and in which environment the key is."""
        if verdict.reason is not _VALID:
            self._note_refusal(presented, verdict, now, environment)
            return
        scheme, version, tags = verdict.scheme, verdict.version, presented.tags
        # What an admin token is used for has events of its own.
        if not self.all or presented.realm == ADMIN_REALM:
            self.note_use(presented.key_id, now)
        else:
            self.note_valid(
                presented.key_id, presented.actor, presented.ip, presented.request_id,
                _tagged(tags, scheme, version) if tags else detail_of(scheme, version), now,
                environment,
            )  # fmt: skip
        if scheme == "static":
            self._used_static[presented.key_id] = self._used[presented.key_id]

    def note_valid(
        self, key_id: str, actor: str | None, ip: str | None, request_id: str | None,
        detail_json: str, now: float, environment: str | None = None,
    ) -> None:  # fmt: skip
        """Note one acceptance, where all of them are wanted."""
        at = self._used[key_id] = int(now * MICROSECONDS)
        # Not by its name: the class would take twice as long for the same.
        event = (
            at, "key_validated", key_id, actor, "valid", ip, request_id, detail_json, 1,
            environment, None, None, None,
        )  # fmt: skip
        self._events.append(_new(AuditEvent, event))
        if len(self._events) == _PLENTY:
            self._plenty.set()

    def note_use(self, key_id: str, now: float) -> None:
        """Note that a key was used, without an event."""
        self._used[key_id] = int(now * MICROSECONDS)

    def _note_refusal(
        self, presented: Presented, verdict: Verdict, now: float, environment: str | None
    ) -> None:
        admin, reason = presented.realm == ADMIN_REALM, verdict.reason
        if reason in _USED_UP and not admin:
            self._note_limit(presented, verdict, now, environment)
        if not (self._failures or admin):
            return
        key_id, ip = presented.key_id or None, presented.ip
        if key_id and reason in _UNPROVED and parse_signature(key_id) is not None:
            key_id = None  # fields mixed up: a signature may be good for somebody else
        action = "login_refused" if admin else "key_refused"
        event = AuditEvent(
            int(now * MICROSECONDS), action, key_id, presented.actor, reason.value,
            ip, presented.request_id, _refusaldetail_of(presented.tags, verdict),
            environment=None if reason in _UNPROVED else environment,
        )  # fmt: skip
        # Whoever shows no key of ours at all comes past the check for room.
        if reason not in _UNAUTHENTICATED and key_id is not None:
            self._events.append(event)
            return
        known_id = key_id if reason is Reason.BAD_SIGNATURE else None
        if admin and key_id is None:
            known_id = presented.actor
        self._fold(event, known_id, vicinity(ip), now)

    def _note_limit(
        self, presented: Presented, verdict: Verdict, now: float, environment: str | None
    ) -> None:
        """Note that a key has used something up, once a minute for each limit, whichever
        validations are noted: somebody may wait for it."""
        minute = int(now) // 60
        if minute != self._minute:
            self._told, self._minute = set(), minute
        limited = verdict.reason is Reason.RATE_LIMITED and verdict.rate_limit is not None
        name = verdict.rate_limit.deciding.name if limited and verdict.rate_limit else "quota"
        what = (presented.key_id, name)
        # So that a flood of keys cannot fill the memory of a minute.
        if what in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(what)
        self._events.append(
            AuditEvent(
                int(now * MICROSECONDS), "limit_reached", presented.key_id, presented.actor,
                verdict.reason.value, presented.ip, presented.request_id,
                canonical_json({"limit": name}), environment=environment,
            )
        )  # fmt: skip

    def note_slowed(self, presented: Presented, network: str | None, now: float) -> None:
        """Note that a failure was answered by a time to wait, as its address fails too often, or
        (``None``) all of them together do.

        Which key was named stands in the event of its refusal, where it is known to be one.
        """
        if not (self._failures or presented.realm == ADMIN_REALM):
            return
        # Most are one more of the same: for them no event is made.
        action = _ALL_SLOWED if network is None else _SLOWED
        folded = self._folded.get((action, _LIMITED, None, network, int(now)))
        if folded is not None:
            folded.count += 1
            return
        event = AuditEvent(
            int(now * MICROSECONDS), action, None, presented.actor, _LIMITED,
            None if network is None else presented.ip, presented.request_id,
        )  # fmt: skip
        self._fold(event, None, network, now)

    def _fold(
        self, event: AuditEvent, known_id: str | None, network: str | None, now: float
    ) -> None:
        action, reason = event.action, event.reason
        bucket = (action, reason, known_id, network, int(now))
        folded = self._folded.get(bucket)
        if folded is None and len(self._folded) >= self._most_folded:
            bucket = (action, reason, None, None, int(now))
            folded = self._folded.get(bucket)
            event = event._replace(ip=None, environment=None)
        if folded is None:
            self._folded[bucket] = _Folded(event)
        else:
            folded.add(event.key_id)

    def last_use(self, key_id: str) -> Use | None:
        """A use that may not have reached the store yet."""
        at = self._used.get(key_id)
        return None if at is None else Use(at, self._used_static.get(key_id))

    async def plenty(self, patience: float) -> None:
        """Wait until so much waits that it is worth writing, at most ``patience`` seconds.

        Little and often, since the writer takes its time from the loop: a large piece would be a
        pause that callers feel.
        """
        self._plenty.clear()
        if len(self._events) < _PLENTY:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._plenty.wait()

    async def flush(self, now: float, *, uses: bool = False, whole: bool = True) -> None:
        """Write what waits.

        Args:
            now: Unix seconds.
            uses: whether last uses go too; else they do every 5 s.
            whole: whether refusals of the second that still runs go too; else they fold on.

        Raises:
            StorageError: nothing was written; the events wait for the next flush.
        """
        async with self._flushing:
            await self._land()
            self._unfold(None if whole else int(now))
            used = self._take_uses(now, uses)
            # In pieces, so that room appears long before all is written; in large ones when there
            # is much, since each waits for its turn on a loop that is busy then.
            piece = max(_PIECE, len(self._events) // 2)
            for _ in range(0, max(len(self._events), 1), piece):
                events, self._events = self._events[:piece], self._events[piece:]
                if not (events or used):
                    return
                writing = asyncio.ensure_future(self._store.record(events, used))
                self._under_way, self._landing = (writing, events, used), len(events)
                await self._land()
                used = {}

    async def _land(self) -> None:
        """Wait for the piece under way. A caller who is cancelled leaves it to the next one."""
        if self._under_way is None:
            return
        writing, events, used = self._under_way
        try:
            await asyncio.shield(writing)
        except Exception:
            self._give_back(events, used)
            raise
        finally:
            # Not when only this caller was cancelled: then it is under way still.
            if writing.done():
                self._under_way, self._landing = None, 0
                self._room.set()

    async def reserve(self, count: int, now: float, patience: float) -> bool:
        """Keep room for some events, waiting at most ``patience`` seconds; says whether there is.

        Whoever got it gives it back by :meth:`release`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while not self._fits(count):
            making = self._making_room
            if making is None or making.done():
                # A task, since it goes on when this caller's patience ends.
                making = self._making_room = asyncio.create_task(self._make_room(now))
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), deadline - loop.time())
            except TimeoutError:
                self.refused += count
                return False
            if making.done() and not making.result() and not self._fits(count):
                self.refused += count
                return False
        self._reserved += count
        return True

    def release(self, count: int) -> None:
        """Give room back."""
        self._reserved -= count
        self._room.set()

    def _fits(self, count: int) -> bool:
        taken = self.depth + self._reserved
        # What is more than all the room there is fits when nothing else is there.
        return taken + count <= self._capacity or taken == 0

    async def _make_room(self, now: float) -> bool:
        """Whether the queue was written."""
        try:
            await self.flush(now)
        except StorageError as error:
            _log.error("the audit log cannot be written: %s", error)
            return False
        finally:
            # After this task is done, for those who look at its result.
            asyncio.get_running_loop().call_soon(self._room.set)
        return True

    def flush_now(self, store: EmbeddedStore, now: float) -> None:
        """The same by a plain call; also waits for what a flush has under way."""
        self._unfold(None)
        events, self._events = self._events, []
        used = self._take_uses(now, True)
        try:
            store.record_now(events, used)
        except Exception:
            self._give_back(events, used)
            raise

    def _unfold(self, running: int | None) -> None:
        """Queue folded refusals, but those of the second that still runs."""
        done = [bucket for bucket in self._folded if running is None or bucket[-1] < running]
        self._events.extend(self._folded.pop(bucket).to_event() for bucket in done)

    def _take_uses(self, now: float, uses: bool) -> dict[str, Use]:
        if not uses and now < self._uses_due:
            return {}
        used = {key_id: Use(at, self._used_static.get(key_id)) for key_id, at in self._used.items()}
        self._used, self._used_static = {}, {}
        self._uses_due = now + _USES_SECONDS
        return used

    def _give_back(self, events: list[AuditEvent], used: dict[str, Use]) -> None:
        self._events[:0] = events
        for key_id, use in used.items():
            self._used.setdefault(key_id, use.at)
            if use.static_at is not None:
                self._used_static.setdefault(key_id, use.static_at)


@lru_cache(maxsize=1024)
def detail_of(scheme: str | None, version: int | None) -> str:
    """What the log says of an acceptance, besides who and when."""
    return canonical_json({"scheme": scheme, "version": version})


def _refusaldetail_of(tags: Sequence[str], verdict: Verdict) -> str | None:
    detail: dict[str, object] = {"tags": list(tags)} if tags else {}
    if verdict.rate_limit is not None and verdict.reason is Reason.RATE_LIMITED:
        detail["limit"] = verdict.rate_limit.deciding.name
    return canonical_json(detail) if detail else None


def _tagged(tags: Sequence[str], scheme: str | None, version: int | None) -> str:
    return canonical_json({"tags": list(tags), "scheme": scheme, "version": version})
