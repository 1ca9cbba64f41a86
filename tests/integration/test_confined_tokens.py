"""Admin tokens of one environment: for them there is nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api_key_manager.core.presented import Presented
from api_key_manager.server.hot import validate_now
from api_key_manager.server.principal import Principal
from api_key_manager.webhooks.events import TEST
from tests.integration.conftest import Api, serving, signed
from tests.services import free_port

FOREIGN = "foreign"
HERE = "here"
NOBODY = "no-such-key"

# Every operation that an admin token opens, with bodies that do something to the key in question.
BODIES: dict[str, list[Any]] = {
    "create_key": [{}, {"environment": HERE}, {"environment": None}],
    "list_keys": [None],
    "revoke_keys": [{"owner": FOREIGN}, {"environment": FOREIGN}, {"kind": "signed"}],
    "get_key": [None],
    "update_key": [{"metadata": {"a": 1}}, {"disabled": True}, {"environment": HERE}],
    "delete_key": [None],
    "revoke_key": [None, {"reason": "why"}, {"at": "2099-01-01T00:00:00Z"}],
    "rotate_key": [None, {"overlap_seconds": 60}],
    "list_versions": [None],
    "create_token": [{"scopes": ["validate"]}, {"scopes": ["admin"], "environment": HERE}],
    "rotate_token": [None, {"overlap_seconds": 60}],
    "list_tokens": [None],
    "revoke_token": [None],
    "validate": [],
    "validate_batch": [],
    "create_webhook": [{"url": "http://127.0.0.1:9/", "environment": FOREIGN}],
    "list_webhooks": [None],
    "get_webhook": [None],
    "update_webhook": [{"disabled": True}, {"types": ["key.created"]}, {"description": None}],
    "delete_webhook": [None],
    "rotate_webhook_secret": [None, {"overlap_seconds": 0}],
    "send_test_webhook": [None],
    "list_deliveries": [None],
    "replay_delivery": [None],
    "replay_dead_deliveries": [None],
    "report_leak": [],  # every secret and token there is, see World.fill
    "list_audit": [None],
    "get_checkpoint": [None],
    "get_proof": [None],
    "get_stats": [None],
    "get_metrics": [None],
}
QUERIES = {
    "list_keys": ["", "?owner=foreign", "?environment=foreign", "?kind=signed", "?limit=1"],
    "list_audit": ["", f"?key_id={FOREIGN}-signed", "?order=asc", "?limit=1"],
    "get_proof": ["?index=0", *(f"?index={n}" for n in range(1, 30)), "?id=1", "?from=1"],
    "get_stats": ["?by_environment=true", "?environment=foreign", "?environment=here"],
    "list_tokens": ["", "?state=active"],
    "list_deliveries": ["", "?state=dead", "?limit=1"],
}


class World:
    """Keys and a token here, elsewhere and nowhere, whose every name tells where they are."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.keys: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        # By where they are; none where keys are in memory.
        self.hooks: dict[str, dict[str, Any]] = {}
        self.delivery = NOBODY
        self.bodies = dict(BODIES)

    async def fill(self) -> World:
        for where, environment in ((HERE, HERE), (FOREIGN, FOREIGN), ("foreign-none", None)):
            for kind in ("signed", "bearer"):
                key = await self.api.key(
                    key_id=f"{where}-{kind}", kind=kind, owner=where, environment=environment,
                    metadata={"of": where}, permissions=[f"{where}.read"],
                )  # fmt: skip
                self.keys[f"{where}-{kind}"] = key
        for where in (HERE, FOREIGN):
            self.tokens[where] = await self.api.scoped("admin", name=where, environment=where)
        self.token = self.tokens[HERE]["token"]
        if self.api.deployment.webhooks is not None:
            for where, environment in ((HERE, HERE), (FOREIGN, FOREIGN), ("foreign-none", None)):
                await self.subscribe(where, environment)
        self.bodies["report_leak"] = [{"token": leaked} for leaked in self.leaks(FOREIGN)]
        # Something for the log, warm records, and refusals whose events name a key.
        for key in self.keys.values():
            assert (await self.validate(None, **shown(key)))["valid"]
            await self.validate(None, **{**shown(key), "permissions": "nobody.has"})
        await self.validate(None, **{**shown(self.keys["foreign-signed"]), "signature": "0" * 64})
        return self

    async def subscribe(self, where: str, environment: str | None) -> None:
        """A webhook that nobody answers, and a delivery that is dead."""
        url = f"http://127.0.0.1:{free_port()}/{where}"
        body = {"url": url, "environment": environment, "types": ["key.leaked", "key.revoked"]}
        made = await self.api("POST", "/v1/webhooks", body)
        assert made.status_code == 201, made.text
        self.hooks[where] = made.json()
        sent = await self.api("POST", f"/v1/webhooks/{made.json()['id']}/test")
        assert sent.json()["state"] == "dead"
        if where == FOREIGN:
            self.delivery = sent.json()["id"]

    def leaks(self, where: str) -> list[str]:
        """Every secret and token of the keys and admin tokens somewhere."""
        keys = [key for key_id, key in self.keys.items() if key_id.startswith(where)]
        shown = [key.get("token") or key["secret"] for key in [*keys, self.tokens[where]]]
        return [*shown, self.api.token] if where == FOREIGN else shown

    async def validate(self, by: str | None, **body: Any) -> dict[str, Any]:
        answer = await self.api("POST", "/v1/validate", body, token=by or self.api.token)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def confined(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.api(method, path, body, token=self.token)

    async def foreign(self) -> list[Any]:
        """All there is elsewhere, as an unconfined token sees it."""
        found = []
        for key_id in self.keys:
            if key_id.startswith(FOREIGN):
                key = (await self.api("GET", f"/v1/keys/{key_id}")).json()
                versions = (await self.api("GET", f"/v1/keys/{key_id}/versions")).json()
                found.append(({**key, "last_used": None}, versions))
        tokens = (await self.api("GET", "/v1/tokens")).json()["items"]
        found.append([t for t in tokens if t["environment"] == FOREIGN])
        found.append([t["state"] for t in tokens if t["environment"] is None])
        for hook in (await self.api("GET", "/v1/webhooks")).json()["items"]:
            if hook["environment"] != HERE:
                listed = await self.api("GET", f"/v1/webhooks/{hook['id']}/deliveries")
                # Of no environment is who hears of all, of what is done here as well.
                everything = hook["environment"] == FOREIGN
                sent = listed.json()["items"]
                found.append((hook, [d for d in sent if everything or d["type"] == TEST]))
        return found

    async def operations(self) -> list[tuple[str, str, str]]:
        document = (await self.api("GET", "/openapi.json")).json()
        return [
            (method.upper(), path, operation["operationId"])
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if "security" in operation and operation["security"] == [{"admin_token": []}]
        ]


def shown(key: dict[str, Any], nonce: str = "") -> dict[str, Any]:
    return {"token": key["token"]} if "token" in key else signed(key, nonce=nonce)


def told(answer: httpx.Response, key_id: str) -> tuple[int, str, dict[str, str]]:
    """An answer without what differs between any two, and the id that was asked for."""
    text = answer.text.replace(key_id, "ID")
    headers = {
        name: value for name, value in answer.headers.items()
        if name not in ("x-request-id", "date", "content-length")
    }  # fmt: skip
    request_id = answer.headers.get("x-request-id", "")
    return answer.status_code, text.replace(request_id, "REQUEST"), headers


@pytest.fixture(params=["memory", "sqlite"])
async def world(request, tmp_path) -> AsyncIterator[World]:
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/data/akm.db"}
    async with serving(DATABASE_URL=urls[request.param], WEBHOOK_ALLOW_PRIVATE=True) as api:
        yield await World(api).fill()


async def test_every_operation_is_looked_at(world: World):
    """A new route has to be thought of here."""
    assert {name for _, _, name in await world.operations()} == set(BODIES)


async def test_nothing_of_another_environment_shows(world: World):
    """Whatever a confined token asks, by any route, body or filter: of another environment's keys
    and tokens it is told what is told of ids that do not exist, and they stay as they are."""
    before = await world.foreign()
    targets = [key_id for key_id in world.keys if key_id.startswith(FOREIGN)]
    for method, path, name in await world.operations():
        for body in world.bodies[name]:
            if "{webhook_id}" in path:
                path = path.replace("{delivery_id}", world.delivery)
                unknown = await world.confined(method, path.format(webhook_id=NOBODY), body)
                assert unknown.status_code == 404
                for hook in (hook["id"] for where, hook in world.hooks.items() if where != HERE):
                    answer = await world.confined(method, path.format(webhook_id=hook), body)
                    assert told(answer, hook) == told(unknown, NOBODY), (name, hook)
                continue
            if "{key_id}" in path:
                unknown = await world.confined(method, path.replace("{key_id}", NOBODY), body)
                foreign_token = [world.tokens[FOREIGN]["key_id"], "first-admin"]
                for target in [*targets, *foreign_token]:
                    answer = await world.confined(method, path.replace("{key_id}", target), body)
                    assert told(answer, target) == told(unknown, NOBODY), (name, target)
                    assert answer.status_code == 404
                continue
            for query in QUERIES.get(name, [""]):
                answer = await world.confined(method, path + query, body)
                # The message of a filter is the caller's own words, as is the id asked for.
                assert FOREIGN not in answer.text, (name, query, body)
                if name == "report_leak":
                    assert set(answer.json().values()) == {False, None}
                plain = answer.text.replace("\\", "").replace('"actor":"first-admin"', "")
                assert "first-admin" not in plain
    assert await world.foreign() == before


async def test_random_walks(world: World):
    """The same over many steps in any order, with pages followed to their ends."""
    before = await world.foreign()
    operations = await world.operations()
    bodies = {**world.bodies, "create_webhook": [{"url": "http://127.0.0.1:9/"}]}
    bodies["report_leak"] += [{"token": leaked} for leaked in world.leaks(HERE)[:2]]
    dice = random.Random(4)
    for _ in range(250):
        method, path, name = dice.choice(operations)
        if not bodies[name]:
            continue
        target = dice.choice([*world.keys, NOBODY])
        hook = dice.choice([*(hook["id"] for hook in world.hooks.values()), NOBODY])
        path = path.format(key_id=target, webhook_id=hook, delivery_id=world.delivery)
        where = path + dice.choice(QUERIES.get(name, [""]))
        answer = await world.confined(method, where, dice.choice(bodies[name]))
        assert answer.status_code < 500
        seen = answer.text if target not in path else answer.text.replace(target, "")
        while name.startswith("list_") and answer.json().get("next_cursor"):
            joint = "&" if "?" in where else "?"
            cursor = f"{where}{joint}cursor={answer.json()['next_cursor']}"
            answer = await world.confined(method, cursor)
            seen += answer.text
        assert FOREIGN not in seen.replace(target, ""), (name, where)
    assert await world.foreign() == before


@pytest.mark.parametrize("route", ["/v1/validate", "/v1/validate/batch"])
async def test_validating_a_foreign_key(world: World, route: str):
    """A good credential of another environment is `not_found`, word for word like one of nobody,
    also when its record is in memory; a key of one's own is judged as ever."""
    for kind in ("signed", "bearer"):
        unknown = await world.api.key(key_id=f"gone-{kind}", kind=kind, environment=HERE)
        await world.api("DELETE", f"/v1/keys/gone-{kind}")
        answers = []
        for key in (unknown, world.keys[f"{FOREIGN}-{kind}"], world.keys[f"foreign-none-{kind}"]):
            body = shown(key) if route == "/v1/validate" else {"validations": [shown(key)] * 2}
            answers.append(told(await world.confined("POST", route, body), key["key_id"]))
        assert answers[0] == answers[1] == answers[2]
        assert '"reason":"not_found"' in answers[0][1]
        own = await world.validate(world.token, **shown(world.keys[f"{HERE}-{kind}"]))
        assert own["reason"] == "valid"
        assert own["metadata"] == {"of": HERE}


async def test_no_short_cut(world: World):
    """The short cut of a connection's next requests asks nothing less: a good signature of a
    foreign key is left to the judge, which knows who asks."""
    manager, key = world.api.deployment.manager, world.keys["foreign-signed"]
    body, now = json.dumps(shown(key)).encode(), manager.clock()
    unconfined = Principal("x", ("admin",))
    if world.api.deployment.follower is not None:
        # Else it drops what was changed above, somewhere in the middle.
        await world.api.deployment.follower.catch_up()
    assert (await world.validate(world.api.token, **shown(key)))["valid"]  # warm
    assert isinstance(validate_now(manager, body, unconfined, "r", now), bytes)
    for environment in (HERE, FOREIGN):
        confined = Principal("x", ("admin",), environment=environment).anew("r")
        presented = validate_now(manager, body, confined, "r", now)
        assert isinstance(presented, Presented)
        assert presented.within == environment
        verdict = await manager.verify_presented(presented)
        assert verdict.reason == ("not_found" if environment == HERE else "valid")


async def test_foreign_validation_costs_the_same_reads(world: World):
    """One read of the store for a foreign key, as for one that there is not, warm or cold."""
    store = world.api.deployment.manager.store
    reads: list[list[str]] = []
    load = store.load

    async def counted(key_ids):
        reads.append(list(key_ids))
        return await load(key_ids)

    await world.validate(world.token, token="akm_x_0")  # reads the admin token
    store.load = counted
    key = world.keys["foreign-bearer"]
    for credential in (key["token"], world.keys["foreign-none-bearer"]["token"]):
        reads.clear()
        for _ in range(3):
            await world.validate(world.token, token=credential)
        assert len(reads) == 3


async def test_foreign_validation_takes_nothing(world: World):
    """No nonce is claimed and no limit charged for who may not know the key."""
    limits = [{"name": "hour", "limit": 1, "window_seconds": 3600}]
    key = await world.api.key(key_id="foreign-limited", environment=FOREIGN, rate_limits=limits)
    credential = shown(key, nonce="n" * 16)
    for _ in range(3):
        assert (await world.validate(world.token, **credential))["reason"] == "not_found"
    assert (await world.validate(None, **credential))["reason"] == "valid"
    assert (await world.validate(None, **credential))["reason"] == "replayed"


async def test_what_a_confined_token_makes(world: World):
    """Keys and tokens that it makes are of its environment, said or not; of no other."""
    for made in ({}, {"environment": None}, {"environment": HERE}):
        answer = await world.confined("POST", "/v1/keys", made)
        assert answer.status_code == 201
        assert answer.json()["environment"] == HERE
        answer = await world.confined("POST", "/v1/tokens", {"scopes": ["admin"], **made})
        assert answer.json()["environment"] == HERE
    for path, body in (("/v1/keys", {}), ("/v1/tokens", {"scopes": ["validate"]})):
        answer = await world.confined("POST", path, {**body, "environment": FOREIGN})
        assert answer.status_code == 403
        assert answer.json()["reason"] == "forbidden"


async def test_webhooks_of_the_environment(world: World):
    """A webhook that it makes is of its environment, said or not, and hears of nothing else."""
    if not world.hooks:
        answer = await world.confined("POST", "/v1/webhooks", {"url": "http://127.0.0.1:9/"})
        assert answer.status_code == 409
        return
    for made in ({}, {"environment": None}, {"environment": HERE}):
        body = {"url": world.hooks[HERE]["url"], **made}
        answer = await world.confined("POST", "/v1/webhooks", body)
        assert (answer.status_code, answer.json()["environment"]) == (201, HERE)
    body = {"url": world.hooks[HERE]["url"], "environment": FOREIGN}
    answer = await world.confined("POST", "/v1/webhooks", body)
    assert (answer.status_code, answer.json()["reason"]) == (403, "forbidden")
    listed = (await world.confined("GET", "/v1/webhooks")).json()["items"]
    assert len(listed) == 4
    assert {hook["environment"] for hook in listed} == {HERE}


async def test_leaks_of_the_environment(world: World):
    """What it reports of its environment is ended."""
    for leaked in world.leaks(HERE)[:2]:
        answer = (await world.confined("POST", "/v1/leaks", {"token": leaked})).json()
        assert (answer["matched"], answer["action"]) == (True, "revoked")
    for key_id in ("here-signed", "here-bearer"):
        assert (await world.confined("GET", f"/v1/keys/{key_id}")).json()["state"] == "revoked"


async def test_a_minted_token_is_confined_too(world: World):
    """What it mints reaches no further than itself."""
    minted = (await world.confined("POST", "/v1/tokens", {"scopes": ["admin"]})).json()["token"]
    assert (await world.api("GET", "/v1/keys/here-signed", token=minted)).status_code == 200
    assert (await world.api("GET", "/v1/keys/foreign-signed", token=minted)).status_code == 404


@pytest.mark.parametrize("environment", [FOREIGN, None])
async def test_no_key_is_moved(world: World, environment: str | None):
    """A key of one's own cannot be moved out; an unconfined token can, and then it is gone."""
    answer = await world.confined("PATCH", "/v1/keys/here-signed", {"environment": environment})
    assert answer.status_code == 403
    same = await world.confined("PATCH", "/v1/keys/here-signed", {"environment": HERE})
    assert same.status_code == 200
    moved = await world.api("PATCH", "/v1/keys/here-signed", {"environment": environment})
    assert moved.status_code == 200
    assert (await world.confined("GET", "/v1/keys/here-signed")).status_code == 404


async def test_bulk_revocation_stays_within(world: World):
    """A filter that fits keys everywhere ends those of one's own environment only."""
    answer = (await world.confined("POST", "/v1/keys/revoke", {"kind": "bearer"})).json()
    assert answer == {"dry_run": False, "matched": 1, "revoked": 1, "key_ids": ["here-bearer"]}
    answer = (await world.confined("POST", "/v1/keys/revoke", {"environment": FOREIGN})).json()
    assert answer["matched"] == 0


async def test_audit_of_the_environment(world: World):
    """It sees what happened to keys of its environment, validations, refusals and the end too."""
    await world.validate(None, **{**shown(world.keys["here-signed"]), "signature": "0" * 64})
    await world.api("DELETE", "/v1/keys/here-signed")
    events = (await world.confined("GET", "/v1/audit?key_id=here-signed")).json()["items"]
    found = {(event["action"], event["reason"]) for event in events}
    assert found == {
        ("key_created", None), ("key_validated", "valid"), ("key_refused", "forbidden"),
        ("key_refused", "bad_signature"), ("key_deleted", None),
    }  # fmt: skip


async def test_counts_of_the_environment(world: World):
    """The numbers of keys are one's own environment's; the metrics are for nobody confined."""
    await world.api("POST", "/v1/keys/here-bearer/revoke")
    own = {"environment": HERE, "active": 1, "disabled": 0, "expired": 0, "revoked": 1}
    for query in ("?by_environment=true", "?environment=here"):
        assert (await world.confined("GET", f"/v1/stats{query}")).json()["environments"] == [own]
    hidden = await world.confined("GET", "/v1/stats?environment=foreign")
    assert hidden.json()["environments"] == []
    assert (await world.confined("GET", "/v1/stats")).json()["environments"] is None
    refused = await world.confined("GET", "/metrics")
    assert (refused.status_code, refused.json()["reason"]) == (403, "forbidden")
    everywhere = (await world.api("GET", "/v1/stats?by_environment=true")).json()["environments"]
    assert [counted["environment"] for counted in everywhere] == [None, FOREIGN, HERE]


async def test_metrics_by_environment(world: World):
    """Verdicts count by environment; past so many of them as `other`; keys without one do not."""
    text = (await world.api("GET", "/metrics")).text
    name = "akm_environment_validations_total"
    assert f'{name}{{environment="here",result="valid"}} 2.0' in text
    assert f'{name}{{environment="here",result="refused"}} 2.0' in text
    for i in range(60):
        key = await world.api.key(kind="bearer", environment=f"e{i}")
        await world.validate(None, token=key["token"])
    text = (await world.api("GET", "/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    assert len(lines) == 51 * 2
    assert f'{name}{{environment="other",result="valid"}} 12.0' in text
