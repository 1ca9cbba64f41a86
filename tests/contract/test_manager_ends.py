"""Rotation, expiry and scheduled revocation on every backend: ends come exactly, and for good."""

from __future__ import annotations

import pytest

from api_key_manager.core import (
    ConflictError,
    KeyExpiredError,
    KeyRevokedError,
    Reason,
    ValidationError,
    sign,
)
from api_key_manager.core.models import MICROSECONDS
from tests.contract.views import listed, logged

VALID, BAD = Reason.VALID, Reason.BAD_SIGNATURE


@pytest.fixture
def manager(either_manager):
    return either_manager


def ask(manager, secret: str, key_id: str = "k"):
    return manager.verify(key_id, sign(secret, key_id))


async def reason(manager, secret: str) -> Reason:
    return (await ask(manager, secret)).reason


async def test_rotate_at_once(manager):
    """Without an overlap the old secret ends with the rotation, warm cache or not."""
    old = (await manager.create_key("k", prefix="acme"))["secret"]
    assert await ask(manager, old)
    made = await manager.rotate_key("k")
    assert made["secret"].startswith("acme_secret_")
    assert made["version"] == 2
    assert await reason(manager, old) is BAD
    assert (await ask(manager, made["secret"])).version == 2


async def test_rotate_with_overlap(manager, clock):
    """Both secrets work until exactly the end of the overlap, then only the new one."""
    old = (await manager.create_key("k"))["secret"]
    start = clock.now
    new = (await manager.rotate_key("k", overlap_seconds=60))["secret"]
    for offset in (0, 59.999):
        clock.now = start + offset
        assert (await ask(manager, old)).version == 1
        assert (await ask(manager, new)).version == 2
    clock.now = start + 60
    assert await reason(manager, old) is BAD
    assert (await ask(manager, new)).version == 2
    # The clock steps back; what has ended has ended.
    clock.now = start
    assert await reason(manager, old) is BAD
    assert (await ask(manager, new)).version == 2
    history = await manager.key_versions("k")
    assert [(v["version"], v["ended"]) for v in history] == [(2, False), (1, True)]
    assert "key_version_ended" in {e["action"] for e in await logged(manager)}


async def test_rotate_bearer(manager, clock):
    """The same for tokens; the prefix stays."""
    old = (await manager.create_key("app", kind="bearer", prefix="acme_live"))["token"]
    assert await manager.verify(token=old)
    new = (await manager.rotate_key("app", 10))["token"]
    assert new.startswith("acme_live_app_")
    assert new != old
    assert (await manager.verify(token=old)).version == 1
    clock.advance(10)
    assert (await manager.verify(token=old)).reason is BAD
    assert (await manager.verify(token=new)).version == 2


async def test_rotation_extends_nothing(manager, clock):
    """The expiry of the key stays where it was, and so does an earlier end of a version."""
    expires_at = clock.now + 30
    first = (await manager.create_key("k", expires_at=expires_at))["secret"]
    second = (await manager.rotate_key("k", 5))["secret"]
    made = await manager.rotate_key("k", 3600)
    assert made["expires_at"] == (await manager.get_key("k"))["expires_at"] is not None
    clock.advance(5)
    assert await reason(manager, first) is BAD
    assert await reason(manager, second) is VALID
    clock.now = expires_at
    for secret in (second, made["secret"]):
        assert await reason(manager, secret) in (Reason.EXPIRED, BAD)
    assert await reason(manager, made["secret"]) is Reason.EXPIRED
    with pytest.raises(KeyExpiredError):
        await manager.rotate_key("k")


async def test_rotation_with_an_own_secret(manager):
    """The caller may bring the new secret; not for a bearer key, and not a bad overlap."""
    await manager.create_key("k", "first")
    await manager.rotate_key("k", secret="second")
    assert await reason(manager, "second") is VALID
    await manager.create_key("app", kind="bearer")
    for call in (
        manager.rotate_key("app", secret="own"),
        manager.rotate_key("k", -1),
        manager.rotate_key("k", 1.5),
        manager.rotate_key("k", secret=""),
    ):
        with pytest.raises(ValidationError):
            await call
    assert (await manager.get_key("k"))["version"] == 2


async def test_too_many_live_versions(manager):
    """Overlaps do not pile up without end."""
    await manager.create_key("k")
    for _ in range(7):
        await manager.rotate_key("k", 3600)
    with pytest.raises(ConflictError):
        await manager.rotate_key("k", 3600)
    assert (await manager.get_key("k"))["version"] == 8


async def test_expiry(manager, clock):
    """Expired at the instant itself; a clock that jumps back does not revive; a new expiry does."""
    expires_at = clock.now + 100
    secret = (await manager.create_key("k", expires_at=expires_at))["secret"]
    clock.now = expires_at - 0.001
    assert await reason(manager, secret) is VALID
    clock.now = expires_at
    assert await reason(manager, secret) is Reason.EXPIRED
    clock.now = expires_at - 50
    assert await reason(manager, secret) is Reason.EXPIRED
    assert (await manager.get_key("k"))["state"] == "expired"
    assert (await manager.find_keys(state="active"))["items"] == []
    with pytest.raises(ValidationError):
        await manager.update_key("k", expires_at=clock.now)
    await manager.update_key("k", expires_at=clock.now + 10)
    assert await reason(manager, secret) is VALID


@pytest.mark.parametrize("expires_at", [0, -1, "now", 1])
async def test_born_expired(manager, expires_at):
    """A key that has ended before it begins is a mistake of the caller."""
    with pytest.raises(ValidationError, match="expires_at"):
        await manager.create_key("k", expires_at=expires_at)
    assert await listed(manager, active_only=False) == []


async def test_scheduled_revocation(manager, clock):
    """Valid until the instant, revoked from it on, for good, and the log says both."""
    secret = (await manager.create_key("k"))["secret"]
    at = clock.now + 60
    assert await manager.revoke_key("k", "moving", at=at) is True
    assert await reason(manager, secret) is VALID
    assert await manager.revoke_key("k", at=at + 500) is True
    clock.now = at
    assert await reason(manager, secret) is Reason.REVOKED
    clock.now = at - 30
    assert await reason(manager, secret) is Reason.REVOKED
    with pytest.raises(KeyRevokedError):
        await manager.rotate_key("k")
    log = [e["action"] for e in await logged(manager) if e["action"].startswith("key_revo")]
    assert log == ["key_revocation_scheduled", "key_revocation_scheduled", "key_revoked"]
    assert (await manager.get_key("k"))["revoke_reason"] == "moving"


async def test_revocation_comes_nearer_only(manager, clock):
    """A scheduled revocation can be brought forward, never put off or taken back."""
    secret = (await manager.create_key("k"))["secret"]
    await manager.revoke_key("k", at=clock.now + 60)
    await manager.revoke_key("k", at=clock.now + 10)
    await manager.update_key("k", disabled=False, expires_at=None)
    clock.advance(10)
    assert await reason(manager, secret) is Reason.REVOKED
    await manager.create_key("j")
    await manager.revoke_key("j", at=clock.now - 100)
    assert (await manager.get_key("j"))["state"] == "revoked"


async def test_the_sweeper(manager, clock):
    """Ends are written down also where nobody asks; then they need no clock."""
    secrets = {}
    for i in range(5):
        made = await manager.create_key(f"k{i}", expires_at=clock.now + 10 + i)
        secrets[f"k{i}"] = made["secret"]
    assert await manager.sweep() == 0
    clock.advance(12)
    assert await manager.sweep(limit=2) == 2
    assert await manager.sweep() == 1
    assert await manager.sweep() == 0
    clock.advance(-12)
    states = [(await manager.get_key(key_id))["state"] for key_id in secrets]
    assert states == ["expired"] * 3 + ["active"] * 2
    expired = [e for e in await logged(manager) if e["action"] == "key_expired"]
    assert {e["actor"] for e in expired} == {"system"}
    assert len(expired) == 3


async def test_an_end_is_written_down_by_whoever_sees_it(manager, clock):
    """The first judgement past an end writes it, before it answers: no sweeper is needed."""
    await manager.create_key("k", "the-secret", expires_at=clock.now + 10)
    clock.advance(10)
    await manager.verify("k", "0" * 64)
    (record,) = await manager.store.load(["k"])
    assert record.expired
    assert record.updated_at == clock.now * MICROSECONDS


async def test_an_end_that_cannot_be_written(manager, clock, monkeypatch, caplog):
    """Where the store does not take the end, the clock still judges: refused, not let in."""
    secret = (await manager.create_key("k", expires_at=clock.now + 10))["secret"]
    assert await ask(manager, secret)
    clock.advance(10)

    async def full(*_):
        from api_key_manager.core import StorageError

        raise StorageError("disk full")

    monkeypatch.setattr(type(manager.store), "apply", full)
    assert await reason(manager, secret) is Reason.EXPIRED
    assert "could not be written" in caplog.text
