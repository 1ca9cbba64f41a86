"""Rate limits over HTTP, on the command line, and in the set-ups that are refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from api_key_manager import open_manager, sign
from api_key_manager.config import Settings
from api_key_manager.core import ConfigurationError, ConflictError, MemoryLimiter, RateLimit
from api_key_manager.server import schemas
from api_key_manager.storage import SqliteDriver, SqliteStore, SqlStore, scripts, upgrade
from api_key_manager.wiring.limits import (
    default_limits,
    limits_are_shared,
    refuse_unshared_limits,
)
from tests.integration.commands import Akm, refused
from tests.integration.conftest import Api, serving, signed

HOUR = [{"name": "hour", "limit": 2, "window_seconds": 3600}]


def stop_time(api: Api) -> None:
    """Limits refill while a test runs; these stand still."""
    verifier = api.deployment.manager._verifier
    verifier._limiter = verifier._charging._limiter = MemoryLimiter(clock=lambda: 10**12)


async def validate(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    answer = await api("POST", "/v1/validate", body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_limits_of_a_key(stored: Api):
    """Limits are given at creation, shown, changed and taken away."""
    given = [{"limit": 10, "window_seconds": 1}, *HOUR]
    key = await stored.key(key_id="k", rate_limits=given)
    schemas.CreatedKey.model_validate(key)
    expected = [{"name": "10-per-1s", "limit": 10, "window_seconds": 1}, *HOUR]
    assert key["rate_limits"] == expected
    assert (await stored("GET", "/v1/keys/k")).json()["rate_limits"] == expected
    for sent, shown in ((HOUR, HOUR), ([], []), (HOUR, HOUR), (None, [])):
        changed = await stored("PATCH", "/v1/keys/k", {"rate_limits": sent})
        assert changed.status_code == 200, changed.text
        assert changed.json()["rate_limits"] == shown


async def test_validate_tells_the_limit(stored: Api):
    """Both verdicts say what is left of the deciding limit, in whole seconds."""
    wide = {"name": "minute", "limit": 100, "window_seconds": 60}
    key = await stored.key(rate_limits=[wide, *HOUR], metadata={"plan": "pro"})
    stop_time(stored)
    first = await validate(stored, signed(key))
    assert first["rate_limit"] == {
        "name": "hour", "limit": 2, "window_seconds": 3600, "remaining": 1, "reset_seconds": 1800,
        "retry_after_seconds": None,
    }  # fmt: skip
    await validate(stored, signed(key))
    third = await validate(stored, signed(key))
    assert (third["valid"], third["reason"]) == (False, "rate_limited")
    assert third["rate_limit"] == {
        "name": "hour", "limit": 2, "window_seconds": 3600, "remaining": 0, "reset_seconds": 3600,
        "retry_after_seconds": 1800,
    }  # fmt: skip
    assert third["metadata"] == {"plan": "pro"}


async def test_cost(stored: Api):
    """A request counts for as many as it says; one that is dearer than the limit never passes."""
    key = await stored.key(rate_limits=HOUR)
    stop_time(stored)
    never = await validate(stored, {**signed(key), "cost": 3})
    assert (never["reason"], never["rate_limit"]["remaining"]) == ("rate_limited", 2)
    assert never["rate_limit"]["retry_after_seconds"] is None
    assert (await validate(stored, {**signed(key), "cost": 2}))["rate_limit"]["remaining"] == 0
    items = [{**signed(key), "cost": 1}, {**signed(await stored.key()), "cost": 7}]
    answer = await stored("POST", "/v1/validate/batch", {"validations": items})
    assert [item["reason"] for item in answer.json()["results"]] == ["rate_limited", "valid"]
    assert answer.json()["results"][1]["rate_limit"] is None


async def test_garbage_and_replays_take_nothing(stored: Api):
    """A flood of wrong signatures and used nonces leaves the victim its limit."""
    key = await stored.key(rate_limits=HOUR)
    stop_time(stored)
    used = signed(key, nonce="n" * 16)
    assert (await validate(stored, used))["valid"]
    for _ in range(10):
        assert (await validate(stored, used))["reason"] == "replayed"
        forged = {**signed(key), "signature": "0" * 64}
        assert (await validate(stored, forged))["reason"] == "bad_signature"
    assert (await validate(stored, signed(key)))["valid"]


async def test_default_limit():
    """With RATE_LIMIT_ENABLED a key without limits of its own gets RATE_LIMIT_PER_MINUTE."""
    async with serving(RATE_LIMIT_ENABLED=True, RATE_LIMIT_PER_MINUTE=1) as api:
        stop_time(api)
        key = await api.key()
        assert key["rate_limits"] == []
        assert (await validate(api, signed(key)))["rate_limit"]["name"] == "default"
        refusal = await validate(api, signed(key))
        assert refusal["reason"] == "rate_limited"
        assert refusal["rate_limit"]["retry_after_seconds"] == 60
        own = await api.key(rate_limits=HOUR)
        assert (await validate(api, signed(own)))["rate_limit"]["name"] == "hour"
        # The admin token is asked at each of these calls, and has no limit.
        assert (await api("GET", "/v1/keys")).status_code == 200


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (7, "rate_limits"),
        ({}, "rate_limits"),
        (["x"], "rate_limits[0]"),
        ([{"limit": "2", "window_seconds": 1}], "rate_limits[0].limit"),
        ([{"limit": True, "window_seconds": 1}], "rate_limits[0].limit"),
        ([{"limit": 2}], "rate_limits[0].window_seconds"),
        ([*HOUR, {"limit": 2, "window_seconds": 1.5}], "rate_limits[1].window_seconds"),
        ([{"limit": 2, "window_seconds": 1, "burst": 2}], "rate_limits[0].burst"),
        ([{"limit": 0, "window_seconds": 1}], "rate_limits[0].limit"),
        ([{"limit": 2, "window_seconds": 10**9}], "rate_limits[0].window_seconds"),
        ([{"limit": 2, "window_seconds": 1, "name": "A"}], "rate_limits[0].name"),
        ([*HOUR, *HOUR], "rate_limits[1].name"),
        ([{"limit": i, "window_seconds": 1} for i in range(1, 10)], "rate_limits"),
    ],
)
async def test_limits_that_are_none(api: Api, limits: Any, field: str):
    """A 422 names the item and its field, at creation and at change."""
    await api.key(key_id="k")
    for method, path in (("POST", "/v1/keys"), ("PATCH", "/v1/keys/k")):
        answer = await api(method, path, {"rate_limits": limits})
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] == field


async def test_unshared_limits_are_a_conflict(api: Api):
    """Where several workers would each count for themselves, a limit is a 409 that says so."""
    api.deployment.manager.limits_shared = False
    answer = await api("POST", "/v1/keys", {"rate_limits": HOUR})
    assert (answer.status_code, answer.json()["field"]) == (409, "rate_limits")
    assert "WORKERS=1" in answer.json()["detail"]
    await api.key(key_id="k")
    assert (await api("PATCH", "/v1/keys/k", {"rate_limits": HOUR})).status_code == 409
    assert (await api("PATCH", "/v1/keys/k", {"rate_limits": []})).status_code == 200


def store_at(path: Path) -> SqlStore:
    upgrade(path)
    return SqliteStore(SqliteDriver(path))


def test_default_limit_from_settings():
    """The published settings: off, and 100 a minute once on."""
    assert default_limits(Settings.load()) == ()
    enabled = Settings.load(RATE_LIMIT_ENABLED=True)
    assert default_limits(enabled) == (RateLimit("default", 100, 60),)


async def test_several_workers_and_a_default_limit(tmp_path: Path):
    """Each would count for itself: refused by the settings, and at the start, with a way out."""
    with pytest.raises(ConfigurationError, match=r"WORKERS=4.*WORKERS=1.*RATE_LIMIT_ENABLED=fal"):
        Settings.load(WORKERS=4, RATE_LIMIT_ENABLED=True)
    settings = Settings.load(RATE_LIMIT_ENABLED=True)
    store = store_at(tmp_path / "akm.db")
    with pytest.raises(ConfigurationError, match=r"WORKERS=4.*WORKERS=1.*RATE_LIMIT_ENABLED=fal"):
        await refuse_unshared_limits(settings, 4, store)
    await refuse_unshared_limits(settings, 1, store)
    shared = Settings.load(WORKERS=4, RATE_LIMIT_ENABLED=True, REDIS_URL="redis://localhost")
    assert limits_are_shared(shared, 4)
    await refuse_unshared_limits(shared, 4, store)
    store.driver.close_now()


async def test_several_workers_and_limits_of_keys(tmp_path: Path):
    """A database with a limit in it is not served by several workers, until it is taken away."""
    path = tmp_path / "data" / "akm.db"
    async with open_manager(f"sqlite:///{path}") as manager:
        store = manager.store
        assert isinstance(store, SqlStore)
        settings = Settings.load()
        await refuse_unshared_limits(settings, 2, store)
        await manager.create_key("limited", rate_limits=HOUR)
        with pytest.raises(ConfigurationError, match=r"1 key has .*limited.*--no-rate-limits"):
            await refuse_unshared_limits(settings, 2, store)
        await manager.create_key("other", rate_limits=HOUR)
        with pytest.raises(ConfigurationError, match="2 keys have"):
            await refuse_unshared_limits(settings, 2, store)
        await refuse_unshared_limits(settings, 1, store)
        # What can never be validated again needs no counting.
        await manager.revoke_key("limited")
        await manager.delete_key("other")
        await refuse_unshared_limits(settings, 2, store)


def test_the_look_for_limits_is_cheap(tmp_path: Path):
    """It reads an index that holds limited keys only, not every key."""
    upgrade(tmp_path / "akm.db")
    sql, values = next(scripts.limited()).statement.bind(SQLiteDialect(), {})
    with closing(sqlite3.connect(tmp_path / "akm.db")) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
    assert "ix_keys_limited" in str(plan)


async def test_a_manager_of_several_workers(tmp_path: Path):
    """`open_manager` knows of WORKERS: no limit gets in, and none that is there is overlooked."""
    url = f"sqlite:///{tmp_path}/data/akm.db"
    async with open_manager(url, WORKERS=2) as manager:
        with pytest.raises(ConflictError, match="rate_limits"):
            await manager.create_key("k", rate_limits=HOUR)
    async with open_manager(url) as manager:
        await manager.create_key("k", rate_limits=HOUR)
    with pytest.raises(ConfigurationError, match="WORKERS=2"):
        async with open_manager(url, WORKERS=2):
            pass


async def test_limits_survive_a_restart(tmp_path: Path):
    """Limits are stored with their key; what was taken is not: a new process starts full."""
    url = f"sqlite:///{tmp_path}/data/akm.db"
    async with open_manager(url) as manager:
        await manager.create_key("k", "super-secret-key", rate_limits=HOUR)
    for _ in range(2):
        async with open_manager(url) as manager:
            for reason in ("valid", "valid", "rate_limited"):
                verdict = await manager.verify("k", sign("super-secret-key", "k"))
                assert str(verdict.reason) == reason


def test_cli_create_and_update(db: Akm) -> None:
    """`--rate-limit` names a limit, or does not; it is shown as it is written."""
    created = db("keys", "create", "k", "--rate-limit", "burst=10/1s", "--rate-limit", "1000/1h")
    assert created.exit_code == 0
    assert "rate_limits: burst=10/1s, 1000-per-3600s=1000/3600s\n" in created.stdout
    shown = json.loads(db("keys", "show", "k", "--json").stdout)
    assert shown["rate_limits"] == [
        {"name": "burst", "limit": 10, "window_seconds": 1},
        {"name": "1000-per-3600s", "limit": 1000, "window_seconds": 3600},
    ]
    changed = json.loads(db("keys", "update", "k", "--rate-limit", "5/90", "--json").stdout)
    assert changed["rate_limits"] == [{"name": "5-per-90s", "limit": 5, "window_seconds": 90}]
    assert json.loads(db("keys", "update", "k", "--owner", "a", "--json").stdout)["rate_limits"]
    emptied = json.loads(db("keys", "update", "k", "--no-rate-limits", "--json").stdout)
    assert emptied["rate_limits"] == []
    assert db("keys", "update", "k", "--rate-limit", "1/1s").exit_code == 0
    assert "rate_limits: -\n" in db("keys", "update", "k", "--rate-limit", "").stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10", ["--rate-limit", "burst=10/1s"]),
        ("10/", ["--rate-limit"]),
        ("/1s", ["--rate-limit"]),
        ("burst=/1s", ["--rate-limit"]),
        ("-1/1s", ["--rate-limit"]),
        ("10/second", ["--rate-limit"]),
        ("0/1s", ["rate_limits[0].limit"]),
        ("1/0s", ["rate_limits[0].window_seconds"]),
        ("Burst=1/1s", ["rate_limits[0].name"]),
        ("=1/1s", ["rate_limits[0].name"]),
    ],
)
def test_cli_limits_that_are_none(db: Akm, text: str, words: list[str]) -> None:
    refused(db("keys", "create", "--rate-limit", text), 2, *words)


def test_cli_both_ways_at_once(db: Akm) -> None:
    db("keys", "create", "k")
    result = db("keys", "update", "k", "--no-rate-limits", "--rate-limit", "1/1s")
    refused(result, 2, "--no-rate-limits")


def test_cli_export_and_import_carry_limits(db: Akm, tmp_path: Path) -> None:
    """A key comes out of an export with the limits that went in."""
    db("keys", "create", "k", "--rate-limit", "burst=10/1s", "--secret-stdin", stdin="s" * 20)
    line = json.loads(db("keys", "export").stdout)
    (tmp_path / "keys.jsonl").write_text(json.dumps({**line, "key_id": "copy"}))
    assert db("keys", "import", str(tmp_path / "keys.jsonl")).exit_code == 0
    copy = json.loads(db("keys", "show", "copy", "--json").stdout)
    assert copy["rate_limits"] == line["rate_limits"] != []
