"""The audit log on a file: complete, exactly counted, in order, and honest when it cannot be."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from api_key_manager.core import Reason, StorageError
from tests.integration.places import Place, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def counted(place: Place, action: str = "key_validated") -> int:
    return place.sql("SELECT coalesce(sum(count), 0) FROM audit_events WHERE action = ?", action)[
        0
    ][0]


async def eventually(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


class Broken:
    """A store that cannot record, for as long as the test says."""

    def __init__(self, store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls, record = True, 0, store.record
        self.says = asyncio.Event()
        self.says.set()

        async def fail(events, used):
            self.calls += 1
            await asyncio.sleep(0)
            await self.says.wait()
            if self.now:
                raise StorageError("a test says no")
            await record(events, used)

        monkeypatch.setattr(store, "record", fail)


@pytest.mark.parametrize("seconds", [0.1, 0.8])
async def test_flushed_in_time(place, seconds):
    """An event is on disk within AUDIT_FLUSH_SECONDS, and not written one by one before."""
    async with place.open(AUDIT_FLUSH_SECONDS=seconds) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        await asyncio.sleep(0)
        took = []
        for round_ in range(3):  # the machine may be busy, but not each time
            for _ in range(5):
                assert await manager.verify(**signed(manager, key))
            noted = time.monotonic()
            assert counted(place) == 5 * round_
            await eventually(lambda written=5 * round_ + 5: counted(place) == written)
            took.append(time.monotonic() - noted)
        assert min(took) <= seconds + 0.5
        assert place.sql("SELECT count(*) FROM audit_events") == [(16,)]


async def test_exact_counts(place):
    """Of 3,000 validations, warm and cold, good and bad, each is counted exactly once, also when
    the manager closes right behind them."""
    async with place.open(AUDIT_FLUSH_SECONDS=0.05) as deployment:
        manager = deployment.manager
        keys = [await manager.create_key() for _ in range(10)]
        for i in range(300):
            calls = [manager.verify(**signed(manager, key)) for key in keys[:7]]
            calls += [
                manager.verify(**{**signed(manager, key), "signature": "0" * 64})
                for key in keys[7:9]
            ]
            calls.append(manager.verify(f"unknown-{i}", "0" * 64))
            verdicts = await asyncio.gather(*calls)
            assert sum(map(bool, verdicts)) == 7
    rows = place.sql("SELECT action, reason, sum(count) FROM audit_events GROUP BY 1, 2")
    assert {(action, reason): count for action, reason, count in rows} == {
        ("key_created", None): 10,
        ("key_validated", "valid"): 2100,
        ("key_refused", "bad_signature"): 600,
        ("key_refused", "not_found"): 300,
    }


async def test_complete_after_close(place):
    """Closing writes what waits: events, and when each key was last used."""
    async with place.open(AUDIT_FLUSH_SECONDS=10) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        await asyncio.sleep(0.05)
        for _ in range(100):
            await manager.verify(**signed(manager, key))
        assert manager.get_stats()["audit_queue"] == 100
    assert counted(place) == 100
    assert place.sql("SELECT key_id FROM key_uses") == [(key["key_id"],)]
    async with place.open() as deployment:
        assert (await deployment.manager.get_key(key["key_id"]))["last_used"] is not None


async def test_complete_when_closed_in_the_middle_of_a_flush(place):
    """A close that meets a flush under way loses nothing and doubles nothing."""
    for round_ in range(10):
        async with place.open(AUDIT_FLUSH_SECONDS=0.01) as deployment:
            manager = deployment.manager
            key = await manager.create_key()
            for i in range(200):
                await manager.verify(**signed(manager, key))
                if i % (7 + round_) == 0:
                    await asyncio.sleep(0.001)
        assert counted(place) == 200 * (round_ + 1)


async def test_change_stands_behind_what_was_validated_before_it(place):
    """The log's order is what happened: all validations before a change stand before it, none of
    those after it do."""
    async with place.open(AUDIT_FLUSH_SECONDS=10) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        for _ in range(3):
            await manager.verify(**signed(manager, key))
        await manager.update_key("k", owner="o")
        await manager.verify(**signed(manager, key))
        await manager.revoke_key("k")
        await manager.verify(**signed(manager, key))
        told = [(event["action"], event["reason"]) for event in manager.get_audit_log()]
    assert told == [
        ("key_created", None),
        *[("key_validated", "valid")] * 3,
        ("key_updated", None),
        ("key_validated", "valid"),
        ("key_revoked", None),
        ("key_refused", "revoked"),
    ]


async def test_plain_calls_see_everything_before_them(place):
    """`get_audit_log` and `find_audit` show what happened up to the call, flushed or not."""
    async with place.open(AUDIT_FLUSH_SECONDS=10) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        for i in range(1, 4):
            await manager.verify(**signed(manager, key))
            assert len(manager.get_audit_log()) == 1 + 2 * i - 1
            await manager.verify(**signed(manager, key))
            assert len((await manager.find_audit())["items"]) == 1 + 2 * i


async def test_store_that_cannot_record(place, monkeypatch, caplog):
    """While events cannot be written they are kept and the node says so; then they are written,
    once each, in order, without a restart."""
    async with place.open(AUDIT_FLUSH_SECONDS=0.02) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        broken = Broken(manager.store, monkeypatch)
        for _ in range(10):
            assert await manager.verify(**signed(manager, key))
        await eventually(deployment.problems)
        assert "audit log cannot be written" in deployment.problems()[0]
        for _ in range(10):
            assert await manager.verify(**signed(manager, key))
        await eventually(lambda: broken.calls > 3)
        # While a write is being tried they are out of the queue.
        await eventually(lambda: manager.get_stats()["audit_queue"] == 20)
        assert counted(place) == 0
        # A change cannot overtake what was before it.
        with pytest.raises(StorageError):
            await manager.update_key(key["key_id"], owner="o")
        assert (await manager.get_key(key["key_id"]))["owner"] is None
        broken.now = False
        await eventually(lambda: counted(place) == 20)
        await eventually(lambda: not deployment.problems())
        assert manager.get_stats()["audit_queue"] == 0
        await manager.update_key(key["key_id"], owner="o")
    assert caplog.text.count("audit log cannot be written") <= 3, "once, not at every flush"
    times = [at for (at,) in place.sql("SELECT at FROM audit_events ORDER BY id")]
    assert times == sorted(times)


async def test_full_queue(place, monkeypatch):
    """With the queue full a validation waits about 100 ms for room and is then `unavailable`;
    with room again it is answered, and nothing was lost."""
    async with place.open(AUDIT_FLUSH_SECONDS=10) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        await asyncio.sleep(0.05)
        broken = Broken(manager.store, monkeypatch)
        broken.says.clear()
        monkeypatch.setattr(manager.recorder, "_capacity", 20)
        accepted = [await manager.verify(**signed(manager, key)) for _ in range(20)]
        assert all(accepted)
        took = []
        for _ in range(3):  # the machine may be busy, but not each time
            begun = time.monotonic()
            refused = await asyncio.gather(
                *(manager.verify(**signed(manager, key)) for _ in range(10))
            )
            took.append(time.monotonic() - begun)
            assert {verdict.reason for verdict in refused} == {Reason.UNAVAILABLE}
        assert 0.08 <= min(took) < 0.5
        with pytest.raises(StorageError):
            await manager.validate_key(**signed(manager, key))
        broken.now = False
        broken.says.set()
        await eventually(lambda: manager.recorder._making_room.done())
        for _ in range(10):
            accepted += await asyncio.gather(
                *(manager.verify(**signed(manager, key)) for _ in range(10))
            )
        assert all(accepted)
    assert counted(place) == len(accepted)


async def test_write_through_manager(place, monkeypatch):
    """Without a background every verdict is in the log before it is given, or it is refused."""
    async with place.open(background=False) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        for i in range(5):
            assert await manager.verify(**signed(manager, key))
            assert counted(place) == i + 1
        broken = Broken(manager.store, monkeypatch)
        assert (await manager.verify(**signed(manager, key))).reason is Reason.UNAVAILABLE
        broken.now = False
        assert await manager.verify(**signed(manager, key))


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("all", {"key_created": 1, "key_validated": 5, "key_refused": 5}),
        ("failures", {"key_created": 1, "key_refused": 5}),
        ("none", {"key_created": 1}),
    ],
)
async def test_which_validations(place, which, wanted):
    """AUDIT_VALIDATIONS decides over validations only: changes are always logged."""
    async with place.open(AUDIT_VALIDATIONS=which) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        for _ in range(5):
            await manager.verify(**signed(manager, key))
            await manager.verify(**{**signed(manager, key), "signature": "0" * 64})
    rows = place.sql("SELECT action, sum(count) FROM audit_events GROUP BY action")
    assert Counter(dict(rows)) == wanted
