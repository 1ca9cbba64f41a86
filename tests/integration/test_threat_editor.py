"""Somebody who can write to the database, and has credentials of his own, tries to get more.

Each attack by its name, on both databases. docs/security/threat-model.md says what becomes of it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

import httpx
import pytest

from api_key_manager.connections.tables import deployment as deployment_table
from api_key_manager.connections.tables import key_versions, keyring, keys
from api_key_manager.core import ConfigurationError, KeyManager, Reason, StorageError, sign
from api_key_manager.core.models import ADMIN_REALM, KEY_REALM
from api_key_manager.core.tokens import mint_token
from api_key_manager.server.app import build_app
from api_key_manager.wiring import Deployment, open_deployment
from tests.integration.attackers import Copy, copied, errors, literal, put
from tests.integration.conftest import Api
from tests.integration.places import Place, signed

UNAVAILABLE = Reason.UNAVAILABLE
COLD = {"CACHE_TTL_SECONDS": 0}


@pytest.fixture
def place(either_place: Place) -> Place:
    return either_place


class World:
    """Keys that the attacker has the credentials of, none of which may do much."""

    def __init__(self, manager: KeyManager) -> None:
        self.manager = manager
        self.made: dict[str, dict[str, Any]] = {}

    async def make(self) -> None:
        make, end = self._make, self.manager.clock() + 3600
        await make("poor", permissions=["documents.read"])
        await make("rich", permissions=["*"])
        await make("gone", permissions=["*"])
        await self.manager.revoke_key("gone")
        await make("erased")
        await self.manager.delete_key("erased")
        await make("off", disabled=True)
        await make("ending", expires_at=end)
        await make("far", ip_allowlist=["10.0.0.0/8"])
        await make("strict", min_scheme="timestamped-nonce")
        await make("old")
        await self.manager.rotate_key("old")
        await make("limited", rate_limits=[{"name": "few", "limit": 1, "window_seconds": 3600}])
        await make("spent", quota={"limit": 1, "refill": "daily"})
        await make("here", environment="here", owner="me")
        await make("one", kind="bearer", permissions=["admin"])
        await make("two", kind="bearer")
        await make("token", kind="bearer", realm=ADMIN_REALM, permissions=["keys:read"])
        await make("bound", kind="bearer", realm=ADMIN_REALM, permissions=["admin"],
                   environment="here")  # fmt: skip

    async def _make(self, key_id: str, **fields: Any) -> None:
        self.made[key_id] = await self.manager.create_key(key_id, **fields)

    async def ask(self, key_id: str) -> Reason:
        """Present whatever the attacker has of a key, in the way that gains most."""
        key = self.made[key_id]
        if "token" in key:
            realm = KEY_REALM if key_id in ("two", "evil") else ADMIN_REALM
            return (await self.manager.verify(token=key["token"], realm=realm)).reason
        if key_id == "strict":
            shown: dict[str, Any] = {"key_id": key_id, "signature": sign(key["secret"], key_id)}
        else:
            shown = signed(self.manager, key)
        return (await self.manager.verify(**shown, ip="192.0.2.1")).reason


def update(key_id: str, what: str, table: str = "keys") -> tuple[str, list[str]]:
    return key_id, [f"UPDATE {table} SET {what} WHERE key_id = '{key_id}'"]


def swapped(column: str, one: str, other: str) -> list[str]:
    """Two versions trade a column."""
    took = "(SELECT {column} FROM copy_key_versions WHERE key_id = '{whose}' AND version = 1)"
    return [
        f"UPDATE key_versions SET {column} = {took.format(column=column, whose=b)}"
        f" WHERE key_id = '{a}' AND version = 1"
        for a, b in ((one, other), (other, one))
    ]


MAC_OF_RICH = "mac = (SELECT mac FROM copy_keys WHERE key_id = 'rich')"
EDITS: dict[str, tuple[str, list[str]]] = {
    "grant permissions": update("poor", "permissions = '[\"*\"]'"),
    "grant permissions with another's MAC": update(
        "poor", f"permissions = '[\"*\"]', {MAC_OF_RICH}"
    ),
    "un-revoke": update("gone", "revoked = FALSE, revoked_at = NULL, revoke_reason = NULL"),
    "un-delete": update("erased", "deleted_at = NULL"),
    "enable": update("off", "disabled = FALSE"),
    "extend the expiry": update("ending", "expires_at = expires_at + 1000000000"),
    "drop the expiry": update("ending", "expires_at = NULL"),
    "empty the allowlist": update("far", "ip_allowlist = '[]'"),
    "weaken the scheme": update("strict", "min_scheme = 'static'"),
    "revive an ended version": (
        "old",
        ["UPDATE key_versions SET ended = FALSE, ends_at = NULL WHERE key_id = 'old'"],
    ),
    "raise the rate limit": update("limited", "rate_limits = '[]'"),
    "raise the quota": update("spent", "quota = NULL"),
    "change the owner": update("here", "owner = 'somebody'"),
    "change the environment": update("here", "environment = 'there'"),
    "change the kind": update("poor", "kind = 'bearer'"),
    "become an admin": update("one", "realm = 'admin'"),
    "widen the scopes of an admin token": update("token", "permissions = '[\"admin\"]'"),
    "free an admin token of its environment": update("bound", "environment = NULL"),
    "swap sealed secrets between keys": ("poor", swapped("sealed", "poor", "rich")),
    "swap sealed secrets between versions": (
        "old",
        [
            (
                "UPDATE key_versions SET sealed = (SELECT sealed FROM copy_key_versions"
                " WHERE key_id = 'rich') WHERE key_id = 'old' AND version = 2"
            )
        ],
    ),
    "swap digests": ("two", swapped("digest", "one", "two")),
    "swap digests with an admin token": ("token", swapped("digest", "token", "two")),
    "copy a row under another id": (
        "evil",
        [
            copied(keys, "key_id = 'two'", key_id="'evil'"),
            copied(key_versions, "key_id = 'two'", key_id="'evil'"),
        ],
    ),
    "copy an admin token under another id": (
        "root",
        [
            copied(keys, "key_id = 'bound'", key_id="'root'", environment="NULL"),
            copied(key_versions, "key_id = 'bound'", key_id="'root'"),
        ],
    ),
    "note that a leak was reported": update("two", "leaked_at = 1", "key_versions"),
}


async def test_edits(place, caplog):
    """No edit of a key or of its versions is believed: `unavailable`, an error in the log that
    names the key, and a finding of doctor. Put back, all is as before."""
    async with place.open(**COLD) as deployment:
        world = World(deployment.manager)
        await world.make()
        world.made["evil"] = {"token": mint_token("akm", "evil")}
        world.made["root"] = {"token": mint_token("akm_admin", "root")}
        before = {name: await world.ask(who) for name, (who, _) in EDITS.items()}
        assert UNAVAILABLE not in before.values()
        copy = Copy(place)
        seen: dict[str, Reason] = {}
        told: dict[str, bool] = {}
        for name, (who, statements) in EDITS.items():
            caplog.clear()
            for statement in statements:
                place.sql(statement)
            seen[name] = await world.ask(who)
            logged = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
            (found,) = await errors(place)
            told[name] = any(who in line for line in logged) and who in found
            copy.back()
        assert {n for n, reason in seen.items() if reason is not UNAVAILABLE} == set()
        assert {n for n, is_told in told.items() if not is_told} == set()
        # Some have taken the one request that they may make.
        after = {name: await world.ask(who) for name, (who, _) in EDITS.items()}
        used_up = {Reason.RATE_LIMITED, Reason.QUOTA_EXCEEDED}
        assert {n for n, r in after.items() if r not in (before[n], *used_up)} == set()
        assert await errors(place) == []


FORGED = {
    "no key at all": lambda token: (hashlib.sha256(token).digest(), None),
    "an empty pepper": lambda token: (hmac.digest(b"", token, "sha256"), 1),
    "an unknown pepper": lambda token: (hmac.digest(b"mine", token, "sha256"), 99),
    "the token itself": lambda token: (token[-32:], 1),
}


@pytest.mark.parametrize("realm", ["key", "admin"])
async def test_a_token_of_his_own(place, realm):
    """A key, or an admin token, that is put in with a digest that its maker computed is refused."""
    async with place.open(**COLD) as deployment:
        manager = deployment.manager
        await manager.create_key("model", kind="bearer", realm=realm, permissions=["admin"])
        reasons = set()
        for number, forge in enumerate(FORGED.values()):
            key_id = f"mine-{number}"
            token = mint_token("akm", key_id)
            digest, pepper = forge(token.encode())
            place.sql(copied(keys, "key_id = 'model'", key_id=f"'{key_id}'"))
            place.sql(
                copied(
                    key_versions, "key_id = 'model'", key_id=f"'{key_id}'",
                    digest=literal(place, digest), pepper=literal(place, pepper),
                )
            )  # fmt: skip
            reasons.add((await manager.verify(token=token, realm=realm)).reason)
        assert reasons == {UNAVAILABLE}


async def test_rows_of_his_own_deployment(place, tmp_path, caplog):
    """Keys, tokens and the keyring of a deployment whose every key the attacker has: his rows are
    refused; with his keyring in its place, the start is; beside it, a running node goes on."""
    his = Place(tmp_path / "his")
    made = {}
    async with his.open() as own:
        made["s"] = await own.manager.create_key("his-signed", permissions=["*"])
        made["t"] = await own.manager.create_key(
            "his-token", kind="bearer", realm=ADMIN_REALM, permissions=["admin"]
        )
    rows = {
        table: his.sql(f"SELECT {', '.join(c.name for c in table.columns)} FROM {table.name}")
        for table in (keys, key_versions, keyring)
    }
    async with place.open(**COLD) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        for table in (keys, key_versions):
            put(place, table, rows[table])
        assert (await manager.verify(**signed(manager, made["s"]))).reason is UNAVAILABLE
        shown = await manager.verify(token=made["t"]["token"], realm=ADMIN_REALM)
        assert shown.reason is UNAVAILABLE
        put(place, keyring, [(kind, 2, *rest) for kind, _, *rest in rows[keyring]])
        await manager.box.learn()
        assert "the keyring cannot be read again" in caplog.text
        assert await manager.verify(**signed(manager, key))
        shown = await manager.verify(token=made["t"]["token"], realm=ADMIN_REALM)
        assert shown.reason is UNAVAILABLE
    ours = place.sql("SELECT kek FROM keyring WHERE kind = 'data' AND number = 1")[0][0]
    for kek in (None, ours):
        if kek is not None:  # as if our key had wrapped them
            place.sql(f"UPDATE keyring SET kek = '{kek}'")
        with pytest.raises(ConfigurationError, match="cannot be used"):
            async with place.open():
                pass
    place.sql("DELETE FROM keyring WHERE number = 1")
    place.sql("UPDATE keyring SET number = 1")
    with pytest.raises(ConfigurationError, match="does not open this database"):
        async with place.open():
            pass


async def test_another_whole_database(place, tmp_path):
    """A whole database in place of ours does not open with our master key. (One that was made under
    the same master key would: give each its own.)"""
    his = Place(tmp_path / "his")
    async with his.open() as own:
        await own.manager.create_key("k")
    async with place.open() as deployment:
        ours = place.settings(AKM_MASTER_KEY=_master_of(deployment, place))
    settings = ours.model_copy(update={"DATABASE_URL": his.settings().DATABASE_URL})
    with pytest.raises(ConfigurationError, match="cannot be used"):
        async with open_deployment(settings, create=False):
            pass


def _master_of(deployment: Deployment, place: Place) -> str:
    settings = deployment.settings
    return settings.AKM_MASTER_KEY or place.key_file.read_text().strip()


async def test_marks(place):
    """A mark decides nothing; without it, or with another's, a leaked secret is not found, and
    doctor says which."""
    async with place.open(background=False, **COLD) as deployment:
        manager = deployment.manager
        keys_made = [await manager.create_key(name) for name in ("found", "hidden")]
        place.sql(
            "UPDATE key_versions SET mark = (SELECT mark FROM key_versions"
            " WHERE key_id = 'found') WHERE key_id = 'hidden'"
        )
        for key in keys_made:
            assert await manager.verify(**signed(manager, key))
        (found,) = await errors(place)
        assert "hidden" in found
        assert "found," not in found


# The rows that are no keys


DEPLOYMENT = {
    "an earlier revision": "revision = 1",
    "a later revision": "revision = revision + 1000000",
    "a birth of nonces that never was": "nonce_birth = 0",
    "a later birth of nonces": "nonce_birth = 4000000000000000",
    "no pepper retired": "least_pepper = 0",
    "every pepper retired": "least_pepper = 99",
    "nonces are elsewhere": "nonce_place = 'there'",
    "an older schema may run": "least_schema = '0001'",
}


async def test_deployment_row(place):
    """Whatever stands in the deployment's row, a revoked key stays revoked, a good one good, and a
    used nonce used: it stops work, and starts none."""
    async with place.open(**COLD) as deployment:
        manager = deployment.manager
        good, gone = await manager.create_key("good"), await manager.create_key("gone")
        await manager.revoke_key("gone")
        once = signed(manager, good, "nonce-0123456789abcdef")
        assert await manager.verify(**once)
        names = [c.name for c in deployment_table.columns if c.name != "id"]
        (row,) = place.sql(f"SELECT {', '.join(names)} FROM deployment")
        seen = {}
        for name, edit in DEPLOYMENT.items():
            place.sql(f"UPDATE deployment SET {edit}")
            assert deployment.follower is not None
            await deployment.follower.follow()
            seen[name] = (
                (await manager.verify(**signed(manager, good))).reason,
                (await manager.verify(**signed(manager, gone))).reason,
                (await manager.verify(**once)).reason in (Reason.REPLAYED, UNAVAILABLE),
            )
            back = ", ".join(f"{n} = {literal(place, v)}" for n, v in zip(names, row, strict=True))
            place.sql(f"UPDATE deployment SET {back}")
        expected = (Reason.VALID, Reason.REVOKED, True)
        assert {n: got for n, got in seen.items() if got != expected} == {}


async def test_no_pepper_is_unretired(place):
    """With the note of what was retired taken back, no digest is made under an old pepper: the
    process knows the newest. With all retired, nothing is minted, and what there is goes on."""
    async with place.open(**COLD) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k", kind="bearer")
        place.sql("UPDATE deployment SET least_pepper = 99")
        with pytest.raises(StorageError, match="retired"):
            await manager.create_key("new", kind="bearer")
        assert await manager.verify(token=key["token"])


@pytest.mark.parametrize("version", ["0001", "0002", "none", "9999"])
async def test_schema_version(place, version):
    """A schema version that is not true stops the start; nothing is lost by it."""
    async with place.open() as deployment:
        key = await deployment.manager.create_key("k")
    place.sql("UPDATE deployment SET least_schema = '9999'")
    place.sql(f"UPDATE alembic_version SET version_num = '{version}'")
    with pytest.raises((ConfigurationError, StorageError)):
        async with place.open():
            pass
    place.sql("UPDATE alembic_version SET version_num = '0003'")
    async with place.open() as deployment:
        assert await deployment.manager.verify(**signed(deployment.manager, key))


# What he does gain


async def test_gained_nonces(place):
    """By removing nonces: one more acceptance of a request that he captured and that is still
    within its window. It stands in the audit log twice."""
    async with place.open(**COLD) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        once = signed(manager, key, "nonce-0123456789abcdef")
        assert await manager.verify(**once)
        assert (await manager.verify(**once)).reason is Reason.REPLAYED
        place.sql("DELETE FROM nonces")
        place.sql("DELETE FROM nonce_counts")
        assert await manager.verify(**once)
        late = signed(manager, key, "nonce-fedcba9876543210", age=400)
        assert (await manager.verify(**late)).reason is Reason.STALE_TIMESTAMP
        await manager.recorder.flush(manager.clock())
        page = await manager.find_audit(action="key_validated")
        assert sum(event["count"] for event in page["items"]) == 2


async def test_gained_quota(place):
    """By editing what was spent: a full quota. Its size he cannot change."""
    async with place.open(**COLD) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k", quota={"limit": 1, "refill": "daily"})
        assert await manager.verify(**signed(manager, key))
        assert (await manager.verify(**signed(manager, key))).reason is Reason.QUOTA_EXCEEDED
        place.sql("DELETE FROM quota_use")
        assert await manager.verify(**signed(manager, key))


async def test_gained_uses(place):
    """When a key was last used is whatever he writes; nothing is decided by it."""
    async with place.open(**COLD) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        assert await manager.verify(**signed(manager, key))
        await manager.recorder.flush(manager.clock(), uses=True)
        place.sql("UPDATE key_uses SET last_used_at = 1, static_used_at = NULL")
        assert await manager.verify(**signed(manager, key))


# Answers that may be repeated


class Served:
    """The server over HTTP, on a database of either kind."""

    def __init__(self, deployment: Deployment, client: httpx.AsyncClient) -> None:
        self.deployment = deployment
        self.client = client

    async def create(self, token: str, once: str, key_id: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": once}
        return await self.client.post("/v1/keys", json={"key_id": key_id}, headers=headers)


async def test_kept_answers(place):
    """An answer that is kept for a repeated request opens for nobody else, for no other request
    and under no other name; without it, the request is done anew."""
    async with place.open() as deployment:
        await deployment.mint_first_token(on_terminal=True)
        transport = httpx.ASGITransport(build_app(deployment))
        async with httpx.AsyncClient(transport=transport, base_url="http://akm.test") as client:
            api = Api(client, deployment, deployment.first_token or "")
            served = Served(deployment, client)
            his = (await api.scoped("keys:write"))["token"]
            theirs = await served.create(api.token, "theirs", "victim")
            secret = theirs.json()["secret"]
            assert secret in (await served.create(api.token, "theirs", "victim")).text
            assert (await served.create(his, "his", "mine")).status_code == 201
            answer = "(SELECT answer FROM idempotency WHERE key = 'theirs')"
            printed = "(SELECT fingerprint FROM idempotency WHERE key = 'theirs')"
            place.sql("CREATE TABLE kept AS SELECT * FROM idempotency")
            thefts = {
                "his row with their answer": (
                    f"UPDATE idempotency SET answer = {answer} WHERE key = 'his'",
                    (his, "his", "mine"),
                ),
                "his row with their answer and request": (
                    (
                        f"UPDATE idempotency SET answer = {answer}, fingerprint = {printed}"
                        " WHERE key = 'his'"
                    ),
                    (his, "his", "victim"),
                ),
                "their row as his": (
                    (
                        "UPDATE idempotency SET scope ="
                        " (SELECT scope FROM kept WHERE key = 'his') WHERE key = 'theirs'"
                    ),
                    (his, "theirs", "victim"),
                ),
                "their row under another name": (
                    "UPDATE idempotency SET key = 'renamed' WHERE key = 'theirs'",
                    (api.token, "renamed", "victim"),
                ),
                "their row for another request": (
                    (
                        "UPDATE idempotency SET fingerprint ="
                        " (SELECT fingerprint FROM kept WHERE key = 'his') WHERE key = 'theirs'"
                    ),
                    (api.token, "theirs", "mine"),
                ),
            }
            seen = {}
            for name, (statement, request) in thefts.items():
                place.sql(statement)
                got = await served.create(*request)
                seen[name] = (got.status_code, secret in got.text)
                place.sql("DELETE FROM idempotency")
                place.sql("INSERT INTO idempotency SELECT * FROM kept")
            assert seen == dict.fromkeys(thefts, (503, False))
            place.sql("DELETE FROM idempotency")
            assert (await served.create(api.token, "theirs", "victim")).status_code == 409
