"""The audit queue: what is noted, how refusals fold, and that nothing is lost or counted twice."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import AuditEvent, Reason, StorageError, Verdict
from api_key_manager.core.memory import MemoryStore
from api_key_manager.core.models import AuditQuery, Use
from api_key_manager.core.presented import Presented
from api_key_manager.core.recorder import Recorder

NOW = 1000.0
MICRO = 1_000_000


class BrokenStore(MemoryStore):
    """Refuses to write while `broken`; else hands on."""

    broken = True
    paused: asyncio.Event | None = None

    async def record(self, events, used):
        if self.paused is not None:
            await self.paused.wait()
        if self.broken:
            raise StorageError("disk full")
        await super().record(events, used)


def asked(key_id: str = "k", **more) -> Presented:
    return Presented(key_id, **more)


def refused(reason: Reason, key_id: str = "k") -> Verdict:
    return Verdict(reason, key_id)


def accepted(scheme: str = "timestamped", key_id: str = "k") -> Verdict:
    return Verdict(Reason.VALID, key_id, None, 1, scheme)


async def written(recorder: Recorder, store: MemoryStore, now: float = NOW) -> list[AuditEvent]:
    await recorder.flush(now)
    return (await store.find_audit(AuditQuery(ascending=True, limit=1000))).items


async def test_acceptance():
    """An accepted credential is an event with its circumstances, and a use of the key."""
    store = MemoryStore()
    recorder = Recorder(store)
    recorder.note(
        asked(ip="192.0.2.1", request_id="r", tags=("t",), actor="a"), accepted(), 1000.25
    )
    assert recorder.depth == 1
    assert await written(recorder, store) == [
        AuditEvent(
            1_000_250_000, "key_validated", "k", "a", "valid", "192.0.2.1", "r",
            '{"scheme":"timestamped","tags":["t"],"version":1}', row_id=1,
        )
    ]  # fmt: skip
    assert recorder.depth == 0


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.VALID])
async def test_every_refusal_is_noted(reason: Reason):
    """Failed validations stand in the log, each with its reason."""
    store = MemoryStore()
    recorder = Recorder(store)
    recorder.note(asked(), refused(reason), NOW)
    *more, event = await written(recorder, store)
    limited = reason in (Reason.RATE_LIMITED, Reason.QUOTA_EXCEEDED)
    assert [e.action for e in more] == (["limit_reached"] if limited else [])
    assert (event.action, event.reason, event.times) == ("key_refused", reason.value, 1)
    assert event.key_id == "k"


notes = st.lists(
    st.tuples(
        st.sampled_from([Reason.MALFORMED, Reason.NOT_FOUND, Reason.BAD_SIGNATURE]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([None, "192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1"]),
        st.sampled_from([1000.0, 1000.9, 1001.0]),
    ),
    max_size=60,
)


@given(notes)
async def test_folding_counts_exactly(calls: list):
    """Refusals fold by reason, neighbourhood and second (a known key by itself), and no count
    is lost."""
    store = MemoryStore()
    recorder = Recorder(store)
    expected: Counter = Counter()
    for reason, key_id, ip, now in calls:
        recorder.note(asked(key_id, ip=ip), refused(reason, key_id), now)
        near = ip and ip.rpartition(".")[0]
        known = key_id if reason is Reason.BAD_SIGNATURE else None
        expected[reason, known, near, int(now)] += 1
    assert recorder.depth == len(expected)
    events = await written(recorder, store)
    assert sorted(e.times for e in events) == sorted(expected.values())
    assert sum(e.times for e in events) == len(calls)
    for event in events:
        if event.reason == "bad_signature":
            assert event.key_id is not None


async def test_a_folded_flood_names_a_few_ids():
    """A flood of unknown ids becomes one event that names the first eight."""
    store = MemoryStore()
    recorder = Recorder(store)
    for i in range(1000):
        recorder.note(asked(f"x{i}", ip="192.0.2.1"), refused(Reason.NOT_FOUND, f"x{i}"), NOW)
        assert recorder.depth == 1
    (event,) = await written(recorder, store)
    assert event.times == 1000
    assert event.key_id is None
    assert event.to_dict()["detail"] == {"key_ids": [f"x{i}" for i in range(8)]}


async def test_a_flood_from_everywhere_leaves_room():
    """However many addresses and ids garbage comes from, it takes a quarter of the queue, and
    every refusal is counted once."""
    store = MemoryStore()
    recorder = Recorder(store, capacity=400)
    for i in range(20_000):
        reason = (Reason.BAD_SIGNATURE, Reason.NOT_FOUND, Reason.MALFORMED)[i % 3]
        at = f"10.{i >> 8 & 255}.{i & 255}.1"
        recorder.note(asked(f"k{i}", ip=at), refused(reason), NOW)
    assert recorder.depth <= 103
    assert not recorder.full
    events = await written(recorder, store)
    assert sum(event.times for event in events) == 20_000
    assert [event.ip for event in events if event.times > 1] == [None] * 3


async def test_refusals_of_proved_callers_do_not_fold():
    """Who proved the secret gets an event each time."""
    store = MemoryStore()
    recorder = Recorder(store)
    for _ in range(3):
        recorder.note(asked(), refused(Reason.REVOKED), NOW)
    assert len(await written(recorder, store)) == 3


async def test_order_is_kept():
    """Events stand in the order in which they happened, across flushes too."""
    store = MemoryStore()
    recorder = Recorder(store)
    for i in range(10):
        recorder.note(asked(f"k{i}"), accepted(key_id=f"k{i}"), NOW + i)
        if i % 3 == 0:
            await recorder.flush(NOW)
    ids = [event.key_id for event in await written(recorder, store)]
    assert ids == [f"k{i}" for i in range(10)]


async def test_capacity():
    """Full at exactly the capacity, folded events counted, and empty after a flush."""
    recorder = Recorder(MemoryStore(), capacity=3)
    recorder.note(asked(), accepted(), NOW)
    recorder.note(asked(), refused(Reason.BAD_SIGNATURE), NOW)
    recorder.note(asked(), refused(Reason.BAD_SIGNATURE), NOW)
    assert not recorder.full
    recorder.note(asked(), accepted(), NOW)
    assert recorder.full
    await recorder.flush(NOW)
    assert not recorder.full


@pytest.mark.parametrize(
    ("validations", "expected"),
    [
        ("all", ["key_validated", "key_refused", "login_refused"]),
        ("failures", ["key_refused", "login_refused"]),
        ("none", ["login_refused"]),
    ],
)
async def test_what_is_noted(validations, expected: list[str]):
    """`all`, `failures` and `none`; refused admin tokens always, accepted ones by their deeds."""
    store = MemoryStore()
    recorder = Recorder(store, validations=validations)
    recorder.note(asked(), accepted(), NOW)
    recorder.note(asked(), refused(Reason.REVOKED), NOW)
    recorder.note(asked(realm="admin"), refused(Reason.REVOKED), NOW)
    recorder.note(asked(realm="admin"), accepted("bearer"), NOW)
    assert [event.action for event in await written(recorder, store)] == expected
    assert recorder.last_use("k") is None  # written with the first flush


async def test_last_uses_are_batched():
    """Uses go with the first flush, then every five seconds, or at once when asked."""
    store = MemoryStore()
    recorder = Recorder(store)
    recorder.note(asked(), accepted("static"), 1000.0)
    assert recorder.last_use("k") == Use(1000 * MICRO, 1000 * MICRO)
    await recorder.flush(1000.0)
    recorder.note(asked(), accepted(), 1001.0)
    await recorder.flush(1004.9)
    assert recorder.last_use("k") == Use(1001 * MICRO, None)
    await recorder.flush(1005.0)
    assert recorder.last_use("k") is None
    recorder.note(asked(), accepted(), 1006.0)
    await recorder.flush(1006.0, uses=True)
    assert recorder.last_use("k") is None
    assert store._used["k"] == Use(1006 * MICRO, 1000 * MICRO)


async def test_a_static_use_is_not_forgotten():
    """A later signed use keeps the time of the last static one."""
    recorder = Recorder(MemoryStore())
    recorder.note(asked(), accepted("static"), 1000.0)
    recorder.note(asked(), accepted(), 1001.0)
    assert recorder.last_use("k") == Use(1001 * MICRO, 1000 * MICRO)


async def test_a_failed_write_loses_nothing():
    """What could not be written waits, in its order and with its counts, for the next flush."""
    store = BrokenStore()
    recorder = Recorder(store)
    recorder.note(asked(), accepted("static"), 1000.0)
    recorder.note(asked(), refused(Reason.BAD_SIGNATURE), 1000.0)
    recorder.note(asked(), refused(Reason.BAD_SIGNATURE), 1000.0)
    with pytest.raises(StorageError):
        await recorder.flush(1000.0)
    assert recorder.depth == 2
    recorder.note(asked(), accepted(), 1001.0)
    store.broken = False
    events = await written(recorder, store, 1010.0)
    assert [(e.action, e.times) for e in events] == [
        ("key_validated", 1), ("key_refused", 2), ("key_validated", 1),
    ]  # fmt: skip
    # The static use that waited is not overwritten by the later one.
    assert store._used["k"] == Use(1001 * MICRO, 1000 * MICRO)


async def test_a_use_during_a_failing_write():
    """What waited and what came meanwhile are one use: the later time, and no static use lost."""
    store = BrokenStore()
    store.paused = asyncio.Event()
    recorder = Recorder(store)
    recorder.note(asked(), accepted("static"), 1000.0)
    flush = asyncio.create_task(recorder.flush(1000.0))
    await asyncio.sleep(0)
    recorder.note(asked(), accepted(), 1001.0)
    store.paused.set()
    with pytest.raises(StorageError):
        await flush
    assert recorder.last_use("k") == Use(1001 * MICRO, 1000 * MICRO)
    store.broken = False
    events = await written(recorder, store)
    assert [event.timestamp for event in events] == [1000 * MICRO, 1001 * MICRO]


async def test_a_cancelled_write_is_not_repeated():
    """A flush cancelled while the store has its batch leaves it to the store: nothing twice."""

    class SlowStore(MemoryStore):
        async def record(self, events, used):
            await super().record(events, used)
            await asyncio.sleep(0.01)

    store = SlowStore()
    recorder = Recorder(store)
    recorder.note(asked(), accepted(), NOW)
    flush = asyncio.create_task(recorder.flush(NOW))
    await asyncio.sleep(0)
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    await recorder.flush(NOW)
    assert recorder.depth == 0
    assert len(store.find_audit_now(AuditQuery()).items) == 1


async def test_room():
    """A full queue is written to make room; when that fails, there is none, and nothing is lost."""
    store = BrokenStore()
    recorder = Recorder(store, capacity=1)
    assert await recorder.reserve(1, NOW, 0.0)
    assert recorder.full
    recorder.release(1)
    recorder.note(asked(), accepted(), NOW)
    assert not await recorder.reserve(1, NOW, 10.0)
    store.broken = False
    assert await recorder.reserve(1, NOW, 10.0)
    recorder.release(1)
    assert len(store.find_audit_now(AuditQuery()).items) == 1


async def test_flush_by_a_plain_call():
    """The same without a loop to wait on, for `get_audit_log`."""
    store = MemoryStore()
    recorder = Recorder(store)
    recorder.note(asked(), accepted(), NOW)
    recorder.flush_now(store, NOW)
    assert recorder.depth == 0
    assert store.find_audit_now(AuditQuery()).items[0].action == "key_validated"
    assert store._used["k"].at == 1000 * MICRO


async def test_reserved_room_counts_before_it_is_used():
    """Many batches at once cannot pass the cap together: each keeps its room before it judges."""
    recorder = Recorder(MemoryStore(), capacity=10)
    assert await recorder.reserve(6, NOW, 0.0)
    assert not await recorder.reserve(6, NOW, 0.01)
    waiting = asyncio.create_task(recorder.reserve(6, NOW, 10.0))
    await asyncio.sleep(0)
    recorder.release(6)
    assert await waiting
    assert not await recorder.reserve(11, NOW, 0.01)
    recorder.release(6)
    # More than there will ever be fits when nothing else is there, else it could never.
    assert await recorder.reserve(11, NOW, 0.0)


async def test_refusals_fold_on_while_their_second_runs():
    """Flushes within one second make one event of a flood, not one each."""
    store = MemoryStore()
    recorder = Recorder(store)
    for part in range(5):
        recorder.note(asked(), refused(Reason.NOT_FOUND), NOW + part / 10)
        await recorder.flush(NOW + part / 10, whole=False)
    assert store.find_audit_now(AuditQuery()).items == []
    await recorder.flush(NOW + 1, whole=False)
    (event,) = store.find_audit_now(AuditQuery()).items
    assert event.times == 5


async def test_a_cancelled_flush_is_finished_by_the_next_one():
    """Whoever flushes next answers for what a cancelled flush had handed over: it is on disk, or
    it waits again."""

    class SlowThenBroken(MemoryStore):
        calls = 0

        async def record(self, events, used):
            self.calls += 1
            await asyncio.sleep(0.01)
            if self.calls == 1:
                raise StorageError("the disk is full")
            await super().record(events, used)

    store = SlowThenBroken()
    recorder = Recorder(store)
    recorder.note(asked(), accepted(), NOW)
    first = asyncio.create_task(recorder.flush(NOW))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(StorageError):
        await recorder.flush(NOW)
    assert recorder.depth == 1
    await recorder.flush(NOW)
    assert len(store.find_audit_now(AuditQuery()).items) == 1


async def test_plenty_does_not_wait():
    """Whoever writes the log is woken when much waits, and else when its patience ends."""
    recorder = Recorder(MemoryStore())
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await recorder.plenty(0.05)
    assert loop.time() - begun >= 0.04
    waiting = asyncio.create_task(recorder.plenty(30))
    for _ in range(1023):
        recorder.note(asked(), accepted(), NOW)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    recorder.note(asked(), accepted(), NOW)
    await asyncio.wait_for(waiting, 5)
    # Also what was there before.
    await asyncio.wait_for(recorder.plenty(30), 5)
    await recorder.flush(NOW)
    begun = loop.time()
    await recorder.plenty(0.05)
    assert loop.time() - begun >= 0.04
