"""Signed HTTP requests at `/v1/validate`: what it takes, and what it says of the body."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import Any

import pytest

from api_key_manager.core import sign_request
from tests.integration.conftest import Api, signed
from tests.integration.test_server_validate import FIELDS

URL = "https://shop.example/orders?limit=10"
BODY = b'{"item": 7}'
HASH = hashlib.sha256(BODY).hexdigest()


def request_of(key: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request as a service hands it on."""
    headers = sign_request(
        key["secret"], key["key_id"], "POST", URL, BODY, created=int(time.time()),
        nonce=secrets.token_urlsafe(16),
    )  # fmt: skip
    return {"method": "POST", "url": URL, "headers": headers, **more}


async def test_valid(stored: Api):
    """A signed request is valid, with every field of an answer in its place."""
    key = await stored.key(metadata={"plan": "pro"}, permissions=["a.b"], min_scheme="request")
    body = {"request": request_of(key, body_sha256=HASH), "permissions": "a.b"}
    answer = (await stored("POST", "/v1/validate", body)).json()
    assert list(answer) == FIELDS
    assert answer == {
        "valid": True, "cached": False, "reason": "valid", "key_id": key["key_id"], "version": 1,
        "scheme": "request", "metadata": {"plan": "pro"}, "permissions": ["a.b"],
        "expires_at": None, "rate_limit": None, "body_verified": True, "quota": None,
    }  # fmt: skip
    again = (await stored("POST", "/v1/validate", body)).json()
    assert again == {
        **answer, "valid": False, "reason": "replayed", "cached": again["cached"],
    }  # fmt: skip


async def test_body_verified(api: Api):
    """True when compared, false when no hash was given, null for every other scheme."""
    key, app = await api.key(), await api.key(kind="bearer")
    for body, reason, verified in (
        ({"request": request_of(key, body_sha256=HASH)}, "valid", True),
        ({"request": request_of(key, body_sha256=HASH.upper())}, "valid", True),
        ({"request": request_of(key)}, "valid", False),
        ({"request": request_of(key, body_sha256=None)}, "valid", False),
        ({"request": request_of(key, body_sha256="0" * 64)}, "bad_signature", None),
        ({"request": request_of(key, body_sha256="0" * 63)}, "malformed", None),
        (signed(key), "valid", None),
        ({"token": app["token"]}, "valid", None),
    ):
        answer = (await api("POST", "/v1/validate", body)).json()
        assert (answer["reason"], answer["body_verified"]) == (reason, verified)


async def test_headers_in_every_shape(api: Api):
    """Names with a value, with all their values, or pairs; a name twice is malformed."""
    key = await api.key()
    for shape, reason in (
        (dict, "valid"),
        (lambda pairs: {name: [value] for name, value in pairs}, "valid"),
        (lambda pairs: [*pairs, ("Accept", "a"), ("Accept", "b")], "valid"),
        (lambda pairs: {**dict(pairs), "Accept": ["a", "b"]}, "valid"),
        (lambda pairs: [*pairs, pairs[0]], "malformed"),
        (lambda pairs: {name: [value, value] for name, value in pairs}, "malformed"),
        (lambda _: {}, "malformed"),
        (lambda _: [], "malformed"),
    ):
        request = request_of(key)
        request["headers"] = shape(list(request["headers"].items()))
        answer = await api("POST", "/v1/validate", {"request": request})
        assert (answer.status_code, answer.json()["reason"]) == (200, reason)


async def test_two_credentials(api: Api):
    """A request beside another credential is malformed."""
    key = await api.key()
    for more in (signed(key), {"token": "akm_x_y"}, {"key": key["key_id"]}, {"nonce": "n" * 16}):
        answer = await api("POST", "/v1/validate", {"request": request_of(key), **more})
        assert (answer.status_code, answer.json()["reason"]) == (200, "malformed")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"method": None}, "request.method"),
        ({"url": 5}, "request.url"),
        ({"headers": "a"}, "request.headers"),
        ({"headers": None}, "request.headers"),
        ({"headers": {"a": 5}}, "request.headers[...]"),
        ({"headers": {"a": ["b", 5]}}, "request.headers[...][1]"),
        ({"headers": [["a"]]}, "request.headers[0]"),
        ({"headers": [["a", "b", "c"]]}, "request.headers[0]"),
        ({"headers": [["a", 5]]}, "request.headers[0][1]"),
        ({"body_sha256": 5}, "request.body_sha256"),
        ({"body": "{}"}, "request.body"),
        ({"Method": "GET"}, "request.Method"),
    ],
    ids=str,
)
async def test_misfits_name_the_field(api: Api, change: dict[str, Any], field: str):
    """A wrong type, an unknown member: a 422 that names the field, alone and in a batch."""
    request = {"method": "GET", "url": URL, "headers": {}, **change}
    answer = await api("POST", "/v1/validate", {"request": request})
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    many = await api("POST", "/v1/validate/batch", {"validations": [{"request": request}]})
    assert (many.status_code, many.json()["field"]) == (422, f"validations[0].{field}")


@pytest.mark.parametrize("name", ["method", "url", "headers"])
async def test_missing_members(api: Api, name: str):
    """Each of the three is required, and named when it is missing."""
    request = {"method": "GET", "url": URL, "headers": {}}
    del request[name]
    answer = await api("POST", "/v1/validate", {"request": request})
    assert (answer.status_code, answer.json()["field"]) == (422, f"request.{name}")


async def test_a_header_of_1_mb(api: Api):
    """A header that fits the body's bound is malformed at once; a larger body is a 413."""
    key = await api.key()
    for size, status in ((900_000, 200), (1_100_000, 413)):
        request = request_of(key)
        request["headers"]["Signature"] += " " * size
        answer = await api("POST", "/v1/validate", {"request": request})
        assert (answer.status_code, answer.json()["reason"]) == (
            status, "malformed" if status == 200 else answer.json()["reason"],
        )  # fmt: skip


async def test_batch(stored: Api):
    """Requests stand beside other credentials; a nonce counts once in a batch."""
    key = await stored.key()
    request = request_of(key, body_sha256=HASH)
    items = [
        {"request": request}, signed(key), {"request": request},
        {"request": {**request_of(key), "method": "GET"}},
    ]  # fmt: skip
    answer = await stored("POST", "/v1/validate/batch", {"validations": items})
    results = answer.json()["results"]
    assert [result["reason"] for result in results] == [
        "valid", "valid", "replayed", "bad_signature",
    ]  # fmt: skip
    assert [result["body_verified"] for result in results] == [True, None, True, None]
    assert all(list(result) == FIELDS for result in results)


async def test_signatures_stay_out_of_errors(api: Api):
    """A misfit does not repeat what was sent."""
    key = await api.key()
    request = request_of(key)
    value = request["headers"]["Signature"]
    request["headers"]["Signature"] = {"value": value}
    answer = await api("POST", "/v1/validate", {"request": request})
    assert answer.status_code == 422
    assert value not in json.dumps(answer.json())


async def test_openapi(api: Api):
    """The document describes the request and what is said of its body."""
    schemas = (await api("GET", "/openapi.json")).json()["components"]["schemas"]
    assert set(schemas["HttpRequest"]["required"]) == {"method", "url", "headers"}
    assert "body_verified" in schemas["Answer"]["properties"]
    assert "request" in schemas["Validation"]["properties"]
