"""An editor of the database who would like to hear what happens, or to have others hear him."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from api_key_manager.connections.tables import webhooks
from api_key_manager.core.models import canonical_json
from tests.integration.attackers import copied, literal
from tests.integration.places import Place
from tests.integration.receivers import receiving
from tests.integration.test_webhooks import World


@pytest.fixture
async def world(either_place: Place) -> AsyncIterator[World]:
    async with (
        receiving() as receiver,
        either_place.open(background=False, WEBHOOK_ALLOW_PRIVATE=True) as deployment,
    ):
        yield World(deployment, receiver)


async def test_events_are_sent_nowhere_else(world, either_place, caplog):
    """A subscription whose URL or environment was edited, one with the secret of another, and one
    that he put in, hear nothing; the log names them."""
    place, elsewhere = either_place, world.receiver.url.replace("/hook", "/elsewhere")
    hooks = [await world.hook(environment=name) for name in ("a", "b", "c")]
    ids = [hook["id"] for hook in hooks]
    place.sql(f"UPDATE webhooks SET url = '{elsewhere}' WHERE id = '{ids[0]}'")
    place.sql(f"UPDATE webhooks SET environment = NULL WHERE id = '{ids[1]}'")
    place.sql(
        f"UPDATE webhooks SET sealed = (SELECT sealed FROM webhooks WHERE id = '{ids[0]}')"
        f" WHERE id = '{ids[2]}'"
    )
    place.sql(copied(webhooks, f"id = '{ids[1]}'", id="'his'", url=f"'{elsewhere}'"))
    for environment in ("a", "b", "c"):
        await world.manager.create_key(environment=environment)
    await world.go()
    assert world.receiver.got == []
    for hook_id in (*ids, "his"):
        assert f"the webhook {hook_id} was edited" in caplog.text


async def test_gained_silence(world, either_place):
    """What waits to be sent he can remove, and a subscription he can end: nobody hears of it. The
    audit log has what happened."""
    await world.hook()
    await world.manager.create_key("k")
    either_place.sql("UPDATE webhooks SET disabled = TRUE")
    await world.go()
    assert world.receiver.got == []
    page = await world.manager.find_audit(action="key_created")
    assert [event["key_id"] for event in page["items"]] == ["k"]


async def test_words_are_ours(world, either_place, caplog):
    """What a delivery that waits says cannot be changed, and of an event that he put into the log
    nobody is told."""
    await world.hook()
    await world.manager.create_key("k")
    world.receiver.say(503)
    await world.go()
    said = canonical_json({"type": "key.revoked", "data": {"key_id": "never"}})
    either_place.sql(
        f"UPDATE webhook_deliveries SET body = {literal(either_place, said)}, next_at = 0"
    )
    either_place.sql(
        "INSERT INTO audit_events (at, action, key_id, count) VALUES (1, 'key_revoked', 'never', 1)"
    )
    world.receiver.say(204)
    await world.go()
    assert [json.loads(received.body)["type"] for received in world.receiver.got] == ["key.created"]
    assert "was edited in the database: it is not sent" in caplog.text


async def test_one_receiver_forges_nothing_for_another(world):
    """Each subscription has a secret of its own: what is signed with one fits no other."""
    hooks = [await world.hook() for _ in range(2)]
    await world.manager.create_key("k")
    await world.go()
    fitting = []
    for received in world.receiver.got:
        for hook in hooks:
            with suppress(WebhookVerificationError):
                Verifier(hook["secret"]).verify(received.body, received.headers)
                fitting.append(hook["id"])
    assert sorted(fitting) == sorted(hook["id"] for hook in hooks)
