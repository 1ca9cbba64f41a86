"""Quotas as part of a key: on every backend, spent durably, and only by what is accepted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api_key_manager.core import (
    KeyManager,
    RateLimitExceededError,
    Reason,
    StorageError,
    ValidationError,
    sign,
)
from api_key_manager.core.models import MICROSECONDS, rfc3339
from api_key_manager.core.ports import GivenBack, Spend, Spent
from api_key_manager.core.presented import present

SECRET = "super-secret-key"
THREE = {"limit": 3, "refill": "never"}
DAY = {"limit": 3, "refill": "daily", "hour": 6, "zone": "Europe/Berlin"}


@pytest.fixture
def manager(either_manager) -> KeyManager:
    return either_manager


async def ask(manager: KeyManager, key: str = "k", **options: Any) -> Any:
    at = int(manager.clock())
    return await manager.verify(key, sign(SECRET, key, at), at, **options)


async def reasons(manager: KeyManager, count: int, **options: Any) -> list[str]:
    return [str((await ask(manager, **options)).reason) for _ in range(count)]


async def spent(manager: KeyManager, key: str = "k") -> int:
    return (await manager.get_key(key))["quota"]["spent"]


async def test_used_up(manager):
    """So many are accepted; the next one is refused with the slug, status and exception of it."""
    await manager.create_key("k", SECRET, quota=THREE)
    assert [(await ask(manager)).quota.remaining for _ in range(3)] == [2, 1, 0]
    verdict = await ask(manager)
    assert verdict.reason is Reason.QUOTA_EXCEEDED
    assert verdict.quota == (3, 0, None, 0.0)
    error = verdict.error()
    assert isinstance(error, RateLimitExceededError)
    assert (error.reason, error.retry_after) == ("quota_exceeded", None)
    assert await spent(manager) == 3


async def test_refill(manager, clock):
    """It is full again at the hour of the zone, which a refusal names."""
    await manager.create_key("k", SECRET, quota=DAY)
    assert await reasons(manager, 4) == ["valid"] * 3 + ["quota_exceeded"]
    verdict = await ask(manager)
    resets_at = verdict.quota.resets_at / MICROSECONDS
    assert rfc3339(verdict.quota.resets_at)[11:19] in ("04:00:00", "05:00:00")
    assert verdict.quota.retry_after == pytest.approx(resets_at - clock.now)
    clock.now = resets_at - 0.001
    assert (await ask(manager)).reason is Reason.QUOTA_EXCEEDED
    clock.now = resets_at
    assert await spent(manager) == 0
    assert await reasons(manager, 4) == ["valid"] * 3 + ["quota_exceeded"]


async def test_cost(manager):
    """A request takes its cost, whole or not at all; one above the limit never passes."""
    await manager.create_key("k", SECRET, quota=THREE)
    assert await reasons(manager, 1, cost=4) == ["quota_exceeded"]
    assert await reasons(manager, 2, cost=2) == ["valid", "quota_exceeded"]
    assert await reasons(manager, 2) == ["valid", "quota_exceeded"]
    assert await spent(manager) == 3


async def test_rotation_gives_nothing(manager):
    """The credits are the key's: both secrets take from them, and a new one brings none."""
    await manager.create_key("k", SECRET, quota=THREE)
    assert await reasons(manager, 2) == ["valid"] * 2
    await manager.rotate_key("k", 60, secret="another-secret")
    at = int(manager.clock())
    new = await manager.verify("k", sign("another-secret", "k", at), at)
    assert (new.reason, new.version) == (Reason.VALID, 2)
    assert await reasons(manager, 1) == ["quota_exceeded"]


async def test_refused_for_something_else(manager, clock):
    """What is refused before takes no credits: bad signatures, old ones, missing permissions."""
    await manager.create_key("k", SECRET, quota=THREE)
    at = clock.seconds
    await manager.verify("k", sign("wrong", "k", at), at)
    await manager.verify("k", sign(SECRET, "k", at - 86_400), at - 86_400)
    assert await reasons(manager, 2, permissions="a.b") == ["forbidden"] * 2
    await manager.update_key("k", disabled=True)
    assert await reasons(manager, 1) == ["disabled"]
    assert await spent(manager) == 0


LIMITS = [{"name": "two", "limit": 2, "window_seconds": 10}]


async def test_rate_limited_takes_no_credits(manager, clock):
    """What a rate limit refuses has its credits back, exactly."""
    await manager.create_key("k", SECRET, quota=THREE, rate_limits=LIMITS)
    assert await reasons(manager, 5) == ["valid"] * 2 + ["rate_limited"] * 3
    assert await spent(manager) == 2
    clock.advance(10)
    assert await reasons(manager, 2) == ["valid", "quota_exceeded"]


async def test_quota_exceeded_takes_nothing_of_the_limits(manager, clock):
    """What the quota refuses is not charged to the rate limits; where both would refuse, the limit
    speaks, as it comes first."""
    await manager.create_key("k", SECRET, quota={"limit": 1, "refill": "never"}, rate_limits=LIMITS)
    assert await reasons(manager, 4) == ["valid"] + ["quota_exceeded"] * 3
    await manager.update_key("k", quota={"limit": 2, "refill": "never"})
    verdict = await ask(manager)
    assert verdict.reason is Reason.VALID
    assert verdict.rate_limit.deciding.remaining == 0
    verdict = await ask(manager)
    assert verdict.reason is Reason.RATE_LIMITED
    assert verdict.rate_limit.retry_after == 5
    assert verdict.quota.remaining == 0
    clock.advance(5)
    assert await reasons(manager, 1) == ["quota_exceeded"]


async def test_shared_by_owner(manager):
    """All keys of an owner take from one account; other owners and environments have their own."""
    shared = {**THREE, "shared_by_owner": True}
    for key, owner, environment in [
        ("a", "acme", None), ("b", "acme", None), ("c", "other", None), ("d", "acme", "test"),
    ]:  # fmt: skip
        await manager.create_key(key, SECRET, owner=owner, environment=environment, quota=shared)
    for key in ("a", "b", "a"):
        assert await ask(manager, key)
    assert [str((await ask(manager, key)).reason) for key in "abcd"] == [
        "quota_exceeded", "quota_exceeded", "valid", "valid",
    ]  # fmt: skip
    assert [await spent(manager, key) for key in "abcd"] == [3, 3, 1, 1]


async def test_sharing_needs_an_owner(manager):
    """Keys of nobody have nothing in common."""
    shared = {**THREE, "shared_by_owner": True}
    with pytest.raises(ValidationError, match="the key needs an owner"):
        await manager.create_key("k", SECRET, quota=shared)
    await manager.create_key("k", SECRET, owner="acme", quota=shared)
    with pytest.raises(ValidationError, match="the key needs an owner"):
        await manager.update_key("k", owner=None)


async def test_changes(manager):
    """A larger or smaller limit counts what was spent; no quota at all takes nothing."""
    created = await manager.create_key("k", SECRET, quota=THREE)
    assert created["quota"] == {
        "limit": 3, "refill": "never", "hour": 0, "zone": "UTC", "shared_by_owner": False,
        "spent": None,
    }  # fmt: skip
    assert await reasons(manager, 2) == ["valid"] * 2
    await manager.update_key("k", quota={"limit": 1, "refill": "never"})
    assert await reasons(manager, 1) == ["quota_exceeded"]
    await manager.update_key("k", quota=None)
    verdict = await ask(manager)
    assert (verdict.reason, verdict.quota) == (Reason.VALID, None)
    assert (await manager.get_key("k"))["quota"] is None
    await manager.update_key("k", quota={"limit": 4, "refill": "never"})
    assert await reasons(manager, 3) == ["valid"] * 2 + ["quota_exceeded"]


async def test_at_once(manager):
    """Of many at once exactly so many are accepted, also in one batch."""
    await manager.create_key("k", SECRET, quota={"limit": 70, "refill": "never"})
    one_by_one = await asyncio.gather(*(ask(manager) for _ in range(50)))
    at = int(manager.clock())
    batch = await manager.verify_batch([present("k", sign(SECRET, "k", at), at)] * 50)
    assert sum(map(bool, one_by_one)) == 50
    assert sum(map(bool, batch)) == 20


async def test_edited(manager, backend):
    """A quota that somebody wrote into the database is no quota, and the key none."""
    if not backend.persistent:
        pytest.skip("the memory store has no columns")
    await manager.create_key("k", SECRET, quota=THREE)
    for quota in (None, '[9,"never",0,"UTC",false]', "[]", "{", "7"):
        backend.edit("k", quota=quota)
        manager.records.changed(["k"])
        assert (await ask(manager)).reason is Reason.UNAVAILABLE
    backend.edit("k", quota='[3,"never",0,"UTC",false]')
    manager.records.changed(["k"])
    assert await ask(manager)


async def test_unusable_zone(manager, monkeypatch):
    """A zone that this machine does not know is no reason to let anybody in."""
    await manager.create_key("k", SECRET, quota=DAY)

    def unknown(name):
        raise KeyError(name)

    monkeypatch.setattr("api_key_manager.core.quotas.ZoneInfo", unknown)
    assert await reasons(manager, 1) == ["unavailable"]


async def test_store_down(manager, backend, monkeypatch):
    """Nobody is let in while it cannot be told; it recovers by itself, and nothing was charged."""
    await manager.create_key("k", SECRET, quota=THREE, rate_limits=LIMITS)

    async def down(asked):
        raise StorageError("down")

    with monkeypatch.context() as patch:
        patch.setattr(backend.quotas, "spend", down)
        assert await reasons(manager, 3) == ["unavailable"] * 3
    assert await reasons(manager, 2) == ["valid"] * 2


async def test_survives_a_restart(manager_of, backend):
    """Another process finds what was spent."""
    first = manager_of()
    await first.create_key("k", SECRET, quota=THREE)
    assert await reasons(first, 2) == ["valid"] * 2
    await first.credits.close(first.clock())
    assert await reasons(manager_of(), 2) == ["valid", "quota_exceeded"]


async def test_no_way_around(manager_of):
    """The short cut for plain keys is not for one with a quota or a shared limit."""
    manager = manager_of()
    shared = [{"name": "all", "limit": 9, "window_seconds": 9, "scope": "owner"}]
    await manager.create_key("plain", SECRET)
    await manager.create_key("quota", SECRET, quota={"limit": 900, "refill": "never"})
    await manager.create_key("shared", SECRET, owner="acme", rate_limits=shared)
    for key, short in (("plain", True), ("quota", False), ("shared", False)):
        assert await ask(manager, key)
        at = int(manager.clock())
        taken = manager.accept_now(
            key, sign(SECRET, key, at), at, 1, at, actor="me", request_id=None
        )
        assert (taken is not None) is short


async def test_warm_without_the_store(manager_of, backend):
    """Between two blocks a validation needs no I/O at all."""
    manager = manager_of()
    await manager.create_key("k", SECRET, quota={"limit": 100_000, "refill": "never"})
    await ask(manager)
    at = int(manager.clock())
    for left in range(99_998, 99_001, -1):
        verdict = manager.verify_now(present("k", sign(SECRET, "k", at), at), manager.clock())
        assert verdict.quota.remaining == left
    assert await backend.quotas.spent([("k:k", 0)]) == [1000]


class TestStore:
    """The port itself."""

    async def test_spend(self, backend):
        """A block where so many are left, else what is needed, else what is left, else nothing."""
        store = backend.quotas

        async def spend(cost: int, needed: int, block: int) -> Spent:
            (taken,) = await store.spend([Spend("b", 5, 100, cost, needed, block, 3)])
            return taken

        assert await spend(1, 1, 20) == (20, 20)
        assert await spend(1, 1, 20) == (20, 40)
        assert await spend(1, 1, 20) == (20, 60)
        assert await spend(1, 2, 20) == (2, 62)
        assert await spend(30, 50, 0) == (38, 100)
        assert await spend(1, 1, 1) == (0, 100)
        assert await spend(101, 101, 1) == (0, 100)
        assert await store.spent([("b", 5), ("b", 6), ("c", 5)]) == [100, 0, 0]

    async def test_first(self, backend):
        """The first one of a period is bounded like every other."""
        asked = [Spend("a", 1, 5, 6, 6), Spend("b", 1, 5, 2, 9), Spend("c", 1, 5, 1, 1, 9, 1)]
        assert await backend.quotas.spend(asked) == [(0, 0), (5, 5), (1, 1)]

    async def test_order(self, backend):
        """Answers come in the order of the questions, also of the same account twice."""
        asked = [Spend(name, 1, 5, 2, 2) for name in ("z", "a", "z", "z", "a")]
        assert await backend.quotas.spend(asked) == [(2, 2), (2, 2), (2, 4), (0, 4), (2, 4)]

    async def test_give_back(self, backend):
        """What is returned can be taken again; nothing more than was taken is ever there."""
        store = backend.quotas
        await store.spend([Spend("b", 1, 5, 5, 5)])
        await store.give_back([GivenBack("b", 1, 2), GivenBack("b", 2, 9), GivenBack("x", 1, 1)])
        assert await store.spent([("b", 1), ("b", 2), ("x", 1)]) == [3, 0, 0]
        assert await store.spend([Spend("b", 1, 5, 3, 3), Spend("b", 1, 5, 2, 2)]) == [
            (0, 3), (2, 5),
        ]  # fmt: skip

    async def test_at_once(self, backend):
        """Of many at once no two take the same credits."""
        asked = [Spend("b", 1, 10, 3, 3)]
        taken = await asyncio.gather(*(backend.quotas.spend(asked) for _ in range(20)))
        assert sorted(each.taken for (each,) in taken) == [0] * 17 + [3] * 3
