"""The fast lane and the ASGI lane give the same answers, in order, and neither can be held up."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Sized
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_key_manager.config import Settings
from api_key_manager.core import sign
from api_key_manager.server import fastlane, protocol
from api_key_manager.wiring import Deployment, open_deployment
from tests.integration.conftest import signed
from tests.integration.wires import Heard, Wire, hear, on_a_wire, request, split

ADMIN = "a" * 40
AUTH = [("Authorization", f"Bearer {ADMIN}"), ("Content-Type", "application/json")]
SECRET = "s" * 32
KEY = {"key_id": "app", "secret": SECRET}
ONE = {"name": "one", "limit": 7, "window_seconds": 60}


class Far:
    """A limiter and nonces that answer later, as those of another machine; held back while `gate`
    is cleared."""

    def __init__(self, manager: Any) -> None:
        verifier = manager._verifier
        self._limiter, self._nonces = verifier._limiter, verifier._nonces
        verifier._limiter = verifier._charging._limiter = verifier._nonces = self
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = self.most = 0

    async def _go(self) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0)
        await self.gate.wait()
        self.waiting -= 1

    def take_now(self, *_: Any) -> None:
        return None

    async def take(self, asked: Any) -> Any:
        await self._go()
        return await self._limiter.take(asked)

    async def claim(self, *asked: Any) -> Any:
        await self._go()
        return await self._nonces.claim(*asked)


async def deploy(stack: AsyncExitStack, clock: Any = None, **more: Any) -> Deployment:
    made = Settings.load(DATABASE_URL="memory://", AKM_ADMIN_TOKEN=ADMIN, **more)
    deployment = await stack.enter_async_context(open_deployment(made))
    if clock is not None:
        deployment.manager.clock = deployment.manager.validator.clock = clock
        manager: Any = deployment.manager
        for limiter in (manager._verifier._limiter, manager._failures._limiter):
            limiter._clock = lambda: clock.seconds * 10**9
    create = deployment.manager.create_key
    await create("app", SECRET, {"plan": "pro"}, permissions=["a.*"])
    await create("one", SECRET, {'"rate_limit":null': 1}, rate_limits=[ONE])
    await create(
        "metered", SECRET, owner="o", environment="e", quota={"limit": 300, "refill": "daily"},
        rate_limits=[{"name": "all", "limit": 200, "window_seconds": 9, "scope": "owner"}],
    )  # fmt: skip
    await create("two", SECRET, rate_limits=[ONE, {"name": "two", "limit": 5, "window_seconds": 1}])
    return deployment


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def wire(stack: AsyncExitStack) -> Wire:
    return await stack.enter_async_context(on_a_wire(await deploy(stack)))


def item(clock: Any = None, **more: Any) -> bytes:
    at = None if clock is None else clock.seconds
    return json.dumps({**signed(KEY, at), **more}).encode()


def count_visits(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which doors of the front are used from now on."""
    front, used = wire.app.front, []
    for name in ("begin", "again", "_http"):

        def spy(name: str, door: Any, *args: Any) -> Any:
            used.append(name)
            return door(*args)

        monkeypatch.setattr(front, name, partial(spy, name, getattr(front, name)))
    return used


# The same requests down both lanes

BODIES = st.sampled_from(
    ["good", "wrong", "stale", "nonce", "unknown", "ip", "permission", "forbidden", "no json",
     "misfit", "empty", "nan", "large", "batch", "bad batch", "long batch", "one limit",
     "two limits", "dear", "static", "tagged", "metered", "costly"]
)  # fmt: skip


def body_of(kind: str, clock: Any, number: int) -> bytes:
    good = signed(KEY, clock.seconds)
    nonce = signed(KEY, clock.seconds, f"nonce-{number % 3:016}")
    return {
        "good": json.dumps(good),
        "wrong": json.dumps({**good, "signature": "0" * 64}),
        "stale": json.dumps(signed(KEY, clock.seconds - 90_000)),
        "nonce": json.dumps(nonce),
        "unknown": json.dumps({**good, "key": "nobody"}),
        "ip": json.dumps({**good, "ip": "999"}),
        "permission": json.dumps({**good, "permissions": "a.b and not c"}),
        "forbidden": json.dumps({**good, "permissions": ["b"]}),
        "no json": "{",
        "misfit": '{"key": 1}',
        "empty": "",
        "nan": '{"key":"app","timestamp":NaN}',
        "large": json.dumps({**good, "tags": ["x" * 70_000]}),
        "batch": json.dumps({"validations": [good, nonce, {**good, "key": "nobody"}]}),
        "bad batch": json.dumps({"validations": [good, {}]}),
        "one limit": json.dumps(signed({**KEY, "key_id": "one"}, clock.seconds)),
        "two limits": json.dumps(signed({**KEY, "key_id": "two"}, clock.seconds)),
        "dear": json.dumps({**signed({**KEY, "key_id": "one"}, clock.seconds), "cost": 3}),
        "metered": json.dumps(signed({**KEY, "key_id": "metered"}, clock.seconds)),
        "costly": json.dumps({**signed({**KEY, "key_id": "metered"}, clock.seconds), "cost": 90}),
        "static": json.dumps({"key": "app", "signature": sign(SECRET, "app")}),
        "tagged": json.dumps({**good, "tags": ["t"]}),
        "long batch": json.dumps({"validations": [good] * 150}),
    }[kind].encode()


AUTHORIZATIONS = st.sampled_from([[ADMIN]] * 6 + [[], ["x"], [ADMIN, ADMIN], ["akm_a_b"]])
TYPES = st.sampled_from(
    [["application/json"]] * 4
    + [[], ["text/plain"], ["application/x+json; charset=utf-8"], ["application/json", "text/x"]]
)
MORE = st.lists(
    st.sampled_from(
        [("X-Request-Id", "mine-1"), ("X-Request-Id", "no good"), ("Content-Encoding", "gzip"),
         ("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "bad"), ("Accept", "*/*"),
         ("Upgrade", "h2c"), ("X-Key-Id", "smuggled"), ("Cookie", "a=b")]
    ),
    max_size=2,
)  # fmt: skip
REQUESTS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT"]),
        "path": st.sampled_from(
            ["/v1/validate"] * 5
            + ["/v1/validate/batch"] * 3
            + ["/v1/validate?x=1", "/v1/validate/", "/v1/%76alidate", "http://akm.test/v1/validate",
               "/v1/authorize", "/v1/nothing", "/healthz"]
        ),
        "body": BODIES,
        "authorization": AUTHORIZATIONS,
        "types": TYPES,
        "more": MORE,
        "chunked": st.sampled_from([False, False, False, True]),
        "repeats": st.integers(1, 5),
        "cut": st.sampled_from([0, 0, 0, 10, 60, 200]),
    }
)  # fmt: skip


def raw_of(wanted: dict[str, Any], clock: Any, number: int) -> bytes:
    headers = [("Authorization", f"Bearer {token}") for token in wanted["authorization"]]
    headers += [("Content-Type", kind) for kind in wanted["types"]]
    headers += wanted["more"]
    body = body_of(wanted["body"], clock, number)
    return request(
        wanted["method"], wanted["path"], body, headers, chunked=wanted["chunked"] and bool(body)
    )


def comparable(heard: list[Heard]) -> list[tuple[int, list[tuple[str, str]], bytes]]:
    """Without the date, and without an id that the server made."""
    found = []
    for answer in heard:
        made = answer.header("x-request-id") or ""
        body = answer.body if made == "mine-1" else answer.body.replace(made.encode(), b"")
        headers = [
            (name, "" if name == "x-request-id" and value != "mine-1" else value)
            for name, value in answer.headers
            if name not in ("date", "content-length" if answer.status >= 400 else "")
        ]
        found.append((answer.status, headers, body))
    return found


async def in_turn(wire: Wire, raws: list[tuple[bytes, int, bool]]) -> list[Heard]:
    """Each request once the one before was answered, as long as the connection lives; the next
    one after that on another connection."""
    heard: list[Heard] = []
    reader, writer = await wire.open()
    for raw, cut, head in raws:
        if cut:
            writer.write(raw[:cut])
            await asyncio.sleep(0.01)
        writer.write(raw[cut:])
        heard.append(await hear(reader, head=head))
        if heard[-1].header("connection") == "close":
            writer.close()
            reader, writer = await wire.open()
    writer.close()
    return heard


@settings(max_examples=60)
@given(wanted=st.lists(REQUESTS, min_size=1, max_size=8), far=st.booleans())
async def test_both_lanes_answer_alike(wanted: list[dict[str, Any]], far: bool, clock: Any):
    """From equal state and clock: the same status, headers and body, but for date and id; also
    where limits and nonces are `far`, so that answers have to wait."""
    heard = []
    for fast in (True, False):
        async with AsyncExitStack() as stack:
            deployment = await deploy(stack, clock, FAILED_AUTH_PER_MINUTE=3)
            if far:
                Far(deployment.manager)
            wire = await stack.enter_async_context(on_a_wire(deployment, fast=fast))
            raws = [
                (raw_of(one, clock, number), one["cut"], one["method"] == "HEAD")
                for number, one in enumerate(wanted)
                for _ in range(one["repeats"])
            ]
            heard.append(comparable(await in_turn(wire, raws)))
    assert heard[0] == heard[1]


@settings(max_examples=40)
@given(
    wanted=st.lists(
        st.sampled_from(
            ["good", "nonce", "wrong", "list", "healthz", "misfit", "chunked", "one limit"]
        ),
        min_size=2, max_size=150,
    ),
    size=st.sampled_from([0, 100, 1000]),
    far=st.booleans(),
)  # fmt: skip
async def test_pipelined_answers_keep_their_order(
    wanted: list[str], size: int, far: bool, clock: Any
):
    """Whichever lane answers each of them."""
    raw = b""
    for i, kind in enumerate(wanted):
        headers = [*AUTH, ("X-Request-Id", f"r{i}")]
        if kind in ("list", "healthz"):
            raw += request("GET", {"list": "/v1/keys"}.get(kind, "/healthz"), headers=headers)
        else:
            body = body_of("good" if kind == "chunked" else kind, clock, i)
            raw += request(body=body, headers=headers, chunked=kind == "chunked")
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)] if size else [raw]
    async with AsyncExitStack() as stack:
        deployment = await deploy(stack, clock)
        if far:
            Far(deployment.manager)
        wire = await stack.enter_async_context(on_a_wire(deployment))
        heard = await wire.talk(pieces, len(wanted))
    assert [answer.header("x-request-id") for answer in heard] == [
        f"r{i}" for i in range(len(wanted))
    ]
    reasons = {"good": "valid", "chunked": "valid", "wrong": "bad_signature"}
    for kind, answer in zip(wanted, heard, strict=True):
        if kind in reasons:
            assert json.loads(answer.body)["reason"] == reasons[kind]
    nonces = [
        json.loads(answer.body)["reason"]
        for kind, answer in zip(wanted, heard, strict=True)
        if kind == "nonce"
    ]
    assert nonces.count("valid") <= 3


# The head that comes again


async def test_a_head_that_comes_again_is_read_once(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """The second and later ones go by the short way; a change of one byte does not."""
    used = count_visits(wire, monkeypatch)
    reader, writer = await wire.open()

    async def ask(raw: bytes) -> Any:
        writer.write(raw)
        return json.loads((await hear(reader)).body)

    good = request(body=item(), headers=AUTH)
    assert (await ask(good))["reason"] == "valid"  # cold: it waits
    for _ in range(3):
        assert (await ask(good))["cached"] is True
    assert used == ["begin", "again", "again", "again"]
    del used[:]
    other = request(body=item(tags=["x"]), headers=AUTH)
    assert (await ask(other))["reason"] == "valid"
    nonce = json.dumps(signed(KEY, nonce="n" * 20)).encode()
    for expected in ("valid", "replayed", "replayed"):
        assert (await ask(request(body=nonce, headers=AUTH)))["reason"] == expected
    wrong = other.replace(ADMIN.encode(), b"b" * 40)
    assert (await ask(wrong))["status"] == 401
    assert (await ask(other))["reason"] == "valid"
    assert used == ["begin", "begin", "again", "again", "begin", "begin"]
    writer.close()


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        *(({"timestamp": at}, "malformed") for at in (-1, 10**12, 10**20, 10**400, -(10**400))),
        ({"timestamp": 0}, "bad_signature"),
        ({"signature": "é" * 64}, "malformed"),
        ({"signature": "0" * 64}, "bad_signature"),
        ({"key": "\ud800"}, "malformed"),
        ({"key": "app\n"}, "malformed"),
        ({"key": ""}, "malformed"),
        ({"cost": 10**400}, "malformed"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_odd_values_behind_a_head_that_comes_again(
    wire: Wire, odd: dict[str, Any], reason: str
):
    """They are refused by the short way as by the long one."""
    reader, writer = await wire.open()
    raw = request(body=item(), headers=AUTH)
    for _ in range(3):
        writer.write(raw)
        assert (await hear(reader)).status == 200
    answers = []
    for _ in range(3):
        writer.write(request(body=item(**odd), headers=AUTH))
        answer = await hear(reader)
        answers.append((answer.status, answer.body.partition(b',"request_id"')[0]))
        assert json.loads(answer.body)["reason"] == reason
    assert answers[1:] == answers[:-1]
    assert answers[0][0] in (200, 400, 422)
    writer.close()


@pytest.mark.parametrize("change", ["revoked", "expired", "disabled", "edited"])
async def test_a_token_is_not_believed_longer_on_its_connection(
    stack: AsyncExitStack, clock: Any, change: str
):
    """What was found out about a head ends with what it rests on."""
    deployment = await deploy(stack, clock)
    wire = await stack.enter_async_context(on_a_wire(deployment))
    manager = deployment.manager
    expires_at = clock.seconds + 100 if change == "expired" else None
    token = await manager.create_key(
        "gate", kind="bearer", realm="admin", permissions=["validate"], expires_at=expires_at
    )
    headers = [("Authorization", f"Bearer {token['token']}")]
    reader, writer = await wire.open()
    for _ in range(4):
        writer.write(request(body=item(clock), headers=headers))
        assert (await hear(reader)).status == 200
    if change == "revoked":
        await manager.revoke_key("gate", realm="admin")
    elif change == "expired":
        clock.advance(101)
    elif change == "disabled":
        await manager.update_key("gate", realm="admin", disabled=True)
    else:
        await manager.update_key("gate", realm="admin", permissions=["keys:read"])
    writer.write(request(body=item(clock), headers=headers))
    assert (await hear(reader)).status == (403 if change == "edited" else 401)
    writer.close()


async def test_a_key_is_not_believed_longer_on_a_connection(wire: Wire, stack: AsyncExitStack):
    """Nor is the key that is asked about."""
    manager = wire.app.front._manager
    reader, writer = await wire.open()
    for expected in ("valid", "valid", "valid", "revoked", "revoked"):
        if expected == "revoked":
            await manager.revoke_key("app")
        writer.write(request(body=item(), headers=AUTH))
        assert json.loads((await hear(reader)).body)["reason"] == expected
    writer.close()


async def test_each_answer_is_in_the_audit_log(stack: AsyncExitStack):
    """By whichever way it was given, with an id of its own."""
    deployment = await deploy(stack)
    wire = await stack.enter_async_context(on_a_wire(deployment))
    raw = request(body=item(), headers=AUTH)
    heard = await wire.talk([raw] * 500, 500)
    heard += await wire.talk([raw * 300], 300)
    ids = [answer.header("x-request-id") for answer in heard]
    log = [e for e in deployment.manager.get_audit_log() if e["action"] == "key_validated"]
    assert len(set(ids)) == 800
    assert sorted(event["request_id"] for event in log) == sorted(ids)


# Answers that wait


@pytest.fixture
async def far(wire: Wire) -> Far:
    return Far(wire.app.front._manager)


def limited(**more: Any) -> bytes:
    """A request whose key has a limit, and so waits for one that is far."""
    body = {**signed({**KEY, "key_id": "one"}), **more}
    return request(body=json.dumps(body).encode(), headers=AUTH)


async def asked(far: Far, count: int = 1) -> None:
    """Until so many wait at the gate."""
    async with asyncio.timeout(10):
        while far.waiting < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def gone(things: Sized) -> None:
    """Until there are none."""
    async with asyncio.timeout(10):
        while len(things):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def test_waiting_takes_no_asgi(wire: Wire, far: Far, monkeypatch: pytest.MonkeyPatch):
    """What waits stays in the lane, and a head that comes again is read once there, too."""
    used = count_visits(wire, monkeypatch)
    reader, writer = await wire.open()
    for left in range(6, 2, -1):
        writer.write(limited())
        told = json.loads((await hear(reader)).body)
        assert (told["reason"], told["rate_limit"]["remaining"]) == ("valid", left)
    assert used == ["begin", "again", "again", "again"]
    writer.close()


async def test_one_waits_per_connection(wire: Wire, far: Far):
    """What is behind it waits for its turn, so that nobody has more than one under way by having
    sent many; each connection has its own."""
    far.gate.clear()
    connections = [await wire.open() for _ in range(3)]
    for _, writer in connections:
        writer.write(limited() * 2)
    await asked(far, 3)
    await asyncio.sleep(0.05)
    far.gate.set()
    for reader, writer in connections:
        for _ in range(2):
            assert json.loads((await hear(reader)).body)["reason"] in ("valid", "rate_limited")
        writer.close()
    assert far.most == 3


async def test_waiting_holds_up_nobody_else(wire: Wire, far: Far):
    """Another connection is answered meanwhile, in the lane."""
    far.gate.clear()
    reader, writer = await wire.open()
    writer.write(limited())
    await asked(far)
    good = request(body=item(), headers=AUTH)
    for answer in await wire.talk([good] * 3, 3):
        assert json.loads(answer.body)["reason"] == "valid"
    far.gate.set()
    assert json.loads((await hear(reader)).body)["reason"] == "valid"
    writer.close()


@pytest.mark.parametrize("rude", [False, True])
async def test_who_hangs_up_while_waiting_leaves_nothing(wire: Wire, far: Far, rude: bool):
    """What was begun is done and counted; nobody is answered, and the task is gone."""
    far.gate.clear()
    _, writer = await wire.open()
    nonce = json.dumps(signed(KEY, nonce="n" * 20)).encode()
    raw = request(body=nonce, headers=AUTH)
    writer.write(raw + raw[:30])
    await asked(far)
    if rude:  # a reset, which is seen at once
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        await gone(wire.server.server_state.connections)
        assert len(wire.server.server_state.tasks) == 1
    else:
        writer.close()
    far.gate.set()
    await gone(wire.server.server_state.tasks)
    await gone(wire.server.server_state.connections)
    (answer,) = await wire.talk([raw], 1)
    assert json.loads(answer.body)["reason"] == "replayed"


async def test_half_closed_while_waiting(wire: Wire, far: Far):
    """Who sends no more gets the answer, and then the end."""
    far.gate.clear()
    reader, writer = await wire.open()
    writer.write(limited())
    writer.write_eof()
    await asked(far)
    await asyncio.sleep(0.05)
    far.gate.set()
    (answer,) = split(await asyncio.wait_for(reader.read(), 5))
    assert (answer.status, answer.header("connection")) == (200, "close")
    writer.close()


async def test_stopping_waits_for_what_waits(stack: AsyncExitStack):
    """A server that is told to stop answers what it has begun, and closes behind it."""
    deployment = await deploy(stack)
    far = Far(deployment.manager)
    async with on_a_wire(deployment) as wire:
        far.gate.clear()
        reader, writer = await wire.open()
        writer.write(limited())
        await asked(far)
        wire.server.should_exit = True
        await asyncio.sleep(0.3)
        far.gate.set()
        (answer,) = split(await asyncio.wait_for(reader.read(), 5))
    assert json.loads(answer.body)["reason"] == "valid"
    assert answer.header("connection") == "close"
    writer.close()


async def test_what_is_cancelled_ends_its_connection(wire: Wire, far: Far):
    """A client is not left without an end when the server's patience is over."""
    far.gate.clear()
    reader, writer = await wire.open()
    writer.write(limited())
    await asked(far)
    for task in wire.server.server_state.tasks:
        task.cancel()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_failure_while_waiting_is_a_problem(
    wire: Wire, far: Far, monkeypatch: pytest.MonkeyPatch
):
    """A defect behind the gate is a 500 that says nothing, and the connection goes on."""
    monkeypatch.setattr(Far, "_go", None)
    reader, writer = await wire.open()
    for _ in range(3):
        writer.write(limited())
        answer = await hear(reader)
        assert (answer.status, json.loads(answer.body)["reason"]) == (500, "error")
    monkeypatch.undo()
    writer.write(limited())
    assert json.loads((await hear(reader)).body)["reason"] == "valid"
    writer.close()


async def test_half_a_head_behind_one_that_waits(
    wire: Wire, far: Far, monkeypatch: pytest.MonkeyPatch
):
    """Its time runs from the answer on, and is that of a head; what completes it is answered."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(fastlane, "HEAD_SECONDS", 0.3)
    for whole in (True, False):
        far.gate.clear()
        reader, writer = await wire.open()
        writer.write(limited() + limited()[:30])
        await asked(far)
        far.gate.set()
        assert (await hear(reader)).status == 200
        if whole:
            writer.write(limited()[30:])
            assert (await hear(reader)).status == 200
        else:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


# HTTP that is unusual, slow or broken


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [("1.1", None, True), ("1.1", "close", False), ("1.1", "keep-alive", True),
     ("1.0", None, False), ("1.0", "keep-alive", False)],
)  # fmt: skip
@pytest.mark.parametrize("fast", [True, False])
async def test_connections_are_kept_by_both_lanes_alike(
    stack: AsyncExitStack, fast: bool, version: str, connection: str | None, kept: bool
):
    """HTTP/1.1 unless told otherwise; HTTP/1.0 never."""
    wire = await stack.enter_async_context(on_a_wire(await deploy(stack), fast=fast))
    headers = [*AUTH, *([("Connection", connection)] if connection else [])]
    reader, writer = await wire.open()
    for _ in range(2 if kept else 1):
        writer.write(request(body=item(), headers=headers, version=version))
        answer = await hear(reader)
        assert (answer.status, answer.header("connection")) == (200, None if kept else "close")
    if not kept:
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_expectations_are_met(wire: Wire):
    """A client that waits for leave to send its body gets it."""
    reader, writer = await wire.open()
    raw = request(body=item(), headers=[*AUTH, ("Expect", "100-continue")])
    head, mark, body = raw.partition(b"\r\n\r\n")
    writer.write(head + mark)
    assert (await hear(reader)).status == 100
    writer.write(body)
    assert (await hear(reader)).status == 200
    writer.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_half_closed_connections_get_their_answer(wire: Wire, chunked: bool):
    """A client may say that it sends no more, and wait: whichever lane answers."""
    nonce = json.dumps(signed(KEY, nonce="n" * 20)).encode()
    for body in (item(), nonce):
        told = await wire.last_words(request(body=body, headers=AUTH, chunked=chunked))
        (answer,) = split(told)
        assert json.loads(answer.body)["reason"] == "valid"
    told = await wire.last_words(request(body=item(), headers=AUTH) * 3 + b"POST /v1/val")
    assert [answer.status for answer in split(told)] == [200, 200, 200]


async def test_a_slow_body_is_given_up(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """Whoever sends half a body is told so in the end, and nobody else waits meanwhile."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(fastlane, "_BODY_SECONDS", 0.2)
    monkeypatch.setattr("api_key_manager.server.bodies._PATIENCE_SECONDS", 0.2)
    reader, writer = await wire.open()
    raw = request(body=item(), headers=AUTH)
    writer.write(raw[:-5])
    assert (await wire.talk([raw], 1))[0].status == 200
    answer = await hear(reader)
    assert (answer.status, answer.header("connection")) == (408, "close")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    # One that is slow, but in time, is answered.
    reader, writer = await wire.open()
    for i in range(0, len(raw), len(raw) // 3):
        writer.write(raw[i : i + len(raw) // 3])
        await asyncio.sleep(0.02)
    assert (await hear(reader)).status == 200
    writer.close()


async def test_who_does_not_read_is_not_read(wire: Wire):
    """Requests without end from a client that takes no answer do not fill the memory."""
    raw = request(body=item(), headers=AUTH) * 100
    _, writer = await wire.open()
    sent = 0
    while sent < 64 * 1024 * 1024:
        writer.write(raw)
        sent += len(raw)
        try:
            await asyncio.wait_for(writer.drain(), 1)
        except (TimeoutError, ConnectionError):
            break
    assert sent < 64 * 1024 * 1024
    assert (await wire.talk([request(body=item(), headers=AUTH)], 1))[0].status == 200
    writer.transport.abort()


async def test_large_heads_are_refused(wire: Wire):
    """With a problem document, whatever else stands in the head."""
    for pieces in ([b"X-A: " + b"a" * 70_000], [b"X-A: a\r\n"] * 9000):
        told = await wire.last_words(b"POST /v1/validate HTTP/1.1\r\n" + b"".join(pieces))
        assert [answer.status for answer in split(told)] in ([431], [400])


async def test_endless_pipelining_ends_the_connection(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """So many requests in one read would each take their place in memory."""
    monkeypatch.setattr(protocol, "MAX_PIPELINED", 20)
    raw = request("GET", "/v1/keys", headers=AUTH)
    assert len(split(await wire.last_words(raw * 15))) == 15
    assert len(split(await wire.last_words(raw * 100))) < 15


async def test_garbage_behind_a_request_is_not_its_answer(wire: Wire):
    """A 400 in front of the answer that is being made would be taken for it; behind answers that
    only wait to be sent it comes last, and takes none of them along."""
    heard = split(await wire.last_words(request("GET", "/v1/keys", headers=AUTH) + b"garbage\r\n"))
    assert 400 not in [answer.status for answer in heard]
    good = request(body=item(), headers=AUTH)
    await wire.talk([good], 1)  # warm
    heard = split(await wire.last_words(good * 2 + b"garbage\r\n"))
    assert [answer.status for answer in heard] == [200, 200, 400]


class Silent(asyncio.Transport):
    """Keeps what is written, and when it was closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.said: list[bytes | None] = []

    def write(self, data: Any) -> None:
        self.said.append(bytes(data))

    def close(self) -> None:
        self.said.append(None)

    def is_closing(self) -> bool:
        return None in self.said


@pytest.mark.parametrize("end", ["shutdown", "eof_received", "head", "garbage", "close"])
async def test_no_end_takes_an_answer_along(wire: Wire, end: str):
    """An answer that waits for the end of the loop's turn is sent before the connection closes."""
    good = request(body=item(), headers=AUTH)
    await wire.talk([good], 1)  # warm
    lane = fastlane.FastProtocol(wire.server.config, wire.server.server_state, {})
    transport = Silent()
    lane.connection_made(transport)
    try:
        lane.data_received(good)
        assert transport.said == []
        if end == "shutdown":
            lane.shutdown()
        elif end == "eof_received":
            lane.eof_received()
        elif end == "head":
            lane.data_received(b"GET / HTTP/1.1\r\nX: ")
            lane.data_received(b"x" * 70_000)
        elif end == "garbage":
            lane.data_received(b"garbage\r\n")
        else:
            lane.data_received(request(body=item(), headers=[*AUTH, ("Connection", "close")]))
        await asyncio.sleep(0)
        assert (transport.said[0] or b"").startswith(b"HTTP/1.1 200")
        assert transport.said[-1] is None or end == "eof_received"
    finally:
        lane.connection_lost(None)


MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "no version": b"GET /healthz HTTP\r\n\r\n",
    "obs-fold": b"POST /v1/validate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer\r\n x\r\n\r\n",
    "blank in a name": b"POST /v1/validate HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n",
    "blank before the colon": b"POST /v1/validate HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
    "two lengths": b"POST /v1/validate HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "two ways of length": (
        b"POST /v1/validate HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "negative length": b"POST /v1/validate HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "no length": b"POST /v1/validate HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    "huge length": b"POST /v1/validate HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "bad chunk": b"POST /v1/validate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "control byte": b"POST /v1/validate HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_http_is_a_400(wire: Wire, raw: bytes):
    """A problem document, and the end of the connection."""
    (answer,) = split(await wire.last_words(raw))
    assert (answer.status, answer.header("connection")) == (400, "close")
    assert json.loads(answer.body)["reason"] == "malformed"


GOOD = request(body=b'{"key":"app"}', headers=AUTH)
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(GOOD)),
        st.integers(0, 5),
        st.one_of(
            st.binary(max_size=5),
            st.sampled_from([b"\r\n", b"\n", b"\0", b":", b"Transfer-Encoding: chunked\r\n",
                             b"Content-Length: 3\r\n", b"Expect: 100-continue\r\n", GOOD]),
        ),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=200)
@given(edits=EDITS)
async def test_broken_bytes_never_hang(edits: list[tuple[int, int, bytes]], fuzzed: Wire):
    """Whatever stands on the wire, whole answers come back and the connection ends."""
    raw = GOOD
    for at, drop, put in edits:
        raw = raw[:at] + put + raw[at + drop :]
    heard = split(await fuzzed.last_words(raw))
    assert {answer.status for answer in heard} <= {100, 200, 400, 401, 404, 405, 413, 415, 422, 431}


@pytest.fixture
async def fuzzed(stack: AsyncExitStack) -> Wire:
    return await stack.enter_async_context(on_a_wire(await deploy(stack)))


async def test_too_many_connections_are_told_so(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """Those that are there go on."""
    reader, writer = await wire.open()
    writer.write(request(body=item(), headers=AUTH))
    await hear(reader)
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 1)
    (answer,) = split(await wire.last_words(b""))
    assert (answer.status, answer.header("retry-after")) == (503, "1")
    writer.write(request(body=item(), headers=AUTH))
    assert (await hear(reader)).status == 200
    writer.close()
