"""Keys, tokens, the audit log and the numbers over HTTP."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from api_key_manager.server import schemas
from tests.integration.conftest import Api, serving, signed


async def verdict(api: Api, body: dict[str, Any]) -> str:
    answer = await api("POST", "/v1/validate", body)
    assert answer.status_code == 200, answer.text
    reason: str = answer.json()["reason"]
    return reason


async def test_create_signed(stored: Api):
    """A create answers 201 with the secret, which no later answer shows."""
    answer = await stored(
        "POST",
        "/v1/keys",
        {
            "key_id": "billing:1", "metadata": {"a": {"b": [1]}}, "permissions": ["a.*"],
            "ip_allowlist": ["10.0.0.1/8"], "owner": "team", "environment": "live",
            "min_scheme": "timestamped", "prefix": "acme", "expires_at": "2090-01-01T00:00:00Z",
        },
    )  # fmt: skip
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    key = answer.json()
    schemas.CreatedKey.model_validate(key)
    assert key["secret"].startswith("acme_secret_")
    assert "token" not in key
    assert (key["key_id"], key["kind"], key["version"]) == ("billing:1", "signed", 1)
    assert key["metadata"] == {"a": {"b": [1]}}
    assert (key["owner"], key["environment"], key["min_scheme"]) == ("team", "live", "timestamped")
    assert key["ip_allowlist"] == ["10.0.0.0/8"]
    assert key["expires_at"] == "2090-01-01T00:00:00+00:00"
    shown = await stored("GET", "/v1/keys/billing:1")
    schemas.Key.model_validate(shown.json())
    assert shown.json() == {**key, "secret": "***REDACTED***"}
    assert await verdict(stored, {**signed(key), "ip": "10.2.3.4"}) == "valid"


async def test_create_with_own_secret(api: Api):
    """A signed key may bring its secret."""
    key = await api.key(key_id="k", secret="own secret, é")
    assert key["secret"] == "own secret, é"
    assert await verdict(api, signed(key)) == "valid"


async def test_create_bearer(stored: Api):
    """A bearer key answers with its token, and no secret."""
    key = await stored.key(kind="bearer")
    schemas.CreatedKey.model_validate(key)
    assert key["token"].startswith(f"akm_{key['key_id']}_")
    assert "secret" not in key
    assert await verdict(stored, {"token": key["token"]}) == "valid"


async def test_an_id_is_taken_for_good(stored: Api):
    """A second create with an id is a 409, also after the key was revoked or deleted."""
    key = await stored.key(key_id="one")
    for step in (None, ("POST", "/v1/keys/one/revoke"), ("DELETE", "/v1/keys/one")):
        if step:
            await stored(*step)
        answer = await stored("POST", "/v1/keys", {"key_id": "one"})
        assert (answer.status_code, answer.json()["reason"]) == (409, "key_exists")
    assert await verdict(stored, signed(key)) == "not_found"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"key_id": 1}, "key_id"),
        ({"key_id": "a b"}, "key_id"),
        ({"key_id": "nul\0"}, "key_id"),
        ({"key_id": "a_b", "kind": "bearer"}, "key_id"),
        ({"secret": ""}, "secret"),
        ({"secret": "s" * 2000}, "secret"),
        ({"secret": "s", "kind": "bearer"}, "secret"),
        ({"kind": "other"}, "kind"),
        ({"kind": None}, "kind"),
        ({"prefix": "Big"}, "prefix"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"permissions": "a"}, "permissions"),
        ({"permissions": ["a", 1]}, "permissions[1]"),
        ({"permissions": ["a b"]}, "permissions"),
        ({"ip_allowlist": ["nowhere"]}, "ip_allowlist"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2090-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": 1}, "expires_at"),
        ({"expires_at": True}, "expires_at"),
        ({"expires_at": [1]}, "expires_at"),
        ({"min_scheme": "none"}, "min_scheme"),
        ({"owner": "line\nbreak"}, "owner"),
        ({"owner": "nul\0"}, "owner"),
        ({"owner": "o" * 200}, "owner"),
        ({"environment": 5}, "environment"),
        ({"disabled": "true"}, "disabled"),
        ({"disabled": 1}, "disabled"),
        ({"disabled": None}, "disabled"),
        ({"realm": "admin"}, "realm"),
        ({"by": "me"}, "by"),
        ({"receipt": None}, "receipt"),
        ({"hunter2": 1}, "hunter2"),
        ([], "body"),
        ("text", "body"),
    ],
    ids=str,
)
async def test_create_refuses(api: Api, body: Any, field: str):
    """A value of a wrong type, or that is not allowed, is a 422 that names the field."""
    answer = await api("POST", "/v1/keys", body)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.json()["field"], answer.json()["reason"]) == (field, "malformed")
    assert (await api("GET", "/v1/keys")).json()["items"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" * 5000])
async def test_numbers_that_json_cannot_write(api: Api, number: str):
    """No such number gets into a record, whatever a lenient reader makes of it."""
    for field in ("expires_at", "metadata"):
        value = f'{{"n":{number}}}' if field == "metadata" else number
        answer = await api(
            "POST", "/v1/keys", content=f'{{"{field}":{value}}}',
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        assert answer.status_code in (400, 422)
    assert (await api("GET", "/v1/keys")).json()["items"] == []


async def test_errors_do_not_repeat_values(api: Api):
    """A secret that was sent wrongly does not come back in the error."""
    for body in (
        {"secret": ["hunter2"]},
        {"secret": "hunter2" * 300},
        {"secret": "hunter2hunter2", "metadata": {"copy": "hunter2hunter2"}},
        {"metadata": "hunter2"},
    ):
        answer = await api("POST", "/v1/keys", body)
        assert answer.status_code == 422
        assert "hunter2" not in answer.text


async def test_update_changes_what_is_sent(stored: Api):
    """Absence leaves a field alone, null empties it, and the change counts at once."""
    key = await stored.key(
        kind="bearer", metadata={"a": 1}, owner="o", permissions=["p"], ip_allowlist=["10.0.0.0/8"]
    )
    path, token = f"/v1/keys/{key['key_id']}", {"token": key["token"], "ip": "10.0.0.1"}
    assert await verdict(stored, token) == "valid"
    answer = await stored("PATCH", path, {"permissions": ["q"]})
    assert answer.status_code == 200
    changed = answer.json()
    schemas.Key.model_validate(changed)
    assert changed["permissions"] == ["q"]
    assert (changed["metadata"], changed["owner"]) == ({"a": 1}, "o")
    assert await verdict(stored, {**token, "permissions": "p"}) == "forbidden"
    emptied = (await stored("PATCH", path, {"owner": None, "ip_allowlist": None})).json()
    assert (emptied["owner"], emptied["ip_allowlist"]) == (None, [])
    assert await verdict(stored, {"token": key["token"]}) == "valid"
    await stored("PATCH", path, {"disabled": True})
    assert await verdict(stored, {"token": key["token"]}) == "disabled"
    await stored("PATCH", path, {"disabled": False})
    assert await verdict(stored, {"token": key["token"]}) == "valid"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "fields"),
        ({"secret": "x"}, "secret"),
        ({"key_id": "x"}, "key_id"),
        ({"disabled": None}, "disabled"),
        ({"expires_at": 5}, "expires_at"),
    ],
    ids=str,
)
async def test_update_refuses(api: Api, body: Any, field: str):
    """What cannot be changed, or is nothing, is a 422."""
    key = await api.key()
    answer = await api("PATCH", f"/v1/keys/{key['key_id']}", body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_rotate_with_overlap(stored: Api):
    """Old and new work during the overlap; without one the old stops at once."""
    key = await stored.key()
    path = f"/v1/keys/{key['key_id']}"
    answer = await stored("POST", f"{path}/rotate", {"overlap_seconds": 3600})
    assert answer.status_code == 200
    new = answer.json()
    schemas.CreatedKey.model_validate(new)
    assert (new["version"], new["secret"] != key["secret"]) == (2, True)
    assert [await verdict(stored, signed(k)) for k in (key, new)] == ["valid", "valid"]
    newest = (await stored("POST", f"{path}/rotate")).json()
    assert await verdict(stored, signed(newest)) == "valid"
    assert await verdict(stored, signed(new)) == "bad_signature"
    versions = (await stored("GET", f"{path}/versions")).json()
    schemas.VersionPage.model_validate(versions)
    assert [v["version"] for v in versions["items"]] == [3, 2, 1]
    assert versions["next_cursor"] is None
    assert "secret" not in str(versions)


@pytest.mark.parametrize("overlap", [-1, 1.5, "1", True, None, 10**9])
async def test_rotate_refuses_overlap(api: Api, overlap: Any):
    """Whole seconds from 0 to 90 days."""
    key = await api.key()
    answer = await api("POST", f"/v1/keys/{key['key_id']}/rotate", {"overlap_seconds": overlap})
    assert (answer.status_code, answer.json()["field"]) == (422, "overlap_seconds")


async def test_rotate_what_has_ended(api: Api, monkeypatch: pytest.MonkeyPatch):
    """A revoked or an expired key gets no new secret: 409, with the reason."""
    revoked = await api.key()
    await api("POST", f"/v1/keys/{revoked['key_id']}/revoke")
    expired = await api.key(expires_at=time.time() + 60)
    monkeypatch.setattr(api.deployment.manager, "clock", lambda: time.time() + 120)
    assert not (await api("GET", f"/v1/keys/{expired['key_id']}")).json()["active"]
    for key, reason in ((revoked, "revoked"), (expired, "expired")):
        answer = await api("POST", f"/v1/keys/{key['key_id']}/rotate")
        assert (answer.status_code, answer.json()["reason"]) == (409, reason)


async def test_revoke(stored: Api):
    """A revocation answers with the key, holds, and says why; it may come later."""
    key = await stored.key()
    path = f"/v1/keys/{key['key_id']}/revoke"
    later = datetime.now(UTC) + timedelta(hours=1)
    planned = (await stored("POST", path, {"at": later.isoformat(), "reason": "plan"})).json()
    assert (planned["state"], planned["revoked_at"]) == ("active", later.isoformat())
    assert await verdict(stored, signed(key)) == "valid"
    answer = await stored("POST", path, {"reason": "leaked"})
    assert answer.status_code == 200
    schemas.Key.model_validate(answer.json())
    assert (answer.json()["state"], answer.json()["revoke_reason"]) == ("revoked", "leaked")
    assert await verdict(stored, signed(key)) == "revoked"
    assert (await stored("POST", path)).status_code == 200


async def test_delete(stored: Api):
    """A deleted key is gone from every route."""
    key = await stored.key()
    path = f"/v1/keys/{key['key_id']}"
    answer = await stored("DELETE", path)
    assert (answer.status_code, answer.content) == (204, b"")
    for method, sub in [
        ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/revoke"), ("POST", "/rotate"),
        ("GET", "/versions"),
    ]:  # fmt: skip
        body = {"owner": "x"} if method == "PATCH" else None
        gone = await stored(method, path + sub, body)
        assert (gone.status_code, gone.json()["reason"]) == (404, "not_found")
    assert (await stored("GET", "/v1/keys")).json()["items"] == []


@pytest.mark.parametrize("key_id", ["a b", "a\0", "🔑", "k" * 129, "a\nb"])
async def test_ids_that_cannot_be(api: Api, key_id: str):
    """An id that no key can have is a 422 of the field, not an error of the store."""
    answer = await api("GET", f"/v1/keys/{quote(key_id)}")
    assert (answer.status_code, answer.json()["field"]) == (422, "key_id")


async def test_a_key_named_like_a_route(api: Api):
    """A key may be called `revoke`."""
    key = await api.key(key_id="revoke")
    assert (await api("GET", "/v1/keys/revoke")).json()["key_id"] == "revoke"
    assert (await api("POST", "/v1/keys/revoke/revoke")).json()["state"] == "revoked"
    assert await verdict(api, signed(key)) == "revoked"


async def test_list_pages_and_filters(stored: Api):
    """Pages hold every key once, in order; filters are all applied."""
    for i in range(7):
        await stored.key(key_id=f"k{i}", owner="even" if i % 2 == 0 else "odd", prefix="acme")
    await stored("POST", "/v1/keys/k0/revoke")
    seen: list[str] = []
    cursor = ""
    while True:
        answer = await stored("GET", f"/v1/keys?limit=3{cursor}")
        schemas.KeyPage.model_validate(answer.json())
        seen += [key["key_id"] for key in answer.json()["items"]]
        if answer.json()["next_cursor"] is None:
            break
        cursor = f"&cursor={answer.json()['next_cursor']}"
    assert seen == [f"k{i}" for i in range(7)]
    for query, ids in [
        ("owner=even&state=active", ["k2", "k4", "k6"]),
        ("state=revoked", ["k0"]),
        ("kind=bearer", []),
        ("prefix=acme&owner=odd", ["k1", "k3", "k5"]),
        ("environment=live", []),
        ("created_before=1", []),
        (f"created_before={time.time() + 60}&owner=odd", ["k1", "k3", "k5"]),
        ("created_before=2090-01-01T00:00:00+02:00&owner=odd", ["k1", "k3", "k5"]),
        ("created_before=2090-01-01T00:00:00%2B02:00&owner=odd", ["k1", "k3", "k5"]),
    ]:
        answer = await stored("GET", f"/v1/keys?{query}")
        assert [key["key_id"] for key in answer.json()["items"]] == ids, query


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("limit=", "limit"),
        ("cursor=%00", "cursor"), ("cursor=!!", "cursor"), ("state=gone", "state"),
        ("kind=x", "kind"), ("owner=", "owner"), ("owner=%00", "owner"), ("prefix=A", "prefix"),
        ("created_before=soon", "created_before"), ("ownr=x", "ownr"), ("realm=admin", "realm"),
    ],
)  # fmt: skip
async def test_list_refuses(api: Api, query: str, field: str):
    """A filter that is unknown or unusable is named, and never ignored."""
    answer = await api("GET", f"/v1/keys?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_bulk_revoke(stored: Api):
    """By filter, with a dry run that changes nothing."""
    keys = [await stored.key(owner="a" if i else "b") for i in range(3)]
    body = {"owner": "a", "reason": "leaked", "dry_run": True}
    dry = (await stored("POST", "/v1/keys/revoke", body)).json()
    schemas.BulkRevocation.model_validate(dry)
    assert (dry["matched"], dry["revoked"]) == (2, 0)
    assert sorted(dry["key_ids"]) == sorted(key["key_id"] for key in keys[1:])
    assert [await verdict(stored, signed(key)) for key in keys] == ["valid"] * 3
    done = (await stored("POST", "/v1/keys/revoke", {**body, "dry_run": False})).json()
    assert (done["matched"], done["revoked"]) == (2, 2)
    assert [await verdict(stored, signed(key)) for key in keys] == ["valid", "revoked", "revoked"]


async def test_bulk_revoke_by_age(api: Api):
    """`created_before` alone is enough."""
    await api.key()
    before = await api("POST", "/v1/keys/revoke", {"created_before": "2020-01-01T00:00:00Z"})
    assert before.json()["revoked"] == 0
    after = await api("POST", "/v1/keys/revoke", {"created_before": time.time() + 1})
    assert after.json()["revoked"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "filter"),
        ({"dry_run": True}, "filter"),
        ({"reason": "x"}, "filter"),
        ({"owner": None}, "owner"),
        ({"owner": None, "kind": "signed"}, "owner"),
        ({"owner": ""}, "owner"),
        ({"key_id": "x"}, "key_id"),
        ({"dry_run": 1, "owner": "a"}, "dry_run"),
        ({"created_before": "soon"}, "created_before"),
    ],
    ids=str,
)
async def test_bulk_revoke_refuses(api: Api, body: Any, field: str):
    """Nothing that could mean every key by mistake is done."""
    key = await api.key()
    answer = await api("POST", "/v1/keys/revoke", body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert await verdict(api, signed(key)) == "valid"


async def test_tokens(stored: Api):
    """A token is minted, listed without itself, used, and revoked; keys do not show it."""
    answer = await stored(
        "POST",
        "/v1/tokens",
        {"scopes": ["keys:read", "metrics"], "name": "dashboard",
         "expires_at": "2090-01-01T00:00:00Z", "ip_allowlist": ["127.0.0.1"]},
    )  # fmt: skip
    assert answer.status_code == 201
    made = answer.json()
    schemas.CreatedToken.model_validate(made)
    assert made["token"].startswith("akm_admin_")
    assert (made["name"], made["scopes"]) == ("dashboard", ["keys:read", "metrics"])
    assert made["expires_at"] == "2090-01-01T00:00:00+00:00"
    listed = await stored("GET", "/v1/tokens")
    schemas.TokenPage.model_validate(listed.json())
    assert {t["key_id"] for t in listed.json()["items"]} == {made["key_id"], "first-admin"}
    assert made["token"] not in listed.text
    assert (await stored("GET", "/v1/stats", token=made["token"])).status_code == 200
    assert (await stored("GET", f"/v1/keys/{made['key_id']}")).status_code == 404
    assert (await stored("DELETE", f"/v1/keys/{made['key_id']}")).status_code == 404
    assert await verdict(stored, {"token": made["token"]}) == "not_found"
    assert (await stored("DELETE", f"/v1/tokens/{made['key_id']}")).status_code == 204
    assert (await stored("GET", "/v1/stats", token=made["token"])).status_code == 401
    revoked = (await stored("GET", "/v1/tokens?state=revoked")).json()["items"]
    assert [t["key_id"] for t in revoked] == [made["key_id"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": "admin"}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"scopes": ["*"]}, "scopes"),
        ({"scopes": ["metrics"], "name": 1}, "name"),
        ({"scopes": ["metrics"], "name": "n\n"}, "name"),
        ({"scopes": ["metrics"], "permissions": ["admin"]}, "permissions"),
        ({"scopes": ["metrics"], "ip_allowlist": ["x"]}, "ip_allowlist"),
        ({"scopes": ["metrics"], "expires_at": 1}, "expires_at"),
    ],
    ids=str,
)
async def test_tokens_refuse(api: Api, body: Any, field: str):
    """Only scopes that exist, and nothing beside them."""
    answer = await api("POST", "/v1/tokens", body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_key_is_no_token(api: Api):
    """`DELETE /v1/tokens` does not reach keys."""
    key = await api.key(kind="bearer")
    assert (await api("DELETE", f"/v1/tokens/{key['key_id']}")).status_code == 404
    assert await verdict(api, {"token": key["token"]}) == "valid"


async def test_audit(stored: Api):
    """The log tells what happened, by whom, and can be filtered, turned round and paged."""
    first = datetime.now(UTC)
    key = await stored.key(key_id="a")
    await stored.key(key_id="b")
    await verdict(stored, signed(key))
    await verdict(stored, {**signed(key), "signature": "0" * 64})
    await stored("POST", "/v1/keys/a/revoke", {"reason": "r"}, headers={"X-Request-Id": "why-1"})
    log = await stored("GET", "/v1/audit?key_id=a&order=asc")
    schemas.AuditPage.model_validate(log.json())
    events = log.json()["items"]
    assert [(e["action"], e["reason"]) for e in events] == [
        ("key_created", None), ("key_validated", "valid"), ("key_refused", "bad_signature"),
        ("key_revoked", "r"),
    ]  # fmt: skip
    assert {e["actor"] for e in events} == {"first-admin"}
    assert (events[-1]["request_id"], events[-1]["ip"]) == ("why-1", "127.0.0.1")
    back = (await stored("GET", "/v1/audit?key_id=a")).json()["items"]
    assert back == events[::-1]
    created = await stored("GET", "/v1/audit?action=key_created&limit=1")
    rest = await stored(
        "GET", f"/v1/audit?action=key_created&limit=1&cursor={created.json()['next_cursor']}"
    )
    ids = [page.json()["items"][0]["key_id"] for page in (created, rest)]
    assert ids == ["b", "a"]
    since, hour = quote(first.isoformat()), quote((first + timedelta(hours=1)).isoformat())
    assert len((await stored("GET", f"/v1/audit?since={since}&key_id=a")).json()["items"]) == 4
    assert (await stored("GET", f"/v1/audit?since={hour}")).json()["items"] == []
    assert (await stored("GET", f"/v1/audit?until={since}&key_id=a")).json()["items"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("order=up", "order"), ("since=x", "since"), ("key_id=%00", "key_id"), ("limit=0", "limit"),
     ("cursor=abc", "cursor"), ("actor=me", "actor"), ("action=", "action")],
)  # fmt: skip
async def test_audit_refuses(api: Api, query: str, field: str):
    """As for keys."""
    answer = await api("GET", f"/v1/audit?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_secrets_are_in_no_later_answer(stored: Api):
    """After its creation no route shows a secret or a token."""
    keys = [await stored.key(), await stored.key(kind="bearer")]
    tokens = [await stored.scoped("validate")]
    shown = [part for made in keys + tokens for part in (made.get("secret"), made.get("token"))]
    paths = ["/v1/keys", "/v1/tokens", "/v1/audit", "/v1/stats"]
    paths += [f"/v1/keys/{key['key_id']}{sub}" for key in keys for sub in ("", "/versions")]
    text = "".join([(await stored("GET", path)).text for path in paths])
    assert not [part for part in shown if part and part in text]


async def test_stats(api: Api):
    """Counters of the process."""
    answer = (await api("GET", "/v1/stats")).json()
    schemas.Stats.model_validate(answer)


async def test_token_prefix():
    """Admin tokens of a deployment carry its prefix."""
    async with serving(TOKEN_PREFIX="acme") as api:
        assert (await api.scoped("validate"))["token"].startswith("acme_admin_")
