"""Rate limits that the keys of an owner share: on every backend."""

from __future__ import annotations

from typing import Any

import pytest

from api_key_manager.core import KeyManager, Reason, ValidationError, sign
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import SharedLimit
from api_key_manager.core.presented import present

SECRET = "super-secret-key"
OWN = {"name": "own", "limit": 3, "window_seconds": 10}
SHARED = {"name": "all", "limit": 4, "window_seconds": 10, "scope": "owner"}


@pytest.fixture
def manager(either_manager) -> KeyManager:
    return either_manager


async def ask(manager: KeyManager, key: str, **options: Any) -> Any:
    at = int(manager.clock())
    return await manager.verify(key, sign(SECRET, key, at), at, **options)


async def reasons(manager: KeyManager, keys: str, **options: Any) -> list[str]:
    return [str((await ask(manager, key, **options)).reason) for key in keys]


async def make(manager: KeyManager, *keys: str, **fields: Any) -> None:
    for key in keys:
        await manager.create_key(key, SECRET, **{"owner": "acme", **fields})


async def test_shared(manager):
    """What one key takes, another one of the owner no longer has; what is its own is its own."""
    await make(manager, "a", "b", rate_limits=[OWN, SHARED])
    assert await reasons(manager, "aaaabb") == [
        "valid", "valid", "valid", "rate_limited", "valid", "rate_limited",
    ]  # fmt: skip
    verdict = await ask(manager, "a")
    assert verdict.rate_limit.deciding.name == "own"
    verdict = await ask(manager, "b")
    assert verdict.rate_limit.deciding.name == "all"
    assert [state.remaining for state in verdict.rate_limit.states] == [2, 0]


async def test_a_refusal_takes_nothing(manager, clock):
    """What the key's own limit refuses takes nothing from the others, and the other way round."""
    await make(manager, "a", "b", rate_limits=[OWN, SHARED])
    assert await reasons(manager, "aaa" + "a" * 10) == ["valid"] * 3 + ["rate_limited"] * 10
    assert await reasons(manager, "b" + "b" * 10) == ["valid"] + ["rate_limited"] * 10
    clock.advance(10)
    assert (await ask(manager, "b")).rate_limit.states[0].remaining == 2


async def test_who_shares(manager):
    """Other owners, environments and numbers have a bucket of their own."""
    await make(manager, "a", rate_limits=[SHARED])
    await make(manager, "b", rate_limits=[SHARED], owner="other")
    await make(manager, "c", rate_limits=[SHARED], environment="test")
    await make(manager, "d", rate_limits=[{**SHARED, "limit": 1}])
    assert await reasons(manager, "aaaaa") == ["valid"] * 4 + ["rate_limited"]
    assert await reasons(manager, "bcd") == ["valid"] * 3


async def test_shape(manager):
    """The scope shows only where it is the owner's; a key's own limit looks as ever."""
    plain = {**OWN, "scope": "key"}
    created = await manager.create_key("k", SECRET, owner="acme", rate_limits=[SHARED, plain])
    assert created["rate_limits"] == [OWN, SHARED]
    assert (await manager.get_key("k"))["rate_limits"] == [OWN, SHARED]
    await manager.update_key("k", rate_limits=[OWN])
    assert (await manager.get_key("k"))["rate_limits"] == [OWN]


async def test_no_default_beside_them(manager_of):
    """A key with a shared limit has limits, so the default is not for it."""
    default = [RateLimit("default", 1, 60)]
    manager = manager_of(options={"default_limits": default})
    await make(manager, "a", rate_limits=[SHARED])
    assert await reasons(manager, "aa") == ["valid"] * 2


async def test_with_a_quota(manager):
    """A shared limit that refuses gives the credits back, too."""
    await make(manager, "a", "b", rate_limits=[SHARED], quota={"limit": 9, "refill": "never"})
    assert await reasons(manager, "aaaab") == ["valid"] * 4 + ["rate_limited"]
    assert (await manager.get_key("b"))["quota"]["spent"] == 0


async def test_in_a_batch(manager):
    """Of a batch of several keys exactly so many pass."""
    await make(manager, "a", "b", rate_limits=[SHARED])
    at = int(manager.clock())
    batch = [present(key, sign(SECRET, key, at), at) for key in "abababab"]
    assert sum(map(bool, await manager.verify_batch(batch))) == 4


async def test_edited(manager, backend):
    """A scope that somebody wrote into the database or took out is noticed."""
    if not backend.persistent:
        pytest.skip("the memory store has no columns")
    await make(manager, "k", rate_limits=[SHARED])
    for limits in ('[["all",4,10]]', '[["all",9,10,"owner"]]', '[["all",4,10,"key"]]', "[]"):
        backend.edit("k", rate_limits=limits)
        manager.records.changed(["k"])
        assert (await ask(manager, "k")).reason is Reason.UNAVAILABLE
    backend.edit("k", rate_limits='[["all",4,10,"owner"]]')
    manager.records.changed(["k"])
    assert await ask(manager, "k")


async def test_bad_scopes(manager):
    """What is wrong is named; keys of nobody share nothing."""
    for scope in ("owners", 1, [], ""):
        with pytest.raises(ValidationError, match=r"rate_limits\[0\].scope: key or owner"):
            await make(manager, "k", rate_limits=[{**SHARED, "scope": scope}])
    with pytest.raises(ValidationError, match="needs a key with an owner"):
        await make(manager, "k", rate_limits=[SHARED], owner=None)
    await make(manager, "k", rate_limits=[SHARED])
    with pytest.raises(ValidationError, match="needs a key with an owner"):
        await manager.update_key("k", owner=None)
    with pytest.raises(ValidationError, match="another limit has this name"):
        await make(manager, "j", rate_limits=[SHARED, {**OWN, "name": "all"}])


def test_limiter():
    """All are decided together: what one refuses takes nothing from the others, whoever they are
    of; and a cost of 0 takes nothing at all."""
    limiter = MemoryLimiter(clock=lambda: 0)
    own, first, second = (RateLimit(name, n, 10) for name, n in (("o", 5), ("f", 3), ("s", 2)))
    shared = (SharedLimit("@f", first), SharedLimit("@s", second))
    for allowed in (True, True, False, False):
        decision = limiter.take_now("k", (own,), 1, shared)
        assert decision.allowed is allowed
    assert [state.remaining for state in decision.states] == [3, 1, 0]
    assert decision.deciding.name == "s"
    for _ in range(3):
        states = limiter.take_now("j", (), 0, shared[:1]).states
        assert [state.remaining for state in states] == [1]
    assert limiter.take_now("j", (), 1, shared[:1]).allowed
    assert not limiter.take_now("i", (), 1, shared[:1]).allowed
