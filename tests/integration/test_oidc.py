"""OIDC bearer tokens of a real issuer over HTTP: what opens, and all that does not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from api_key_manager.core.exceptions import ConfigurationError, Reason, ValidationError
from api_key_manager.server import oidc_keys
from api_key_manager.server.oidc import Oidc
from api_key_manager.server.oidc_claims import Policy, read_grants
from api_key_manager.server.oidc_keys import IssuerKeys, UnreachableError, is_safe_url
from tests.integration.conftest import Api, serving
from tests.integration.test_fastlane import deploy
from tests.integration.wires import hear, on_a_wire, request

RSA = RSAKey.generate_key(2048)
OTHER = RSAKey.generate_key(2048)
EC = ECKey.generate_key("P-256")
ED = OKPKey.generate_key("Ed25519")
with warnings.catch_warnings(action="ignore"):
    SMALL = RSAKey.generate_key(1024)
SECRET = OctKey.generate_key(256)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def public(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    return {**key.as_dict(private=False), **({} if kid is None else {"kid": kid}), **more}


class Issuer:
    """An identity provider: its keys are `keys`, and what it answers can be changed."""

    def __init__(self) -> None:
        self.keys: list[Any] = [
            public(RSA, "rsa"), public(EC, "ec"), public(ED, "ed"), public(SMALL, "small"),
            {**SECRET.as_dict(), "kid": "oct"},
        ]  # fmt: skip
        self.asked: list[str] = []
        self.named: str | None = None
        self.jwks_uri: str | None = None
        self.answer: Any = None
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                if issuer.answer is not None:
                    issuer.answer(self)
                    return
                if self.path == "/.well-known/openid-configuration":
                    body: Any = {
                        "issuer": issuer.named or issuer.url,
                        "jwks_uri": issuer.jwks_uri or f"{issuer.url}/keys",
                    }
                else:
                    body = {"keys": issuer.keys}
                raw = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": "akm", "sub": "alice", "iat": now, "exp": now + 600,
            "groups": ["staff", "readers"], **changed,
        }  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, alg: str = "RS256", key: Any = RSA, kid: str | None = "rsa", header: Any = None,
        **changed: Any,
    ) -> str:  # fmt: skip
        head = {"alg": alg, "typ": "JWT", **({} if kid is None else {"kid": kid}), **(header or {})}
        return sign(json.dumps(head), json.dumps(self.claims(**changed)), alg, key)


def sign(head: str, body: str, alg: str, key: Any) -> str:
    message = f"{b64(head.encode())}.{b64(body.encode())}"
    mac = b"" if key is None else JWSRegistry.algorithms[alg].sign(message.encode(), key)
    return f"{message}.{b64(mac)}"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.stop()


SCOPES = "admins=admin,readers=keys:read+validate,stagers=keys:read+admin@staging"


@asynccontextmanager
async def trusting(issuer: Issuer, **more: Any) -> AsyncIterator[Api]:
    oidc = {"OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": "akm", "OIDC_SCOPES": SCOPES}
    async with serving(**{**oidc, **more}) as api:
        yield api


@pytest.fixture
async def api(issuer: Issuer) -> AsyncIterator[Api]:
    async with trusting(issuer, FAILED_AUTH_PER_MINUTE=0) as api:
        yield api


async def read(api: Api, token: str) -> httpx.Response:
    return await api("GET", "/v1/keys", token=token)


@pytest.mark.parametrize(
    ("alg", "key", "kid"),
    [
        ("RS256", RSA, "rsa"), ("RS384", RSA, "rsa"), ("RS512", RSA, "rsa"), ("PS256", RSA, "rsa"),
        ("PS384", RSA, "rsa"), ("PS512", RSA, "rsa"), ("ES256", EC, "ec"), ("EdDSA", ED, "ed"),
        ("Ed25519", ED, "ed"), ("ES256", EC, None),
    ],
)  # fmt: skip
async def test_good_tokens(api: Api, issuer: Issuer, alg: str, key: Any, kid: str | None):
    """Every algorithm of the list; without a `kid` where one key can have made it."""
    answer = await read(api, issuer.token(alg, key, kid))
    assert answer.status_code == 200, answer.text


GOOD = {
    "audience in a list": {"aud": ["other", "akm"]},
    "a second group decides": {"groups": ["x", "readers"]},
    "one group as text": {"groups": "readers"},
    "just ended, within the skew": {"exp": 5 - 60},
    "begins within the skew": {"nbf": 30},
    "access token": {"header": {"typ": "at+JWT"}},
    "its own key on the side is not looked at": {
        "header": {"jwk": public(OTHER, "rsa"), "jku": "http://127.0.0.1:1/", "x5u": "http://x/"}
    },
}


@pytest.mark.parametrize("changed", GOOD.values(), ids=GOOD.keys())
async def test_good_claims(api: Api, issuer: Issuer, changed: dict[str, Any]):
    """What fits though it looks a little different; instants count from now."""
    instants = {name: time.time() + changed[name] for name in ("exp", "nbf") if name in changed}
    changed = changed | instants
    assert (await read(api, issuer.token(**changed))).status_code == 200


def pem(key: Any) -> bytes:
    return key.public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def confused(issuer: Issuer) -> str:
    """HS256 with the public key as the secret."""
    head = b64(json.dumps({"alg": "HS256", "kid": "rsa", "typ": "JWT"}).encode())
    message = f"{head}.{b64(json.dumps(issuer.claims()).encode())}"
    return f"{message}.{b64(hmac.digest(pem(RSA), message.encode(), hashlib.sha256))}"


def twice(issuer: Issuer) -> str:
    body = json.dumps(issuer.claims(sub="alice"))[:-1] + ', "sub": "bob"}'
    return sign('{"alg": "RS256", "kid": "rsa"}', body, "RS256", RSA)


def spoilt(issuer: Issuer, edit: Any) -> str:
    return str(edit(issuer.token()))


ATTACKS: dict[str, Any] = {
    "none": lambda i: i.token("none", None),
    "None in capitals": lambda i: i.token("nOnE", None),
    "none, with a good signature": lambda i: i.token("RS256", header={"alg": "none"}),
    "public key as HMAC secret": confused,
    "symmetric key of the key set": lambda i: i.token("HS256", SECRET, "oct"),
    "algorithm of another kind of key": lambda i: i.token("RS256", header={"alg": "ES256"}),
    "kid of another key": lambda i: i.token(kid="ec"),
    "unknown kid": lambda i: i.token(kid="nobody"),
    "kid that is a path": lambda i: i.token(kid="../../dev/null"),
    "kid that is no text": lambda i: i.token(header={"kid": ["rsa"]}),
    "a key of its own": lambda i: i.token(key=OTHER, header={"jwk": public(OTHER, "rsa")}),
    "a key from a place of its own": lambda i: i.token(key=OTHER, header={"jku": i.url}),
    "RSA of 1024 bits": lambda i: i.token(key=SMALL, kid="small"),
    "crit": lambda i: i.token(header={"crit": ["exp"]}),
    "unencoded payload": lambda i: i.token(header={"crit": ["b64"], "b64": False}),
    "another type": lambda i: i.token(header={"typ": "logout+jwt"}),
    "another issuer": lambda i: i.token(iss="https://evil.example"),
    "issuer with a slash": lambda i: i.token(iss=f"{i.url}/"),
    "issuer in a list": lambda i: i.token(iss=[i.url]),
    "no issuer": lambda i: i.token(iss=None),
    "another audience": lambda i: i.token(aud="other"),
    "audience that begins so": lambda i: i.token(aud="akm-staging"),
    "audiences without ours": lambda i: i.token(aud=["other"]),
    "no audience": lambda i: i.token(aud=None),
    "no subject": lambda i: i.token(sub=None),
    "empty subject": lambda i: i.token(sub=""),
    "no end": lambda i: i.token(exp=None),
    "end as text": lambda i: i.token(exp="9999999999"),
    "end that is true": lambda i: i.token(exp=True),
    "endless": lambda i: i.token(exp=float("inf")),
    "no number": lambda i: i.token(exp=float("nan")),
    "ended": lambda i: i.token(exp=time.time() - 61),
    "not yet": lambda i: i.token(nbf=time.time() + 90),
    "made in the future": lambda i: i.token(iat=time.time() + 90),
    "a name twice": twice,
    "body changed": lambda i: spoilt(i, lambda t: ".".join(
        [t.split(".")[0], b64(json.dumps(i.claims(groups=["admins"])).encode()), t.split(".")[2]])),
    "no signature": lambda i: spoilt(i, lambda t: t.rpartition(".")[0] + "."),
    "signature cut": lambda i: spoilt(i, lambda t: t[:-4]),
    "padding": lambda i: spoilt(i, lambda t: t + "=="),
    "a fourth part": lambda i: spoilt(i, lambda t: t + ".x"),
    "too large": lambda i: i.token(filler="x" * 9000),
    "deep": lambda i: sign('{"alg": "RS256", "kid": "rsa"}', "[" * 3000 + "]" * 3000, "RS256", RSA),
    "no object": lambda i: sign('{"alg": "RS256", "kid": "rsa"}', '["x"]', "RS256", RSA),
    "not JSON": lambda i: sign("{nothing", "{}", "RS256", RSA),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
async def test_attacks(api: Api, issuer: Issuer, attack: Any):
    """Each gets the one 401 of every wrong token, and is in the log without the token."""
    token = attack(issuer)
    wrong = await read(api, "x" * 40)
    answer = await read(api, token)
    assert (answer.status_code, answer.content) == (401, wrong.content)
    log = await api("GET", "/v1/audit?action=login_refused")
    assert len(log.json()["items"]) >= 1
    assert token[:60] not in log.text


async def test_scopes_and_actor(api: Api, issuer: Issuer):
    """The mapping decides what opens; the actor in the log is the subject."""
    assert (await api("POST", "/v1/keys", {}, token=issuer.token())).status_code == 403
    assert (await read(api, issuer.token(groups=["nobody"]))).status_code == 403
    assert (await read(api, issuer.token(groups=None))).status_code == 403
    made = await api("POST", "/v1/keys", {"key_id": "k"}, token=issuer.token(groups=["admins"]))
    assert made.status_code == 201
    event = (await api("GET", "/v1/audit?key_id=k")).json()["items"][0]
    assert event["actor"] == "oidc:alice"
    refused = (await api("GET", "/v1/audit?action=login_refused")).json()["items"]
    assert {(e["actor"], e["reason"]) for e in refused} == {("oidc:alice", "forbidden")}


async def test_strange_subjects(api: Api, issuer: Issuer):
    """Two subjects never are one actor, and none breaks a line."""
    actors = []
    for i, subject in enumerate(["a\nb", "a b", "ä" * 500, "sha256:x", "x" * 200, "x" * 201]):
        token = issuer.token(groups=["admins"], sub=subject)
        await api("POST", "/v1/keys", {"key_id": f"k{i}"}, token=token)
        log = (await api("GET", f"/v1/audit?key_id=k{i}")).json()["items"]
        actors.append(log[0]["actor"])
    assert len(set(actors)) == 6
    assert all(actor.startswith("oidc:sha256:") and len(actor) <= 128 for actor in actors)


async def test_environment(api: Api, issuer: Issuer):
    """Who is bound to an environment is so with all that the scopes open, and so are its tokens."""
    await api.key(key_id="prod-key", environment="prod")
    stager = issuer.token(groups=["stagers"])
    assert (await api("GET", "/v1/keys/prod-key", token=stager)).status_code == 404
    minted = (await api("POST", "/v1/tokens", {"scopes": ["admin"]}, token=stager)).json()
    assert minted["environment"] == "staging"
    # The first entry that fits decides alone: nothing is added up.
    both = issuer.token(groups=["stagers", "readers"])
    assert (await api("POST", "/v1/tokens", {"scopes": ["admin"]}, token=both)).status_code == 403


async def test_rotated_keys(issuer: Issuer, monkeypatch: pytest.MonkeyPatch):
    """A new key is found by its unknown id, at most once a minute; a withdrawn one is forgotten."""
    clock = [1000.0]
    keys = IssuerKeys(issuer.url, clock=lambda: clock[0])
    assert await keys.find("rsa", "RS256")
    issuer.keys = [public(OTHER, "new")]
    for _ in range(50):
        assert not await keys.find("new", "RS256")
    assert len(issuer.asked) == 2
    clock[0] += 61
    assert await keys.find("new", "RS256")
    assert not await keys.find("rsa", "RS256")
    for i in range(50):
        assert not await keys.find(f"flood-{i}", "RS256")
    assert len(issuer.asked) == 4
    issuer.keys = [public(RSA, "rsa")]
    clock[0] += 301
    assert not await keys.find("new", "RS256")


async def test_issuer_down(issuer: Issuer):
    """Known keys serve for an hour; then, and without any, nobody can be told, and it says so."""
    clock = [1000.0]
    keys = IssuerKeys(issuer.url, clock=lambda: clock[0])
    assert await keys.find("rsa", "RS256")
    issuer.stop()
    clock[0] += 3500
    assert await keys.find("rsa", "RS256")
    clock[0] += 200
    with pytest.raises(UnreachableError):
        await keys.find("rsa", "RS256")


async def test_issuer_never_there(issuer: Issuer):
    """503 for its tokens only: ours go on, and a forged one of its form is no failure yet."""
    token = issuer.token()
    issuer.stop()
    async with trusting(issuer, FAILED_AUTH_PER_MINUTE=1) as api:
        for _ in range(3):
            answer = await read(api, token)
            assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
            assert "retry-after" in answer.headers
        assert (await read(api, api.token)).status_code == 200


def redirect(handler: Any) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:1/")
    handler.end_headers()


def huge(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(64):
            handler.wfile.write(b" " * 65_536)
    except OSError:
        pass


def slow(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(20):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        pass


def text(raw: bytes, *headers: tuple[str, str]) -> Any:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        for header in headers:
            handler.send_header(*header)
        handler.end_headers()
        handler.wfile.write(raw)

    return answer


BAD_ISSUERS = {
    "redirects": redirect, "huge": huge, "slow": slow, "no JSON": text(b"<html>"),
    "no object": text(b"[]"), "deep": text(b"[" * 100_000),
    "compressed": text(b"x", ("Content-Encoding", "gzip")),
}  # fmt: skip


@pytest.mark.parametrize("answer", BAD_ISSUERS.values(), ids=BAD_ISSUERS.keys())
async def test_bad_issuers(issuer: Issuer, answer: Any, monkeypatch: pytest.MonkeyPatch):
    """Whatever it answers, that ends soon and opens nothing."""
    monkeypatch.setattr(oidc_keys, "FETCH_SECONDS", 0.3)
    issuer.answer = answer
    with pytest.raises(UnreachableError):
        await IssuerKeys(issuer.url).find("rsa", "RS256")


@pytest.mark.parametrize(
    ("named", "jwks_uri"),
    [
        ("https://evil.example", None), (None, "http://keys.example/"), (None, "file:///etc/passwd"),
        (None, "https://u:p@keys.example/"),
    ],
)  # fmt: skip
async def test_configuration_of_somebody_else(issuer: Issuer, named: Any, jwks_uri: Any):
    """Its configuration must name the very issuer, and keys in a safe place."""
    issuer.named, issuer.jwks_uri = named, jwks_uri
    with pytest.raises(UnreachableError):
        await IssuerKeys(issuer.url).find("rsa", "RS256")


async def test_failures_are_slowed(issuer: Issuer):
    """Bad ones count like wrong tokens of ours, good ones pass from the same address."""
    async with trusting(issuer, FAILED_AUTH_PER_MINUTE=2) as api:
        bad = issuer.token(aud="other")
        assert [(await read(api, bad)).status_code for _ in range(3)] == [401, 401, 429]
        assert (await read(api, issuer.token())).status_code == 200
        assert (await read(api, "x" * 40)).status_code == 429


async def test_remembered_for_a_while(issuer: Issuer):
    """A good token is looked at once a minute, never believed past its end, and of many the
    oldest is forgotten; a bad one is not remembered at all."""
    clock = {"now": time.time()}
    policy = Policy(issuer.url, "akm", "groups", read_grants(SCOPES), 0)
    oidc = Oidc(policy, IssuerKeys(issuer.url), lambda: clock["now"])
    short = issuer.token(exp=clock["now"] + 30).encode()
    long, bad = issuer.token().encode(), issuer.token(aud="x").encode()
    for token in (short, long, bad):
        await oidc.identify(token)
    assert oidc.known(short) and oidc.known(long)  # noqa: PT018 - both
    assert oidc.known(bad) is None
    clock["now"] += 31
    assert oidc.known(short) is None
    assert oidc.known(long)
    clock["now"] += 30
    assert oidc.known(long) is None
    assert await oidc.identify(short) == Reason.EXPIRED


async def test_connection_that_goes_on(issuer: Issuer, clock: Any):
    """On the fast lane the same head again is let in while the token is believed, and no longer."""
    oidc = {"OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": "akm", "OIDC_SCOPES": SCOPES}
    async with AsyncExitStack() as stack:
        deployment = await deploy(stack, clock, **oidc)
        wire = await stack.enter_async_context(on_a_wire(deployment))
        token = issuer.token(iat=None, exp=clock.seconds + 20)
        raw = request(body=b"{}", headers=[("Authorization", f"Bearer {token}")])
        reader, writer = await wire.open()
        statuses = []
        for step in (0, 0, 0, 21 + 60, 0):
            clock.advance(step)
            writer.write(raw)
            statuses.append((await hear(reader)).status)
        writer.close()
    assert statuses == [422, 422, 422, 401, 401]


@pytest.mark.parametrize("missing", ["OIDC_ISSUER", "OIDC_AUDIENCE", "OIDC_SCOPES"])
async def test_all_or_none(issuer: Issuer, missing: str):
    """A part of the settings stops the start with the name of what is missing."""
    with pytest.raises(ConfigurationError, match=missing):
        async with trusting(issuer, **{missing: ""}):
            pass


@pytest.mark.parametrize(
    "url", ["http://id.example.com", "https://u:p@id.example.com", "https://id.example.com/?a=b",
            "ftp://id.example.com", "http://127.0.0.1.evil.example"],
)  # fmt: skip
async def test_unsafe_issuers(issuer: Issuer, url: str):
    """No issuer whose answers others could give."""
    assert not is_safe_url(url)
    with pytest.raises(ConfigurationError, match="OIDC_ISSUER"):
        async with trusting(issuer, OIDC_ISSUER=url):
            pass


@pytest.mark.parametrize(
    "text", ["", "admins", "admins=", "=admin", "a=admin,", "a=root", "a=admin@", "a=admin,a=admin",
             "a=admin@b@c", "a=admin+"],
)  # fmt: skip
def test_unclear_scopes(text: str):
    """What is not clear opens nothing."""
    with pytest.raises(ValidationError):
        read_grants(text)


async def test_without_settings(issuer: Issuer):
    """A server that trusts no issuer takes such a token for a wrong one, and asks nobody."""
    async with serving() as api:
        assert (await read(api, issuer.token())).status_code == 401
    assert issuer.asked == []
