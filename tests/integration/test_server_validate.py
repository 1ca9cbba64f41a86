"""The hot routes: what they take, what they answer, and what they refuse to read."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from api_key_manager.server.errors import ProblemError
from api_key_manager.server.hot import decode
from api_key_manager.server.principal import Principal
from tests.integration.conftest import Api, serving, signed

FIELDS = [
    "valid", "cached", "reason", "key_id", "version", "scheme", "metadata", "permissions",
    "expires_at", "rate_limit", "body_verified", "quota",
]  # fmt: skip
SIGNATURE = "0" * 64


async def post(api: Api, text: str | bytes, path: str = "/v1/validate") -> Any:
    return await api("POST", path, headers={"Content-Type": "application/json"}, content=text)


async def test_signed_key(stored: Api):
    """A signed request is valid, with all that the answer has to say, in order."""
    key = await stored.key(metadata={"plan": "pro", "n": [1, None]}, permissions=["a.b"])
    first = (await stored("POST", "/v1/validate", signed(key))).json()
    assert list(first) == FIELDS
    assert first == {
        "valid": True, "cached": False, "reason": "valid", "key_id": key["key_id"], "version": 1,
        "scheme": "timestamped", "metadata": {"plan": "pro", "n": [1, None]},
        "permissions": ["a.b"], "expires_at": None, "rate_limit": None, "body_verified": None,
        "quota": None,
    }  # fmt: skip
    again = (await stored("POST", "/v1/validate", signed(key))).json()
    assert again == {**first, "cached": True}


async def test_bearer_key(stored: Api):
    """A token is valid; its expiry stands in the answer."""
    key = await stored.key(kind="bearer", expires_at="2090-01-02T03:04:05+00:00")
    answer = (await stored("POST", "/v1/validate", {"token": key["token"]})).json()
    assert (answer["valid"], answer["scheme"]) == (True, "bearer")
    assert answer["expires_at"] == "2090-01-02T03:04:05+00:00"


async def test_a_refusal_is_a_200_that_shows_nothing(api: Api):
    """Who has not proved the secret learns nothing of the key."""
    key = await api.key(metadata={"inner": "thing"}, permissions=["a"])
    answer = await api("POST", "/v1/validate", {**signed(key), "signature": SIGNATURE})
    assert answer.status_code == 200
    assert answer.json() == {
        "valid": False, "cached": False, "reason": "bad_signature", "key_id": key["key_id"],
        "version": None, "scheme": None, "metadata": None, "permissions": None,
        "expires_at": None, "rate_limit": None, "body_verified": None,
        "quota": None,
    }  # fmt: skip


async def test_revoked_is_refused_at_once(stored: Api):
    """A warm cache does not outlive a revocation."""
    key = await stored.key()
    for _ in range(2):
        assert (await stored("POST", "/v1/validate", signed(key))).json()["valid"]
    await stored("POST", f"/v1/keys/{key['key_id']}/revoke")
    answer = (await stored("POST", "/v1/validate", signed(key))).json()
    assert (answer["valid"], answer["reason"]) == (False, "revoked")


async def test_nonce_is_taken_once(stored: Api):
    """Of many at once with one nonce, one is accepted."""
    key = await stored.key()
    body = signed(key, nonce="n" * 16)
    answers = await asyncio.gather(*(stored("POST", "/v1/validate", body) for _ in range(8)))
    reasons = sorted(answer.json()["reason"] for answer in answers)
    assert reasons == ["replayed"] * 7 + ["valid"]


async def test_permissions_and_address(api: Api):
    """What the caller must hold, and where they call from, is judged with the key."""
    key = await api.key(kind="bearer", permissions=["docs.read"], ip_allowlist=["10.0.0.0/8"])
    for more, reason in [
        ({"ip": "10.1.1.1"}, "valid"),
        ({"ip": "10.1.1.1", "permissions": "docs.read and not docs.write"}, "valid"),
        ({"ip": "10.1.1.1", "permissions": ["docs.read"]}, "valid"),
        ({"ip": "10.1.1.1", "permissions": ["docs.read", "docs.write"]}, "forbidden"),
        ({"ip": "11.1.1.1"}, "ip_denied"),
        ({}, "ip_denied"),
    ]:
        answer = await api("POST", "/v1/validate", {"token": key["token"], **more})
        assert answer.json()["reason"] == reason, more


@pytest.mark.parametrize(
    "more",
    [
        {"timestamp": -1},
        {"timestamp": 10**30},
        {"signature": "zz" * 32},
        {"signature": "ab"},
        {"signature": "é" * 64},
        {"key": "with\nnewline"},
        {"key": "nul\0"},
        {"key": "🔑"},
        {"key": "k" * 100_000},
        {"key": ""},
        {"nonce": "short"},
        {"timestamp": None, "nonce": "n" * 16},
        {"ip": "here"},
        {"permissions": "and and"},
        {"permissions": "(" * 2000},
        {"token": "akm_x_y"},
        {"key": None, "signature": None, "timestamp": None, "token": "akm_x_y"},
    ],
    ids=str,
)
async def test_unusable_values_are_malformed(api: Api, more: dict[str, Any]):
    """Well-typed values that cannot be used are a verdict, not an error."""
    body = {"key": "k", "signature": SIGNATURE, "timestamp": int(time.time()), **more}
    answer = await api("POST", "/v1/validate", body)
    assert answer.status_code == 200
    assert (answer.json()["valid"], answer.json()["reason"]) == (False, "malformed")


MISFITS = [
    ('"timestamp":1.0', "timestamp"),
    ('"timestamp":1e2', "timestamp"),
    ('"timestamp":true', "timestamp"),
    ('"timestamp":"1"', "timestamp"),
    ('"timestamp":NaN', "timestamp"),
    ('"timestamp":-Infinity', "timestamp"),
    ('"timestamp":1e400', "timestamp"),
    ('"timestamp":[1]', "timestamp"),
    ('"nonce":1', "nonce"),
    ('"ip":1', "ip"),
    ('"permissions":1', "permissions"),
    ('"permissions":["a",1]', "permissions[1]"),
    ('"tags":"a"', "tags"),
    ('"tags":["a","b","c","d","e","f","g","h","i","j","k"]', "tags"),
    ('"tags":["' + "a" * 65 + '"]', "tags[0]"),
    ('"tags":[""]', "tags[0]"),
    ('"tags":["\\u0000"]', "tags"),
    ('"secret":"s"', "secret"),
    ('"cost":0', "cost"),
    ('"cost":"1"', "cost"),
    ('"cost":1.5', "cost"),
    ('"request":1', "request"),
    ('"request":{}', "request.method"),
]


@pytest.mark.parametrize(("part", "field"), MISFITS)
async def test_wrong_types_name_the_field(api: Api, part: str, field: str):
    """A body that misfits the schema is a 422 with the field's name, alone and in a batch."""
    item = f'{{"key":"k","signature":"{SIGNATURE}",{part}}}'
    answer = await post(api, item)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.json()["field"], answer.json()["reason"]) == (field, "malformed")
    good = f'{{"key":"k","signature":"{SIGNATURE}"}}'
    many = await post(api, f'{{"validations":[{good},{item}]}}', "/v1/validate/batch")
    assert (many.status_code, many.json()["field"]) == (422, f"validations[1].{field}")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "key"),
        ('{"signature":"x"}', "key"),
        ('{"key":"k"}', "signature"),
        ('{"key":1,"signature":"x"}', "key"),
        ("[]", "body"),
        ("1", "body"),
        ("null", "body"),
        ('"text"', "body"),
        ('{"' + "x" * 1000 + '":1}', "x" * 64),
    ],
)
async def test_missing_and_misshapen(api: Api, text: str, field: str):
    """What is missing is named; what is no object is the body itself."""
    answer = await post(api, text)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b'{"key":"\xff"}', b'{"key":"k"} x', b"[" * 100_000, b"NaN x",
     b'{"key":"\\ud800"}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/validate", "/v1/validate/batch"])
async def test_no_json(api: Api, text: bytes, path: str):
    """What is no JSON is a 400, never a 500."""
    answer = await post(api, b'{"validations":[' + text if "batch" in path else text, path)
    # What is of a wrong shape from its first byte on is read no further.
    assert answer.status_code in ((400, 422) if text.startswith(b"[") else (400,))
    assert answer.json()["reason"] == "malformed"


async def test_errors_do_not_repeat_values(api: Api):
    """What a caller sent by mistake does not come back in an error."""
    for body in (
        {"key": "k", "signature": ["hunter2-secret"]},
        {"token": {"hunter2-secret": 1}},
        {"key": "k", "signature": "s", "timestamp": "hunter2-secret"},
    ):
        answer = await api("POST", "/v1/validate", body)
        assert answer.status_code == 422
        assert "hunter2" not in answer.text


async def test_batch_keeps_the_order(stored: Api):
    """Results stand as the items do; one that is refused spoils no other."""
    one, two = await stored.key(), await stored.key(kind="bearer")
    items = [
        signed(one),
        {"token": "garbage"},
        {"token": two["token"]},
        {**signed(one), "timestamp": 1},
        {"key": "nobody", "signature": SIGNATURE},
        signed(one),
    ]
    answer = await stored("POST", "/v1/validate/batch", {"validations": items})
    results = answer.json()["results"]
    assert [result["reason"] for result in results] == [
        "valid", "malformed", "valid", "bad_signature", "not_found", "valid",
    ]  # fmt: skip
    assert [result["key_id"] for result in results][::2] == [
        one["key_id"], two["key_id"], "nobody",
    ]  # fmt: skip
    assert all(list(result) == FIELDS for result in results)


@pytest.mark.parametrize(("count", "status"), [(0, 422), (1, 200), (1000, 200), (1001, 422)])
async def test_batch_size(api: Api, count: int, status: int):
    """1 to 1000 items."""
    body = {"validations": [{"token": "x"}] * count}
    answer = await api("POST", "/v1/validate/batch", body)
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["field"] == "validations"
    else:
        assert len(answer.json()["results"]) == count


async def test_one_nonce_twice_in_a_batch(stored: Api):
    """Also within one batch a nonce counts once, and the first one it is."""
    key = await stored.key()
    body = signed(key, nonce="n" * 16)
    answer = await stored("POST", "/v1/validate/batch", {"validations": [body, body]})
    assert [r["reason"] for r in answer.json()["results"]] == ["valid", "replayed"]


async def test_the_audit_log_tells_who_asked(api: Api):
    """The event has the key, the presented address, the asker, the request and the tags."""
    key = await api.key(kind="bearer")
    asker = await api.scoped("validate")
    body = {"token": key["token"], "ip": "198.51.100.7", "tags": ["billing", "eu"]}
    for token in (key["token"], key["token"][:-1] + "!"):
        await api(
            "POST", "/v1/validate", {**body, "token": token}, token=asker["token"],
            headers={"X-Request-Id": "req-7"},
        )  # fmt: skip
    log = await api("GET", f"/v1/audit?key_id={key['key_id']}&action=key_validated")
    (event,) = log.json()["items"]
    assert event["actor"] == asker["key_id"]
    assert (event["ip"], event["request_id"]) == ("198.51.100.7", "req-7")
    assert event["detail"]["tags"] == ["billing", "eu"]
    assert key["token"] not in (await api("GET", "/v1/audit")).text


async def test_static_signatures_can_be_switched_off():
    """`ALLOW_STATIC_SIGNATURES=false` reaches the route."""
    import hashlib
    import hmac

    for allowed, reason in ((True, "valid"), (False, "weak_scheme")):
        async with serving(ALLOW_STATIC_SIGNATURES=allowed) as api:
            key = await api.key()
            mac = hmac.new(key["secret"].encode(), key["key_id"].encode(), hashlib.sha256)
            body = {"key": key["key_id"], "signature": mac.hexdigest()}
            answer = (await api("POST", "/v1/validate", body)).json()
            assert (answer["reason"], answer["scheme"]) == (reason, "static")


def test_decode_needs_no_server():
    """Whoever has the bytes can read them, without a loop: the door of a faster lane."""
    asker = Principal("me", ("validate",), request_id="r")
    body = {"key": "k", "signature": SIGNATURE, "timestamp": 5, "ip": "10.0.0.1"}
    presented = decode(json.dumps(body).encode(), asker)
    assert not presented.malformed
    assert (presented.key_id, presented.timestamp, presented.ip) == ("k", 5, "10.0.0.1")
    assert (presented.actor, presented.request_id) == ("me", "r")
    unreadable = decode(b'{"token":"x"}', asker)
    assert (unreadable.malformed, unreadable.key_id, unreadable.actor) == (True, "", "me")
    with pytest.raises(ProblemError):
        decode(b"{}", asker)
