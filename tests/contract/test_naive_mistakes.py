"""What naive versions get wrong, one regression test each, on every backend.

What concerns odd input stands in ``test_naive_inputs.py``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api_key_manager.core import (
    APIKeyManagerException,
    InvalidSignatureError,
    KeyExistsError,
    KeyExpiredError,
    KeyRevokedError,
    Reason,
    StorageError,
    ValidationError,
    sign,
)
from tests.contract.views import logged

NONCE = "n" * 16


@pytest.fixture
def manager(either_manager):
    return either_manager


async def warm(manager, clock, key_id: str = "k", **fields: Any) -> str:
    """A key whose static and timestamped signatures were accepted a moment ago."""
    secret = (await manager.create_key(key_id, **fields))["secret"]
    assert await manager.validate_key(key_id, sign(secret, key_id))
    stamp = clock.seconds
    assert await manager.validate_key(key_id, sign(secret, key_id, stamp), stamp)
    return secret


async def test_warm_cache_accepts_a_wrong_secret(manager, clock):
    """A signature made with another secret is refused, however often the right one was seen."""
    await warm(manager, clock)
    for stamp in (None, clock.seconds):
        with pytest.raises(InvalidSignatureError):
            await manager.validate_key("k", sign("another secret", "k", stamp), stamp)


async def test_warm_cache_accepts_an_old_timestamp(manager, clock):
    """A signature that was accepted is refused once its timestamp has left the window."""
    secret = await warm(manager, clock)
    stamp = clock.seconds
    clock.advance(360 * 60 + 61)
    with pytest.raises(KeyExpiredError):
        await manager.validate_key("k", sign(secret, "k", stamp), stamp)


async def test_warm_cache_accepts_the_signature_of_a_replaced_secret(manager, clock):
    """After a rotation, what the old secret signed is refused."""
    secret = await warm(manager, clock)
    await manager.rotate_key("k")
    for stamp in (None, clock.seconds):
        with pytest.raises(InvalidSignatureError):
            await manager.validate_key("k", sign(secret, "k", stamp), stamp)


async def test_warm_cache_accepts_a_revoked_key(manager, clock):
    """After a revocation, what was accepted a moment ago is refused."""
    secret = await warm(manager, clock)
    await manager.revoke_key("k")
    for stamp in (None, clock.seconds):
        with pytest.raises(KeyRevokedError):
            await manager.validate_key("k", sign(secret, "k", stamp), stamp)


@pytest.mark.parametrize("where", ["deployment", "key"])
async def test_forged_timestamp_on_a_static_signature(manager_of, clock, where: str):
    """Where static signatures are off, one over the key alone gains nothing by a timestamp."""
    manager = manager_of(allow_static_signatures=where == "key")
    fields = {"min_scheme": "timestamped"} if where == "key" else {}
    secret = (await manager.create_key("k", **fields))["secret"]
    for stamp in (None, clock.seconds, clock.seconds - 100):
        with pytest.raises(InvalidSignatureError) as caught:
            await manager.validate_key("k", sign(secret, "k"), stamp)
        assert caught.value.reason == "weak_scheme"


async def test_static_signature_with_a_nonce(manager, clock):
    """A nonce beside a signature that does not cover it is worth nothing."""
    secret = await warm(manager, clock)
    stamp = clock.seconds
    for signature in (sign(secret, "k"), sign(secret, "k", stamp)):
        with pytest.raises(InvalidSignatureError) as caught:
            await manager.validate_key("k", signature, stamp, NONCE)
        assert caught.value.reason == "bad_signature"


async def test_failed_validations_are_missing_from_the_audit_log(manager, clock):
    """Every failed validation stands in the log, with its reason."""
    await warm(manager, clock)
    for call in (
        manager.validate_key("k", "0" * 64),
        manager.validate_key("nobody", "0" * 64),
        manager.validate_key("k", "too short"),
        manager.validate_key("k", "0" * 64, clock.seconds),
    ):
        with pytest.raises(APIKeyManagerException):
            await call
    refused = [e for e in await logged(manager) if e["action"] == "key_refused"]
    counts = {e["reason"]: 0 for e in refused}
    for entry in refused:
        counts[entry["reason"]] += entry["count"]
    assert counts == {"bad_signature": 2, "not_found": 1, "malformed": 1}


@pytest.mark.parametrize("end", ["revoke_key", "delete_key", None])
async def test_second_create_overwrites_or_revives(manager, clock, end: str | None):
    """The id of a live, revoked or deleted key is taken: the second create changes nothing."""
    secret = await warm(manager, clock)
    if end:
        await getattr(manager, end)("k")
    with pytest.raises(KeyExistsError):
        await manager.create_key("k", secret)
    assert bool(await manager.verify("k", sign(secret, "k"))) is (end is None)


async def test_a_nonce_burnt_by_a_bad_request(manager, clock):
    """Only a request that passed everything else uses up its nonce."""
    fields = {"ip_allowlist": ["10.0.0.0/8"], "permissions": ["read"]}
    secret = (await manager.create_key("k", **fields))["secret"]
    stamp = clock.seconds
    good = sign(secret, "k", stamp, NONCE)
    around = {"ip": "10.0.0.1", "permissions": "read"}

    async def reason(signature: str, **more: Any) -> str:
        verdict = await manager.verify("k", signature, stamp, NONCE, **{**around, **more})
        return str(verdict.reason)

    assert await reason("0" * 64) == "bad_signature"
    assert await reason(good, ip="192.0.2.1") == "ip_denied"
    assert await reason(good, permissions="write") == "forbidden"
    await manager.update_key("k", disabled=True)
    assert await reason(good) == "disabled"
    await manager.update_key("k", disabled=False)
    clock.advance(361)
    assert await reason(good) == "stale_timestamp"
    clock.advance(-361)
    assert await reason(good) == "valid"
    assert await reason(good) == "replayed"
    assert await reason("0" * 64) == "bad_signature"


async def test_a_nonce_forgotten_while_its_window_is_open(manager, backend, clock):
    """A nonce is held until its request is too old to be accepted, however tidy the store is."""
    secret = (await manager.create_key("k"))["secret"]
    stamp = clock.seconds
    signature = sign(secret, "k", stamp, NONCE)
    assert await manager.verify("k", signature, stamp, NONCE)
    # The last moment of the window, and as far back as a clock within its tolerance may step.
    for at in (stamp + 360, stamp + 360 + 59):
        clock.now = at
        nonces = backend.nonces()
        if hasattr(nonces, "prune"):
            await nonces.prune(clock.now)
        # Stores that tidy up while they claim do it now.
        other = f"another-nonce-{at}"
        assert await manager.verify("k", sign(secret, "k", at, other), at, other)
        clock.now = stamp + 360
        verdict = await manager.verify("k", signature, stamp, NONCE)
        assert verdict.reason is Reason.REPLAYED


async def test_a_nonce_claimed_twice_by_two_managers(manager_of, clock):
    """Two managers over one store, as two workers are: one of them accepts."""
    one, two = manager_of(), manager_of()
    secret = (await one.create_key("k"))["secret"]
    stamp = clock.seconds
    signature = sign(secret, "k", stamp, NONCE)
    verdicts = await asyncio.gather(
        *(manager.verify("k", signature, stamp, NONCE) for manager in (one, two) * 10)
    )
    assert [str(v.reason) for v in verdicts].count("valid") == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"permissions": ("admin",)}, {"expires_at": 253_402_300_799_000_000}, {"revoked": False},
        {"disabled": False}, {"revoked_at": None, "revoked": False}, {"min_scheme": "static"},
        {"ip_allowlist": ()}, {"owner": "thief"}, {"realm": "admin"}, {"metadata_json": "[}"},
        {"mac": b""}, {"revision": 10**9}, {"kind": "bearer"}, {"deleted_at": None, "expired": 1},
    ],
    ids=lambda columns: "-".join(columns),
)  # fmt: skip
async def test_an_edited_row_is_believed(manager_of, backend, clock, columns, caplog):
    """A record edited by hand is refused as `unavailable` and reported, whatever was edited."""
    maker = manager_of()
    fields = {
        "permissions": ["read"], "ip_allowlist": ["10.0.0.0/8"], "expires_at": clock.now + 999,
        "disabled": True, "min_scheme": "timestamped",
    }  # fmt: skip
    secret = (await maker.create_key("k", **fields))["secret"]
    await maker.revoke_key("k")
    backend.edit("k", **columns)
    manager = manager_of()
    stamp = clock.seconds
    signature = sign(secret, "k", stamp)
    verdict = await manager.verify("k", signature, stamp, ip="10.0.0.1")
    assert verdict.reason is Reason.UNAVAILABLE
    assert verdict.key is None
    assert "edited or damaged" in caplog.text
    with pytest.raises(StorageError):
        await manager.validate_key("k", signature, stamp)


@pytest.mark.parametrize("step", ["update", "rotate", "schedule", "sweep", "settle"])
async def test_a_change_launders_an_edited_row(manager, backend, clock, step: str):
    """No later change, the sweeper's above all, seals an edited row anew: it stays refused."""
    secret = (await manager.create_key("k", permissions=["read"]))["secret"]
    # An end that has passed makes the sweeper, or the next judgement, write the record.
    ends = {"expires_at": int(clock.now * 1_000_000) - 1} if step in ("sweep", "settle") else {}
    backend.edit("k", permissions=("admin",), **backend.due(ends))
    if step == "sweep":
        assert await manager.sweep() == 0
    elif step == "settle":
        assert (await manager.verify("k", sign(secret, "k"))).reason is Reason.UNAVAILABLE
    else:
        call = {
            "update": lambda: manager.update_key("k", owner="o"),
            "rotate": lambda: manager.rotate_key("k"),
            "schedule": lambda: manager.revoke_key("k", at=clock.now + 60),
        }[step]
        with pytest.raises(StorageError, match="edited"):
            await call()
    assert (await manager.verify("k", sign(secret, "k"))).reason is Reason.UNAVAILABLE
    (record,) = await manager.store.load(["k"])
    assert record.mac != manager.box.record_mac(record)


async def test_an_edited_row_stands_in_nobodys_way(manager, backend, caplog):
    """An edited key can be deleted; a revocation of many reports it and goes on without it."""
    for key_id in ("a", "b", "c"):
        await manager.create_key(key_id, "the-secret")
    backend.edit("b", permissions=("admin",))
    done = await manager.revoke_keys(kind="signed")
    assert (done["matched"], done["revoked"]) == (3, 2)
    assert "key b was edited" in caplog.text
    await manager.delete_key("b")
    reasons = [(await manager.verify(k, sign("the-secret", k))).reason for k in ("a", "b", "c")]
    assert reasons == [Reason.REVOKED, Reason.NOT_FOUND, Reason.REVOKED]


async def test_a_clock_that_jumps_back_revives(manager, clock):
    """Expired, revoked and rotated away: still so when the clock says it is yesterday."""
    expiring = (await manager.create_key("e", expires_at=clock.now + 10))["secret"]
    revoked = (await manager.create_key("r"))["secret"]
    rotated = (await manager.create_key("o"))["secret"]
    await manager.revoke_key("r", at=clock.now + 10)
    await manager.rotate_key("o", overlap_seconds=10)
    ask = [("e", expiring, "expired"), ("r", revoked, "revoked"), ("o", rotated, "bad_signature")]
    for key_id, secret, _ in ask:
        assert await manager.verify(key_id, sign(secret, key_id))
    clock.advance(10)
    for key_id, secret, reason in ask:
        assert str((await manager.verify(key_id, sign(secret, key_id))).reason) == reason
    clock.advance(-86_400)
    for key_id, secret, reason in ask:
        assert str((await manager.verify(key_id, sign(secret, key_id))).reason) == reason


async def test_metadata_never_holds_the_secret(manager):
    """Metadata is stored in clear: a secret of the key is refused in it, whenever it gets there."""
    key = await manager.create_key("k", 'a "quoted" secret', {"fine": True})
    with pytest.raises(ValidationError, match="metadata: the secret"):
        await manager.create_key("other", "a secret of ours", {"note": "it is a secret of ours"})
    for metadata in ({"nested": [{"note": key["secret"]}]}, {key["secret"]: 1}):
        with pytest.raises(ValidationError, match="metadata: the secret"):
            await manager.update_key("k", metadata=metadata)
    await manager.update_key("k", metadata={"note": "the next secret"})
    with pytest.raises(ValidationError, match="metadata: the secret"):
        await manager.rotate_key("k", secret="the next secret")
    assert (await manager.rotate_key("k"))["version"] == 2
