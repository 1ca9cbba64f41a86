"""Outgoing webhooks, from the change to the receiver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from api_key_manager.core.changing import Origin
from api_key_manager.core.exceptions import ConflictError, KeyNotFoundError, ValidationError
from api_key_manager.storage import webhooks as scripts
from api_key_manager.storage.webhooks import Delivery
from api_key_manager.webhooks import Sender
from api_key_manager.webhooks import sending as sending_module
from api_key_manager.webhooks.schedule import TRIES, Outcome, after
from api_key_manager.wiring import Deployment
from tests.integration.commands import Akm
from tests.integration.conftest import serving
from tests.integration.places import Place
from tests.integration.postgres_nodes import Shared
from tests.integration.receivers import Receiver, answer, receiving

BY = Origin("tester")


class World:
    """A deployment that sends when it is told to, and a receiver."""

    def __init__(self, deployment: Deployment, receiver: Receiver) -> None:
        assert deployment.outbox is not None
        assert deployment.webhooks is not None
        self.manager = deployment.manager
        self.outbox, self.webhooks = deployment.outbox, deployment.webhooks
        self.receiver = receiver
        sender = Sender(private=True, context=receiver.context)
        self.outbox._sender = self.webhooks._sender = sender
        self.now = deployment.manager.clock()
        self.outbox._clock = self.webhooks._clock = lambda: self.now

    async def hook(self, **fields: Any) -> dict[str, Any]:
        return await self.webhooks.create({"url": self.receiver.url, **fields}, BY)

    async def go(self) -> None:
        """Do all that is due."""
        while await self.outbox.step() or self.outbox._trying:
            await self.outbox.settle()

    async def states(self, hook: dict[str, Any]) -> list[tuple[str, str, str | None]]:
        page = await self.webhooks.deliveries(hook["id"])
        return [(d["type"], d["state"], d["outcome"]) for d in page["items"]]


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    settings = {"WEBHOOK_ALLOW_PRIVATE": True}
    async with (
        receiving() as receiver,
        Place(tmp_path).open(background=False, **settings) as deployment,
    ):
        yield World(deployment, receiver)


@pytest.fixture
def akm_hooks(db: Akm, monkeypatch: pytest.MonkeyPatch) -> Akm:
    """Commands that may make webhooks to this machine."""
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "true")
    return db


async def test_every_change_is_told(world):
    """Each change reaches the receiver once, signed as the specification's own package checks,
    and holds no secret."""
    hook = await world.hook()
    key = await world.manager.create_key("k", owner="acme", environment="live")
    await world.manager.update_key("k", metadata={"a": 1})
    rotated = await world.manager.rotate_key("k")
    await world.manager.revoke_key("k", "left", by=Origin("token-1"))
    await world.manager.delete_key("k")
    await world.go()
    told = sorted((json.loads(r.body) for r in world.receiver.got), key=lambda b: b["timestamp"])
    assert [body["type"] for body in told] == [
        "key.created", "key.changed", "key.rotated", "key.revoked", "key.deleted",
    ]  # fmt: skip
    assert told[3]["data"]["reason"] == "left"
    assert told[3]["data"]["actor"] == "token-1"
    assert told[3]["data"]["environment"] == "live"
    for received in world.receiver.got:
        Verifier(hook["secret"]).verify(received.body, received.headers)
        assert key["secret"].encode() not in received.body
        assert rotated["secret"].encode() not in received.body
    assert len({r.headers["webhook-id"] for r in world.receiver.got}) == 5
    await world.go()
    assert len(world.receiver.got) == 5
    assert {state for _, state, _ in await world.states(hook)} == {"done"}


async def test_only_what_was_asked_for(world):
    """By type, by environment, from now on, and not while disabled."""
    await world.manager.create_key("before")
    created = await world.hook(types=["key.created"])
    live = await world.hook(environment="live", types=["key.created", "key.revoked"])
    off = await world.hook(disabled=True)
    await world.manager.create_key("a")
    await world.manager.create_key("b", environment="live")
    await world.manager.revoke_key("b")
    await world.go()
    assert len(await world.states(created)) == 2
    assert {kind for kind, *_ in await world.states(live)} == {"key.created", "key.revoked"}
    assert await world.states(off) == []
    await world.webhooks.update(off["id"], {"disabled": False}, BY)
    await world.go()
    assert await world.states(off) == []
    await world.manager.create_key("c")
    await world.go()
    assert len(await world.states(off)) == 1


async def test_500_then_200(world):
    """A failure is tried again later, under the same id and with a new signature."""
    hook = await world.hook()
    world.receiver.answers = [answer(500)]
    await world.manager.create_key("k")
    await world.go()
    assert await world.states(hook) == [("key.created", "pending", "refused")]
    await world.go()
    assert len(world.receiver.got) == 1
    world.now += 7
    await world.go()
    assert await world.states(hook) == [("key.created", "done", "delivered")]
    first, second = world.receiver.got
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]


async def test_dead_letters_are_replayed(world):
    """What never worked is kept, and goes out when somebody says so: one, or all."""
    hook = await world.hook()
    world.receiver.say(503)
    for name in ("a", "b", "c"):
        await world.manager.create_key(name)
    for _ in range(TRIES):
        await world.go()
        world.now += 50_000
    assert len(world.receiver.got) == 3 * TRIES
    assert [state for _, state, _ in await world.states(hook)] == ["dead"] * 3
    world.receiver.say(200)
    page = await world.webhooks.deliveries(hook["id"], state="dead", limit=1)
    await world.webhooks.replay(hook["id"], page["items"][0]["id"], BY)
    await world.go()
    assert [state for _, state, _ in await world.states(hook)].count("dead") == 2
    assert await world.webhooks.replay_dead(hook["id"], BY) == 2
    await world.go()
    assert {state for _, state, _ in await world.states(hook)} == {"done"}
    assert len({r.headers["webhook-id"] for r in world.receiver.got}) == 3
    world.now += 4 * 86_400
    await world.outbox.prune()
    assert await world.states(hook) == []


async def test_gone_disables(world):
    """410 ends the subscription: what waits is dead, and nothing more is made."""
    hook = await world.hook()
    world.receiver.say(410)
    await world.manager.create_key("k")
    await world.go()
    await world.manager.create_key("l")
    await world.go()
    shown = await world.webhooks.get(hook["id"])
    assert (shown["disabled"], shown["disabled_reason"]) == (True, "gone")
    assert await world.states(hook) == [("key.created", "dead", "gone")]
    with pytest.raises(ConflictError, match="disabled"):
        await world.webhooks.replay_dead(hook["id"], BY)


async def test_rotation_signs_with_both(world):
    """While the old secret holds, either verifies; then the new one only."""
    hook = await world.hook()
    new = await world.webhooks.rotate(hook["id"], 60, BY)
    await world.manager.create_key("k")
    await world.go()
    (received,) = world.receiver.got
    for secret in (hook["secret"], new["secret"]):
        Verifier(secret).verify(received.body, received.headers)
    world.now += 61
    await world.webhooks.test(hook["id"])
    assert len(world.receiver.got[-1].headers["webhook-signature"].split()) == 1


async def test_edited_row_sends_nothing(world, tmp_path):
    """Whoever can write to the database cannot have events sent elsewhere."""
    hook = await world.hook()
    other = world.receiver.url.replace("/hook", "/other")
    Place(tmp_path).sql("UPDATE webhooks SET url = ?", other)
    assert (await world.webhooks.test(hook["id"]))["outcome"] == "unreadable"
    assert world.receiver.got == []


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (answer(302, "Location: http://127.0.0.1:1/"), "redirected"),
        (answer(404), "refused"),
        (b"garbage\r\n\r\n", "bad_answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 40_000 + b"\r\n\r\n", "connection_broken"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"z" * 3_000_000, "delivered"),
        (b"", "connection_broken"),
    ],
    ids=["redirect", "404", "garbage", "huge-head", "huge-body", "nothing"],
)
async def test_answers(world, said, outcome):
    """No answer does more than it should; a redirect is not followed."""
    hook = await world.hook()
    world.receiver.answer = said
    assert (await world.webhooks.test(hook["id"]))["outcome"] == outcome
    assert len(world.receiver.got) == 1


async def test_a_hanging_receiver_holds_up_nobody(world, monkeypatch):
    """Of one that never answers only a few are tried at once, and each ends in time."""
    monkeypatch.setattr(sending_module, "_WHOLE_SECONDS", 0.5)
    async with receiving() as quick:
        await world.hook()
        never = asyncio.Event()

        async def hang(_: Any) -> None:
            await never.wait()

        world.receiver.do = hang
        fast = await world.webhooks.create({"url": quick.url}, BY)
        # One authority cannot be trusted for both here.
        senders = {
            world.receiver.url: world.outbox._sender,
            quick.url: Sender(private=True, context=quick.context),
        }

        class Both:
            async def post(self, url: str, headers: Any, body: bytes) -> Outcome:
                return await senders[url].post(url, headers, body)

        world.outbox._sender = Both()
        for i in range(8):
            await world.manager.create_key(f"k{i}")
        while await world.outbox.step():
            pass
        for _ in range(100):
            await world.outbox.step()
            if len(quick.got) == 8:
                break
            await asyncio.sleep(0.02)
        assert len(quick.got) == 8
        assert len(world.receiver.got) <= 4
        never.set()
        await world.outbox.settle()
        assert world.outbox.counts["timeout"] >= 1 or world.outbox.counts["connection_broken"]
        assert {s for _, s, _ in await world.states(fast)} == {"done"}


async def test_bad_certificate(tmp_path):
    """A certificate of nobody that is trusted, or of another name, ends it."""
    async with receiving() as receiver, receiving(name="other.example") as other:
        told = await Sender(private=True).post(receiver.url, {}, b"{}")
        assert told.slug == "tls_failed"
        told = await Sender(private=True, context=other.context).post(other.url, {}, b"{}")
        assert told.slug == "tls_failed"
        assert receiver.got == other.got == []


async def test_expiring_is_told_once(world):
    """Each expiry is announced once; a new one anew."""
    hook = await world.hook(types=["key.expiring"])
    await world.manager.create_key("soon", expires_at=world.now + 3600)
    await world.manager.create_key("late", expires_at=world.now + 30 * 86_400)
    for _ in range(3):
        await world.go()
        world.now += 61
    (body,) = [json.loads(r.body) for r in world.receiver.got]
    assert body["data"]["key_id"] == "soon"
    await world.manager.update_key("soon", expires_at=world.now + 7200)
    for _ in range(2):
        await world.go()
        world.now += 61
    assert len(await world.states(hook)) == 2


async def test_limit_reached_is_told(world):
    """Once a minute for a key and limit, also where refusals are not noted."""
    hook = await world.hook(types=["key.limit_reached"])
    world.manager.recorder._failures = False
    limits = [{"name": "l", "limit": 1, "window_seconds": 3600}]
    key = await world.manager.create_key("k", kind="bearer", rate_limits=limits)
    for _ in range(5):
        await world.manager.verify(token=key["token"])
    await world.manager.recorder.flush(world.manager.clock())
    await world.go()
    told = [json.loads(r.body)["data"] for r in world.receiver.got]
    # A minute may end in the middle.
    assert 1 <= len(told) <= 2
    assert told[0]["detail"] == {"limit": "l"}
    assert {kind for kind, *_ in await world.states(hook)} == {"key.limit_reached"}


async def test_confined(world):
    """For whoever is confined to an environment there are no other webhooks."""
    mine = await world.webhooks.create({"url": world.receiver.url}, BY, "live")
    other = await world.hook(environment="test")
    assert mine["environment"] == "live"
    assert [h["id"] for h in await world.webhooks.list("live")] == [mine["id"]]
    for work in (
        world.webhooks.get(other["id"], "live"),
        world.webhooks.delete(other["id"], BY, "live"),
        world.webhooks.test(other["id"], "live"),
        world.webhooks.deliveries(other["id"], within="live"),
    ):
        with pytest.raises(KeyNotFoundError):
            await work


async def test_a_late_sender_changes_nothing(world):
    """Who comes back after its time was up does not overwrite what another one has written."""
    hook = await world.hook()
    await world.manager.create_key("k")
    driver = world.outbox._driver
    macs = world.outbox._macs
    await driver.write(scripts.dispatch, sending_wanted(), macs.fits, world.outbox.vouch, 1)
    (first,) = await driver.write(scripts.claim, {hook["id"]: 5}, 10, 20)
    assert await driver.write(scripts.claim, {hook["id"]: 5}, 15, 30) == []
    (second,) = await driver.write(scripts.claim, {hook["id"]: 5}, 25, 40)
    await driver.write(scripts.finish, [after(second, Outcome("delivered", 200), 26)])
    await driver.write(scripts.finish, [after(first, Outcome("timeout"), 27)])
    assert await world.states(hook) == [("key.created", "done", "delivered")]


def sending_wanted():
    from api_key_manager.webhooks.events import wanted

    return wanted


def test_retry_after():
    """It is honoured, within bounds."""
    tried = Delivery("i", "w", 1, "t", "{}", 0, 1, 0, "pending")
    assert after(tried, Outcome("refused", 429, 600), 0).next_at == 600 * 10**6
    assert after(tried, Outcome("refused", 429, 10**6), 0).next_at == 3600 * 10**6
    assert 5 * 10**6 <= after(tried, Outcome("timeout"), 0).next_at <= 6 * 10**6


async def test_two_nodes_on_postgresql(tmp_path, postgres):
    """Two nodes at work: each event makes one delivery, which is sent once."""
    place = Shared(tmp_path, postgres)
    try:
        async with AsyncExitStack() as stack:
            receiver = await stack.enter_async_context(receiving())
            nodes = [
                World(
                    await stack.enter_async_context(
                        place.open(background=False, WEBHOOK_ALLOW_PRIVATE=True)
                    ),
                    receiver,
                )
                for _ in range(2)
            ]
            hook = await nodes[0].hook()
            keys = [f"k{i}" for i in range(60)]
            for node in nodes:
                del node.outbox._clock, node.webhooks._clock
                node.outbox._clock = node.webhooks._clock = node.manager.clock
            running = [asyncio.create_task(node.outbox.run()) for node in nodes]
            await asyncio.gather(*(nodes[i % 2].manager.create_key(k) for i, k in enumerate(keys)))
            for _ in range(600):
                states = [state for _, state, _ in await nodes[0].states(hook)]
                if states.count("done") == len(keys):
                    break
                await asyncio.sleep(0.05)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            told = [json.loads(r.body)["data"]["key_id"] for r in receiver.got]
            assert sorted(told) == sorted(keys)
    finally:
        place.drop()


async def test_private_is_refused_by_default(tmp_path):
    """Without the setting neither plain HTTP nor an address of this network is taken."""
    async with Place(tmp_path).open(background=False) as deployment:
        for url in ("http://example.com/", "https://127.0.0.1/", "https://[::ffff:10.0.0.1]/"):
            with pytest.raises(ValidationError, match=r"^url: "):
                await deployment.webhooks.create({"url": url}, BY)


async def test_over_http(tmp_path):
    """The whole life of a subscription by requests, with an Idempotency-Key; no secret is shown
    twice."""
    url = f"sqlite:///{tmp_path}/data/akm.db"
    async with receiving() as receiver, serving(
        DATABASE_URL=url, WEBHOOK_ALLOW_PRIVATE=True
    ) as api:  # fmt: skip
        sender = Sender(private=True, context=receiver.context)
        api.deployment.outbox._sender = api.deployment.webhooks._sender = sender
        once = {"Idempotency-Key": "once"}
        made = await api("POST", "/v1/webhooks", {"url": receiver.url}, headers=once)
        assert made.status_code == 201
        again = await api("POST", "/v1/webhooks", {"url": receiver.url}, headers=once)
        assert again.json() == made.json()
        secret, path = made.json()["secret"], f"/v1/webhooks/{made.json()['id']}"
        assert len((await api("GET", "/v1/webhooks")).json()["items"]) == 1
        assert secret not in (await api("GET", path)).text
        sent = (await api("POST", f"{path}/test")).json()
        assert (sent["outcome"], sent["state"], sent["status"]) == ("delivered", "done", 204)
        Verifier(secret).verify(receiver.got[0].body, receiver.got[0].headers)
        rotated = await api("POST", f"{path}/rotate-secret", {"overlap_seconds": 0})
        assert rotated.json()["secret"] != secret
        page = (await api("GET", f"{path}/deliveries?state=done&limit=1")).json()
        assert [each["id"] for each in page["items"]] == [sent["id"]]
        replayed = await api("POST", f"{path}/deliveries/{sent['id']}/replay")
        assert replayed.json()["state"] == "pending"
        assert (await api("POST", f"{path}/replay")).json() == {"replayed": 0}
        changed = await api("PATCH", path, {"types": ["key.revoked"], "disabled": True})
        assert changed.json()["types"] == ["key.revoked"]
        for body, field in (
            ({"url": "ftp://x/"}, "url"), ({"url": receiver.url, "types": ["nothing"]}, "types"),
        ):  # fmt: skip
            refused = await api("POST", "/v1/webhooks", body)
            assert (refused.status_code, refused.json()["field"]) == (422, field)
        reader = (await api.scoped("keys:read"))["token"]
        assert (await api("GET", path, token=reader)).status_code == 200
        assert (await api("DELETE", path, token=reader)).status_code == 403
        assert (await api("DELETE", path)).status_code == 204
        assert (await api("GET", path)).status_code == 404
        log = (await api("GET", "/v1/audit")).text
        for verb in ("created", "updated", "secret_rotated", "replayed", "deleted"):
            assert f"webhook_{verb}" in log
        assert secret not in log
        assert "/hook" not in log


def test_commands(akm_hooks):
    """The same by commands, on the local database."""
    made = akm_hooks(
        "webhooks", "create", "https://127.0.0.1:1/", "--type", "key.revoked", "--json"
    )
    hook = json.loads(made.stdout)
    assert hook["secret"].startswith("whsec_")
    assert hook["id"] in akm_hooks("webhooks", "list").stdout
    tested = akm_hooks("webhooks", "test", hook["id"])
    assert tested.exit_code == 1
    assert "connect_failed" in tested.stdout
    assert "connect_failed" in akm_hooks("webhooks", "deliveries", hook["id"]).stdout
    assert "1 are sent again" in akm_hooks("webhooks", "replay", hook["id"]).stdout
    assert "whsec_" in akm_hooks("webhooks", "rotate-secret", hook["id"]).stdout
    assert akm_hooks("webhooks", "update", hook["id"], "--disable").exit_code == 0
    assert json.loads(akm_hooks("webhooks", "show", hook["id"], "--json").stdout)["disabled"]
    assert akm_hooks("webhooks", "delete", hook["id"]).exit_code == 0
    assert akm_hooks("webhooks", "show", hook["id"]).exit_code == 1
