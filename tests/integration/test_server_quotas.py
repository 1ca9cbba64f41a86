"""Quotas and shared limits over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.server import schemas
from tests.integration.commands import Akm
from tests.integration.conftest import Api, serving, signed
from tests.integration.connections import Connection, connected
from tests.integration.servers import TOKEN, started

NEVER = {"limit": 2, "refill": "never"}
MONTH = {"limit": 2, "refill": "monthly", "hour": 6, "zone": "Europe/Berlin"}
SHARED = {"name": "all", "limit": 2, "window_seconds": 3600, "scope": "owner"}


async def validate(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    answer = await api("POST", "/v1/validate", body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_quota_of_a_key(stored: Api):
    """A quota is given at creation, shown with what was spent, changed and taken away."""
    key = await stored.key(key_id="k", quota=MONTH)
    schemas.CreatedKey.model_validate(key)
    told = await validate(stored, signed(key))
    assert told["quota"]["limit"] == 2
    assert told["quota"]["remaining"] == 1
    resets_at = datetime.fromisoformat(told["quota"]["resets_at"])
    assert resets_at > datetime.now(UTC)
    assert (resets_at.day, resets_at.minute) == (1, 0)
    shown = (await stored("GET", "/v1/keys/k")).json()
    schemas.Key.model_validate(shown)
    assert shown["quota"] == {**MONTH, "shared_by_owner": False, "spent": 1}
    assert (await stored("GET", "/v1/keys")).json()["items"][0]["quota"]["spent"] is None
    await validate(stored, signed(key))
    refused = await validate(stored, signed(key))
    assert (refused["valid"], refused["reason"]) == (False, "quota_exceeded")
    assert refused["quota"] == {**told["quota"], "remaining": 0}
    assert refused["metadata"] == {}
    changed = await stored("PATCH", "/v1/keys/k", {"quota": {"limit": 3, "refill": "never"}})
    assert changed.json()["quota"]["hour"] == 0
    assert (await validate(stored, signed(key)))["quota"]["resets_at"] is None
    await stored("PATCH", "/v1/keys/k", {"quota": None})
    assert (await validate(stored, signed(key)))["quota"] is None


@pytest.mark.parametrize(
    ("quota", "field"),
    [
        ({"limit": 0, "refill": "daily"}, "quota.limit"),
        ({"limit": 2**63, "refill": "daily"}, "quota.limit"),
        ({"limit": "1", "refill": "daily"}, "quota.limit"),
        ({"refill": "daily"}, "quota.limit"),
        ({"limit": 1, "refill": "hourly"}, "quota.refill"),
        ({"limit": 1, "refill": "daily", "hour": 24}, "quota.hour"),
        ({"limit": 1, "refill": "daily", "zone": "Nowhere"}, "quota.zone"),
        ({"limit": 1, "refill": "daily", "spent": 0}, "quota.spent"),
        ({"limit": 1, "refill": "daily", "shared_by_owner": True}, "quota.shared_by_owner"),
        ([], "quota"),
        ("1/day", "quota"),
    ],
)
async def test_bad_quotas(api: Api, quota: Any, field: str):
    """A quota that cannot be is a 422 that names the field."""
    answer = await api("POST", "/v1/keys", {"quota": quota})
    assert answer.status_code == 422
    assert answer.json()["field"] == field


async def test_authorize(api: Api):
    """Forward auth answers 429, with a time to wait where waiting helps."""
    for quota, waits in ((MONTH, True), (NEVER, False)):
        token = (await api.key(kind="bearer", quota=quota))["token"]
        answers = [
            await api("GET", "/v1/authorize", token=None, headers={"X-Api-Key": token})
            for _ in range(3)
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["reason"] == "quota_exceeded"
        wait = answers[2].headers.get("Retry-After")
        assert 0 < int(wait) <= 31 * 86_400 + 3600 if waits else wait is None
        assert not any("quota" in name for name in answers[0].headers)


async def test_shared_limit(stored: Api):
    """A limit with the scope owner is one of all keys of the owner, and shows as such."""
    a, b = [await stored.key(key_id=k, owner="acme", rate_limits=[SHARED]) for k in "ab"]
    schemas.CreatedKey.model_validate(a)
    assert a["rate_limits"] == [SHARED]
    reasons = [(await validate(stored, signed(key)))["reason"] for key in (a, b, a, b)]
    assert reasons == ["valid"] * 2 + ["rate_limited"] * 2


async def test_shared_accounts_end_at_the_environment(api: Api):
    """A token of one environment can neither spend nor read what the same owner has in another."""
    quota = {**NEVER, "shared_by_owner": True}
    fields = {"kind": "bearer", "owner": "acme", "quota": quota, "rate_limits": [SHARED]}
    foreign = await api.key(environment="there", **fields)
    for _ in range(2):
        assert (await validate(api, {"token": foreign["token"]}))["valid"]
    confined = (await api.scoped("admin", environment="here"))["token"]
    own = (await api("POST", "/v1/keys", fields, token=confined)).json()
    shown = await api("GET", f"/v1/keys/{own['key_id']}", token=confined)
    assert shown.json()["quota"]["spent"] == 0
    answer = await api("POST", "/v1/validate", {"token": own["token"]}, token=confined)
    assert answer.json()["quota"]["remaining"] == 1
    assert answer.json()["rate_limit"]["remaining"] == 1


async def test_idle_credits_are_returned(tmp_path: Path):
    """A block that is no longer used goes back by itself, and all of them when the server stops."""
    url = f"sqlite:///{tmp_path}/data/akm.db"
    async with serving(DATABASE_URL=url) as api:
        keys = [await api.key(kind="bearer", quota={"limit": 1000, "refill": "never"})
                for _ in range(2)]  # fmt: skip
        for key in keys:
            await validate(api, {"token": key["token"]})
        manager = api.deployment.manager
        assert manager.credits.held(f"k:{keys[0]['key_id']}", 0) == 9
        await manager.credits.give_back_idle(manager.clock() + 60)
        assert manager.credits.held(f"k:{keys[0]['key_id']}", 0) == 0
        await validate(api, {"token": keys[1]["token"]})
    async with serving(DATABASE_URL=url) as api:
        store = api.deployment.manager.credits._store
        assert store is not None
        assert await store.spent([(f"k:{key['key_id']}", 0) for key in keys]) == [1, 2]


@pytest.mark.slow
async def test_workers_share_a_quota(tmp_path: Path):
    """Several workers together accept exactly so many."""
    with started(tmp_path, WORKERS="3", AKM_ADMIN_TOKEN=TOKEN) as server:
        async with connected(server.url, 16) as connections:
            made = {"kind": "bearer", "quota": {"limit": 700, "refill": "never"}}
            body = {"token": (await connections[0]("POST", "/v1/keys", made)).body["token"]}

            async def ask(count: int) -> int:
                async def lane(connection: Connection) -> int:
                    answers = [await connection("POST", "/v1/validate", body) for _ in range(count)]
                    return sum(answer.body["valid"] for answer in answers)

                return sum(await asyncio.gather(*map(lane, connections)))

            accepted = await ask(60)
            # What a worker holds at the end and nobody asks it for goes back in some seconds.
            for _ in range(15):
                if accepted == 700:
                    break
                await asyncio.sleep(1)
                accepted += await ask(3)
            assert accepted == 700
            assert await ask(3) == 0


def test_command_line(db: Akm) -> None:
    """A quota and a shared limit are typed, shown in words, exported and imported again."""
    created = db(
        "keys", "create", "k", "--owner", "acme", "--quota", "1000/month", "--quota-hour", "6",
        "--quota-zone", "Europe/Berlin", "--quota-shared", "--rate-limit", "hour=10/1h@owner",
    )  # fmt: skip
    assert created.exit_code == 0, created.output
    shown = db("keys", "show", "k").stdout
    assert "quota: 1000/month at 6:00 Europe/Berlin, shared by the owner's keys, 0 spent" in shown
    assert "rate_limits: hour=10/3600s@owner" in shown
    exported = db("keys", "export", "--json").stdout
    assert db("keys", "delete", "k", "--yes").exit_code == 0
    line = json.dumps({**json.loads(exported), "key_id": "j"})
    assert db("keys", "import", "-", stdin=line).exit_code == 0
    key = json.loads(db("keys", "show", "j", "--json").stdout)
    assert key["quota"]["zone"] == "Europe/Berlin"
    assert key["rate_limits"][0]["scope"] == "owner"
    assert db("keys", "update", "j", "--quota", "5/never").exit_code == 0
    assert "quota: 5/never, 0 spent" in db("keys", "show", "j").stdout
    assert db("keys", "update", "j", "--no-quota").exit_code == 0
    assert json.loads(db("keys", "show", "j", "--json").stdout)["quota"] is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--quota", "1000"], "--quota: N/day, N/month or N/never"),
        (["--quota", "x/day"], "--quota: N/day"),
        (["--quota", "1/week"], "--quota: N/day"),
        (["--quota", "-1/day"], "--quota: N/day"),
        (["--quota-hour", "6"], "--quota-hour, --quota-zone and --quota-shared go with --quota"),
        (["--quota", "0/day"], "quota.limit: a whole number from 1"),
        (["--quota", "1/day", "--quota-zone", "Mars"], "quota.zone: a time zone"),
        (["--quota", "1/day", "--quota-hour", "24"], "quota.hour: a whole number"),
        (["--quota", "1/day", "--quota-shared"], "quota.shared_by_owner: the key needs an owner"),
    ],
)
def test_mistyped(db: Akm, options: list[str], told: str) -> None:
    """What cannot be is refused with what is allowed."""
    result = db("keys", "create", "k", *options)
    assert result.exit_code != 0
    assert told in result.stderr
