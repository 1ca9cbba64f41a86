"""Failed authentication, over both lanes and through every middleware: slowed, never locked out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from api_key_manager.core import KeyManager
from api_key_manager.integrations.fastapi import KeyRefusedError, problem_response, require_key
from tests.integration.conftest import serving
from tests.integration.faces import FACES, Answered, serving_asgi
from tests.integration.scrapes import of, scrape
from tests.integration.test_fastlane import ADMIN, AUTH, deploy
from tests.integration.wires import Heard, Wire, hear, on_a_wire, request

ATTEMPTS = 3


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def tokens(manager: KeyManager) -> dict[str, str]:
    """A credential of every kind that is answered 401, and a good one."""
    create = manager.create_key
    good = await create("good", kind="bearer")
    revoked = await create("revoked", kind="bearer")
    disabled = await create("disabled", kind="bearer")
    rotated = await create("rotated", kind="bearer")
    await manager.revoke_key("revoked")
    await manager.update_key("disabled", disabled=True)
    await manager.rotate_key("rotated")
    deleted = await create("deleted", kind="bearer")
    await manager.delete_key("deleted")
    return {
        "good": good["token"], "revoked": revoked["token"], "disabled": disabled["token"],
        "bad_signature": rotated["token"], "not_found": deleted["token"], "malformed": "akm_x_y",
    }  # fmt: skip


def told(answer: Heard) -> tuple[Any, ...]:
    """An answer without its date, id, and the seconds."""
    body = {k: v for k, v in json.loads(answer.body).items() if k != "request_id"}
    names = sorted(name for name, _ in answer.headers)
    return answer.status, names, body


async def ask(wire: Wire, path: str, token: str, ip: str, method: str = "GET") -> Heard:
    headers = [("Authorization", f"Bearer {token}"), ("X-Forwarded-For", ip)]
    (heard,) = await wire.talk([request(method, path, headers=headers)], 1)
    return heard


IPS = ["203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8::ffff", "2001:db8:1::1"]
KINDS = ["good", "revoked", "disabled", "bad_signature", "not_found", "malformed"]


@pytest.mark.parametrize("fast", [True, False])
@settings(max_examples=15)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(IPS), st.sampled_from(["/v1/authorize", "/v1/keys"]),
                  st.sampled_from(["good", *KINDS])),
        max_size=40,
    )
)  # fmt: skip
async def test_good_ones_always_pass(steps: Any, fast: bool):
    """In any order, from any address, at both doors: a good credential passes; of the others each
    address gets so many 401s and then 429s, in which nothing tells one reason from another."""
    async with AsyncExitStack() as stack:
        deployment = await deploy(
            stack, TRUSTED_PROXIES="127.0.0.1", FAILED_AUTH_PER_MINUTE=ATTEMPTS,
            AUTHORIZE_PROFILE="nginx",
        )  # fmt: skip
        shown = await tokens(deployment.manager)
        wire = await stack.enter_async_context(on_a_wire(deployment, fast=fast))
        failed: dict[str, int] = {}
        refusals: dict[tuple[str, int], Any] = {}
        for ip, path, kind in steps:
            token = ADMIN if (path, kind) == ("/v1/keys", "good") else shown[kind]
            answer = await ask(wire, path, token, ip)
            if kind == "good":
                assert answer.status == 200
                continue
            host = ip.replace("::ffff", "::1")
            failed[host] = failed.get(host, 0) + 1
            assert answer.status == (401 if failed[host] <= ATTEMPTS else 429)
            first = refusals.setdefault((path, answer.status), told(answer))
            assert told(answer) == first
            if answer.status == 429:
                assert 1 <= int(answer.header("retry-after") or 0) <= 60 // ATTEMPTS
        slowed = sum(max(0, count - ATTEMPTS) for count in failed.values())
        assert deployment.manager.tally.slowed == slowed


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/validate", "/v1/keys", "/v1/audit", "/metrics", "/nothing"])
async def test_every_route_is_a_door(stack: AsyncExitStack, method: str, path: str):
    """A guesser finds no path that answers on: known or not, the 429 is the same."""
    deployment = await deploy(stack, FAILED_AUTH_PER_MINUTE=1)
    wire = await stack.enter_async_context(on_a_wire(deployment))
    answers = [await ask(wire, path, "b" * 40, "", method) for _ in range(3)]
    assert [answer.status for answer in answers] == [401, 429, 429]
    elsewhere = await ask(wire, "/v1/tokens", "c" * 40, "")
    assert told(elsewhere) == told(answers[1])


async def test_head_that_comes_again(stack: AsyncExitStack):
    """A connection that shows the same bad token again and again is slowed as well; a trusted
    caller on another one, from the same address, is not."""
    wire = await stack.enter_async_context(on_a_wire(await deploy(stack, FAILED_AUTH_PER_MINUTE=2)))
    statuses = []
    reader, writer = await wire.open()
    for _ in range(6):
        writer.write(request(body=b"{}", headers=[("Authorization", "Bearer " + "b" * 40)]))
        statuses.append((await hear(reader)).status)
    assert statuses == [401, 401, 429, 429, 429, 429]
    writer.write(request(body=b"{}", headers=AUTH))
    assert (await hear(reader)).status == 422
    writer.close()


async def test_whoever_shows_nothing_is_not_slowed(stack: AsyncExitStack):
    """Nor takes it anything from those who fail."""
    deployment = await deploy(stack, FAILED_AUTH_PER_MINUTE=1)
    wire = await stack.enter_async_context(on_a_wire(deployment))
    for path in ("/v1/authorize", "/v1/keys"):
        for _ in range(4):
            (answer,) = await wire.talk([request("GET", path)], 1)
            assert answer.status == 401
    assert [(await ask(wire, "/v1/keys", "x", "")).status for _ in range(2)] == [401, 429]


async def test_trusted_callers_get_the_reason(stack: AsyncExitStack):
    """`/v1/validate` answers for other addresses, and counts none of them."""
    deployment = await deploy(stack, FAILED_AUTH_PER_MINUTE=1)
    wire = await stack.enter_async_context(on_a_wire(deployment))
    body = json.dumps({"key": "app", "signature": "0" * 64, "timestamp": 1, "ip": "127.0.0.1"})
    raw = request(body=body.encode(), headers=AUTH)
    for answer in await wire.talk([raw] * 5, 5):
        assert json.loads(answer.body)["reason"] == "bad_signature"
    assert (await ask(wire, "/v1/keys", "x", "")).status == 401


async def test_metric_and_event():
    """Operators see it; no id that a stranger named stands in the event."""
    async with serving(FAILED_AUTH_PER_MINUTE=1) as api:
        for _ in range(4):
            answer = await api("GET", "/v1/keys", token="b" * 40)
        assert answer.status_code == 429
        assert answer.json()["reason"] == "rate_limited"
        assert of(await scrape(api), "akm_failures_slowed_total") == {("address",): 3, ("all",): 0}
        log = await api("GET", "/v1/audit?action=address_slowed")
    events = log.json()["items"]
    assert sum(event["count"] for event in events) == 3
    assert {(e["key_id"], e["ip"], e["reason"]) for e in events} == {
        (None, "127.0.0.1", "rate_limited")
    }


async def test_flood_from_many_addresses(stack: AsyncExitStack):
    """A crowd fails from a thousand addresses at both doors; in between valid callers go on, over
    the same connections and addresses."""
    deployment = await deploy(
        stack, TRUSTED_PROXIES="127.0.0.1", FAILED_AUTH_TOTAL_PER_MINUTE=20,
        AUTHORIZE_PROFILE="nginx",
    )  # fmt: skip
    good = (await deployment.manager.create_key("good", kind="bearer"))["token"]
    wire = await stack.enter_async_context(on_a_wire(deployment))
    statuses = []
    for i in range(250):
        ip = f"10.0.{i}.1"
        for path, token in (("/v1/keys", "x" * 40), ("/v1/authorize", "akm_no_such")):
            statuses.append((await ask(wire, path, token, ip)).status)
        for path, token in (("/v1/keys", ADMIN), ("/v1/authorize", good)):
            assert (await ask(wire, path, token, ip)).status == 200
    assert statuses[:20] == [401] * 20
    assert statuses.count(429) > 450


@pytest.mark.parametrize("face", FACES)
def test_middleware(face: str, clock: Any):
    """Every face slows what fails and lets pass what is good, from the same address."""
    manager = KeyManager(failures_per_minute=2)
    good = asyncio.run(manager.create_key("good", kind="bearer"))["token"]
    with FACES[face](manager=manager) as service:

        def show(token: str) -> Answered:
            return service.send(headers={"Authorization": f"Bearer {token}"})

        assert service.send().status == 401
        answers = [show(token) for token in ("x", "y", good, "x", "akm_no_such", good, "x")]
        assert [answer.status for answer in answers] == [401, 401, 200, 429, 429, 200, 429]
        slowed = [answer for answer in answers if answer.status == 429]
        assert {answer.body for answer in slowed} == {slowed[0].body}
        assert slowed[0].json["reason"] == "rate_limited"
        assert 1 <= int(slowed[0].headers["retry-after"]) <= 30
        assert service.send().status == 401


def test_fastapi_dependency():
    """The dependency does so, too."""
    manager = KeyManager(failures_per_minute=1)
    good = asyncio.run(manager.create_key("good", kind="bearer"))["token"]
    app = FastAPI(dependencies=[Depends(require_key(manager=manager))])
    app.add_exception_handler(KeyRefusedError, problem_response)
    app.add_api_route("/", lambda: {"hello": "you"})
    with serving_asgi(app) as port:
        answers = [
            httpx.get(f"http://127.0.0.1:{port}/", headers={"X-Api-Key": token})
            for token in ("x", "x", good, "x")
        ]
    assert [answer.status_code for answer in answers] == [401, 429, 200, 429]
    assert int(answers[1].headers["retry-after"]) >= 1
