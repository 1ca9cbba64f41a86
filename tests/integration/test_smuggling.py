"""Bytes that two readers could take for different requests, and connections that only take up room:
what stands between a gateway's reading of a connection and ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from api_key_manager.server import protocol
from tests.integration.conftest import signed
from tests.integration.test_fastlane import ADMIN, AUTH, KEY, deploy
from tests.integration.wires import Wire, hear, on_a_wire, request, split

BEARER = f"Authorization: Bearer {ADMIN}\r\n"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=[True, False], ids=["both lanes", "ASGI lane"])
async def wire(request: pytest.FixtureRequest, stack: AsyncExitStack) -> Wire:
    return await stack.enter_async_context(on_a_wire(await deploy(stack), fast=request.param))


def good() -> bytes:
    return json.dumps(signed(KEY)).encode()


def reasons(raw: bytes) -> list[Any]:
    """The reason, or else the status, of each answer."""
    return [json.loads(a.body).get("reason", a.status) for a in split(raw)]


# One request, or two?


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5_0\r\n",
        "Content-Length: \r\n",
        "Content-Length:\r\n 5\r\n",
        "Content-Length : 5\r\n",
        " Content-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\r\n b\r\n",
        "X: a\r\n\tTransfer-Encoding: chunked\r\n",
        "X: a\nContent-Length: 5\r\n",
        "X: a\rContent-Length: 5\r\n",
        "X: a\0\r\n",
    ],
)
@pytest.mark.parametrize("path", ["/v1/validate", "/v1/authorize", "/v1/keys"])
async def test_where_a_request_ends_is_never_guessed(wire: Wire, path: str, lines: str):
    """Two lengths, a length and chunks, a folded line, a lone line end: 400, and nothing behind it
    is read."""
    raw = f"POST {path} HTTP/1.1\r\nHost: a\r\n{BEARER}{lines}\r\n0\r\n\r\n".encode("latin-1")
    told = split(await wire.last_words(raw + request("GET", "/healthz")))
    assert [answer.status for answer in told] == [400]
    assert json.loads(told[0].body)["reason"] == "malformed"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_request_in_a_body_is_none(wire: Wire, chunked: bool):
    """A body that is a whole request stays a body, also on a connection whose head is known."""
    inner = request(body=good(), headers=AUTH)
    outer = request(body=inner, headers=AUTH, chunked=chunked)
    assert reasons(await wire.last_words(outer)) == ["malformed"]
    # The head of the good ones is the same each time, and so is the length of their bodies.
    same = request(body=good(), headers=AUTH)
    fake = same[: -len(good())] + inner[: len(good())]
    told = await wire.talk([same, same, fake, same], 4)
    assert [json.loads(answer.body)["reason"] for answer in told] == [
        "valid", "valid", "malformed", "valid",
    ]  # fmt: skip


async def test_a_known_head_means_the_same_only_where_a_request_begins(wire: Wire):
    """The bytes of a known head in the middle of something else are part of that."""
    raw = request(body=good(), headers=AUTH)
    reader, writer = await wire.open()
    for _ in range(2):
        writer.write(raw)
        assert (await hear(reader)).status == 200
    # A body of just these bytes, behind a head that came alone.
    outer = request(body=raw, headers=AUTH)
    writer.write(outer[: -len(raw)])
    await asyncio.sleep(0.05)
    writer.write(raw)
    assert json.loads((await hear(reader)).body)["reason"] == "malformed"
    # The same behind a blank line, behind half a line end, and all at once.
    for before in (b"\r\n", b"\r\n\r\n"):
        writer.write(before)
        await asyncio.sleep(0.05)
        writer.write(raw)
        assert json.loads((await hear(reader)).body)["reason"] == "valid"
    writer.write(raw + raw)
    assert [json.loads((await hear(reader)).body)["reason"] for _ in range(2)] == ["valid"] * 2
    # Half a request, then the same bytes again: what was begun ends somewhere in them.
    writer.write(raw[:5])
    await asyncio.sleep(0.05)
    writer.write(raw)
    assert (await hear(reader)).status == 400
    writer.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upgrade_changes_nothing(wire: Wire, chunked: bool):
    """An upgrade that is not taken up leaves HTTP where it was: the body behind it is a body, not
    the next request, wherever the reads are cut, and nothing behind it is dropped."""
    more = [*AUTH, ("Connection", "upgrade"), ("Upgrade", "h2c")]
    upgrade = request(body=good(), headers=more, chunked=chunked)
    plain = request(body=good(), headers=AUTH)
    bare = request("GET", "/healthz", headers=more[2:])
    inner = request(body=plain, headers=more, chunked=chunked)
    for raw, expected in (
        (upgrade + plain, ["valid"] * 2),
        (upgrade * 3 + plain * 2, ["valid"] * 5),
        (plain + upgrade + plain, ["valid"] * 3),
        (bare + bare + plain, [200, 200, "valid"]),
        (inner + plain, ["malformed", "valid"]),
        (inner + upgrade + inner, ["malformed", "valid", "malformed"]),
    ):
        head = raw.index(b"\r\n\r\n") + 4
        for cut in (0, 20, head - 2, head, head + 1, head + 40, len(upgrade), len(raw) - 1):
            reader, writer = await wire.open()
            writer.write(raw[:cut])
            await asyncio.sleep(0.01)
            writer.write(raw[cut:])
            told = [await hear(reader) for _ in expected]
            writer.close()
            assert [json.loads(a.body).get("reason", a.status) for a in told] == expected, cut


async def test_connect_is_refused(wire: Wire):
    """What follows it would be a tunnel to some and a request to others."""
    raw = b"CONNECT akm.test:80 HTTP/1.1\r\nHost: akm.test\r\nContent-Length: 3\r\n\r\nabc"
    told = split(await wire.last_words(raw + request("GET", "/healthz")))
    assert [answer.status for answer in told] == [400]


@pytest.mark.parametrize(
    ("trailer", "expected"),
    [
        (f"Authorization: Bearer {ADMIN}", 401),
        ("X-Forwarded-For: 203.0.113.9", 401),
        ("X-Request-Id: stolen", 401),
    ],
)
async def test_a_trailer_is_no_header(wire: Wire, trailer: str, expected: int):
    """A gateway that cleans the head of a request lets trailers through: none of them counts."""
    raw = request(body=good(), chunked=True)[:-2] + f"{trailer}\r\n\r\n".encode()
    for piece in ([raw], [raw[:-20], raw[-20:]]):
        (told,) = await wire.talk(piece, 1)
        assert told.status == expected
        assert told.header("x-request-id") != "stolen"


async def test_an_address_does_not_come_from_a_trailer(stack: AsyncExitStack):
    """Behind a trusted proxy the caller's address is what the proxy says in the head."""
    deployment = await deploy(stack, TRUSTED_PROXIES="127.0.0.1")
    wire = await stack.enter_async_context(on_a_wire(deployment))
    token = await deployment.manager.create_key(
        kind="bearer", realm="admin", prefix="akm_admin", permissions=["validate"],
        ip_allowlist=["203.0.113.0/24"],
    )  # fmt: skip
    headers = [("Authorization", f"Bearer {token['token']}"), ("X-Forwarded-For", "198.51.100.1")]
    raw = request(body=good(), headers=headers, chunked=True)
    (told,) = await wire.talk([raw[:-2] + b"X-Forwarded-For: 203.0.113.9\r\n\r\n"], 1)
    assert told.status == 401
    good_headers = [headers[0], ("X-Forwarded-For", "203.0.113.9")]
    (told,) = await wire.talk([request(body=good(), headers=good_headers, chunked=True)], 1)
    assert told.status == 200


# Room that a stranger takes


async def test_many_small_header_lines_are_refused(wire: Wire, stack: AsyncExitStack):
    """A line of five bytes takes a hundred in memory: not only the bytes are bounded, whether the
    head ends, comes in pieces, or never ends."""
    begin = b"POST /v1/validate HTTP/1.1\r\nHost: a\r\n" + BEARER.encode()
    fits, many = b"ab:cd\r\n" * (protocol.MAX_FIELDS - 2), b"ab:cd\r\n" * (protocol.MAX_FIELDS - 1)
    assert [a.status for a in await wire.talk([begin + fits + b"\r\n"], 1)] == [400]
    for pieces in ([begin + many + b"\r\n"], [begin, many, b"\r\n"], [begin + many * 50]):
        (told,) = await wire.talk(pieces, 1)
        assert (told.status, told.header("connection")) == (431, "close")
        assert json.loads(told.body)["reason"] == "too_large"


async def test_a_431_is_not_the_answer_to_the_request_before(wire: Wire):
    """While an answer is being made, a head that is too large ends the connection in silence."""
    slow = request("GET", "/v1/keys", headers=AUTH)
    for more in (b"X: " + b"a" * 70_000, b"ab:cd\r\n" * 200, b"ab:cd\r\n" * 200 + b"\r\n"):
        raw = slow + b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + more
        assert 431 not in [answer.status for answer in split(await wire.last_words(raw))]


@pytest.mark.parametrize(
    "endless",
    [b"ab:cd\r\n" * 2000, b"x" * 16_000, b"a:" + b"b" * 16_000],
    ids=["trailers", "one name", "one value"],
)
async def test_endless_trailers_end_the_connection(wire: Wire, endless: bytes):
    """What stands behind a chunked body is bounded like a head, and nothing of it is kept."""
    raw = request(body=good(), headers=AUTH, chunked=True)[:-2]
    await _drown(wire, raw, endless)


async def test_an_endless_chunk_extension_ends_the_connection(wire: Wire):
    """So is what stands beside the length of a chunk."""
    raw = request(headers=AUTH, chunked=True)[: -len(b"0\r\n\r\n")] + b"5;a="
    await _drown(wire, raw, b"b" * 16_000)


async def _drown(wire: Wire, begin: bytes, endless: bytes) -> None:
    _, writer = await wire.open()
    writer.write(begin)
    sent = 0
    try:
        # The answer may come first: the connection ends all the same.
        while sent < 16 * 1024 * 1024:
            writer.write(endless)
            await writer.drain()
            sent += len(endless)
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    writer.transport.abort()
    assert sent < 16 * 1024 * 1024


async def test_many_requests_without_bodies_are_no_noise(wire: Wire):
    """The bound on what is neither head nor body leaves a busy connection alone."""
    raw = request("GET", "/healthz", headers=[("X-A", "a" * 1000)])
    assert [answer.status for answer in await wire.talk([raw] * 150, 150)] == [200] * 150
    assert [answer.status for answer in await wire.talk([raw * 150], 150)] == [200] * 150


async def test_a_large_body_is_not_kept_for_a_stranger(stack: AsyncExitStack):
    """Who has shown no token is refused before the body is there, and nothing of it is kept."""
    wire = await stack.enter_async_context(on_a_wire(await deploy(stack)))
    for path, status in (
        ("/v1/validate", 401),
        ("/v1/validate/batch", 401),
        ("/v1/authorize", 401),
    ):
        reader, writer = await wire.open()
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n".encode()
        writer.write(head + b" " * 5000)
        assert (await hear(reader)).status == status
        assert [p for p in wire.server.server_state.connections if p._body] == []
        writer.close()
    # Who has shown one may take its time, and is answered on either lane.
    for padding in (b" " * 1000, b" " * 30_000):
        raw = request(body=good() + padding, headers=AUTH)
        reader, writer = await wire.open()
        for piece in (raw[:-500], raw[-500:-100], raw[-100:]):
            writer.write(piece)
            await asyncio.sleep(0.02)
        assert json.loads((await hear(reader)).body)["reason"] == "valid"
        writer.close()


async def test_who_takes_no_answers_is_hung_up_on(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """A connection whose client never reads is not there for ever, with all that waits for it."""
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    reader, writer = await wire.open()
    reader._transport.pause_reading()
    raw = request("GET", "/openapi.json") * 200
    writer.write(raw)
    await asyncio.sleep(0.2)
    assert len(wire.server.server_state.connections) == 1
    deadline = asyncio.get_running_loop().time() + 10
    while wire.server.server_state.connections:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)
    writer.transport.abort()
