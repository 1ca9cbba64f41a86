"""The use cases on every backend, cached and writing through: the life of a key, end to end."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from api_key_manager.core import (
    AsyncAPIKeyValidator,
    InvalidSignatureError,
    KeyExistsError,
    KeyExpiredError,
    KeyManager,
    KeyNotFoundError,
    KeyRevokedError,
    PermissionDeniedError,
    Reason,
    StorageError,
    ValidationError,
    sign,
)
from api_key_manager.core.leaks import LeakReport
from api_key_manager.core.models import AuditQuery
from api_key_manager.core.records import RecordCache
from tests.contract.views import listed, logged

NONCE = "n" * 16


@pytest.fixture
def manager(either_manager):
    return either_manager


async def actions(manager) -> list[str]:
    return [entry["action"] for entry in await logged(manager)]


async def test_create_signed(manager, clock):
    """A signed key shows its secret this once, and is as published."""
    made = await manager.create_key("client-123", "super-secret-key", {"tier": "premium"})
    assert made["key_id"] == "client-123"
    assert made["secret"] == "super-secret-key"
    assert made["metadata"] == {"tier": "premium"}
    assert (made["active"], made["last_used"], made["version"]) == (True, None, 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", made["created_at"])
    assert await manager.validate_key("client-123", sign("super-secret-key", "client-123"))
    got = await manager.get_key("client-123")
    assert got["secret"] == "***REDACTED***"
    assert got["last_used"] is not None
    assert {**got, "secret": made["secret"], "last_used": None} == made


async def test_create_minted(manager):
    """Left out, id and secret are minted; two are never alike."""
    one, two = await manager.create_key(), await manager.create_key(prefix="acme")
    assert re.fullmatch(r"[0-9A-Za-z]{16}", one["key_id"])
    assert re.fullmatch(r"akm_secret_[0-9A-Za-z]{36}", one["secret"])
    assert re.fullmatch(r"acme_secret_[0-9A-Za-z]{36}", two["secret"])
    assert one["key_id"] != two["key_id"]
    assert await manager.validate_key(one["key_id"], sign(one["secret"], one["key_id"]))


async def test_bearer(manager):
    """A bearer key shows its token this once; only that token is taken."""
    made = await manager.create_key("app", kind="bearer", permissions=["documents.*"])
    assert made["token"].startswith("akm_app_")
    assert "secret" not in made
    verdict = await manager.verify(token=made["token"], permissions="documents.read")
    assert (verdict.reason, verdict.scheme, verdict.version) == (Reason.VALID, "bearer", 1)
    other = await manager.create_key("app2", kind="bearer")
    wrong = other["token"].replace("app2", "app")
    assert (await manager.verify(token=wrong)).reason is Reason.MALFORMED
    assert (await manager.get_key("app"))["token"] == "***REDACTED***"
    with pytest.raises(ValidationError):
        await manager.create_key("a_b", kind="bearer")
    with pytest.raises(ValidationError):
        await manager.create_key("x", "own-secret", kind="bearer")


async def test_an_id_is_taken_once(manager):
    """A second create is refused, also after revocation and deletion, and changes nothing."""
    await manager.create_key("k", "first-secret")
    for end in (None, manager.revoke_key, manager.delete_key):
        if end is not None:
            await end("k")
        with pytest.raises(KeyExistsError):
            await manager.create_key("k", "second-secret")
        with pytest.raises((InvalidSignatureError, KeyNotFoundError)):
            await manager.validate_key("k", sign("second-secret", "k"))
    assert (await actions(manager)).count("key_created") == 1


@pytest.mark.parametrize(
    ("exception", "reason", "fields", "how"),
    [
        (InvalidSignatureError, "bad_signature", {}, {"secret": "wrong"}),
        (InvalidSignatureError, "weak_scheme", {"min_scheme": "timestamped"}, {"stamp": None}),
        (KeyRevokedError, "disabled", {"disabled": True}, {}),
        (KeyExpiredError, "stale_timestamp", {}, {"age": 21661}),
        (KeyExpiredError, "future_timestamp", {}, {"age": -61}),
        (PermissionDeniedError, "ip_denied", {"ip_allowlist": ["10.0.0.0/8"]}, {}),
        (ValidationError, "malformed", {}, {"nonce": "short"}),
    ],
)
async def test_refusals(manager, clock, exception, reason, fields, how):
    """Each refusal is its exception with its slug, and stands in the audit log."""
    secret = (await manager.create_key("k", **fields))["secret"]
    stamp = None if "stamp" in how else clock.seconds - how.get("age", 0)
    signature = sign(how.get("secret", secret), "k", stamp)
    with pytest.raises(exception) as caught:
        await manager.validate_key("k", signature, stamp, how.get("nonce"))
    assert caught.value.reason == reason
    (entry,) = [e for e in await logged(manager) if e["action"] == "key_refused"]
    assert (entry["reason"], entry["count"]) == (reason, 1)
    assert (entry["key_id"], entry["actor"]) == ("k", "library")


async def test_unknown_keys(manager):
    """An unknown id is refused everywhere with the same exception."""
    for call in (
        manager.validate_key("nobody", "0" * 64),
        manager.get_key("nobody"),
        manager.revoke_key("nobody"),
        manager.rotate_key("nobody"),
        manager.delete_key("nobody"),
        manager.update_key("nobody", owner="o"),
        manager.key_versions("nobody"),
    ):
        with pytest.raises(KeyNotFoundError) as caught:
            await call
        assert caught.value.reason == "not_found"
    assert (await manager.verify("nobody", "0" * 64)).reason is Reason.NOT_FOUND


async def test_update(manager):
    """A change shows at once, in the record and in the judgement, and in the audit log by name."""
    secret = (await manager.create_key("k", metadata={"a": 1}))["secret"]
    assert await manager.validate_key("k", sign(secret, "k"))
    changed = await manager.update_key("k", metadata={"b": 2}, owner="o", disabled=True)
    assert (changed["metadata"], changed["owner"], changed["active"]) == ({"b": 2}, "o", False)
    with pytest.raises(KeyRevokedError):
        await manager.validate_key("k", sign(secret, "k"))
    await manager.update_key("k", disabled=False)
    assert (await manager.verify("k", sign(secret, "k"))).metadata == {"b": 2}
    updates = [e for e in await logged(manager) if e["action"] == "key_updated"]
    assert [e["detail"]["fields"] for e in updates] == [
        ["disabled", "metadata", "owner"], ["disabled"],
    ]  # fmt: skip
    for wrong in ({}, {"revoked": True}, {"expires_at": 5}, {"secret": "x"}):
        with pytest.raises(ValidationError):
            await manager.update_key("k", **wrong)


async def test_revoke(manager):
    """Refused from the next call on, for good; a second revocation is fine and changes nothing."""
    secret = (await manager.create_key("k"))["secret"]
    assert await manager.validate_key("k", sign(secret, "k"))
    assert await manager.revoke_key("k", "leaked") is True
    with pytest.raises(KeyRevokedError) as caught:
        await manager.validate_key("k", sign(secret, "k"))
    assert caught.value.reason == "revoked"
    assert await manager.revoke_key("k", "again") is True
    got = await manager.get_key("k")
    assert (got["active"], got["state"], got["revoke_reason"]) == (False, "revoked", "leaked")
    assert await listed(manager) == []
    assert [key["key_id"] for key in await listed(manager, active_only=False)] == ["k"]
    assert (await actions(manager)).count("key_revoked") == 1


async def test_delete(manager):
    """Gone from every list and look-up, its secret useless, its id taken for ever."""
    secret = (await manager.create_key("k"))["secret"]
    assert await manager.validate_key("k", sign(secret, "k"))
    assert await manager.delete_key("k") is True
    assert (await manager.verify("k", sign(secret, "k"))).reason is Reason.NOT_FOUND
    assert await listed(manager, active_only=False) == []
    assert (await manager.find_keys())["items"] == []
    with pytest.raises(KeyNotFoundError):
        await manager.delete_key("k")
    assert (await actions(manager))[-2:] == ["key_deleted", "key_refused"]


async def test_revoke_many(manager, clock):
    """By filter, or all that were made before an instant; a dry run only says which."""
    await manager.create_key("old-a", owner="a")
    await manager.create_key("old-b", owner="b")
    await manager.create_key("done", owner="a")
    await manager.revoke_key("done")
    clock.advance(100)
    secret = (await manager.create_key("new-a", owner="a"))["secret"]
    assert await manager.validate_key("new-a", sign(secret, "new-a"))
    before = clock.now - 50
    plan = await manager.revoke_keys(dry_run=True, created_before=before)
    assert plan == {"dry_run": True, "matched": 2, "revoked": 0, "key_ids": ["old-a", "old-b"]}
    assert len(await listed(manager)) == 3
    done = await manager.revoke_keys(created_before=before, owner="a", reason="leak")
    assert (done["matched"], done["revoked"], done["key_ids"]) == (1, 1, ["old-a"])
    assert [key["key_id"] for key in await listed(manager)] == ["new-a", "old-b"]
    assert (await manager.revoke_keys(owner="a"))["key_ids"] == ["new-a"]
    with pytest.raises(KeyRevokedError):
        await manager.validate_key("new-a", sign(secret, "new-a"))
    for nothing in ({}, {"owner": None}, {"nonsense": 1}, {"realm": "admin"}):
        with pytest.raises(ValidationError):
            await manager.revoke_keys(**nothing)
    assert [key["key_id"] for key in await listed(manager)] == ["old-b"]


async def test_batch(manager, clock):
    """Per item, in order: id, result and reason; each validation stands in the audit log."""
    stamp = clock.seconds
    a = (await manager.create_key("a"))["secret"]
    b = await manager.create_key("b", kind="bearer")
    await manager.create_key("gone")
    await manager.revoke_key("gone")
    nonced = {
        "key_id": "a", "signature": sign(a, "a", stamp, NONCE), "timestamp": stamp, "nonce": NONCE,
    }  # fmt: skip
    results = await manager.batch_validate(
        [
            {"key_id": "a", "signature": sign(a, "a")},
            {"key": "a", "signature": sign(a, "a", stamp), "timestamp": stamp},
            {"key_id": "a", "signature": sign(a, "a", stamp), "timestamp": stamp + 1},
            {"token": b["token"]},
            {"key_id": "gone", "signature": "0" * 64},
            {"key_id": "nobody", "signature": "0" * 64},
            {"key_id": "a"}, {}, None, 7, {"key_id": "a", "signature": sign(a, "a"), "odd": 1},
            nonced, nonced,
        ]
    )  # fmt: skip
    assert [(r["key_id"], r["reason"]) for r in results] == [
        ("a", "valid"), ("a", "valid"), ("a", "bad_signature"), ("b", "valid"),
        ("gone", "bad_signature"), ("nobody", "not_found"),
        ("a", "malformed"), *[(None, "malformed")] * 3, ("a", "malformed"),
        ("a", "valid"), ("a", "replayed"),
    ]  # fmt: skip
    assert all(r["valid"] is (r["reason"] == "valid") for r in results)
    counted: Counter = Counter()
    for entry in await logged(manager):
        if entry["action"] in ("key_validated", "key_refused"):
            counted[entry["reason"]] += entry["count"]
    assert counted == Counter(r["reason"] for r in results)
    assert await manager.batch_validate([]) == []


async def test_find_keys(manager):
    """Pages by cursor, filters by name, nothing of another realm."""
    for i in range(25):
        await manager.create_key(f"k{i:02d}", owner=f"o{i % 2}")
    await manager.create_key("token", kind="bearer", realm="admin", permissions=["admin"])
    found, cursor = [], None
    while True:
        page = await manager.find_keys(limit=4, cursor=cursor, owner="o1")
        found += [key["key_id"] for key in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == [f"k{i:02d}" for i in range(25) if i % 2]
    assert len(await listed(manager)) == 25
    with pytest.raises(KeyNotFoundError):
        await manager.get_key("token")
    with pytest.raises(KeyNotFoundError):
        await manager.revoke_key("token")
    assert (await manager.find_keys(realm="admin"))["items"][0]["key_id"] == "token"


async def test_audit_tells_the_story(manager):
    """Everything that happened, in its order, by the plain call and page by page."""
    made = await manager.create_key("k")
    await manager.validate_key("k", sign(made["secret"], "k"))
    await manager.update_key("k", owner="o")
    await manager.verify("k", "0" * 64)
    new = await manager.rotate_key("k")
    await manager.validate_key("k", sign(new["secret"], "k"))
    await manager.revoke_key("k", "over")
    await manager.delete_key("k")
    expected = [
        "key_created", "key_validated", "key_updated", "key_refused", "key_rotated",
        "key_validated", "key_revoked", "key_deleted",
    ]  # fmt: skip
    log = await logged(manager)
    assert [e["action"] for e in log] == expected
    assert {e["key_id"] for e in log} == {"k"}
    assert {e["actor"] for e in log} == {"library"}
    assert {"timestamp", "action", "key_id", "reason", "ip", "request_id", "detail"} <= log[
        0
    ].keys()
    paged, cursor = [], None
    while True:
        page = await manager.find_audit(limit=3, cursor=cursor)
        paged += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert paged == log[::-1]
    assert (await manager.find_audit(action="key_revoked"))["items"] == [log[6]]


async def test_no_answer_from_the_store(manager, monkeypatch):
    """A store that cannot answer is `unavailable`: refused, and never an odd exception."""
    secret = (await manager.create_key("k"))["secret"]

    async def down(*_):
        raise StorageError("down")

    monkeypatch.setattr(type(manager.store), "load", down)
    verdict = await manager.verify("k", sign(secret, "k"))
    assert verdict.reason is Reason.UNAVAILABLE
    with pytest.raises(StorageError):
        await manager.validate_key("k", sign(secret, "k"))


async def test_writing_through_a_cache(backend, clock):
    """Without a background each verdict is in the log before it is given, also of a cached key."""
    if not backend.persistent:
        pytest.skip("keys in memory are written when somebody looks")
    manager = KeyManager(
        AsyncAPIKeyValidator(clock=clock), store=backend.store, box=backend.box,
        cache=RecordCache(10, 300, owned=True),
    )  # fmt: skip
    await manager.create_key("k", "a-secret")
    for times in (1, 2, 3):
        verdict = await manager.verify("k", sign("a-secret", "k"))
        assert (verdict.valid, verdict.cached) == (True, times > 1)
        found = await backend.store.find_audit(AuditQuery(limit=10, action="key_validated"))
        assert len(found.items) == times


async def test_a_leaked_secret_is_found_without_its_id(manager):
    """On every store a secret alone finds its key, while it is alive."""
    key = await manager.create_key("k")
    other = await manager.create_key("other")
    (leak,) = await manager.report_leaks([LeakReport(key["secret"], "https://x/")])
    assert (leak.key_id, leak.version, leak.action) == ("k", 1, "revoked")
    assert (await manager.get_key("other"))["active"]
    await manager.delete_key("other")
    assert await manager.report_leaks([LeakReport(other["secret"])]) == [None]
