"""Who may call what, from where, and what the others are told."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest
from starlette.routing import Match

from api_key_manager.core.addresses import client_address
from api_key_manager.server.app import build_app
from api_key_manager.server.principal import PRINCIPAL, Principal
from tests.integration.conftest import Api, serving

ROUTES = [
    ("POST", "/v1/keys", "keys:write"),
    ("GET", "/v1/keys", "keys:read"),
    ("POST", "/v1/keys/revoke", "keys:write"),
    ("GET", "/v1/keys/{key_id}", "keys:read"),
    ("PATCH", "/v1/keys/{key_id}", "keys:write"),
    ("DELETE", "/v1/keys/{key_id}", "keys:write"),
    ("POST", "/v1/keys/{key_id}/revoke", "keys:write"),
    ("POST", "/v1/keys/{key_id}/rotate", "keys:write"),
    ("GET", "/v1/keys/{key_id}/versions", "keys:read"),
    ("POST", "/v1/tokens", "admin"),
    ("POST", "/v1/tokens/{key_id}/rotate", "admin"),
    ("GET", "/v1/tokens", "admin"),
    ("DELETE", "/v1/tokens/{key_id}", "admin"),
    ("POST", "/v1/validate", "validate"),
    ("POST", "/v1/validate/batch", "validate"),
    ("POST", "/v1/leaks", "keys:write"),
    ("POST", "/v1/webhooks", "admin"),
    ("GET", "/v1/webhooks", "keys:read"),
    ("GET", "/v1/webhooks/{webhook_id}", "keys:read"),
    ("PATCH", "/v1/webhooks/{webhook_id}", "admin"),
    ("DELETE", "/v1/webhooks/{webhook_id}", "admin"),
    ("POST", "/v1/webhooks/{webhook_id}/rotate-secret", "admin"),
    ("POST", "/v1/webhooks/{webhook_id}/test", "admin"),
    ("POST", "/v1/webhooks/{webhook_id}/replay", "admin"),
    ("GET", "/v1/webhooks/{webhook_id}/deliveries", "keys:read"),
    ("POST", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay", "admin"),
    ("GET", "/v1/audit", "audit:read"),
    ("GET", "/v1/audit/checkpoint", "audit:read"),
    ("GET", "/v1/audit/proof", "audit:read"),
    ("GET", "/v1/stats", "metrics"),
    ("GET", "/metrics", "metrics"),
]
# They let in for themselves, whoever shows a key of its own realm.
AUTHORIZE = ["/v1/authorize", "/v1/authorize/{permissions}"]
# It lets in whatever GitHub has signed, and no admin token.
GITHUB = "/v1/leaks/github"
OPEN = ["/healthz", "/readyz", "/docs", "/openapi.json"]
SCOPES = ["keys:read", "keys:write", "validate", "audit:read", "metrics", "admin"]

routes = pytest.mark.parametrize(("method", "path", "scope"), ROUTES)


async def send(api: Api, method: str, path: str, token: str | None) -> httpx.Response:
    """A request to the route that is refused for nothing but its token."""
    body = {"nonsense": 1} if method in ("POST", "PATCH") else None
    return await api(method, re.sub(r"\{\w+\}", "nobody", path), body, token=token)


@routes
async def test_without_a_token(api: Api, method: str, path: str, scope: str):
    """No route but the open ones answers without a token."""
    answer = await send(api, method, path, None)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@routes
async def test_wrong_scope(api: Api, method: str, path: str, scope: str):
    """A token with every scope but the one that is needed is refused, and told which."""
    others = [other for other in SCOPES if other not in (scope, "admin")]
    answer = await send(api, method, path, (await api.scoped(*others))["token"])
    assert answer.status_code == 403
    assert answer.json()["reason"] == "forbidden"
    assert scope in answer.json()["detail"]


@routes
async def test_right_scope(api: Api, method: str, path: str, scope: str):
    """The one scope that a route needs is enough."""
    answer = await send(api, method, path, (await api.scoped(scope))["token"])
    assert answer.status_code not in (401, 403)


@pytest.mark.parametrize("path", OPEN)
async def test_open_paths(api: Api, path: str):
    """The probes and the documentation need no token."""
    assert (await api("GET", path, token=None)).status_code == 200


async def test_no_route_is_missing_above(api: Api):
    """The tables of these tests hold every route that the app knows, and the other way round."""
    document = (await api("GET", "/openapi.json")).json()
    documented = {
        (method.upper(), path, operation.get("x-scope"))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    others = ["/healthz", "/readyz", *AUTHORIZE]
    unscoped = {("POST", GITHUB, None), *(("GET", path, None) for path in others)}
    assert documented == {*ROUTES, *unscoped}


async def test_no_token_opens_githubs_endpoint(api: Api):
    """Without GitHub's signature an admin token is refused like none."""
    answers = [await api("POST", GITHUB, [], token=token) for token in (api.token, "x", None)]
    assert {(answer.status_code, answer.json()["reason"]) for answer in answers} == {
        (403, "forbidden")
    }


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", AUTHORIZE)
async def test_admin_tokens_do_not_authorize(api: Api, method: str, path: str):
    """Forward auth takes callers' keys by any method, and no admin token."""
    path = path.replace("{permissions}", "a.b")
    key = await api.key(kind="bearer", permissions=["a.*"])
    assert (await api(method, path)).status_code == 401
    assert (await api(method, path, token=None)).status_code == 401
    assert (await api(method, path, token=key["token"])).status_code == 200
    assert (await api(method, f"{path}/", token=key["token"])).status_code == 401


async def test_nothing_undocumented_is_reachable(api: Api):
    """A route that somebody adds past the table of scopes stays shut, whoever calls."""
    app = build_app(api.deployment)
    app.add_api_route("/v1/back-door", lambda: "open", methods=["GET"])
    scope = {"type": "http", "method": "GET", "path": "/v1/back-door"}
    assert any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://akm.test"
    ) as client:
        assert (await client.get("/v1/back-door")).status_code == 401
        headers = {"Authorization": f"Bearer {api.token}"}
        assert (await client.get("/v1/back-door", headers=headers)).status_code == 404


async def test_what_is_not_there_is_told_to_token_holders_only(api: Api):
    """Without a token nobody learns which paths and methods exist."""
    assert (await api("GET", "/v1/nothing", token=None)).status_code == 401
    assert (await api("PUT", "/v1/keys", token=None)).status_code == 401
    assert (await api("GET", "/v1/nothing")).status_code == 404
    refused = await api("PUT", "/v1/keys")
    assert refused.status_code == 405
    assert refused.headers["Allow"] == "GET, POST"


async def test_every_401_is_the_same(api: Api, monkeypatch: pytest.MonkeyPatch):
    """Unknown, wrong, revoked, expired, disabled, of another realm or garbage: same bytes."""
    revoked = await api.scoped("admin")
    await api("DELETE", f"/v1/tokens/{revoked['key_id']}")
    expired = await api.scoped("admin", expires_at=time.time() + 60)
    bearer = await api.key(kind="bearer", permissions=["admin"])
    real = await api.scoped("admin")
    wrong = await api.deployment.manager.rotate_key(real["key_id"], realm="admin")
    unknown = await api.scoped("admin")
    await api.deployment.manager.delete_key(unknown["key_id"], realm="admin")
    monkeypatch.setattr(api.deployment.manager, "clock", lambda: time.time() + 120)
    tokens = [
        revoked["token"], expired["token"], bearer["token"], real["token"], unknown["token"],
        real["token"][:-1], "x", "é" * 10, "a" * 100_000,
    ]  # fmt: skip
    answers = [
        await api(
            "GET", "/v1/keys", token=None, headers={"Authorization": f"Bearer {token}".encode()}
        )
        for token in tokens
    ]
    answers.append(await api("GET", "/v1/keys", token=None))
    answers.append(
        await api("GET", "/v1/keys", token=None, headers={"Authorization": "Basic eA=="})
    )
    answers.append(await api("GET", "/v1/keys", token=None, headers={"Authorization": "Bearer "}))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    secret_free = {tuple(sorted(set(answer.headers) - {"x-request-id"})) for answer in answers}
    assert len(secret_free) == 1
    assert (await api("GET", "/v1/keys", token=wrong["token"])).status_code == 200


async def test_two_authorization_headers(api: Api):
    """Of two tokens none counts, also when one of them is good."""
    headers = [("Authorization", f"Bearer {api.token}"), ("Authorization", "Bearer x")]
    for pair in (headers, headers[::-1], headers[:1] * 2):
        answer = await api.client.get("/v1/keys", headers=pair)
        assert answer.status_code == 401


async def test_token_from_the_environment():
    """`AKM_ADMIN_TOKEN` opens everything while it is set, and no neighbour of it does."""
    token = "e" * 31 + "!"
    async with serving(AKM_ADMIN_TOKEN=token) as api:
        assert api.deployment.first_token is None
        assert (await api("GET", "/v1/keys")).status_code == 200
        created = await api.scoped("metrics")
        for other in (token[:-1], f"{token}x", token.upper(), ""):
            assert (await api("GET", "/v1/keys", token=other or None)).status_code == 401
        events = (await api("GET", "/v1/audit?action=token_created")).json()["items"]
        assert [(e["key_id"], e["actor"]) for e in events] == [(created["key_id"], "env")]
    async with serving() as api:
        assert (await api("GET", "/v1/keys", token=token)).status_code == 401


async def test_in_process_principal(api: Api):
    """A program that runs the app itself says who it is, and is held to its scopes."""
    app = build_app(api.deployment)

    def as_local(*scopes: str) -> httpx.AsyncClient:
        async def with_principal(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, PRINCIPAL: Principal("cli", scopes)}, receive, send)

        transport = httpx.ASGITransport(with_principal)
        return httpx.AsyncClient(transport=transport, base_url="http://akm.test")

    async with as_local("admin") as client:
        made = await client.post("/v1/keys", json={})
        assert made.status_code == 201
        event = (await client.get("/v1/audit?action=key_created")).json()["items"][0]
        assert event["actor"] == "cli"
    async with as_local("keys:read") as client:
        assert (await client.get("/v1/keys")).status_code == 200
        assert (await client.post("/v1/keys", json={})).status_code == 403


async def test_a_principal_cannot_come_by_header(api: Api):
    """What stands in headers never becomes a principal."""
    headers = {PRINCIPAL: "cli", "X-Akm-Principal": "admin"}
    assert (await api("GET", "/v1/keys", token=None, headers=headers)).status_code == 401


async def test_revoked_token_stops_at_once(api: Api):
    """A token works until it is revoked, and not once more."""
    made = await api.scoped("keys:read")
    assert (await api("GET", "/v1/keys", token=made["token"])).status_code == 200
    assert (await api("DELETE", f"/v1/tokens/{made['key_id']}")).status_code == 204
    assert (await api("GET", "/v1/keys", token=made["token"])).status_code == 401


async def test_refused_logins_are_in_the_audit_log():
    """Wrong, revoked and garbled tokens leave an event with the address, and no token."""
    async with serving(peer="203.0.113.9") as api:
        made = await api.scoped("keys:read")
        await api("DELETE", f"/v1/tokens/{made['key_id']}")
        for token in (made["token"], "garbage-that-must-not-be-logged"):
            await api("GET", "/v1/keys", token=token, headers={"X-Request-Id": "try-1"})
        log = await api("GET", "/v1/audit?action=login_refused")
        events = log.json()["items"]
        assert {(e["key_id"], e["reason"], e["ip"]) for e in events} == {
            (made["key_id"], "revoked", "203.0.113.9"),
            (None, "malformed", "203.0.113.9"),
        }
        assert "garbage" not in log.text
        assert made["token"] not in log.text


async def test_allowlist_of_a_token():
    """A token with an allowlist works from there only; a stranger's header changes nothing."""
    async with serving(peer="203.0.113.9") as api:
        here = await api.scoped("keys:read", ip_allowlist=["203.0.113.0/24"])
        there = await api.scoped("keys:read", ip_allowlist=["10.0.0.0/8"])
        assert (await api("GET", "/v1/keys", token=here["token"])).status_code == 200
        refused = await api("GET", "/v1/keys", token=there["token"])
        wrong = await api("GET", "/v1/keys", token=there["token"][:-1] + "x")
        assert (refused.status_code, refused.content) == (401, wrong.content)
        forged = await api(
            "GET", "/v1/keys", token=there["token"], headers={"X-Forwarded-For": "10.0.0.1"}
        )
        assert forged.status_code == 401
        log = (await api("GET", "/v1/audit?action=login_refused&order=asc")).json()["items"]
        assert (log[0]["key_id"], log[0]["reason"]) == (there["key_id"], "ip_denied")


async def test_allowlist_behind_a_trusted_proxy():
    """From a trusted proxy the rightmost untrusted hop counts, not what stands left of it."""
    async with serving(peer="192.0.2.1", TRUSTED_PROXIES="192.0.2.0/24") as api:
        made = await api.scoped("keys:read", ip_allowlist=["10.0.0.0/8"])
        for forwarded, status in [
            ("10.0.0.1", 200),
            ("1.1.1.1, 10.0.0.1, 192.0.2.7", 200),
            ("10.0.0.1, 203.0.113.9", 401),
            ("192.0.2.7", 401),
            ("10.0.0.1, what", 401),
        ]:
            answer = await api(
                "GET", "/v1/keys", token=made["token"], headers={"X-Forwarded-For": forwarded}
            )
            assert answer.status_code == status, forwarded


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        (("203.0.113.9", 1), [], "203.0.113.9"),
        (("203.0.113.9", 1), [b"10.0.0.1"], "203.0.113.9"),
        (("127.0.0.1", 1), [b"10.0.0.1"], "10.0.0.1"),
        (("::ffff:127.0.0.1", 1), [b"10.0.0.1"], "10.0.0.1"),
        (("127.0.0.1", 1), [b"1.1.1.1", b"10.0.0.1"], "10.0.0.1"),
        (("127.0.0.1", 1), [b"10.0.0.1:8080"], "10.0.0.1"),
        (("127.0.0.1", 1), [b"[2001:db8::1]:443"], "2001:db8::1"),
        (("127.0.0.1", 1), [b"2001:db8::1"], "2001:db8::1"),
        (("127.0.0.1", 1), [b"10.0.0.1, "], None),
        (("127.0.0.1", 1), [b"10.0.0.1, unknown"], None),
        (("127.0.0.1", 1), [b"9" * 100_000], None),
        (("fe80::1%eth0", 1), [], "fe80::1"),
        (("testclient", 1), [], None),
        (None, [b"10.0.0.1"], None),
    ],
)
def test_client_address(peer: Any, forwarded: list[bytes], address: str | None):
    """The peer, or what a trusted proxy says; what cannot be told is no address."""
    from ipaddress import ip_network

    assert client_address(peer, forwarded, [ip_network("127.0.0.0/8")]) == address
