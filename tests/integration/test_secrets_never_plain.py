"""Marked secrets are driven through everything, then looked for in everything that remains."""

from __future__ import annotations

import base64
import gc
import logging
import secrets
import time
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_key_manager.core import APIKeyManagerException, AsyncAPIKeyValidator, sign
from api_key_manager.core.ports import is_embedded
from api_key_manager.core.presented import present
from api_key_manager.server.app import build_app
from api_key_manager.server.shapes import Validation
from api_key_manager.wiring import Deployment, backup, open_deployment
from tests.integration.marks import find, random_part
from tests.integration.places import Place, signed
from tests.integration.postgres_nodes import Shared

ADMIN = "an-admin-token-of-the-settings-" + secrets.token_hex(16)


def test_the_search_finds():
    """The search itself sees a mark in each form and at each alignment."""
    for shift in range(3):
        hidden = base64.b64encode(b"x" * shift + b"MARKED-SECRET" + b"tail")
        assert find({"m": "MARKED-SECRET"}, hidden)
    for encode in (
        bytes.hex, lambda raw: raw.decode(), lambda raw: raw.hex().upper(),
        lambda raw: "".join(f"%{byte:02X}" for byte in raw),
    ):  # fmt: skip
        assert find({"m": "MARKED-SECRET"}, b"..." + encode(b"MARKED-SECRET").encode())


class Story:
    """What callers and admins do with secrets, rightly and wrongly."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.manager = deployment.manager
        self.marks: dict[str, str] = {"admin token": ADMIN}
        self.said: list[str] = []

    def mark(self, name: str, secret: str) -> str:
        self.marks[name] = random_part(secret)
        return secret

    async def wrong(self, call: Any) -> None:
        try:
            await call
        except APIKeyManagerException as error:
            self.said += [str(error), repr(error), "".join(traceback.format_exception(error))]
        else:
            raise AssertionError("this was meant to fail")

    async def run(self) -> None:
        manager = self.manager
        own = self.mark("own secret", f"own-{secrets.token_hex(16)}")
        await manager.create_key("own", own, {"canary": "CANARY-IN-METADATA"})
        await self.wrong(manager.create_key("own", own))
        await self.wrong(manager.create_key("meta", own, {"oops": f"it is {own}"}))
        await self.wrong(manager.create_key("meta", kind="bearer", secret=own))
        await self.wrong(manager.create_key(own + "\n"))
        minted = await manager.create_key("minted")
        self.mark("minted secret", minted["secret"])
        bearer = await manager.create_key("bearer", kind="bearer")
        self.mark("token", bearer["token"])
        rotated = await manager.rotate_key("bearer", 3600)
        self.mark("rotated token", rotated["token"])
        new = self.mark("rotated secret", f"new-{secrets.token_hex(16)}")
        await manager.rotate_key("own", 3600, secret=new)
        await self.wrong(manager.rotate_key("bearer", secret=new))
        now = int(time.time())
        for secret in (own, new):
            signature = sign(secret, "own", now, "n" * 20 + secrets.token_hex(4))
            self.mark(f"signature {secret[:3]}", signature)
        for arguments in (
            {"token": bearer["token"]},
            {"token": rotated["token"]},
            {"token": bearer["token"][:-1] + "0"},
            {"token": bearer["token"], "realm": "admin"},
            {"key_id": "own", "signature": sign(own, "own")},
            {"key_id": "own", "signature": self.marks["signature own"], "timestamp": now},
            {"key_id": "own", "signature": own},
            {"key_id": "own", "signature": new, "nonce": own, "timestamp": now},
            # Fields mixed up: ids are logged, so what looks like a secret is never taken for one.
            {"key_id": bearer["token"], "signature": "0" * 64},
            {"key_id": minted["secret"], "signature": own},
            {"key_id": minted["secret"], "signature": "0" * 64, "timestamp": now},
            signed(manager, minted, secrets.token_hex(16)),
        ):
            verdict = await manager.verify(**arguments)
            self.said += [repr(verdict), str(verdict)]
            if not verdict:
                self.said.append(repr(verdict.error()))
            self.said.append(repr(present(**arguments)))
        self.mark("static signature", sign(own, "own"))
        self.said.append(repr(Validation(key="own", signature=sign(own, "own"))))
        self.said.append(repr([Validation(token=rotated["token"])]))
        await self.over_http()
        await manager.revoke_key("bearer", "leaked")
        await manager.delete_key("minted")
        await manager.find_audit()
        if is_embedded(manager.store):
            self.said += [repr(manager.get_audit_log()), repr(manager.list_keys(active_only=False))]
        self.said += [repr(await manager.find_audit(limit=1000)), repr(await manager.find_keys())]
        self.said += [repr(manager.get_stats()), repr(await manager.key_versions("own"))]
        self.said += [repr(await manager.store.load(["own", "bearer"]))]

    async def over_http(self) -> None:
        transport = httpx.ASGITransport(build_app(self.deployment), raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {ADMIN}", "Idempotency-Key": "once"}
        async with httpx.AsyncClient(transport=transport, base_url="http://akm.test") as client:
            body = {"key_id": "http", "kind": "bearer"}
            first = await client.post("/v1/keys", json=body, headers=headers)
            assert first.status_code == 201, first.text
            again = await client.post("/v1/keys", json=body, headers=headers)
            assert again.json() == first.json()
            token = self.mark("token over http", first.json()["token"])
            secret = self.mark("imported secret", f"imp-{secrets.token_hex(16)}")
            headers["Idempotency-Key"] = "twice"
            body = {"key_id": "imported", "secret": secret}
            assert (await client.post("/v1/keys", json=body, headers=headers)).status_code == 201
            del headers["Idempotency-Key"]
            wrong = [
                await client.post("/v1/keys", json=body, headers=headers),
                await client.post("/v1/keys", json={"secret": [secret]}, headers=headers),
                await client.post("/v1/keys", json={secret: 1, "secret": "x"}, headers=headers),
                await client.post("/v1/validate", json={"token": token + "x"}, headers=headers),
                await client.get("/v1/keys", headers={"Authorization": f"Bearer {token}"}),
                await client.get(f"/v1/keys/{token}", headers=headers),
            ]
            # An answer may repeat the name of a field to the one who sent it, but no value.
            self.said += [answer.text for answer in (wrong[0], wrong[1], wrong[3], wrong[4])]
            assert (
                await client.post("/v1/validate", json={"token": token}, headers=headers)
            ).json()["valid"]


async def test_nothing_is_left_in_plain(tmp_path, caplog, capfd, monkeypatch):
    """No secret, token, admin token or whole signature is in database file, WAL, backup, key
    folder, log at DEBUG, output, errors, audit or the `repr` of any object, in any encoding."""
    caplog.set_level(logging.DEBUG)
    # The caller in this test, who writes a token into a URL and logs that himself.
    caplog.set_level(logging.CRITICAL, "httpx")
    place = Place(tmp_path)
    settings = place.settings(AKM_ADMIN_TOKEN=ADMIN, DEBUG=True, LOG_LEVEL="DEBUG")
    async with place.open(AKM_ADMIN_TOKEN=ADMIN, DEBUG=True, LOG_LEVEL="DEBUG") as deployment:
        story = Story(deployment)
        await story.run()
        await deployment.manager.recorder.flush(time.time(), uses=True)
        await backup(settings, place.folder / "copy.db")
        on_disk = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        shown = [repr(settings), repr(deployment), *reprs()]
    on_disk |= {
        f"{path.name} afterwards": path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert {"akm.db", "akm.db-wal", "copy.db", "akm.db afterwards", "akm.key"} <= on_disk.keys()
    canary = {"canary": "CANARY-IN-METADATA"}
    assert find(canary, on_disk["akm.db-wal"] + on_disk["akm.db"])
    assert find(canary, on_disk["copy.db"])
    assert len(story.marks) == 11
    for name, data in on_disk.items():
        assert find(story.marks, data) == [], name
    out, err = capfd.readouterr()
    logs = "\n".join([*(repr(record.__dict__) for record in caplog.records), caplog.text, out, err])
    assert find(story.marks, logs.encode()) == []
    for text in (*story.said, *shown):
        assert find(story.marks, text.encode()) == [], text


async def test_nothing_is_left_in_plain_on_postgresql(tmp_path, postgres, caplog, capfd):
    """The same with PostgreSQL: nothing in any row, nor the URL's password anywhere, also when the
    connection is lost or refused."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.CRITICAL, "httpx")
    place = Shared(tmp_path, postgres)
    password = f"pw-{secrets.token_hex(16)}"
    url = place.url.replace("akm@", f"akm:{password}@")
    settings = place.settings(DATABASE_URL=url, AKM_ADMIN_TOKEN=ADMIN, DEBUG=True)
    async with open_deployment(settings) as deployment:
        story = Story(deployment)
        story.mark("URL's password", password)
        story.mark("master key", settings.AKM_MASTER_KEY)
        await story.run()
        await deployment.manager.recorder.flush(time.time(), uses=True)
        place.kill_connections()
        await deployment.manager.find_keys()
        shown = [repr(settings), repr(deployment), *reprs()]
    for wrong in (
        url.replace("/akm_", "/none_"),
        url.replace("akm:", "nobody:"),
        url + "?sslmode=x",
    ):
        await story.wrong(open_deployment(place.settings(DATABASE_URL=wrong)).__aenter__())
    tables = place.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = b""
    for (table,) in tables:
        for row in place.sql(f"SELECT * FROM {table}"):
            rows += b"\n".join(v if type(v) is bytes else str(v).encode() for v in row)
    assert find({"canary": "CANARY-IN-METADATA"}, rows)
    assert find(story.marks, rows) == []
    out, err = capfd.readouterr()
    logs = "\n".join([*(repr(record.__dict__) for record in caplog.records), caplog.text, out, err])
    assert find(story.marks, logs.encode()) == []
    for text in (*story.said, *shown):
        assert find(story.marks, text.encode()) == [], text
    place.drop()


def reprs() -> list[str]:
    """What every living object of ours prints as."""
    found = []
    for thing in gc.get_objects():
        if str(type(thing).__module__).startswith("api_key_manager"):
            found.append(repr(thing))
    assert len(found) > 50
    return found


@pytest.mark.parametrize("cached", [False, True])
async def test_result_cache_keeps_no_secret_on_show(cached):
    """The validator, which is handed secrets, shows none of them either."""
    validator = AsyncAPIKeyValidator()
    secret, now = f"val-{secrets.token_hex(16)}", int(time.time())
    assert await validator.validate("k", sign(secret, "k", now), secret, now, use_cache=cached)
    assert find({"secret": secret}, repr(validator).encode()) == []
    assert find({"secret": secret}, repr(vars(validator)).encode()) == []


async def test_logs_of_an_edited_row(tmp_path: Path, caplog):
    """What is said of a damaged record names the key, and nothing that is stored in it."""
    caplog.set_level(logging.DEBUG)
    place = Place(tmp_path)
    async with place.open(CACHE_TTL_SECONDS=0) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        place.sql("UPDATE keys SET owner = 'EDITOR-WAS-HERE'")
        verdict = await manager.verify(**signed(manager, key))
        sealed = place.sql("SELECT sealed FROM key_versions")[0][0]
    assert "key k was edited" in caplog.text
    assert "EDITOR-WAS-HERE" not in caplog.text + repr(verdict)
    assert sealed.hex() not in caplog.text
