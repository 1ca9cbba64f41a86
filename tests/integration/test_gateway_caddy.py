"""A real Caddy with the example's configuration, where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.gateway_clients import CLAIMS, SMUGGLED, Stack, seen, stack


@pytest.fixture(scope="module")
def caddy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Any valid key may do anything."""
    yield from stack(tmp_path_factory.mktemp("caddy"), "caddy")


def test_allowed(caddy: Stack):
    """Tokens and signed requests pass; the service knows whose they are."""
    assert seen(caddy.gateway("GET", "/x?y=1", caddy.token()))["caller"]["key_id"] == "app"
    body = b'{"item": 7}'
    told = seen(caddy.gateway("POST", "/x", caddy.signature("POST", "/x", body), body))
    caller = {"key_id": "k", "owner": "Zo%C3%AB", "metadata": {"plan": "pro"}}
    assert told["caller"] == caller
    assert caddy.gateway("POST", "/x", caddy.signature("POST", "/x", body), b"x").status == 400


@pytest.mark.parametrize(
    "uri", ["/", "/a//b", "/a%2Fb", "/a/%2e%2e/b", "/a;b", "/a?b=%20c&d", "/caf%C3%A9", "/%61"]
)
def test_uri_is_served_as_it_was_checked(caddy: Stack, uri: str):
    """What was signed reaches the service byte for byte."""
    assert seen(caddy.gateway("GET", uri, caddy.signature("GET", uri)))["uri"] == uri


def test_refused(caddy: Stack):
    """The server's answers reach the client as they are."""
    answer = caddy.gateway("GET", "/x")
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")
    assert json.loads(answer.body)["reason"] == "unauthorized"
    assert caddy.gateway("GET", "/x", caddy.token("far")).status == 403
    for method, uri in (("PUT", "/x"), ("GET", "/y"), ("GET", "/x?a"), ("GET", "/%78")):
        assert caddy.gateway(method, uri, caddy.signature("GET", "/x")).status == 401, uri
    slow = [caddy.gateway("GET", "/x", caddy.token("slow")) for _ in range(3)]
    assert [answer.status for answer in slow] == [200, 200, 429]
    assert 1700 < int(slow[2].header("retry-after") or 0) <= 1800
    caddy.place.sql("UPDATE keys SET owner = 'mallory' WHERE key_id = 'edited'")
    answer = caddy.gateway("GET", "/x", caddy.token("edited"))
    assert (answer.status, answer.header("retry-after")) == (503, "1")


@pytest.mark.parametrize("pair", SMUGGLED, ids=str)
def test_identity(caddy: Stack, pair: tuple[str, str]):
    """Nothing that a client sends looks to the service as if the gateway had said it."""
    answer = caddy.gateway("GET", "/x", [pair, *caddy.token(), pair])
    if answer.status != 400:
        told = seen(answer)
        assert told["caller"] == {"key_id": "app", "owner": None, "metadata": {}}
        sent = [[name, value] for name, value in told["headers"] if "_" not in name]
        assert "root" not in json.dumps(sent)
        assert "AAAA" not in json.dumps(sent)


@pytest.mark.parametrize("pair", CLAIMS, ids=str)
def test_original_request(caddy: Stack, pair: tuple[str, str]):
    """What a client says of the original request is not believed."""
    for pairs in ([pair], [pair, pair], [pair, ("Connection", f"close, {pair[0]}")]):
        told = seen(caddy.gateway("GET", "/x", [*pairs, *caddy.signature("GET", "/x")]))
        assert (told["method"], told["uri"]) == ("GET", "/x")
        signed = caddy.signature("PUT", "/signed", host="h.example")
        assert caddy.gateway("GET", "/x", [*pairs, *signed]).status == 401
