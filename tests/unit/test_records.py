"""Where open records come from: never an old one over a newer one, never more reads than needed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from api_key_manager.core import (
    AsyncAPIKeyValidator,
    EncryptionError,
    KeyManager,
    Reason,
    StorageError,
    sign,
)
from api_key_manager.core import records as module
from api_key_manager.core.memory import MemoryBox, MemoryStore
from api_key_manager.core.records import RecordCache, Records, open_record


class PausedStore(MemoryStore):
    """Each load takes its copy at once, and hands it over when the test lets go."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0
        self.gates: list[asyncio.Event] | None = None
        self.error: Exception | None = None

    async def load(self, key_ids):
        self.loads += 1
        found, error = await super().load(key_ids), self.error
        if self.gates is not None:
            gate = asyncio.Event()
            self.gates.append(gate)
            await gate.wait()
        if error is not None:
            raise error
        return found

    async def release(self) -> None:
        """Let every load go, and the tasks behind it run."""
        gates, self.gates = self.gates, None
        for gate in gates:
            gate.set()
        await settled()


async def settled() -> None:
    """Let every task run until it waits for something from outside."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def store() -> PausedStore:
    return PausedStore()


@pytest.fixture
def manager(store, clock) -> KeyManager:
    return KeyManager(AsyncAPIKeyValidator(clock=clock), store=store)


async def make(manager: KeyManager, key_id: str = "k", **fields) -> str:
    return (await manager.create_key(key_id, **fields))["secret"]


def ask(manager: KeyManager, secret: str, key_id: str = "k"):
    return manager.verify(key_id, sign(secret, key_id, 1_760_000_000), 1_760_000_000)


async def test_single_flight(manager, store):
    """200 callers of a cold key make one read."""
    secret = await make(manager)
    store.loads, store.gates = 0, []
    calls = [asyncio.create_task(ask(manager, secret)) for _ in range(200)]
    await settled()
    await store.release()
    assert all(await asyncio.gather(*calls))
    assert store.loads == 1


async def test_a_cancelled_reader_does_not_take_the_others_along(manager, store):
    """When the caller that reads gives up, the others get their answer, by one more read."""
    secret = await make(manager)
    store.loads, store.gates = 0, []
    first, *others = [asyncio.create_task(ask(manager, secret)) for _ in range(50)]
    await settled()
    first.cancel()
    await settled()
    await store.release()
    assert all(await asyncio.gather(*others))
    with pytest.raises(asyncio.CancelledError):
        await first
    assert store.loads == 2


async def test_overtaken_while_read(manager, store):
    """A record that was changed while it was being read is read again, and not kept."""
    secret = await make(manager)
    store.gates = []
    call = asyncio.create_task(ask(manager, secret))
    await settled()
    gates, store.gates = store.gates, None
    await manager.revoke_key("k")
    for gate in gates:
        gate.set()
    assert (await call).reason is Reason.REVOKED
    assert (await ask(manager, secret)).reason is Reason.REVOKED


async def test_overtaken_between_read_and_keep(manager, store):
    """A waiter that wakes up after a change does not put the old record into the cache."""
    secret = await make(manager)
    store.gates = []
    reader = asyncio.create_task(ask(manager, secret))
    await settled()
    waiter = asyncio.create_task(ask(manager, secret))
    await settled()
    gates, store.gates = store.gates, None
    gates[0].set()
    await reader  # the waiter has its result now, but has not run yet
    await manager.revoke_key("k")
    await waiter
    assert (await ask(manager, secret)).reason is Reason.REVOKED


async def test_overtaken_while_another_key_settles(manager, store, clock):
    """In a batch, a key changed while another one's end is written is not kept as it was."""
    secret = await make(manager, "a")
    await make(manager, "b", expires_at=clock.now + 10)
    clock.advance(10)
    signature = sign(secret, "a")
    store.gates = []
    batch = asyncio.create_task(
        manager.batch_validate([
            {"key_id": "a", "signature": signature}, {"key_id": "b", "signature": "0" * 64}
        ])
    )  # fmt: skip
    await settled()
    (gate,), store.gates = store.gates, []
    gate.set()
    await settled()  # both are read; now the end of b is written, and b is read again
    gates, store.gates = store.gates, None
    assert len(gates) == 1
    await manager.revoke_key("a")
    gates[0].set()
    await batch
    assert (await manager.verify("a", signature)).reason is Reason.REVOKED


async def test_changed_again_and_again(manager, store):
    """A key that changes during every read is still answered, and its old records are not kept."""
    secret = await make(manager)
    store.gates = []
    call = asyncio.create_task(ask(manager, secret))
    for i in range(3):
        await settled()
        (gate,), store.gates = store.gates, None
        await manager.update_key("k", metadata={"i": i})
        store.gates = []
        gate.set()
    assert await call
    store.gates = None
    assert (await ask(manager, secret)).metadata == {"i": 2}


async def test_a_store_that_cannot_answer(manager, store, caplog):
    """No answer from the store is `unavailable`, for every waiter, and is not remembered."""
    secret = await make(manager)
    store.error, store.gates = StorageError("down"), []
    calls = [asyncio.create_task(ask(manager, secret)) for _ in range(5)]
    await settled()
    await store.release()
    assert {verdict.reason for verdict in await asyncio.gather(*calls)} == {Reason.UNAVAILABLE}
    store.error = None
    assert await ask(manager, secret)


async def test_records_are_forgotten_after_use(manager, store):
    """No trace of a read stays behind, also of ids that do not exist."""
    await make(manager)
    for i in range(100):
        await manager.verify(f"unknown-{i}", "0" * 64)
    assert manager.records._flights == {}
    assert len(manager.cache.map) == 0


def lease(monkeypatch, now: float):
    monkeypatch.setattr(module, "boot_clock", lambda: now)


async def test_lease(monkeypatch):
    """The cache answers while its lease runs, keeps nothing without one, and ends on its own."""
    box = MemoryBox()
    key = Records(MemoryStore(), box, RecordCache(10, 300, owned=True)).decoy("signed")
    cache = RecordCache(10, 300, owned=False)
    lease(monkeypatch, 100.0)
    cache.put(key)
    assert not cache.leased
    assert len(cache.map) == 0
    cache.prolong(102.0)
    cache.put(key)
    lease(monkeypatch, 101.999)
    assert cache.get("decoy") is key
    lease(monkeypatch, 102.0)
    assert cache.get("decoy") is None
    cache.prolong(1000.0)
    assert cache.get("decoy") is key
    lease(monkeypatch, 400.0)
    assert cache.get("decoy") is None


async def test_owned_cache_has_a_time_to_live(monkeypatch):
    """A cache of a store that nobody else changes keeps a record for its time to live; 0 is off."""
    key = Records(MemoryStore(), MemoryBox(), RecordCache(1, 1, owned=True)).decoy("signed")
    for ttl, found in ((5, key), (0, None)):
        cache = RecordCache(10, ttl, owned=True)
        lease(monkeypatch, 100.0)
        cache.put(key)
        assert cache.get("decoy") is found
        lease(monkeypatch, 105.0)
        assert cache.get("decoy") is None


async def test_edited_record_is_refused():
    """Whatever column is edited, the record does not open."""
    manager = KeyManager()
    await make(manager, permissions=["a"], metadata={"a": 1})
    (record,) = await manager.store.load(["k"])
    assert open_record(record, manager.box).record is record
    sealed = replace(record.versions[0], sealed=record.versions[0].sealed + b"x")
    for edited in (
        replace(record, permissions=("admin",)),
        replace(record, revision=record.revision + 1),
        replace(record, key_id="other"),
        replace(record, mac=b""),
        replace(record, mac=bytes(32)),
        replace(record, versions=()),
        replace(record, versions=(sealed,)),
    ):
        with pytest.raises(EncryptionError):
            open_record(edited, manager.box)


async def test_decoys_cost_a_real_opening():
    """An unknown key is opened like a known one, from sealed bytes, each time anew."""
    opened = []

    class CountingBox(MemoryBox):
        def open(self, purpose, name, version, sealed):
            opened.append(name)
            return super().open(purpose, name, version, sealed)

    manager = KeyManager(box=CountingBox())
    for _ in range(3):
        assert (await manager.verify("nobody", "0" * 64)).reason is Reason.NOT_FOUND
    assert opened == ["decoy"] * 3
