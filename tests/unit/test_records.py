"""Where open records come from: never an old one over a newer one, never more reads than needed."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from api_key_manager.core import (
    AsyncAPIKeyValidator,
    EncryptionError,
    KeyManager,
    Reason,
    StorageError,
    policy,
    sign,
)
from api_key_manager.core import records as module
from api_key_manager.core.memory import MemoryBox, MemoryStore
from api_key_manager.core.records import RecordCache, Records, open_record
from api_key_manager.core.signing import MacState
from api_key_manager.core.tokens import mint_token


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
    key = Records(MemoryStore().load, box, RecordCache(10, 300, owned=True)).decoy("signed")
    cache = RecordCache(10, 300, owned=False)
    lease(monkeypatch, 100.0)
    cache.put(key)
    assert not cache.leased
    assert len(cache.map) == 0
    cache.prolong(102.0)
    cache.put(key)
    lease(monkeypatch, 101.999)
    assert cache.get("decoy-of-no-body") is key
    lease(monkeypatch, 102.0)
    assert cache.get("decoy-of-no-body") is None
    cache.prolong(1000.0)
    assert cache.get("decoy-of-no-body") is key
    lease(monkeypatch, 400.0)
    assert cache.get("decoy-of-no-body") is None


async def test_owned_cache_has_a_time_to_live(monkeypatch):
    """A cache of a store that nobody else changes keeps a record for its time to live; 0 is off."""
    key = Records(MemoryStore().load, MemoryBox(), RecordCache(1, 1, owned=True)).decoy("signed")
    for ttl, found in ((5, key), (0, None)):
        cache = RecordCache(10, ttl, owned=True)
        lease(monkeypatch, 100.0)
        cache.put(key)
        assert cache.get("decoy-of-no-body") is found
        lease(monkeypatch, 105.0)
        assert cache.get("decoy-of-no-body") is None


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
    assert opened == ["decoy-of-no-body"] * 3


@pytest.fixture
def counted(monkeypatch):
    """What is done of each thing that takes its time."""
    counts = Counter()

    def count(owner, name):
        real = getattr(owner, name)

        def counting(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in (
        (MemoryStore, "load"), (MemoryBox, "open"), (MemoryBox, "record_mac"),
        (MacState, "__init__"), (MacState, "digest"), (policy, "matches"), (policy, "networks"),
    ):  # fmt: skip
        count(owner, name)
    return counts


STAMP = 1_760_000_000
SIGNATURES = {
    "static": ("0" * 64,),
    "timestamped": ("0" * 64, STAMP),
    "with a nonce": ("0" * 64, STAMP, "n" * 16),
}


@pytest.mark.parametrize("how", [*SIGNATURES, "token"])
async def test_before_the_proof_all_ids_cost_the_same(manager, store, counted, how):
    """Who knows an id only cannot tell whether it exists, nor of which kind it is, by the work
    that is done: not the first time, nor again."""
    listed = {"ip_allowlist": [f"10.{i}.0.0/16" for i in range(256)]}
    await make(manager, "signed", **listed)
    await manager.create_key("bearer", kind="bearer", **listed)
    manager.records.changed_all()
    costs = {}
    for key_id in ("nobody", "signed", "bearer") * 2:
        counted.clear()
        if how == "token":
            verdict = await manager.verify(token=mint_token("akm", key_id))
        else:
            verdict = await manager.verify(key_id, *SIGNATURES[how])
        unknown = key_id == "nobody"
        assert verdict.reason is (Reason.NOT_FOUND if unknown else Reason.BAD_SIGNATURE)
        costs.setdefault(key_id, []).append(dict(counted))
    assert costs["nobody"][0] == costs["nobody"][1]
    assert costs["signed"] == costs["bearer"] == costs["nobody"]
    assert costs["nobody"][0].get("open", 0) == (0 if how == "token" else 1)
    assert costs["nobody"][0]["load"] == 1


async def test_an_allowlist_is_read_once(clock, counted):
    """Networks are parsed for the first caller who proved the secret, and kept with the key."""
    manager = KeyManager(AsyncAPIKeyValidator(clock=clock))
    secret = await make(manager, ip_allowlist=["10.0.0.0/8"])
    for _ in range(3):
        signature = sign(secret, "k", STAMP)
        assert (await manager.verify("k", signature, STAMP, ip="10.1.2.3")).valid
    assert counted["networks"] == 1


async def test_a_secret_that_does_not_open_is_unavailable(manager, store, caplog):
    """A record that is intact, of a secret that does not open: the truth cannot be told."""
    secret = await make(manager)
    (record,) = await store.load(["k"])
    version = replace(record.versions[0], sealed=bytes(64))
    broken = replace(record, versions=(version,))
    broken = replace(broken, mac=manager.box.record_mac(broken))
    with pytest.raises(EncryptionError):
        open_record(broken, manager.box)

    async def load(key_ids):
        return [broken for _ in key_ids]

    store.load = load
    manager.records.changed_all()
    assert (await ask(manager, secret)).reason is Reason.UNAVAILABLE
    assert "the sealed secret of k was changed" in caplog.text
