"""`/metrics` through the whole app: exact counts, and labels that no caller can multiply."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import socket
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from api_key_manager import __version__
from api_key_manager.core.models import ADMIN_REALM
from api_key_manager.core.presented import Presented
from api_key_manager.server.routes import Routes
from tests.integration.conftest import Api, serving, signed
from tests.integration.scrapes import of, read, scrape, value
from tests.integration.test_server_serve import TOKEN, started


async def test_form(api: Api):
    """Prometheus' text format, by its name; whose numbers they are is one of them."""
    answer = await api("GET", "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    samples = await scrape(api)
    assert value(samples, "akm_build_info", version=__version__) == 1
    assert value(samples, "akm_ready", worker="1") == 1
    # Series that a rate can be taken of from the first request on.
    for route in ("/v1/validate", "/v1/validate/batch"):
        labels = {"method": "POST", "route": route}
        assert value(samples, "akm_http_request_duration_seconds_count", **labels) == 0
        assert value(samples, "akm_http_requests_total", **labels, status="200") == 0


async def test_scripted(stored: Api):
    """Every credential is counted once under its reason and scheme, however it was sent, and
    every look at the cache once."""
    signing = await stored.key(key_id="signing")
    bearer = await stored.key(kind="bearer", permissions=["a"])
    revoked = await stored.key(kind="bearer")
    await stored("POST", f"/v1/keys/{revoked['key_id']}/revoke")
    if stored.deployment.follower is not None:
        # Else it drops what the creations above changed, somewhere in the middle.
        await stored.deployment.follower.catch_up()
    before = await scrape(stored)
    now = int(time.time())
    wrong = {**signed(signing), "signature": "0" * 64}
    nonce = signed(signing, now, "n" * 20)
    token = {"token": bearer["token"]}
    for body in (
        signed(signing),                       # valid, miss
        signed(signing), signed(signing),      # valid, hits
        nonce, nonce,                          # valid, replayed; hits
        wrong, wrong,                          # bad_signature, hits
        token,                                 # valid, miss
        {**token, "permissions": "b"},         # forbidden, hit
        {"token": revoked["token"]},           # revoked, miss
        {"token": "nothing"},                  # malformed, not looked for
        {"key": "nobody", "signature": "0" * 64},  # not_found, miss
        signed(signing, now - 10**6),          # stale, hit
    ):  # fmt: skip
        answer = await stored("POST", "/v1/validate", body)
        assert answer.status_code == 200, answer.text
    batch = [signed(signing), token, wrong, {"token": "nothing"}, signed(signing, now, "m" * 20)]
    sent = {"validations": batch + [token] * 10}
    assert (await stored("POST", "/v1/validate/batch", sent)).status_code == 200
    after = await scrape(stored)
    assert of(after, "akm_validations_total") == {
        ("valid", "timestamped"): 3 + 1 + 2,
        ("valid", "bearer"): 1 + 11,
        ("replayed", "timestamped"): 1,
        ("bad_signature", "none"): 2 + 1,
        ("forbidden", "bearer"): 1,
        ("revoked", "bearer"): 1,
        ("malformed", "none"): 1 + 1,
        ("not_found", "none"): 1,
        ("stale_timestamp", "timestamped"): 1,
    }

    def grown(name: str) -> float:
        return value(after, name) - value(before, name)

    # Every request shows an admin token, which is looked up too, in the same cache.
    requests = 13 + 1 + 1
    assert grown("akm_record_cache_misses_total") == 4
    assert grown("akm_record_cache_hits_total") == 8 + 14 + requests
    assert value(after, "akm_record_cache_evictions_total") == 0
    durations = of(after, "akm_http_request_duration_seconds_count")
    assert durations["POST", "/v1/validate"] == 13
    assert durations["POST", "/v1/validate/batch"] == 1
    assert of(after, "akm_nonces_refused_total") == {("replayed",): 1, ("unavailable",): 0}
    assert of(after, "akm_admin_token_refusals_total") == {}


async def test_the_library_counts_too(api: Api):
    """Verdicts that a program asks for in this process are among them."""
    key = await api.key(kind="bearer")
    for _ in range(3):
        assert await api.deployment.manager.verify(token=key["token"])
    await api.deployment.manager.batch_validate([{"token": key["token"]}, {}, None])
    assert of(await scrape(api), "akm_validations_total") == {
        ("valid", "bearer"): 4, ("malformed", "none"): 2,
    }  # fmt: skip


async def test_requests(api: Api):
    """By template and status; a hot route's answer is counted once, whatever it was."""
    key = await api.key(key_id="revoke")
    await api("GET", f"/v1/keys/{key['key_id']}")
    await api("GET", "/v1/keys/nobody")
    await api("GET", "/v1/keys?limit=1")
    await api("DELETE", "/v1/keys")
    await api("GET", "/v1/keys", token=None)
    await api("GET", "/v1/keys", token="akm_admin_wrong")
    await api("BREW", "/v1/keys")
    await api("GET", "/nowhere/at/all?token=x")
    await api("GET", "/nowhere", token=None)
    await api("GET", "/healthz", token=None)
    await api("HEAD", "/readyz", token=None)
    await api("POST", "/v1/validate", signed(key))
    await api("POST", "/v1/validate", {"nonsense": 1})
    await api("POST", "/v1/validate", token=None)
    await api("GET", "/v1/validate")
    samples = await scrape(api)
    assert of(samples, "akm_http_requests_total") == {
        ("POST", "/v1/keys", "201"): 1,
        ("GET", "/v1/keys/{key_id}", "200"): 1,
        ("GET", "/v1/keys/{key_id}", "404"): 1,
        ("GET", "/v1/keys", "200"): 1,
        ("GET", "/v1/keys", "401"): 2,
        ("other", "/v1/keys", "405"): 2,
        ("other", "other", "404"): 1,
        ("other", "other", "401"): 1,
        ("GET", "/healthz", "200"): 1,
        ("HEAD", "/readyz", "200"): 1,
        ("POST", "/v1/validate", "200"): 1,
        ("POST", "/v1/validate", "422"): 1,
        ("POST", "/v1/validate", "401"): 1,
        ("POST", "/v1/validate/batch", "200"): 0,
        ("other", "/v1/validate", "405"): 1,
    }
    assert of(samples, "akm_admin_token_refusals_total") == {("malformed",): 1}
    again = await scrape(api)
    assert of(again, "akm_http_requests_total")["GET", "/metrics", "200"] == 1
    # Of a route and method every status is one histogram.
    durations = of(again, "akm_http_request_duration_seconds_count")
    assert durations["GET", "/v1/keys/{key_id}"] == 2
    assert durations["POST", "/v1/validate"] == 3
    assert sum(durations.values()) == sum(of(again, "akm_http_requests_total").values())


def test_names_of_routes():
    """A path may be both: which one was meant is told by the method."""
    routes = Routes()
    for method, path in (("POST", "/keys/revoke"), ("GET", "/keys/{id}"), ("PUT", "/{a}/{b}")):
        routes.add(method, path, None)
    assert routes.name("POST", "/keys/revoke") == ("POST", "/keys/revoke")
    assert routes.name("GET", "/keys/revoke") == ("GET", "/keys/{id}")
    assert routes.name("PUT", "/keys/x") == ("PUT", "/{a}/{b}")
    assert routes.name("BREW", "/keys/revoke") == ("other", "/keys/revoke")
    assert routes.name("BREW", "/keys/x") == ("other", "/keys/{id}")
    assert routes.name("GET", "/keys/x/y") == ("other", "other")
    routes.open["/open"] = None
    assert routes.name("PATCH", "/open") == ("PATCH", "/open")
    assert routes.name("BREW", "/open") == ("other", "/open")


async def test_a_defect_is_counted(api: Api, monkeypatch: pytest.MonkeyPatch):
    """A 500 is an answer too."""
    judge = api.deployment.manager.verify_now

    def broken(presented: Presented, now: float) -> Any:
        if presented.realm != ADMIN_REALM:
            raise ZeroDivisionError
        return judge(presented, now)

    monkeypatch.setattr(api.deployment.manager, "verify_now", broken)
    answer = await api("POST", "/v1/validate/batch", {"validations": [{"token": "x"}]})
    assert answer.status_code == 500
    samples = of(await scrape(api), "akm_http_requests_total")
    assert samples["POST", "/v1/validate/batch", "500"] == 1
    assert samples["POST", "/v1/validate/batch", "200"] == 0


@pytest.mark.slow
async def test_bounded(api: Api):
    """10,000 random bad requests make no series that could not have been listed before, and
    nothing that they held is in the metrics."""
    rng = random.Random(7)
    key = await api.key(kind="bearer", key_id="known")
    alphabet = "abcdef0123456789._-:"

    def word() -> str:
        return "zq" + "".join(rng.choices(alphabet, k=rng.randint(4, 30)))

    def body() -> Mapping[str, Any]:
        return rng.choice(
            [
                {"token": word()}, {"key": word(), "signature": "0" * 64}, {word(): 1},
                {"key": word(), "signature": word(), "timestamp": rng.randint(-9, 9)},
                {"token": key["token"], "permissions": word()},
                {"token": key["token"], "ip": word()}, {"key": "known", "signature": "f" * 64},
            ]
        )  # fmt: skip

    paths = ["/v1/validate", "/v1/keys/", "/", "/v1/tokens/", "/metrics/", "/v1/audit/", "/v1/keys"]
    for _ in range(10_000):
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "BREW", word().upper()[:8]])
        path = rng.choice(paths)
        path += "" if rng.random() < 0.5 else f"{word()}?{word()}={word()}"
        shown = rng.choice(["", "", "", None, word(), f"akm_admin_{word()}"])
        if method == "POST" and rng.random() < 0.5:
            path = "/v1/validate"
        await api(
            method, path, body() if rng.random() < 0.7 else None, token=shown,
            headers={"X-Request-Id": word()},
        )  # fmt: skip
    answer = await api("GET", "/metrics")
    assert "zq" not in answer.text.lower()
    assert "known" not in answer.text
    assert key["token"] not in answer.text
    samples = await scrape(api)
    assert len(of(samples, "akm_http_requests_total")) < 60
    assert len(of(samples, "akm_validations_total")) < 10
    assert len(samples) < 900
    assert sum(of(samples, "akm_http_requests_total").values()) == 10_000 + 2


async def test_store(stored: Api, tmp_path: Path):
    """Operations of a database are timed; keys in memory have none."""
    for _ in range(3):
        await stored.key()
    key = await stored.key()
    await stored("POST", "/v1/validate", signed(key, None, "n" * 20))
    counts = of(await scrape(stored), "akm_store_operation_duration_seconds_count")
    if stored.deployment.settings.DATABASE_URL == "memory://":
        assert counts == {}
        return
    # One is the first admin token.
    assert counts["write", "apply"] == 5
    assert counts["write", "claim"] == 1
    assert counts["read", "count"] == 1
    assert counts["read", "load"] >= 1


async def test_keys(stored: Api, clock: Any):
    """By state, from the store, every state there; admin tokens and deleted keys are not among
    them; and what was counted is remembered for a while."""
    made = [await stored.key(expires_at="2030-01-01T00:00:00Z") for _ in range(6)]
    ids = [key["key_id"] for key in made]
    await stored("POST", f"/v1/keys/{ids[0]}/revoke")
    await stored("PATCH", f"/v1/keys/{ids[1]}", {"disabled": True})
    await stored("DELETE", f"/v1/keys/{ids[2]}")
    await stored.scoped("metrics")
    expected = {("active",): 3, ("disabled",): 1, ("expired",): 0, ("revoked",): 1}
    assert of(await scrape(stored), "akm_keys") == expected
    await stored.key()
    assert of(await scrape(stored), "akm_keys") == expected


async def test_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While the store does not answer, the scrape still does: not ready, and no count of keys."""
    token = "t" * 40
    async with serving(
        DATABASE_URL=f"sqlite:///{tmp_path}/data/x.db", AKM_ADMIN_TOKEN=token
    ) as api:

        def broken(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(api.deployment.manager.store.driver, "_run", broken)
        monkeypatch.setattr(api.deployment, "problems", lambda: ["the store is gone"])
        samples = await scrape(api)
        monkeypatch.undo()
    assert of(samples, "akm_keys") == {}
    assert value(samples, "akm_ready", worker="1") == 0
    assert (
        value(
            samples, "akm_store_operation_duration_seconds_count", access="read", operation="count"
        )
        == 1
    )


async def test_audit_queue():
    """What waits for the audit log shows as long as it waits."""
    async with serving(AUDIT_FLUSH_SECONDS=10) as api:
        key = await api.key(kind="bearer")
        await asyncio.sleep(0)
        await api.deployment.manager.recorder.flush(0)
        for _ in range(3):
            await api("POST", "/v1/validate", {"token": key["token"]})
        assert value(await scrape(api), "akm_audit_queue_events") == 3


async def test_two_in_one_process(api: Api):
    """Deployments know nothing of each other, and leave nothing in the global registry."""
    before = {metric.name for metric in REGISTRY.collect()}
    async with serving() as other:
        key = await other.key(kind="bearer")
        await other("POST", "/v1/validate", {"token": key["token"]})
        assert of(await scrape(other), "akm_validations_total") == {("valid", "bearer"): 1}
        assert of(await scrape(api), "akm_validations_total") == {}
    assert {metric.name for metric in REGISTRY.collect()} == before
    assert not any(name.startswith("akm") for name in before)


def answer_on(connection: socket.socket) -> int:
    """The status of the next answer, which is read whole."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def test_fast_lane(tmp_path: Path):
    """What the protocol answers by itself is counted like the rest, of a head that it reads anew
    and of one that it knows from before; what is no HTTP is not."""
    with started(tmp_path, AKM_ADMIN_TOKEN=TOKEN) as server:
        url = httpx.URL(server.url)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        key = httpx.post(f"{url}/v1/keys", json={"kind": "bearer"}, headers=headers).json()
        good = json.dumps({"token": key["token"]})
        head = (
            f"POST /v1/validate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(good)}\r\n\r\n"
        )
        size = len(good)
        with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
            # In one piece each, as most clients send them, so that the head is known again.
            for body, status in (
                (good, 200), (good, 200), ('{"token": "wrong"}', 200), (good, 200),
                ('{"nonsense": 1}', 422), (good, 200), ("{" * size, 400),
                ('{"token": "wrong"}', 200),
            ):  # fmt: skip
                connection.sendall((head + body.ljust(size)).encode())
                assert answer_on(connection) == status
            connection.sendall(b"no HTTP at all\r\n\r\n")
            assert answer_on(connection) == 400
        text = httpx.get(f"{url}/metrics", headers=headers).text
        assert server.stop() == 0
    samples = read(text)
    requests = of(samples, "akm_http_requests_total")
    assert {s: n for (_, route, s), n in requests.items() if route == "/v1/validate"} == {
        "200": 6, "422": 1, "400": 1,
    }  # fmt: skip
    assert sum(requests.values()) == 8 + 1
    where = {"method": "POST", "route": "/v1/validate"}
    assert value(samples, "akm_http_request_duration_seconds_count", **where) == 8
    assert 0 < value(samples, "akm_http_request_duration_seconds_sum", **where) < 8
    assert of(samples, "akm_validations_total") == {
        ("valid", "bearer"): 4, ("malformed", "none"): 2,
    }  # fmt: skip
    hits = value(samples, "akm_record_cache_hits_total")
    misses = value(samples, "akm_record_cache_misses_total")
    # The news of the creation may come after the first validation, and drop the record once.
    assert hits + misses == 4
    assert misses in (1, 2)
