"""Leaked secrets and tokens: reports by GitHub's protocol over real HTTP, and by hand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api_key_manager.core import sign
from api_key_manager.core.models import ADMIN_REALM
from api_key_manager.core.tokens import checksum, mint_secret, mint_token
from api_key_manager.server import github_keys
from api_key_manager.server.app import build_app
from api_key_manager.wiring.marking import mark_secrets
from tests.integration.places import Place

ADMIN = "t" * 40
PATH = "/v1/leaks/github"


class GitHub:
    """A stand-in that publishes keys and signs with them."""

    def __init__(self) -> None:
        self.private = {"one": ec.generate_private_key(ec.SECP256R1())}
        self.asked = 0
        self.answer: tuple[int, bytes, dict[str, str]] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                status, body, headers = outer.answer or (200, outer.document(), {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def document(self) -> bytes:
        keys = [
            {
                "key_identifier": name, "is_current": True,
                "key": key.public_key()
                .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            }
            for name, key in self.private.items()
        ]  # fmt: skip
        return json.dumps({"public_keys": keys}).encode()

    def signed(self, body: bytes, name: str = "one") -> dict[str, str]:
        signature = self.private[name].sign(body, ec.ECDSA(SHA256()))
        return {
            "Github-Public-Key-Identifier": name,
            "Github-Public-Key-Signature": base64.b64encode(signature).decode(),
            "Content-Type": "application/json",
        }


@pytest.fixture
def github() -> Iterator[GitHub]:
    stand_in = GitHub()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


class World:
    def __init__(self, deployment: Any, client: httpx.AsyncClient, github: GitHub) -> None:
        self.deployment, self.client, self.github = deployment, client, github
        self.manager = deployment.manager

    async def report(self, *tokens: str, url: str = "https://github.com/o/r") -> list[str]:
        items = [{"token": t, "type": "akm", "url": url, "source": "content"} for t in tokens]
        body = json.dumps(items).encode()
        answer = await self.client.post(PATH, content=body, headers=self.github.signed(body))
        assert answer.status_code == 200, answer.text
        told = answer.json()
        digests = [hashlib.sha256(t.encode()).hexdigest() for t in tokens]
        assert [(i["token_hash"], i["token_type"]) for i in told] == [(d, "akm") for d in digests]
        assert not any(token in answer.text for token in tokens if token)
        return [item["label"].removesuffix("_positive") for item in told]

    async def events(self, key_id: str) -> list[str]:
        page = await self.manager.find_audit(key_id=key_id, ascending=True)
        return [e["action"] for e in page["items"] if not e["action"].endswith("_created")]


@asynccontextmanager
async def world(place: Place, github: GitHub, **settings: Any) -> AsyncIterator[World]:
    async with place.open(AKM_ADMIN_TOKEN=ADMIN, **settings) as deployment:
        deployment.github_keys = github.url
        transport = httpx.ASGITransport(app=build_app(deployment))
        async with httpx.AsyncClient(transport=transport, base_url="http://akm") as client:
            yield World(deployment, client, github)


@pytest.fixture
async def akm(tmp_path, github) -> AsyncIterator[World]:
    async with world(Place(tmp_path), github) as it:
        yield it


async def test_bearer_signed_and_admin_are_revoked(akm):
    """Each is matched by its digest, also the signed secret, which names no key; the event names
    the place; a second report changes nothing and adds no event."""
    bearer = await akm.manager.create_key("b", kind="bearer")
    signed = await akm.manager.create_key("s")
    admin = await akm.manager.create_key("a", kind="bearer", realm=ADMIN_REALM, prefix="akm_admin")
    tokens = [bearer["token"], signed["secret"], admin["token"]]
    assert await akm.report(*tokens) == ["true"] * 3
    assert (await akm.manager.verify(token=bearer["token"])).reason == "revoked"
    assert (await akm.manager.verify("s", sign(signed["secret"], "s"))).reason == "revoked"
    assert (await akm.manager.get_key("b"))["revoke_reason"] == "leaked"
    assert (await akm.manager.get_key("a", realm=ADMIN_REALM))["state"] == "revoked"
    assert await akm.report(*tokens, tokens[0]) == ["true"] * 4
    for key_id in ("b", "s"):
        assert (await akm.events(key_id))[:2] == ["key_leaked", "key_revoked"]
        assert (await akm.events(key_id)).count("key_leaked") == 1
    assert await akm.events("a") == ["token_leaked", "token_revoked"]
    page = await akm.manager.find_audit(action="key_leaked", key_id="s")
    (event,) = page["items"]
    assert (event["actor"], event["reason"]) == ("github", "leaked")
    assert event["detail"] == {
        "action": "revoked", "source": "content", "url": "https://github.com/o/r", "version": 1,
    }  # fmt: skip


async def test_only_a_match_acts(akm):
    """Well-formed tokens and secrets of known ids with other secrets, ended versions, and what is
    no token at all, are false positives and change nothing."""
    old = await akm.manager.create_key("b", kind="bearer")
    await akm.manager.rotate_key("b")
    await akm.manager.create_key("s", secret="brought along by hand")
    before = await akm.manager.find_audit(limit=1)
    forged = mint_token("akm", "b")
    body = forged[:-6]
    wrong = [
        forged, mint_token("akm", "unknown"), mint_secret("akm"), "brought along by hand", "",
        old["token"], "x" * 5000, "\ud800", body + checksum(body[:-1] + "!"), "akm_é" + "0" * 36,
    ]  # fmt: skip
    told = await akm.client.post(
        PATH, content=(raw := json.dumps([{"token": t, "type": "x"} for t in wrong]).encode()),
        headers=akm.github.signed(raw),
    )  # fmt: skip
    if told.status_code != 200:  # half of a surrogate pair is no JSON text for this decoder
        assert told.status_code in (400, 422)
        wrong.remove("\ud800")
        assert set(await akm.report(*wrong)) == {"false"}
    assert await akm.manager.find_audit(limit=1) == before
    assert (await akm.manager.get_key("b"))["state"] == "active"
    assert "key_leaked" not in await akm.events("b")


async def test_flag_reports_once_and_revokes_no_key(tmp_path, github):
    """ON_LEAK=flag leaves keys alone, adds one event per version, and still ends admin tokens."""
    async with world(Place(tmp_path), github, ON_LEAK="flag") as akm:
        key = await akm.manager.create_key("s")
        admin = await akm.manager.create_key("a", kind="bearer", realm=ADMIN_REALM)
        for _ in range(3):
            assert await akm.report(key["secret"], admin["token"]) == ["true", "true"]
        assert await akm.events("s") == ["key_leaked"]
        assert await akm.manager.verify("s", sign(key["secret"], "s"))
        assert await akm.events("a") == ["token_leaked", "token_revoked"]
        new = await akm.manager.rotate_key("s", 3600)
        await akm.report(new["secret"])
        assert (await akm.events("s")).count("key_leaked") == 2


@pytest.mark.parametrize("policy", ["flag", "revoke"])
async def test_when_it_leaked_is_shown(tmp_path, github, policy):
    """The version that was reported says since when, and no other one; also once it has ended."""
    async with world(Place(tmp_path), github, ON_LEAK=policy) as akm:
        old = await akm.manager.create_key("s")
        await akm.manager.rotate_key("s", 3600)
        assert [v["leaked_at"] for v in await akm.manager.key_versions("s")] == [None, None]
        await akm.report(old["secret"])
        await akm.manager.rotate_key("s")
        told = [v["leaked_at"] for v in await akm.manager.key_versions("s")]
        assert told[:2] == [None, None]
        assert datetime.fromisoformat(told[2]) <= datetime.now(UTC)


@pytest.mark.parametrize("kind", ["signed", "bearer"])
async def test_an_old_secret_in_its_overlap_ends_alone(akm, kind):
    """Who has rotated already keeps the new secret when the old one leaks."""
    old = await akm.manager.create_key("k", kind=kind)
    new = await akm.manager.rotate_key("k", 3600)
    name = "secret" if kind == "signed" else "token"
    assert await akm.report(old[name]) == ["true"]
    assert await akm.events("k") == ["key_rotated", "key_leaked", "key_version_ended"]

    async def works(key: dict[str, Any]) -> bool:
        shown = {"token": key["token"]} if kind == "bearer" else {}
        signed = ("k", sign(key["secret"], "k")) if kind == "signed" else ()
        return bool(await akm.manager.verify(*signed, **shown))

    assert await works(new)
    assert not await works(old)


async def test_admin_token_of_the_environment_is_told_in_the_log(akm, caplog):
    """What cannot be revoked here is an error that says what to do, without the token."""
    assert await akm.report(ADMIN) == ["true"]
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "AKM_ADMIN_TOKEN" in record.getMessage()
    assert ADMIN not in caplog.text


async def test_places_are_sanitised(akm):
    """A place is cut, printable, and never holds the token itself."""
    keys = [await akm.manager.create_key(f"k{i}", kind="bearer") for i in range(3)]
    urls = [f"https://x/{keys[0]['token']}", "a\n\0\x1b" + "é", "u" * 10_000]
    for key, url in zip(keys, urls, strict=True):
        await akm.report(key["token"], url=url)
    page = await akm.manager.find_audit(action="key_leaked", ascending=True)
    told = [event["detail"]["url"] for event in page["items"]]
    assert told == ["***REDACTED***", "a\\n\\x00\\x1b\\xe9", "u" * 512]


async def test_what_github_did_not_sign_is_refused(akm):
    """Another body, key, curve form or no signature: 403 before anything is parsed."""
    key = await akm.manager.create_key("b", kind="bearer")
    body = json.dumps([{"token": key["token"], "type": "x"}]).encode()
    good = akm.github.signed(body)
    identifier, signature = "Github-Public-Key-Identifier", "Github-Public-Key-Signature"
    other = base64.b64encode(
        ec.generate_private_key(ec.SECP256R1()).sign(body, ec.ECDSA(SHA256()))
    ).decode()
    for headers in (
        {},
        {identifier: good[identifier]},
        {signature: good[signature]},
        {**good, signature: other},
        {**good, signature: "!" + good[signature]},
        {**good, signature: ""},
        {**good, signature: "A" * 10_000},
        {**good, identifier: "two"},
        {**good, identifier: "../x"},
        {**good, "Authorization": f"Bearer {ADMIN}", signature: other},
    ):
        answer = await akm.client.post(PATH, content=body, headers=headers)
        assert answer.status_code == 403, headers
        assert answer.json()["reason"] == "forbidden"
    for changed in (body + b" ", b"", b"[]", body.replace(b"x", b"y")):
        answer = await akm.client.post(PATH, content=changed, headers=good)
        assert answer.status_code == 403
    assert (await akm.manager.get_key("b"))["state"] == "active"
    doubled = [*good.items(), (signature, good[signature])]
    assert (await akm.client.post(PATH, content=body, headers=doubled)).status_code == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"nonsense", 400), (b"{}", 422), (b"[1]", 422), (b'[{"token":1,"type":"x"}]', 422),
     (b"[]", 200), (b'[{"token":"a","type":"b","more":1,"url":null}]', 200),
     (json.dumps([{"token": "a", "type": "b"}] * 5001).encode(), 422), (b" " * 1_048_577, 413)],
)  # fmt: skip
async def test_bodies(akm, body, status):
    """Signed bodies are bounded and read strictly, but for members that may be added some day."""
    answer = await akm.client.post(PATH, content=body, headers=akm.github.signed(body))
    assert answer.status_code == status
    assert (await akm.client.get(PATH)).status_code in (401, 405)


async def test_unknown_identifiers_ask_github_once_a_minute(akm, monkeypatch):
    """A flood of made-up identifiers costs one fetch; a new key is found when the minute is over;
    one that GitHub withdrew is not believed after a day."""
    now = [1000.0]
    monkeypatch.setattr(github_keys.time, "monotonic", lambda: now[0])
    keys = github_keys.GitHubKeys(akm.github.url)
    assert await keys.key("one") is not None
    assert [await keys.key(f"made-up-{i}") for i in range(50)] == [None] * 50
    assert await asyncio.gather(*[keys.key("two") for _ in range(20)]) == [None] * 20
    assert akm.github.asked == 1
    akm.github.private["two"] = ec.generate_private_key(ec.SECP256R1())
    now[0] += 59
    assert await keys.key("two") is None
    now[0] += 2
    assert await keys.key("two") is not None
    assert akm.github.asked == 2
    del akm.github.private["one"]
    assert await keys.key("one") is not None
    now[0] += 86_401
    assert await keys.key("one") is None
    assert akm.github.asked == 3


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"", {}),
        (302, b"", {"Location": "http://127.0.0.1:9/"}),
        (200, b"nonsense", {}),
        (200, b'{"public_keys":[]}', {}),
        (200, b'{"public_keys":[{"key_identifier":"one","key":"x"}]}', {}),
        (200, b" " * 100_000, {}),
    ],
    ids=["error", "redirect", "no-json", "none", "no-key", "huge"],
)
async def test_without_githubs_keys_nothing_is_believed(akm, answer):
    """503 with Retry-After, and within the minute without asking again."""
    body = b"[]"
    akm.github.answer = answer
    for _ in range(2):
        told = await akm.client.post(PATH, content=body, headers=akm.github.signed(body))
        assert told.status_code == 503
        assert "retry-after" in told.headers
    assert akm.github.asked == 1


async def test_a_key_of_another_curve_is_none(akm):
    """Only P-256 signs reports."""
    akm.github.private["big"] = ec.generate_private_key(ec.SECP384R1())
    told = await akm.client.post(PATH, content=b"[]", headers=akm.github.signed(b"[]", "big"))
    assert told.status_code == 403


async def test_by_hand(akm, github):
    """An admin reports by HTTP; a token that is confined reaches its environment only."""
    here = await akm.manager.create_key("here", environment="prod")
    there = await akm.manager.create_key("there", kind="bearer", environment="dev")
    token = await akm.manager.create_key(
        "w", kind="bearer", realm=ADMIN_REALM, permissions=["keys:write"], environment="prod"
    )

    async def report(leaked: str, by: str) -> tuple[int, Any]:
        answer = await akm.client.post(
            "/v1/leaks", json={"token": leaked}, headers={"Authorization": f"Bearer {by}"}
        )
        return answer.status_code, answer.json().get("action")

    assert await report(here["secret"], "nobody") == (401, None)
    assert await report(there["token"], token["token"]) == (200, None)
    assert await report(here["secret"], token["token"]) == (200, "revoked")
    assert await report(there["token"], ADMIN) == (200, "revoked")
    assert await report(there["token"], ADMIN) == (200, "none")
    assert await report(ADMIN, ADMIN) == (200, None)


async def test_secrets_of_an_older_schema_are_marked(tmp_path, github):
    """What has no mark gets one while the server runs, without a new revision; what no scanner
    could find gets an empty one, once."""
    place = Place(tmp_path)
    async with place.open() as deployment:
        keys = [await deployment.manager.create_key(f"k{i}") for i in range(5)]
        await deployment.manager.create_key("own", secret="brought along")
        await deployment.manager.create_key("b", kind="bearer")
        revision = place.sql("SELECT revision FROM deployment")
    place.sql("UPDATE key_versions SET mark = NULL")
    async with place.open(background=False) as deployment:
        store, box = deployment.backend.store, deployment.manager.box
        assert await mark_secrets(store, box) == 6
        assert await mark_secrets(store, box) == 0
    assert place.sql("SELECT revision FROM deployment") == revision
    assert place.sql("SELECT count(DISTINCT mark) FROM key_versions WHERE length(mark) = 16") == [
        (5,)
    ]
    async with world(place, github) as akm:
        assert await akm.report(*[key["secret"] for key in keys]) == ["true"] * 5


async def test_marks_show_nothing_and_go_with_the_secret(tmp_path):
    """A mark is no plain digest, and is erased with the secret that it finds."""
    place = Place(tmp_path)
    async with place.open() as deployment:
        key = await deployment.manager.create_key("k")
        ((mark,),) = place.sql("SELECT mark FROM key_versions")
        assert mark not in hashlib.sha256(key["secret"].encode()).digest()
        await deployment.manager.delete_key("k")
        assert place.sql("SELECT mark FROM key_versions") == [(None,)]
