"""Many callers at once on every backend: one read, no stale record, no flood that does harm."""

from __future__ import annotations

import asyncio

import pytest

from api_key_manager.core import Reason, sign
from api_key_manager.core.presented import present
from tests.contract.views import logged

NONCE = "n" * 16


class SlowStore:
    """Hands everything on; while ``gates`` is a list, each load waits there with its answer."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self.loads = 0
        self.gates: list[asyncio.Event] | None = None

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    async def load(self, key_ids):
        self.loads += 1
        found = await self._inner.load(key_ids)
        if self.gates is not None:
            gate = asyncio.Event()
            self.gates.append(gate)
            await gate.wait()
        return found

    async def waiting(self) -> asyncio.Event:
        """The gate of the next load; loads after it pass."""
        while not self.gates:  # noqa: ASYNC110 - the load comes within a few turns of the loop
            await asyncio.sleep(0)
        (gate,), self.gates = self.gates, None
        return gate


@pytest.fixture
def slow(backend) -> SlowStore:
    return SlowStore(backend.store)


@pytest.fixture
def manager(manager_of, slow):
    return manager_of(store=slow)


async def test_single_flight(manager, slow):
    """200 callers of a cold key make one load, and all get their answer."""
    secret = (await manager.create_key("k"))["secret"]
    slow.loads, slow.gates = 0, []
    calls = [asyncio.create_task(manager.verify("k", sign(secret, "k"))) for _ in range(200)]
    gate = await slow.waiting()
    for _ in range(5):
        await asyncio.sleep(0)
    gate.set()
    verdicts = await asyncio.gather(*calls)
    assert all(verdicts)
    assert not any(verdict.cached for verdict in verdicts)
    assert slow.loads == 1
    assert (await manager.verify("k", sign(secret, "k"))).cached
    assert slow.loads == 1


@pytest.mark.parametrize("change", ["revoke", "rotate", "delete", "disable"])
async def test_overtaken_by_a_change(manager, slow, change: str):
    """A record that changes while it is being read is not believed afterwards, nor cached."""
    secret = (await manager.create_key("k"))["secret"]
    slow.gates = []
    call = asyncio.create_task(manager.verify("k", sign(secret, "k")))
    gate = await slow.waiting()
    expected = {
        "revoke": (manager.revoke_key("k"), Reason.REVOKED),
        "rotate": (manager.rotate_key("k"), Reason.BAD_SIGNATURE),
        "delete": (manager.delete_key("k"), Reason.NOT_FOUND),
        "disable": (manager.update_key("k", disabled=True), Reason.DISABLED),
    }
    changed, reason = expected.pop(change)
    await changed
    for unused, _ in expected.values():
        unused.close()
    gate.set()
    assert (await call).reason is reason
    assert (await manager.verify("k", sign(secret, "k"))).reason is reason


async def test_the_flood(manager, backend):
    """Unknown ids and wrong signatures neither fill the cache nor push anything out of it."""
    secret = (await manager.create_key("good"))["secret"]
    for i in range(20):
        await manager.create_key(f"known-{i}")
    assert await manager.verify("good", sign(secret, "good"))
    before = manager.cache.map.stats()
    for i in range(1500):
        reason = (await manager.verify(f"unknown-{i}", "0" * 64)).reason
        assert reason is Reason.NOT_FOUND
        reason = (await manager.verify(f"known-{i % 20}", sign("wrong", f"known-{i % 20}"))).reason
        assert reason is Reason.BAD_SIGNATURE
    after = manager.cache.map.stats()
    assert (after["cache_size"], after["evictions"]) == (before["cache_size"], 0) == (1, 0)
    assert manager.records._flights == {}
    # One event per second for all unknown ids, one for each key that was tried.
    assert manager.recorder.depth < 30
    assert (await manager.verify("good", sign(secret, "good"))).cached
    counts = {e["key_id"]: e["count"] for e in await logged(manager) if e["reason"] != "valid"}
    assert counts[None] == 1500
    assert counts["known-3"] == 75


async def test_verify_now_does_nothing_when_it_cannot(manager, clock):
    """`None` from `verify_now` means that nothing was claimed, counted or recorded."""
    secret = (await manager.create_key("k", expires_at=clock.now + 100))["secret"]
    stamp = clock.seconds
    await manager.recorder.flush(clock.now, uses=True)
    cold = present("k", sign(secret, "k"))
    nonced = present("k", sign(secret, "k", stamp, NONCE), stamp, NONCE)

    async def untouched(given) -> None:
        revision = (await manager.store.load(["k"]))[0].revision
        assert manager.verify_now(given, clock.now) is None
        assert manager.recorder.depth == 0
        assert manager.recorder.last_use("k") is None
        assert (await manager.store.load(["k"]))[0].revision == revision

    await untouched(cold)
    assert len(manager.cache.map) == 0
    assert await manager.verify_presented(cold)
    await manager.recorder.flush(clock.now, uses=True)
    # Warm: a nonce needs I/O, and is not taken by asking.
    await untouched(nonced)
    assert await manager.verify_presented(nonced)
    await manager.recorder.flush(clock.now, uses=True)
    # Past an end that is not written down.
    clock.advance(100)
    await untouched(cold)
    assert (await manager.verify_presented(cold)).reason is Reason.EXPIRED


async def test_verify_now_answers_from_the_cache(manager, slow, clock):
    """A warm key is judged without I/O, refusals included, and each is recorded once."""
    secret = (await manager.create_key("k"))["secret"]
    good, bad = present("k", sign(secret, "k")), present("k", "0" * 64)
    await manager.verify_presented(good)
    await manager.recorder.flush(clock.now)
    slow.loads = 0
    verdicts = [manager.verify_now(given, clock.now) for given in (good, bad, present())]
    assert [str(v.reason) for v in verdicts] == ["valid", "bad_signature", "malformed"]
    assert all(v.cached for v in verdicts)
    assert manager.recorder.depth == 3
    assert slow.loads == 0


async def test_fifty_of_one_nonce(manager, clock):
    """Of fifty equal requests with a nonce at the same moment exactly one is accepted."""
    secret = (await manager.create_key("k"))["secret"]
    stamp = clock.seconds
    signature = sign(secret, "k", stamp, NONCE)
    verdicts = await asyncio.gather(
        *(manager.verify("k", signature, stamp, NONCE) for _ in range(50))
    )
    assert sorted(str(v.reason) for v in verdicts) == ["replayed"] * 49 + ["valid"]
    await manager.recorder.flush(clock.now)
    log = [e["reason"] for e in (await manager.find_audit(limit=1000, key_id="k"))["items"]]
    assert log.count("replayed") == 49
    assert log.count("valid") == 1


async def test_a_cancelled_batch_leaves_nothing(manager, slow, clock):
    """A batch that is cancelled while it reads has accepted, claimed and recorded nothing."""
    secret = (await manager.create_key("k"))["secret"]
    stamp = clock.seconds
    item = {
        "key_id": "k", "signature": sign(secret, "k", stamp, NONCE), "timestamp": stamp,
        "nonce": NONCE,
    }  # fmt: skip
    slow.gates = []
    batch = asyncio.create_task(manager.batch_validate([item, item]))
    await slow.waiting()
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert manager.recorder.depth == 0
    assert [r["reason"] for r in await manager.batch_validate([item])] == ["valid"]


async def test_two_rotations_at_once(manager, slow):
    """Of two rotations of one key at the same moment each is made on the other, or refused."""
    await manager.create_key("k")
    results = await asyncio.gather(
        *(manager.rotate_key("k", 60) for _ in range(5)), return_exceptions=True
    )
    made = [r for r in results if isinstance(r, dict)]
    assert made
    assert {getattr(r, "reason", None) for r in results if r not in made} <= {"conflict"}
    assert len({r["version"] for r in made}) == len(made)
    assert (await manager.get_key("k"))["version"] == 1 + len(made)
    for one in made:
        assert (await manager.verify("k", sign(one["secret"], "k"))).version == one["version"]
