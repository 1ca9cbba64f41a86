"""A real nginx with the example's configuration: what passes, what is refused and how, and that a
client can smuggle nothing past it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway_clients import CLAIMS, SMUGGLED, Stack, make_keys, seen, stack
from tests.integration.gateways import everything, running_nginx, serving_service
from tests.integration.places import Place
from tests.services import free_port

RULES = """
default = "allow"
[[rules]]
path = "/admin/**"
permissions = "admin"
[[rules]]
methods = ["POST"]
path = "/documents/*"
permissions = ["documents.write", "documents.read"]
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Any valid key may do anything."""
    yield from stack(tmp_path_factory.mktemp("plain"), "nginx")


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With rules."""
    folder = tmp_path_factory.mktemp("ruled")
    (folder / "rules.toml").write_text(RULES)
    yield from stack(folder, "nginx", AUTHORIZE_RULES=str(folder / "rules.toml"))


class TestAllowed:
    def test_bearer(self, plain: Stack):
        """A token in either header passes, and the service knows whose it is, without the token."""
        token = plain.keys["app"]["token"]
        for pairs in (plain.token(), [("X-Api-Key", token)]):
            told = seen(plain.gateway("GET", "/orders?limit=10", pairs))
            assert told["uri"] == "/orders?limit=10"
            assert told["caller"] == {"key_id": "app", "owner": None, "metadata": {}}
            assert token not in json.dumps(told)

    def test_signed(self, plain: Stack):
        """A signed request with a body passes; owner and the chosen metadata come along."""
        body = b'{"item": 7}'
        pairs = plain.signature("POST", "/orders", body)
        told = seen(plain.gateway("POST", "/orders", pairs, body))
        caller = {"key_id": "k", "owner": "Zo%C3%AB", "metadata": {"plan": "pro"}}
        assert (told["caller"], told["body"]) == (caller, body.decode())
        assert ["X-Content-Digest", dict(pairs)["Content-Digest"]] in told["headers"]

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_methods(self, plain: Stack, method: str):
        """The method that was signed is the one that is checked and served."""
        answer = plain.gateway(method, "/x", plain.signature(method, "/x"))
        assert answer.status == 200
        assert method == "HEAD" or seen(answer)["method"] == method

    def test_http_1_0(self, plain: Stack):
        """An old client with a Host header passes."""
        pairs = plain.signature("GET", "/x")
        assert seen(plain.gateway("GET", "/x", pairs, version="1.0"))["uri"] == "/x"

    @pytest.mark.parametrize(
        "uri",
        ["/", "/?", "/a//b", "//a", "/a/./b/../c", "/a/%2e%2e/b", "/a%2Fb", "/%61", "/a;b=c",
         "/a?b=%20c&d", "/a??", "/caf%C3%A9", "/a%0d%0ab", "/a/?b=/../c", "/%25%32%35", "/a+b"],
    )  # fmt: skip
    def test_uri_is_served_as_it_was_checked(self, plain: Stack, uri: str):
        """What was signed reaches the service byte for byte; nothing is decoded or merged."""
        told = seen(plain.gateway("GET", uri, plain.signature("GET", uri)))
        assert told["uri"] == uri


class TestRefused:
    def test_401(self, plain: Stack):
        """No credential, a wrong one, two: 401 with WWW-Authenticate, the service hears nothing."""
        token = plain.token()
        for pairs in (
            [], [("Authorization", "Bearer x")], [("Authorization", "Basic eDp5")],
            [("X-Api-Key", token[0][1][7:])] * 2,
            [*token, *plain.signature("GET", "/x")], [*token, ("X-Api-Key", "y")],
            plain.signature("GET", "/x") * 2,
        ):  # fmt: skip
            answer = plain.gateway("GET", "/x", pairs)
            assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer"), pairs
            assert b"caller" not in answer.body
        # That one nginx refuses by itself.
        assert plain.gateway("GET", "/x", token * 2).status in (400, 401)

    def test_tampering(self, plain: Stack):
        """A signed request whose method, path, query or host is another one: 401."""
        for method, uri, host in (
            ("DELETE", "/orders?limit=10", None), ("HEAD", "/orders?limit=10", None),
            ("GET", "/orders?limit=11", None), ("GET", "/orders", None), ("GET", "/admin", None),
            ("GET", "/orders?limit=10&", None), ("GET", "//orders?limit=10", None),
            ("GET", "/%6frders?limit=10", None), ("GET", "/x/../orders?limit=10", None),
            ("GET", "/orders?limit=10", "evil.example"), ("GET", "/orders?limit=10", "localhost"),
        ):  # fmt: skip
            pairs = plain.signature("GET", "/orders?limit=10")
            assert plain.gateway(method, uri, pairs, host=host).status == 401, uri

    def test_replay(self, plain: Stack):
        """The same signed request a second time: 401."""
        pairs = plain.signature("GET", "/x")
        assert [plain.gateway("GET", "/x", pairs).status for _ in range(2)] == [200, 401]

    def test_body(self, plain: Stack):
        """nginx does not look at the body; the service does, and refuses one that was changed,
        added or taken away after signing."""
        for signed, sent in ((b'{"n": 1}', b'{"n": 2}'), (b"", b"x"), (b"x", b""), (b"x", b"xx")):
            answer = plain.gateway("POST", "/x", plain.signature("POST", "/x", signed), sent)
            assert answer.status == 400
            assert b"not the one that was signed" in answer.body
            assert plain.gateway(
                "POST", "/x", plain.signature("POST", "/x", signed), signed
            ).status == 200  # fmt: skip

    def test_revoked(self, plain: Stack):
        """A key that another process revokes is refused within the bound."""

        async def revoke() -> None:
            async with plain.place.open(create=False, background=False) as deployment:
                await deployment.manager.revoke_key("gone")

        assert plain.gateway("GET", "/x", plain.token("gone")).status == 200
        asyncio.run(revoke())
        deadline = time.monotonic() + 2
        while plain.gateway("GET", "/x", plain.token("gone")).status != 401:
            assert time.monotonic() < deadline

    def test_rules(self, ruled: Stack):
        """403 where the key lacks what the server's rules ask for, however the path is written."""
        for method, uri, status in (
            ("GET", "/documents/7", 200), ("POST", "/documents/7", 200), ("GET", "/admin", 403),
            ("GET", "/admin/x", 403), ("GET", "/a/../admin", 403), ("GET", "//admin", 403),
            ("GET", "/%61dmin", 403), ("GET", "/admin;x", 403), ("GET", "/admin%2fx", 403),
            ("GET", "/ADMIN", 403), ("GET", "/x?/admin", 200),
        ):  # fmt: skip
            answer = ruled.gateway(method, uri, ruled.token())
            assert answer.status == status, uri
            assert status == 200 or b"caller" not in answer.body

    def test_address(self, plain: Stack):
        """The address is the one that nginx sees, whatever the client says."""
        claims = [("X-Forwarded-For", "203.0.113.9"), ("X-Real-IP", "203.0.113.9")]
        assert plain.gateway("GET", "/x", [*plain.token("near"), *claims]).status == 200
        assert plain.gateway("GET", "/x", [*plain.token("far"), *claims]).status == 403

    def test_unavailable(self, plain: Stack):
        """A record that somebody edited cannot be believed: the 503 reaches the client as such."""
        plain.place.sql("UPDATE keys SET owner = 'mallory' WHERE key_id = 'edited'")
        answer = plain.gateway("GET", "/x", plain.token("edited"))
        assert (answer.status, answer.header("retry-after")) == (503, "1")
        assert answer.header("content-type") == "application/problem+json"
        assert json.loads(answer.body)["reason"] == "unavailable"

    def test_rate_limited(self, plain: Stack):
        """What is left reaches the client, and then the 429 with when to come again."""
        answers = [plain.gateway("GET", "/x", plain.token("slow")) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        told = [answer.header("ratelimit") or "" for answer in answers]
        assert [re.findall(r'"hour";r=(\d)', each) for each in told] == [["1"], ["0"], ["0"]]
        assert {answer.header("ratelimit-policy") for answer in answers} == {'"hour";q=2;w=3600'}
        assert [answer.header("retry-after") is None for answer in answers] == [True, True, False]
        assert 1700 < int(answers[2].header("retry-after") or 0) <= 1800
        assert answers[2].header("content-type") == "application/problem+json"
        assert json.loads(answers[2].body)["reason"] == "rate_limited"

    def test_no_server(self, tmp_path: Path):
        """Without an answer from the server nobody passes: 503."""
        (tmp_path / "nginx").mkdir()
        with (
            serving_service(tmp_path) as service,
            running_nginx(tmp_path / "nginx", free_port(), service) as gateway,
        ):
            answer = gateway("GET", "/x", [("Authorization", "Bearer x")])
        assert (answer.status, answer.header("retry-after")) == (503, "1")
        assert json.loads(answer.body)["status"] == 503


class TestSmuggling:
    @pytest.mark.parametrize("pair", SMUGGLED, ids=str)
    def test_identity(self, plain: Stack, pair: tuple[str, str]):
        """Nothing that a client sends looks to the service as if the gateway had said it."""
        for credential in (plain.token(), plain.signature("GET", "/x")):
            answer = plain.gateway("GET", "/x", [pair, *credential, pair])
            if answer.status == 400:
                continue  # nginx itself refuses a name with a space
            told = seen(answer)
            assert told["caller"]["key_id"] in ("app", "k")
            assert told["caller"]["owner"] in (None, "Zo%C3%AB")
            assert told["caller"]["metadata"] in ({}, {"plan": "pro"})
            assert "root" not in json.dumps(told["headers"])
            assert "AAAA" not in json.dumps(told["headers"])

    @pytest.mark.parametrize("pair", CLAIMS, ids=str)
    def test_original_request(self, plain: Stack, pair: tuple[str, str]):
        """What a client says of the original request neither makes a tampered one pass, nor keeps
        an honest one out, once or twice, before or behind."""
        for pairs in ([pair], [pair, pair]):
            told = seen(plain.gateway("GET", "/x", [*pairs, *plain.signature("GET", "/x"), *pairs]))
            assert (told["method"], told["uri"]) == ("GET", "/x")
            signed = plain.signature("PUT", "/signed", host="h.example")
            assert plain.gateway("GET", "/x", [*pairs, *signed]).status == 401

    def test_all_claims_at_once(self, plain: Stack):
        """All of them together do no more."""
        signed = plain.signature("PUT", "/signed", host="h.example")
        assert plain.gateway("GET", "/x", [*CLAIMS, *signed]).status == 401
        told = seen(plain.gateway("GET", "/x", [*CLAIMS, *plain.signature("GET", "/x")]))
        assert told["uri"] == "/x"

    def test_claims_end_at_the_gateway(self, plain: Stack):
        """Nor does the service hear of them, should it believe them. The method is left to it."""
        told = seen(plain.gateway("GET", "/x", [*CLAIMS, *plain.token()]))
        heard = {name for name, value in told["headers"] if (name, value) in CLAIMS}
        assert heard == {"X-HTTP-Method-Override"}

    @pytest.mark.parametrize(
        "name", ["X-Original-URI", "X-Original-Method", "X-Original-Host", "X-Forwarded-For",
                 "X-Key-Id", "X-Content-Digest", "Signature"],
    )  # fmt: skip
    def test_hop_by_hop(self, plain: Stack, name: str):
        """A client cannot have the gateway's own headers dropped by naming them as hop-by-hop."""
        close = [("Connection", f"close, {name}")]
        assert plain.gateway("GET", "/x", [*close, *plain.token("far")]).status == 403
        body = b"x"
        pairs = [*close, *plain.signature("POST", "/x", body)]
        told = seen(plain.gateway("POST", "/x", pairs, body))
        assert told["caller"]["key_id"] == "k"
        assert "X-Content-Digest" in dict(told["headers"])

    @pytest.mark.parametrize("method", ["GET", "PUT"])
    def test_absolute_form(self, plain: Stack, method: str):
        """A request line that names a host of its own: 400, whoever it names."""
        host = plain.gateway.host
        for other in (host, "evil.example"):
            for pairs in (plain.token(), plain.signature(method, "/x")):
                assert plain.gateway(method, f"http://{other}/x", pairs).status == 400
        assert plain.gateway("OPTIONS", "*", plain.token()).status == 400

    def test_folded_lines(self, plain: Stack):
        """A folded line is no way to hide a header: refused, or it says nothing."""
        token = plain.token()[0][1]
        for fold in (b"X-Note: a\r\n X-Key-Id: root\r\n", b"X-Note: a\r\n\tX-Original-URI: /y\r\n",
                     b"X-Key-Id:\r\n root\r\n"):  # fmt: skip
            request = (
                b"GET /x HTTP/1.1\r\nHost: %b\r\nConnection: close\r\nAuthorization: %b\r\n%b\r\n"
            )
            answer = plain.gateway.raw(
                request % (plain.gateway.host.encode(), token.encode(), fold)
            )
            assert answer.status == 400 or seen(answer)["caller"]["key_id"] == "app"

    def test_two_hosts(self, plain: Stack):
        """Two Host headers, or none: 400 or 401, never a guess."""
        pairs = [*plain.signature("GET", "/x"), ("Host", "evil.example")]
        assert plain.gateway("GET", "/x", pairs).status == 400
        lines = "".join(f"{name}: {value}\r\n" for name, value in plain.signature("GET", "/x"))
        assert plain.gateway.raw(f"GET /x HTTP/1.0\r\n{lines}\r\n".encode()).status == 401

    @pytest.mark.parametrize(
        "lines",
        [b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"Content-Length: 1, 5\r\n",
         b"Content-Length: 1\r\nContent-Length: 5\r\n",
         b"Transfer-Encoding: chunked, identity\r\n"],
    )  # fmt: skip
    def test_two_lengths(self, plain: Stack, lines: bytes):
        """A body with two ends: refused, so that no second request hides in it."""
        token = plain.token()[0][1].encode()
        head = b"POST /x HTTP/1.1\r\nHost: %b\r\nAuthorization: %b\r\nConnection: close\r\n%b\r\n"
        data = head % (plain.gateway.host.encode(), token, lines)
        answer = plain.gateway.raw(data + b"0\r\n\r\nGET /y HTTP/1.1\r\n\r\n")
        assert answer.status in (400, 411, 501)

    def test_answers_stay_with_their_questions(self, plain: Stack):
        """Strangers whose bytes could be read as more or fewer requests than they are, between
        callers whose questions go over the same connections: each gets its own answer."""
        good = plain.token()
        head = f"Host: {plain.gateway.host}\r\n"
        close = "Connection: close\r\n"
        upgrade = "Connection: close, upgrade\r\nUpgrade: h2c\r\n"
        token = f"{good[0][0]}: {good[0][1]}\r\n"
        inner = f"GET /stolen HTTP/1.1\r\n{head}{token}\r\n"
        question = f"GET /v1/authorize HTTP/1.1\r\nHost: a\r\n{token}\r\n"
        chunk = f"{len(inner):x}\r\n{inner}\r\n0\r\n"
        strangers = [
            f"{close}Content-Length: {len(inner)}\r\n\r\n{inner}",
            f"{close}Content-Length: {len(question)}\r\n\r\n{question}",
            f"{close}Transfer-Encoding: chunked\r\n\r\n{chunk}\r\n",
            f"{close}Transfer-Encoding: chunked\r\n\r\n{chunk}{token}X-Original-URI: /\r\n\r\n",
            f"{upgrade}Content-Length: {len(question)}\r\n\r\n{question}",
            f"Connection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n{question}",
            f"{close}Content-Length: 0\r\n\r\n\r\n\r\n{question}",
            f"{close}Expect: 100-continue\r\nContent-Length: {len(inner)}\r\n\r\n{inner}",
        ]
        for rest in strangers:
            for begin in ("POST /x HTTP/1.1\r\n", "\r\nPOST /x HTTP/1.1\r\n"):
                answer = plain.gateway.raw(f"{begin}{head}{rest}".encode())
                assert answer.status in (100, 400, 401), rest
                assert b"stolen" not in answer.body
                assert answer.header("x-key-id") is None
                assert seen(plain.gateway("GET", "/mine", good))["uri"] == "/mine"
                assert plain.gateway("GET", "/mine").status == 401
        # With a credential: the body is the service's, and no second request.
        for rest in strangers[:2]:
            told = seen(plain.gateway.raw(f"POST /x HTTP/1.1\r\n{head}{token}{rest}".encode()))
            assert (told["uri"], told["body"]) == ("/x", rest.partition("\r\n\r\n")[2])
            assert plain.gateway("GET", "/mine").status == 401

    def test_the_question_is_not_for_clients(self, plain: Stack):
        """The place from which nginx asks is not to be reached from outside."""
        for uri in ("/_authorize", "//_authorize", "/%5fauthorize", "/x/../_authorize"):
            answer = plain.gateway("GET", uri, plain.token())
            assert answer.status == 404 or seen(answer)["uri"] == uri
        assert plain.gateway("GET", "/_authorize", plain.token()).header("x-key-id") is None

    def test_long_headers(self, plain: Stack):
        """A megabyte of header: refused at the door."""
        pairs = [*plain.token(), ("X-Long", "x" * 1_000_000)]
        assert plain.gateway("GET", "/x", pairs).status in (400, 431, 494)


def test_unverified_configuration_refuses(tmp_path: Path):
    """Should one of the four lines be missing, no signed request passes, claims or not."""
    place = Place(tmp_path)
    keys = asyncio.run(make_keys(place))
    with everything(place, "nginx") as (gateway, port):
        whole = Stack(gateway, keys, place)
        assert gateway("GET", "/x", whole.signature("GET", "/x")).status == 200
        with serving_service(tmp_path) as service:
            for name in ("Method", "Scheme", "Host", "URI"):
                folder = tmp_path / name
                folder.mkdir()
                gone = {f"proxy_set_header X-Original-{name} ": 'proxy_set_header X-Gone "";  # '}
                with running_nginx(folder, port, service, gone) as other:
                    part = whole._replace(gateway=other)
                    assert other("GET", "/x", part.signature("GET", "/x")).status == 401, name
                    assert other("GET", "/x", part.token()).status == 200
