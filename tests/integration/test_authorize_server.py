"""`/v1/authorize` of a served server: the same on every way through it; what stops its start."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.config import Settings
from api_key_manager.core import ConfigurationError, sign_request
from api_key_manager.server.app import build_app
from api_key_manager.wiring import open_deployment
from tests.integration.gateways import Answer, Gateway, process
from tests.integration.places import Place
from tests.services import free_port

ASGI = [("Upgrade", "websocket, or whatever")]
"""A header that keeps a request off the fast lane."""


class Server(Gateway):
    """Nothing stands before it."""

    keys: dict[str, Any]
    place: Place
    profile: str


async def make_keys(place: Place) -> dict[str, Any]:
    async with place.open(background=False) as deployment:
        create = deployment.manager.create_key
        return {
            "app": await create("app", kind="bearer", owner="o", permissions=["a.b", "c"]),
            "k": await create("k"),
        }


@pytest.fixture(scope="module", params=["", "nginx", "envoy"])
def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Server]:
    place = Place(tmp_path_factory.mktemp("server"))
    keys = asyncio.run(make_keys(place))
    server = Server(free_port())
    server.keys, server.place, server.profile = keys, place, request.param
    env = place.environment(
        PORT=str(server.port), AUTHORIZE_PROFILE=request.param, FAILED_AUTH_PER_MINUTE="0"
    )
    command = [sys.executable, "-m", "api_key_manager", "serve"]
    with process(command, server.port, cwd=place.folder, env=env):
        yield server


def told(answer: Answer) -> tuple[Any, ...]:
    """An answer without what differs from one to the next."""
    headers = [h for h in answer.headers if h[0] not in ("date", "x-request-id", "connection")]
    body = json.loads(answer.body) if answer.body else {}
    body.pop("request_id", None)
    return answer.status, headers, body


PATHS = [
    "", "/", "/c", "/d", "/a.b%20and%20c", "/a.b%20and%20d", "/a%2eb", "/%61.b", "/c/c", "/c?c=d",
    "?permissions=d", "//", "/../authorize", "/%ff", "/c%00", "/not%20c", "/c;d", "/c#d",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_lanes(server: Server, method: str, path: str):
    """The fast lane and the app answer alike, warm and cold."""
    token = ("Authorization", f"Bearer {server.keys['app']['token']}")
    for pairs in ([token], [], [token, token], [("X-Api-Key", "akm_app_x")]):
        answers = [
            told(server(method, f"/v1/authorize{path}", [*pairs, *more], b"body"[:size]))
            for more in ([], ASGI, [])
            for size in (0, 4)
        ]
        assert all(answer == answers[0] for answer in answers), answers
        assert answers[0][0] in (200, 401, 403)


@pytest.mark.parametrize("below", ["", "?a=%20b", "/%63", "/x//%2F?", "/", "/x?y=/../z"])
def test_lanes_of_signed_requests(server: Server, below: str):
    """A signed request is compared with the path as it came, on both lanes: with Envoy with what
    stands behind ours, without a gateway with all of it, else with neither."""
    uri = f"/v1/authorize{below}"
    told = {}
    for signed in (uri, below):
        for more in ([], ASGI):
            headers = sign_request(
                server.keys["k"]["secret"], "k", "PUT", f"http://{server.host}{signed}",
                created=int(time.time()), nonce=secrets.token_urlsafe(16),
            )  # fmt: skip
            pairs = [*headers.items(), ("X-Forwarded-Proto", "http"), *more]
            told.setdefault(signed, set()).add(server("PUT", uri, pairs).status)
    expected = {uri: {401}, below: {401}}
    if server.profile == "envoy" and below.startswith("/"):
        expected[below] = {200}
    if server.profile == "":
        # The last segment is what the key would have to hold.
        readable = below in ("/%63", "/x?y=/../z")
        expected[uri] = {200} if not below.startswith("/") else {403} if readable else {401}
    assert told == expected


def test_the_same_head_again(server: Server):
    """A connection that asks the same again is answered as at first, until the key is revoked."""
    place = server.place
    key = asyncio.run(_create(place))
    head = f"GET /v1/authorize/not%20c HTTP/1.1\r\nHost: a\r\nX-Api-Key: {key['token']}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:

        def ask() -> int:
            connection.sendall(head.encode())
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65_536)
            status = int(received.split(b" ")[1])
            if status != 200:
                while b"}" not in received:
                    received += connection.recv(65_536)
            return status

        # With nginx nobody has told of the original request here.
        expected = 401 if server.profile == "nginx" else 200
        assert [ask() for _ in range(6)] == [expected] * 6
        asyncio.run(_revoke(place, key["key_id"]))
        deadline = time.monotonic() + 2
        while ask() != 401:
            assert time.monotonic() < deadline


async def _create(place: Place) -> dict[str, Any]:
    async with place.open(create=False, background=False) as deployment:
        return await deployment.manager.create_key(kind="bearer")


async def _revoke(place: Place, key_id: str) -> None:
    async with place.open(create=False, background=False) as deployment:
        await deployment.manager.revoke_key(key_id)


async def test_wrong_rules_stop_the_start(tmp_path: Path):
    """Rules that cannot be read are told before anybody is answered without them."""
    settings = Settings.load(
        DATABASE_URL="memory://", AUTHORIZE_PROFILE="nginx",
        AUTHORIZE_RULES=str(tmp_path / "rules.toml"),
    )  # fmt: skip
    async with open_deployment(settings, background=False) as deployment:
        with pytest.raises(ConfigurationError, match=r"AUTHORIZE_RULES=.*No such file"):
            build_app(deployment)


def test_wrong_rules_end_akm_serve(tmp_path: Path):
    """`akm serve` says so in one line and ends with 2."""
    (tmp_path / "rules.toml").write_text('default = "perhaps"')
    done = Place(tmp_path).akm(
        "serve", PORT="0", AUTHORIZE_PROFILE="nginx", AUTHORIZE_RULES=str(tmp_path / "rules.toml")
    )
    assert done.returncode == 2
    assert "default" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
