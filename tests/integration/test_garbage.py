"""Whoever sends garbage without end gets nothing by it: over HTTP, to a server on SQLite with all
that runs in its background."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.config import Settings
from api_key_manager.core import addresses, permissions, sign_request
from api_key_manager.core.models import AuditQuery
from api_key_manager.core.tokens import mint_token
from api_key_manager.server import authorize
from api_key_manager.wiring import Deployment, open_deployment
from tests.integration.test_fastlane import ADMIN, AUTH
from tests.integration.wires import Wire, hear, on_a_wire, request

URL = "https://shop.example/orders?x=1"
NOTHING = hashlib.sha256(b"").hexdigest()
_statuses = re.compile(rb"HTTP/1\.1 (\d{3}) ").findall
_numbers = itertools.count()


class Place:
    """A server and its clients."""

    def __init__(self, deployment: Deployment, wire: Wire) -> None:
        self.deployment = deployment
        self.manager = deployment.manager
        self.wire = wire

    async def validate(self, sent: dict[str, Any]) -> dict[str, Any]:
        raw = request(body=json.dumps({"request": sent}).encode(), headers=AUTH)
        (answer,) = await self.wire.talk([raw], 1)
        told: dict[str, Any] = json.loads(answer.body)
        return told

    async def authorize(self, headers: dict[str, str]) -> int:
        (answer,) = await self.wire.talk([question(headers.items())], 1)
        return answer.status

    async def flood(self, garbage: Iterable[bytes], *, piece: int = 100) -> Counter[int]:
        """Send it, on one connection after the other, and count the statuses of the answers."""
        told: Counter[int] = Counter()
        each = iter(garbage)
        pieces = iter(lambda: list(itertools.islice(each, piece)), [])
        while some := list(itertools.islice(pieces, 10)):
            reader, writer = await self.wire.open()
            for requests in some:
                writer.write(b"".join(requests))
                received = b""
                while len(_statuses(received)) < len(requests):
                    chunk = await asyncio.wait_for(reader.read(1 << 16), 20)
                    assert chunk, received[-500:]
                    received += chunk
                told.update(map(int, _statuses(received)))
            writer.close()
            await writer.wait_closed()
        return told

    async def refusals(self) -> int:
        """How many requests of strangers the audit log has, exactly."""
        await self.manager.recorder.flush(time.time() + 5)
        count, cursor = 0, None
        while True:
            page = await self.manager.store.find_audit(
                AuditQuery(after=cursor, limit=1000, ascending=True)
            )
            count += sum(event.times for event in page.items if event.action == "key_refused")
            cursor = page.next_cursor
            if cursor is None:
                return count


@pytest.fixture
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    more = getattr(request, "param", {})
    settings = Settings.load(
        DATABASE_URL=f"sqlite:///{tmp_path}/data/akm.db", AKM_ADMIN_TOKEN=ADMIN,
        TRUSTED_PROXIES="127.0.0.1", AUTHORIZE_PROFILE="nginx", FAILED_AUTH_PER_MINUTE=0, **more,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        deployment = await stack.enter_async_context(open_deployment(settings))
        yield Place(deployment, await stack.enter_async_context(on_a_wire(deployment)))


def signature(key: dict[str, Any]) -> dict[str, str]:
    return sign_request(
        key["secret"], key["key_id"], "GET", URL, created=int(time.time()),
        nonce=f"nonce-{next(_numbers):016}",
    )  # fmt: skip


def sent(headers: dict[str, str]) -> dict[str, Any]:
    return {"method": "GET", "url": URL, "headers": headers, "body_sha256": NOTHING}


def spoilt(headers: dict[str, str]) -> dict[str, str]:
    """The same id, time and nonce under another signature."""
    text = headers["Signature"]
    return {**headers, "Signature": f"{text[:10]}{'A' if text[10] != 'A' else 'B'}{text[11:]}"}


def question(headers: Iterable[tuple[str, str]], path: str = "", method: str = "GET") -> bytes:
    """What nginx asks about a request."""
    original = [
        ("X-Original-Method", "GET"), ("X-Original-Scheme", "https"),
        ("X-Original-Host", "shop.example"), ("X-Original-URI", "/orders?x=1"),
    ]  # fmt: skip
    return request(method, f"/v1/authorize{path}", headers=[*original, *headers])


def address(number: int) -> str:
    """Each in a neighbourhood of its own."""
    return f"10.{number >> 8 & 255}.{number & 255}.1"


def garbage(ids: Iterable[str], count: int, begin: int = 0) -> Iterator[bytes]:
    """Requests of every kind that proves nothing, no two alike, from everywhere."""
    names = itertools.cycle(ids)
    for i in range(begin, begin + count):
        came = ("X-Forwarded-For", address(i))
        name = next(names)
        wrong = spoilt(signature({"key_id": name, "secret": "guessed"}))
        yield (
            question([came, *wrong.items()]),
            question([came, ("X-Api-Key", mint_token("akm", f"unknown{i}"))]),
            question([came, ("Authorization", f"Bearer {i}")], f"/p{i}.read"),
            question([came, ("Signature-Input", f'akm=();keyid="{name}"'), (f"X-{i}", "a")]),
            request("GET", f"/{i}?{i}", headers=[came, (f"X-{i}", "a"), ("X-Request-Id", str(i))]),
            request(f"M{i % 7}" if i % 7 else "PUT", "/v1/keys", headers=[came]),
        )[i % 4 if i % 50 else 4]  # fmt: skip


async def test_garbage_burns_no_nonce(place: Place):
    """Who sees a request on its way cannot use up its nonce before it arrives."""
    key = await place.manager.create_key("k")
    for how in ("validate", "authorize"):
        good = signature(key)
        other = {**good, "Content-Digest": signature(key)["Content-Digest"][:-5] + "AAA=:"}
        for _ in range(100):
            for wrong in (spoilt(good), other):
                assert (await place.validate(sent(wrong)))["reason"] in (
                    "bad_signature", "malformed",
                )  # fmt: skip
                assert await place.authorize(wrong) == 401
            body = {**sent(good), "body_sha256": "0" * 64}
            assert (await place.validate(body))["reason"] == "bad_signature"
        if how == "validate":
            assert (await place.validate(sent(good)))["reason"] == "valid"
            assert (await place.validate(sent(good)))["reason"] == "replayed"
        else:
            assert await place.authorize(good) == 200
            assert await place.authorize(good) == 401


async def test_garbage_takes_nothing_from_a_limit(place: Place):
    """A victim's id is no secret; its limit is charged for what its secret has signed only."""
    limits = [{"name": "few", "limit": 4, "window_seconds": 3600}]
    key = await place.manager.create_key("victim", rate_limits=limits)
    app = await place.manager.create_key("app", kind="bearer", rate_limits=limits)
    for _ in range(2):
        told = await place.flood(garbage(["victim", "app"], 1000))
        assert set(told) == {401}
        fakes = (question([("X-Api-Key", mint_token("akm", "app"))]) for _ in range(200))
        assert await place.flood(fakes) == {401: 200}
        # What was good once is no better.
        used = signature(key)
        assert await place.authorize(used) == 200
        assert await place.flood([question(used.items())] * 200) == {401: 200}
        assert (await place.validate(sent(signature(key))))["reason"] == "valid"
        for _ in range(2):
            assert await place.authorize({"X-Api-Key": app["token"]}) == 200
    assert (await place.validate(sent(signature(key))))["reason"] == "rate_limited"
    assert await place.authorize({"X-Api-Key": app["token"]}) == 429


@pytest.mark.parametrize("place", [{"CACHE_MAX_ENTRIES": 8}], indirect=True)
async def test_garbage_evicts_nobody(place: Place):
    """A full cache stays as it is, whatever ids are asked for: known ones, too."""
    good = [await place.manager.create_key(f"good{i}") for i in range(8)]
    cold = [f"cold{i}" for i in range(50)]
    for name in cold:
        await place.manager.create_key(name)
    for key in good:
        assert (await place.validate(sent(signature(key))))["valid"]
    before = place.manager.cache.map.stats()
    assert before["cache_size"] == 8
    told = await place.flood(garbage([*cold, "nobody", *(key["key_id"] for key in good)], 3000))
    assert set(told) == {401}
    after = place.manager.cache.map.stats()
    assert (after["cache_size"], after["evictions"]) == (8, before["evictions"])
    for key in good:
        assert (await place.validate(sent(signature(key))))["cached"]


async def test_garbage_stalls_nobody(place: Place):
    """A flood from 20,000 neighbourhoods leaves the audit queue room, every answer of others
    stays `valid` and quick, and each refusal is counted."""
    key = await place.manager.create_key("victim")
    recorder, depths, seconds = place.manager.recorder, [], []
    done = asyncio.Event()

    async def victim() -> None:
        reader, writer = await place.wire.open()
        while not done.is_set():
            began = time.perf_counter()
            body = json.dumps({"request": sent(signature(key))}).encode()
            writer.write(request(body=body, headers=AUTH))
            answer = await hear(reader)
            seconds.append(time.perf_counter() - began)
            assert json.loads(answer.body)["reason"] == "valid"
            depths.append(recorder.depth)
        writer.close()

    asking = asyncio.create_task(victim())
    unlike = (
        question([("X-Forwarded-For", address(i)), ("X-Api-Key", mint_token("akm", f"u{i}"))])
        for i in range(20_000)
    )
    told = await place.flood(unlike)
    done.set()
    await asking
    assert told == {401: 20_000}
    assert await place.refusals() == 20_000
    assert recorder.refused == 0
    assert max(depths) <= 20_000 // 4 + 1000
    assert len(seconds) > 20
    assert sorted(seconds)[len(seconds) // 2] < 1


def sizes(place: Place) -> dict[str, int]:
    """Of everything that could grow with what strangers send."""
    manager, verifier = place.manager, place.manager._verifier
    records, recorder, state = manager.records, manager.recorder, place.wire.server.server_state
    return {
        "cache": len(records.cache.map),
        "flights": len(records._flights),
        "changed": len(records._changed),
        "limits": len(verifier._limiter),
        "uses": len(recorder._used) + len(recorder._used_static),
        "reasons": len(manager.tally.validations()) + len(manager.tally.refused_admin_tokens()),
        "series": len(place.deployment.observing.meter.requests),
        "connections": len(state.connections),
        "tasks": len(state.tasks),
    }


async def test_garbage_fills_no_memory(place: Place):
    """After 30,000 requests with ids, addresses, paths, methods and header names of their own,
    every table is as large as after the first few, and so is the number of objects."""
    ids = [f"k{i}" for i in range(20)]
    for name in ids:
        await place.manager.create_key(name)

    async def flooded(count: int, begin: int) -> tuple[dict[str, int], int]:
        told = await place.flood(
            garbage([*ids, *map(str, range(begin, begin + count))], count, begin)
        )
        assert set(told) <= {401, 404}
        assert place.manager.recorder.depth <= 20_000 // 4 + 1000
        await place.manager.recorder.flush(time.time() + 5)
        assert place.manager.recorder.depth == 0
        while place.wire.server.server_state.connections:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
        gc.collect()
        return sizes(place), len(gc.get_objects())

    # So many that what is kept of the latest few thousand, by design, is full.
    first, objects = await flooded(8000, 0)
    second, more = await flooded(22_000, 8000)
    assert second == first
    assert first["cache"] == first["limits"] == first["uses"] == first["flights"] == 0
    assert first["series"] < 40
    assert more - objects < 5000
    for cache in (addresses.parse_address, permissions._compile, authorize._headers):
        info = cache.cache_info()
        assert info.maxsize is not None
        assert info.currsize <= info.maxsize <= 4096
