"""Every attack on a signed request, at every door: `/v1/validate`, and `/v1/authorize` by each
lane.

Each has its reason. At `/v1/validate` the answer says it; at `/v1/authorize` only the audit log
does, and every 401 is the same. The details of what is malformed are in
tests/unit/test_http_signature_attacks.py.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest

from api_key_manager.core import sign, sign_request
from tests.integration.test_fastlane import AUTH, deploy
from tests.integration.wires import Heard, Wire, hear, on_a_wire, request

BODY = b'{"item": 7}'
TARGET = "/orders%2F7/a?x=%7E&y=1"
HOST = "shop.example"
_PIECE = 16 * 1024
_nonces = itertools.count()


class Sent(NamedTuple):
    """A request as it goes over the wire to the service, and the credential beside it, if any."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = BODY
    host: str = HOST
    token: str | None = None

    def but(self, **headers: str | None) -> Sent:
        """The same with other values of some headers; ``None``: without them."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kept = [(n, named.get(n, v)) for n, v in self.headers]
        return self._replace(headers=[(n, v) for n, v in kept if v is not None])

    def and_(self, *headers: tuple[str, str]) -> Sent:
        return self._replace(headers=[*self.headers, *headers])

    def value(self, name: str) -> str:
        return dict(self.headers)[name]


class Keys(NamedTuple):
    """Two signed keys and a bearer key, of people who can sign whatever they like."""

    key: dict[str, Any]
    other: dict[str, Any]
    app: dict[str, Any]

    def signed(self, key: dict[str, Any] | None = None, **more: Any) -> Sent:
        """A good request."""
        key = key or self.key
        body, target = more.get("body", BODY), more.get("target", TARGET)
        method = more.get("method", "POST")
        made = sign_request(
            key["secret"], key["key_id"], method, f"https://{HOST}{target}", body,
            created=int(time.time()) + more.get("at", 0),
            nonce=more.get("nonce", f"nonce-{next(_nonces):016}"),
        )  # fmt: skip
        return Sent(method, target, list(made.items()), body)

    def forged(self, change: Callable[[list[str], dict[str, str]], None]) -> Sent:
        """One whose MAC is right for whatever it says it covers: only the profile can refuse it."""
        digest = "sha-256=:" + base64.b64encode(hashlib.sha256(BODY).digest()).decode() + ":"
        path, _, query = TARGET.partition("?")
        values = {
            "@method": "POST", "@authority": HOST, "@path": path, "@query": f"?{query}",
            "content-digest": digest, "date": "Tue, 20 Apr 2021 02:07:55 GMT",
        }  # fmt: skip
        covered = [name for name in values if name != "date"]
        parameters = {
            "created": str(int(time.time())), "nonce": f'"nonce-{next(_nonces):016}"',
            "keyid": f'"{self.key["key_id"]}"', "alg": '"hmac-sha256"', "tag": '"akm"',
        }  # fmt: skip
        change(covered, parameters)
        inner = "(" + " ".join(f'"{name}"' for name in covered) + ")"
        inner += "".join(f";{name}={value}" for name, value in parameters.items())
        base = "".join(f'"{name}": {values[name]}\n' for name in covered)
        secret = self.key["secret"].encode()
        mac = hmac.digest(secret, f'{base}"@signature-params": {inner}'.encode(), "sha256")
        return Sent(
            "POST", TARGET,
            [
                ("Content-Digest", digest), ("Signature-Input", f"akm={inner}"),
                ("Signature", f"akm=:{base64.b64encode(mac).decode()}:"),
                ("Date", values["date"]),
            ],
        )  # fmt: skip


class Expected(NamedTuple):
    """What is said of a request. A number is the status with which the protocol refuses it, before
    anybody looks at a credential."""

    at_validate: str
    at_authorize: str | int


Attack = Iterator[tuple[Sent, str | Expected]]
ATTACKS: dict[str, Callable[[Keys], Attack]] = {}


def attack(made: Callable[[Keys], Attack]) -> None:
    ATTACKS[made.__name__.strip("_")] = made


@attack
def _none(keys: Keys) -> Attack:
    """What the others start from is good."""
    yield keys.signed(), "valid"
    yield keys.signed(method="GET", body=b""), "valid"
    yield keys.forged(lambda *_: None), "valid"


@attack
def _replayed_nonce(keys: Keys) -> Attack:
    sent = keys.signed()
    yield sent, "valid"
    yield sent, "replayed"
    nonce = "the-very-same-nonce"
    yield keys.signed(nonce=nonce), "valid"
    yield keys.signed(nonce=nonce, target="/another"), "replayed"


@attack
def _nonce_reused_under_another_key(keys: Keys) -> Attack:
    """Nonces belong to their key: nobody burns another one's."""
    nonce = "one-nonce-for-both"
    yield keys.signed(nonce=nonce), "valid"
    yield keys.signed(keys.other, nonce=nonce), "valid"
    yield keys.signed(nonce=nonce), "replayed"
    yield keys.signed(keys.other, nonce=nonce), "replayed"


@attack
def _stale_created(keys: Keys) -> Attack:
    yield keys.signed(at=-300), "valid"
    yield keys.signed(at=-400), "stale_timestamp"
    yield keys.signed(at=-10_000_000), "stale_timestamp"


@attack
def _future_created(keys: Keys) -> Attack:
    yield keys.signed(at=30), "valid"
    yield keys.signed(at=90), "future_timestamp"
    yield keys.signed(at=10_000_000), "future_timestamp"


@attack
def _created_changed(keys: Keys) -> Attack:
    sent = keys.signed(at=-400)
    text = sent.value("Signature-Input")
    stale = text.partition("created=")[2].partition(";")[0]
    yield sent.but(Signature_Input=text.replace(stale, str(int(time.time())))), "bad_signature"


@attack
def _missing_component(keys: Keys) -> Attack:
    for name in ("@method", "@authority", "@path", "@query", "content-digest"):
        yield keys.forged(lambda covered, _, name=name: covered.remove(name)), "malformed"


@attack
def _another_component(keys: Keys) -> Attack:
    yield keys.forged(lambda covered, _: covered.append("date")), "malformed"
    yield keys.forged(lambda covered, _: covered.append("@path")), "malformed"


@attack
def _missing_parameter(keys: Keys) -> Attack:
    for name in ("created", "nonce", "keyid", "alg"):
        yield keys.forged(lambda _, given, name=name: given.pop(name)), "malformed"


@attack
def _tag_missing(keys: Keys) -> Attack:
    yield keys.forged(lambda _, given: given.pop("tag")), "malformed"
    yield keys.forged(lambda _, given: given.update(tag='"other"')), "malformed"


@attack
def _algorithm_swapped(keys: Keys) -> Attack:
    for alg in ('"hmac-sha512"', '"none"', '"rsa-pss-sha512"', '"ed25519"', '"HMAC-SHA256"'):
        yield keys.forged(lambda _, given, alg=alg: given.update(alg=alg)), "malformed"


@attack
def _missing_header(keys: Keys) -> Attack:
    for name in ("Content-Digest", "Signature-Input", "Signature"):
        yield keys.signed().but(**{name: None}), "malformed"
    yield Sent("POST", TARGET, []), "malformed"


@attack
def _duplicate_header(keys: Keys) -> Attack:
    for name in ("Content-Digest", "Signature-Input", "Signature"):
        sent = keys.signed()
        yield sent.and_((name, sent.value(name))), "malformed"
        yield sent.and_((name.lower(), "x")), "malformed"
        yield sent.but(**{name: f"{sent.value(name)}, {sent.value(name)}"}), "malformed"


@attack
def _obs_fold(keys: Keys) -> Attack:
    for fold in ("\r\n ", "\r\n\t", "\n ", "\r\nX: a\r\n "):
        for name in ("Signature-Input", "Signature", "Content-Digest"):
            sent = keys.signed()
            value = sent.value(name)
            folded = sent.but(**{name: f"{value[:8]}{fold}{value[8:]}"})
            yield folded, Expected("malformed", 400)
        yield keys.signed().and_(("X-Other", f"a{fold}b")), Expected("malformed", 400)


@attack
def _mixed_case_header_names(keys: Keys) -> Attack:
    """The same header in any case; a second one in another case is a second one."""
    for change in (str.lower, str.upper, str.swapcase):
        sent = keys.signed()
        yield sent._replace(headers=[(change(n), v) for n, v in sent.headers]), "valid"
        sent = keys.signed()
        yield sent.and_((change("Signature"), sent.value("Signature"))), "malformed"


@attack
def _header_names_with_spaces(keys: Keys) -> Attack:
    for name in ("Signature ", "Signature\t", " Signature"):
        yield keys.signed().and_((name, "x")), Expected("malformed", 400)


@attack
def _percent_encoding_in_path(keys: Keys) -> Attack:
    for path in ("/orders/7/a", "/orders%2f7/a", "/orders%252F7/a", "/%6Frders%2F7/a",
                 "/orders%2F7/./a", "/x/../orders%2F7/a", "//orders%2F7/a", "/orders%2F7/a/",
                 "/orders%2F7/a;b", "/orders%2F7/a%3Fx=%7E&y=1"):  # fmt: skip
        yield keys.signed()._replace(target=f"{path}?x=%7E&y=1"), "bad_signature"


@attack
def _percent_encoding_in_query(keys: Keys) -> Attack:
    for query in ("?x=~&y=1", "?x=%7e&y=1", "?x=%257E&y=1", "?y=1&x=%7E", "?x=%7E&y=1&y=2",
                  "?x=%7E&y=1&", "?x=%7E&y=%31", "?", ""):  # fmt: skip
        yield keys.signed()._replace(target=f"/orders%2F7/a{query}"), "bad_signature"


@attack
def _method_and_host_swapped(keys: Keys) -> Attack:
    yield keys.signed()._replace(method="PUT"), "bad_signature"
    yield keys.signed()._replace(host="evil.example"), "bad_signature"
    yield keys.signed()._replace(host=f"{HOST}:8443"), "bad_signature"


@attack
def _wrong_digest(keys: Keys) -> Attack:
    sent, other = keys.signed(), keys.signed(body=b"other")
    yield sent.but(Content_Digest=other.value("Content-Digest")), "bad_signature"
    both = sent.but(Content_Digest=other.value("Content-Digest"))._replace(body=b"other")
    yield both, "bad_signature"
    sha512 = base64.b64encode(hashlib.sha512(BODY).digest()).decode()
    yield sent.but(Content_Digest=f"sha-512=:{sha512}:"), "malformed"


# Who does not see the body lets it through, and hands on what was signed of it: the service finds
# out. Tests with the service are in test_gateway_nginx.py.


@attack
def _body_changed(keys: Keys) -> Attack:
    yield keys.signed()._replace(body=b'{"item": 8}'), Expected("bad_signature", "valid")
    yield keys.signed()._replace(body=b""), Expected("bad_signature", "valid")


@attack
def _body_added(keys: Keys) -> Attack:
    sent = keys.signed(method="GET", body=b"")
    yield sent._replace(body=BODY), Expected("bad_signature", "valid")
    yield keys.signed()._replace(body=BODY + b"\n"), Expected("bad_signature", "valid")


@attack
def _weaker_signature_in_its_place(keys: Keys) -> Attack:
    sent = keys.signed()
    now = int(time.time())
    for mac in (
        sign(keys.key["secret"], keys.key["key_id"]),
        sign(keys.key["secret"], keys.key["key_id"], now),
        sign(keys.key["secret"], keys.key["key_id"], now, "nonce-0123456789012"),
    ):
        text = base64.b64encode(bytes.fromhex(mac)).decode()
        yield sent.but(Signature=f"akm=:{text}:"), "bad_signature"


@attack
def _another_keys_signature(keys: Keys) -> Attack:
    sent = keys.signed()
    text = sent.value("Signature-Input")
    for name, reason in ((keys.other["key_id"], "bad_signature"), ("nobody", "not_found"),
                         (keys.app["key_id"], "bad_signature")):  # fmt: skip
        yield sent.but(Signature_Input=text.replace('keyid="k"', f'keyid="{name}"')), reason


@attack
def _two_signatures(keys: Keys) -> Attack:
    one, two = keys.signed(), keys.signed(keys.other)
    names = ("Signature-Input", "Signature")
    second = {name: two.value(name).replace("akm=", "sig2=", 1) for name in names}
    both = {name: f"{one.value(name)}, {second[name]}" for name in names}
    yield one.but(**both), "malformed"
    yield one.and_(*second.items()), "malformed"
    yield one.but(Signature=both["Signature"]), "malformed"
    yield one.but(Signature_Input=both["Signature-Input"]), "malformed"


@attack
def _two_credentials(keys: Keys) -> Attack:
    yield keys.signed()._replace(token=keys.app["token"]), "malformed"
    yield keys.signed()._replace(token="akm_x_y"), "malformed"
    yield keys.signed().but(Signature=None)._replace(token=keys.app["token"]), "malformed"


@attack
def _header_of_1_mb(keys: Keys) -> Attack:
    sent = keys.signed()
    for name in ("Signature-Input", "Signature", "Content-Digest"):
        huge = sent.but(**{name: sent.value(name) + "A" * 1_000_000})
        yield huge, Expected("malformed", 431)


class Door:
    """One way to ask."""

    def __init__(self, name: str, wire: Wire) -> None:
        self.name = name
        self._wire = wire

    async def ask(self, sent: Sent) -> Heard:
        raw = _validation(sent) if self.name == "validate" else self._question(sent)
        reader, writer = await self._wire.open()
        answer = asyncio.create_task(hear(reader))
        # In pieces, so that whoever refuses it early has read all that was sent: else the answer
        # may be lost with the connection.
        for i in range(0, len(raw), _PIECE):
            if answer.done():
                break
            writer.write(raw[i : i + _PIECE])
            await asyncio.sleep(0.005 if len(raw) > _PIECE else 0)
        try:
            return await answer
        finally:
            writer.close()

    def _question(self, sent: Sent) -> bytes:
        lines = [f"{sent.method} /v1/authorize{sent.target} HTTP/1.1", f"Host: {sent.host}"]
        lines += ["X-Forwarded-Proto: https", f"Content-Length: {len(sent.body)}"]
        lines += [f"{name}: {value}" for name, value in sent.headers]
        if sent.token is not None:
            lines.append(f"X-Api-Key: {sent.token}")
        if self.name == "authorize, ASGI lane":
            lines.append("Upgrade: whatever")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + sent.body

    async def counts(self) -> Counter[str]:
        """How often each reason stands in the audit log."""
        found: Counter[str] = Counter()
        cursor = ""
        while True:
            raw = request("GET", f"/v1/audit?limit=100{cursor}", headers=AUTH)
            (answer,) = await self._wire.talk([raw], 1)
            page = json.loads(answer.body)
            for event in page["items"]:
                if event["action"] in ("key_validated", "key_refused"):
                    found[event["reason"]] += event.get("count", 1)
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"


def _validation(sent: Sent) -> bytes:
    given: dict[str, Any] = {
        "request": {
            "method": sent.method, "url": f"https://{sent.host}{sent.target}",
            "headers": sent.headers, "body_sha256": hashlib.sha256(sent.body).hexdigest(),
        },
        "token": sent.token,
    }  # fmt: skip
    # As a caller whose limit on bodies is ours hands it on.
    return request(body=json.dumps(given).encode(), headers=AUTH)


@pytest.fixture
async def keys_and_wire() -> AsyncIterator[tuple[Keys, Wire]]:
    async with AsyncExitStack() as stack:
        deployment = await deploy(stack, AUTHORIZE_PROFILE="envoy")
        create = deployment.manager.create_key
        keys = Keys(await create("k"), await create("other"), await create("reader", kind="bearer"))
        yield keys, await stack.enter_async_context(on_a_wire(deployment))


@pytest.mark.parametrize("name", ["validate", "authorize, fast lane", "authorize, ASGI lane"])
@pytest.mark.parametrize("made", ATTACKS.values(), ids=ATTACKS)
async def test_attack(made: Callable[[Keys], Attack], name: str, keys_and_wire: tuple[Keys, Wire]):
    """Each is refused with its reason, which the audit log has once, and which no outsider sees."""
    keys, wire = keys_and_wire
    door = Door(name, wire)
    refusals = set()
    for sent, expected in made(keys):
        before = await door.counts()
        heard = await door.ask(sent)
        noted = await door.counts() - before
        if isinstance(expected, str):
            expected = Expected(expected, expected)
        if name == "validate":
            reason: str | int = expected.at_validate
            told = json.loads(heard.body)
            assert (heard.status, told["reason"]) == (200, reason), sent
            assert told["valid"] is (reason == "valid")
        else:
            reason = expected.at_authorize
            status = reason if isinstance(reason, int) else 200 if reason == "valid" else 401
            assert heard.status == status, sent
            if status == 200:
                assert heard.header("x-content-digest") == sent.value(_own(sent, "content-digest"))
            elif status == 401:
                refusals.add(_shown(heard))
        assert noted == ({} if isinstance(reason, int) else {reason: 1}), sent
    assert len(refusals) <= 1


def _own(sent: Sent, name: str) -> str:
    return next(known for known, _ in sent.headers if known.lower() == name)


def _shown(heard: Heard) -> str:
    """All that tells one refusal from another, but for date and id."""
    headers = [h for h in heard.headers if h[0] not in ("date", "x-request-id")]
    return repr([heard.status, headers, heard.body])
