"""Nonces beside the keys: one winner, also between processes, and no way to forget."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from pathlib import Path

import pytest

from api_key_manager.core import Reason
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.storage import SqlNonceStore, nonces
from tests.integration.places import Place, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def fresh() -> str:
    return secrets.token_urlsafe(24)


async def test_two_processes_at_the_same_moment(place):
    """Of two processes that present one nonce at the same instant exactly one is believed, each
    of 20 times."""
    async with place.open() as deployment:
        key = await deployment.manager.create_key()
    arguments = (key["key_id"], key["secret"])
    winners = Counter()
    with place.child("claim", *arguments) as a, place.child("claim", *arguments) as b:
        for child in (a, b):
            assert child.hear() == "ready"
        for _ in range(20):
            line = f"{fresh()} {time.time() + 0.03}"
            for child in (a, b):
                child.tell(line)
            answers = (a.hear(), b.hear())
            assert sorted(answers) == [Reason.REPLAYED, Reason.VALID]
            winners[answers.index(Reason.VALID)] += 1
    assert winners.total() == 20


async def test_same_moment_in_one_process(place):
    """Of 50 concurrent presentations of one nonce one is believed; so within one batch."""
    async with place.open() as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        for _ in range(5):
            item = signed(manager, key, fresh())
            verdicts = await asyncio.gather(*(manager.verify(**item) for _ in range(50)))
            assert Counter(v.reason for v in verdicts) == {Reason.VALID: 1, Reason.REPLAYED: 49}
        item = signed(manager, key, fresh())
        answers = await manager.batch_validate([item] * 10)
        assert [answer["reason"] for answer in answers] == ["valid"] + ["replayed"] * 9


async def test_nothing_left_of_the_bar_burns_a_nonce(place):
    """A bad signature, a stale timestamp, a revoked key: the nonce stays the caller's."""
    async with place.open() as deployment:
        manager = deployment.manager
        key = await manager.create_key(permissions=["a"])
        good = signed(manager, key, fresh())
        wrong = {**good, "signature": "0" * 64}
        assert (await manager.verify(**wrong)).reason is Reason.BAD_SIGNATURE
        stale = signed(manager, key, good["nonce"], age=400)
        assert (await manager.verify(**stale)).reason is Reason.STALE_TIMESTAMP
        assert (await manager.verify(**good, permissions="b")).reason is Reason.FORBIDDEN
        await manager.update_key(key["key_id"], disabled=True)
        assert (await manager.verify(**good)).reason is Reason.DISABLED
        await manager.update_key(key["key_id"], disabled=False)
        assert place.sql("SELECT * FROM nonces") == []
        assert (await manager.verify(**good)).reason is Reason.VALID
        assert (await manager.verify(**good)).reason is Reason.REPLAYED
        other = await manager.create_key()
        assert (await manager.verify(**signed(manager, other, good["nonce"]))).valid


async def test_restart_forgets_nothing(place):
    """A nonce used before a restart is refused after it; an unused one of that time is taken."""
    async with place.open() as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        used, unused = signed(manager, key, fresh()), signed(manager, key, fresh())
        assert await manager.verify(**used)
    async with place.open() as deployment:
        assert (await deployment.manager.verify(**used)).reason is Reason.REPLAYED
        assert (await deployment.manager.verify(**unused)).reason is Reason.VALID


async def test_lost_claims_are_not_believed(place):
    """When the database says that claims up to an instant may be lost, what is dated up to then
    plus the skew is refused for keys that existed; later ones and newer keys are taken."""
    async with place.open() as deployment:
        key = await deployment.manager.create_key("old")
    place.sql("UPDATE deployment SET nonce_birth = ?", time.time_ns() // 1000 - 100_000_000)
    place.sql("UPDATE deployment SET nonce_birth = nonce_birth + 50000000")
    async with place.open() as deployment:
        birth = await deployment.manager._verifier._nonces.birth() / 1_000_000
        store = SqlNonceStore(deployment.manager.store.driver)

        def claim(timestamp: float, since: float) -> Claim:
            return Claim(key["key_id"], fresh(), int(timestamp), int(timestamp) + 420, since)

        results = await store.claim(
            [
                claim(birth - 10, birth - 1000),
                claim(birth + 59, birth - 1000),
                claim(birth + 62, birth - 1000),
                claim(birth - 10, birth + 59),
                claim(birth - 10, birth + 61),
            ],
            time.time(),
            60,
        )
        refused, taken = ClaimResult.REFUSED, ClaimResult.TAKEN
        assert results == [refused, refused, taken, refused, taken]


async def test_pruned_after_their_end_only(place):
    """A nonce is forgotten when it could no longer be presented, and not a second before; the
    count that caps a key goes down with it."""
    async with place.open(NONCE_WINDOW_SECONDS=300, CLOCK_SKEW_TOLERANCE_SECONDS=60) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        item = signed(manager, key, fresh())
        assert await manager.verify(**item)
        store = SqlNonceStore(manager.store.driver)
        ends = item["timestamp"] + 300 + 2 * 60
        assert place.sql("SELECT expires_at FROM nonces") == [(ends,)]
        assert await store.prune(ends) == 0
        assert place.sql("SELECT held FROM nonce_counts") == [(1,)]
        # The last moment at which its timestamp passes is before its end.
        assert item["timestamp"] + 300 + 60 < ends
        assert await store.prune(ends + 1) == 1
        assert place.sql("SELECT * FROM nonces") == []
        assert place.sql("SELECT * FROM nonce_counts") == []


async def test_pruning_goes_in_pieces(place):
    """However many nonces have ended, one transaction removes at most 256."""
    async with place.open(background=False) as deployment:
        store = SqlNonceStore(deployment.manager.store.driver)
        claims = [Claim(f"k{i % 3}", fresh(), 1, 10, float("inf")) for i in range(600)]
        assert set(await store.claim(claims, 1, 60)) == {ClaimResult.TAKEN}
        live = [Claim("k0", fresh(), 1, 11, float("inf"))]
        assert await store.claim(live, 1, 60) == [ClaimResult.TAKEN]
        assert [await store.prune(11) for _ in range(4)] == [256, 256, 88, 0]
        assert place.sql("SELECT key_id, held FROM nonce_counts") == [("k0", 1)]
        assert [await store.prune(12) for _ in range(2)] == [1, 0]
        assert place.sql("SELECT * FROM nonce_counts") == []


async def test_running_deployment_prunes(place):
    """Ended nonces go by themselves."""
    async with place.open():
        place.sql("INSERT INTO nonces VALUES ('k', 'n', 5)")
        place.sql("INSERT INTO nonce_counts VALUES ('k', 1)")
    async with place.open():
        deadline = time.monotonic() + 10
        while place.sql("SELECT * FROM nonces"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    assert place.sql("SELECT * FROM nonce_counts") == []


async def test_cap_refuses_only_that_key(place, monkeypatch):
    """A key that holds as many nonces as allowed is told `unavailable`; another key is not, nor
    the same key without a nonce, nor itself once some have ended."""
    monkeypatch.setattr(nonces.SqlNonceStore.__init__, "__defaults__", (5,))
    async with place.open() as deployment:
        manager = deployment.manager
        greedy, other = await manager.create_key("greedy"), await manager.create_key("other")
        for _ in range(5):
            assert await manager.verify(**signed(manager, greedy, fresh()))
        over = signed(manager, greedy, fresh())
        assert (await manager.verify(**over)).reason is Reason.UNAVAILABLE
        assert (await manager.verify(**signed(manager, other, fresh()))).valid
        assert (await manager.verify(**signed(manager, greedy))).valid
        place.sql("UPDATE nonces SET expires_at = 5 WHERE key_id = 'greedy'")
        assert await SqlNonceStore(manager.store.driver).prune(6) == 5
        assert (await manager.verify(**over)).valid


async def test_no_store_no_acceptance(place):
    """When claims cannot be written, nothing with a nonce is accepted; the rest goes on."""
    async with place.open() as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        assert await manager.verify(**signed(manager, key))
        manager.store.driver._writer.execute("PRAGMA query_only=ON")
        item = signed(manager, key, fresh())
        assert (await manager.verify(**item)).reason is Reason.UNAVAILABLE
        assert (await manager.verify(**signed(manager, key))).valid
        manager.store.driver._writer.execute("PRAGMA query_only=OFF")
        assert (await manager.verify(**item)).valid
