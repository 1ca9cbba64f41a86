"""Signed HTTP requests on every store: what replays, clocks and rotations make of them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from api_key_manager.core import KeyManager, Reason, ValidationError, sign, sign_request

NONCE = "n" * 22
URL = "https://example.com/orders?limit=10"


def signed(key: dict[str, Any], created: int, nonce: str = NONCE, body: bytes = b"{}") -> Any:
    headers = sign_request(
        key["secret"], key["key_id"], "POST", URL, body, created=created, nonce=nonce
    )
    return {"method": "POST", "url": URL, "headers": headers}


async def test_accepted(either_manager: KeyManager, clock):
    """A signed request is accepted, and says whether its body was compared."""
    key = await either_manager.create_key(metadata={"a": 1}, min_scheme="request")
    body = hashlib.sha256(b"{}").hexdigest()
    for more, verified in (({}, False), ({"body_sha256": body}, True)):
        request = {**signed(key, clock.seconds, f"{NONCE}{verified}"), **more}
        verdict = await either_manager.verify(request=request)
        assert (verdict.reason, verdict.scheme) == (Reason.VALID, "request")
        assert (verdict.key_id, verdict.metadata) == (key["key_id"], {"a": 1})
        assert verdict.body_verified is verified


async def test_replayed_nonce(either_manager: KeyManager, clock):
    """The same request again, also another one with its nonce, also at once: replayed."""
    key = await either_manager.create_key()
    request = signed(key, clock.seconds)
    verdicts = await asyncio.gather(*(either_manager.verify(request=request) for _ in range(5)))
    reasons = sorted(verdict.reason for verdict in verdicts)
    assert reasons == [Reason.REPLAYED] * 4 + [Reason.VALID]
    other = signed(key, clock.seconds, body=b"other")
    replayed = await either_manager.verify(request=other)
    assert (replayed.reason, replayed.body_verified) == (Reason.REPLAYED, False)


async def test_one_nonce_for_both_schemes(either_manager: KeyManager, clock):
    """A nonce that a timestamped signature used up is used up for requests, too."""
    key, now = await either_manager.create_key(), clock.seconds
    signature = sign(key["secret"], key["key_id"], now, NONCE)
    assert await either_manager.verify(key["key_id"], signature, now, NONCE)
    verdict = await either_manager.verify(request=signed(key, now))
    assert verdict.reason is Reason.REPLAYED


async def test_nonce_reused_under_another_key(either_manager: KeyManager, clock):
    """A nonce belongs to its key: another key's is accepted, once, and disturbs no other."""
    one, two = await either_manager.create_key(), await either_manager.create_key()
    for key in (one, two):
        assert await either_manager.verify(request=signed(key, clock.seconds))
    for key in (one, two):
        verdict = await either_manager.verify(request=signed(key, clock.seconds))
        assert verdict.reason is Reason.REPLAYED
    # One key's signature is none under the other's name.
    request = signed(one, clock.seconds, "m" * 22)
    given = request["headers"]["Signature-Input"].replace(one["key_id"], two["key_id"])
    request["headers"]["Signature-Input"] = given
    assert (await either_manager.verify(request=request)).reason is Reason.BAD_SIGNATURE


async def test_stale_and_future_created(either_manager: KeyManager, clock):
    """The window is the one of nonces, its ends included; what is refused burns no nonce."""
    key, now = await either_manager.create_key(), clock.seconds
    clock.advance(1000)
    for age, reason in (
        (361, Reason.STALE_TIMESTAMP), (-61, Reason.FUTURE_TIMESTAMP), (360, Reason.VALID),
        (-60, Reason.REPLAYED),
    ):  # fmt: skip
        verdict = await either_manager.verify(request=signed(key, now + 1000 - age))
        assert verdict.reason is reason, age


async def test_a_refused_request_burns_no_nonce(either_manager: KeyManager, clock):
    """Garbage, a wrong body, a missing permission: the nonce is as good as before."""
    key = await either_manager.create_key(permissions=["a"], ip_allowlist=["10.0.0.1"])
    request = signed(key, clock.seconds)
    forged = {**request, "headers": {**request["headers"], "Signature": f"akm=:{'A' * 43}=:"}}
    for given, more, reason in (
        (forged, {"ip": "10.0.0.1"}, Reason.BAD_SIGNATURE),
        ({**request, "body_sha256": "0" * 64}, {"ip": "10.0.0.1"}, Reason.BAD_SIGNATURE),
        ({**request, "method": "GET"}, {"ip": "10.0.0.1"}, Reason.BAD_SIGNATURE),
        (request, {}, Reason.IP_DENIED),
        (request, {"ip": "10.0.0.1", "permissions": "b"}, Reason.FORBIDDEN),
        (request, {"ip": "10.0.0.1", "permissions": "a"}, Reason.VALID),
    ):
        verdict = await either_manager.verify(request=given, **more)
        assert verdict.reason is reason


async def test_unknown_and_ended_keys(either_manager: KeyManager, clock):
    """A request is refused for what became of its key, as every credential is."""
    key = await either_manager.create_key()
    nobody = {"key_id": "nobody", "secret": "secret"}
    verdict = await either_manager.verify(request=signed(nobody, clock.seconds))
    assert (verdict.reason, verdict.body_verified) == (Reason.NOT_FOUND, None)
    rotated = await either_manager.rotate_key(key["key_id"])
    verdict = await either_manager.verify(request=signed(key, clock.seconds))
    assert verdict.reason is Reason.BAD_SIGNATURE
    await either_manager.revoke_key(key["key_id"])
    verdict = await either_manager.verify(request=signed(rotated, clock.seconds))
    assert (verdict.reason, verdict.body_verified) == (Reason.REVOKED, False)


async def test_min_scheme_request(either_manager: KeyManager, clock):
    """A key that wants signed requests takes nothing less; a bearer key cannot want them."""
    key, now = await either_manager.create_key(min_scheme="request"), clock.seconds
    secret, key_id = key["secret"], key["key_id"]
    for more in ((), (now,), (now, NONCE)):
        verdict = await either_manager.verify(key_id, sign(secret, key_id, *more), *more)
        assert verdict.reason is Reason.WEAK_SCHEME
    assert await either_manager.verify(request=signed(key, now))
    with pytest.raises(ValidationError, match="min_scheme"):
        await either_manager.create_key(kind="bearer", min_scheme="request")


async def test_batch(either_manager: KeyManager, clock):
    """Requests stand in a batch beside the others, and one nonce counts once in it."""
    key = await either_manager.create_key()
    request = signed(key, clock.seconds)
    static = {"key_id": key["key_id"], "signature": sign(key["secret"], key["key_id"])}
    results = await either_manager.batch_validate(
        [{"request": request}, static, {"request": request}, {"request": {}}, {"request": 5}]
    )
    assert [result["reason"] for result in results] == [
        "valid", "valid", "replayed", "malformed", "malformed",
    ]  # fmt: skip


async def test_audit(either_manager: KeyManager, clock):
    """The log has the scheme and the key, and nothing of the signature."""
    key = await either_manager.create_key()
    request = signed(key, clock.seconds)
    await either_manager.verify(request=request)
    await either_manager.verify(request={**request, "url": "/"})
    page = await either_manager.find_audit(action="key_validated")
    assert page["items"][0]["detail"]["scheme"] == "request"
    refused = await either_manager.find_audit(action="key_refused")
    (event,) = refused["items"]
    assert (event["key_id"], event["reason"]) == (key["key_id"], "malformed")
    assert request["headers"]["Signature"][5:-1] not in str(await either_manager.find_audit())
