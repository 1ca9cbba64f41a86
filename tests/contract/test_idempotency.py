"""What every idempotency store promises: one request, one change, one answer."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from api_key_manager.core import ApiKey, ConflictError
from api_key_manager.core.models import Change
from api_key_manager.core.ports import BEGUN_SECONDS, Begun, Receipt

SECOND = 1_000_000
NOW = 1_760_000_000 * SECOND
KEPT = NOW + 600 * SECOND
PRINT = b"fingerprint"


@pytest.fixture
def requests(backend):
    return backend.idempotency


def creation(key_id: str) -> list[Change]:
    return [Change(ApiKey(key_id, "signed", 5, 5, ()), None)]


async def test_story_of_a_request(backend, requests):
    """New, then in progress, then answered with the sealed bytes; another body is a mismatch."""
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("new")
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("in_progress")
    assert await requests.begin("s", "k", b"other", NOW) == Begun("mismatch")
    receipt = Receipt("s", "k", PRINT, b"\x00answer\xff", KEPT)
    await backend.store.apply(creation("a"), backend.box.record_mac, receipt)
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("answered", b"\x00answer\xff")
    assert await requests.begin("s", "k", b"other", NOW) == Begun("mismatch")
    assert await requests.begin("s", "k", PRINT, KEPT - 1) == Begun("answered", b"\x00answer\xff")
    assert await requests.begin("s", "k", PRINT, KEPT) == Begun("new")


async def test_scopes_are_apart(requests):
    """The same key of two callers or paths are two requests."""
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("new")
    assert await requests.begin("t", "k", b"other", NOW) == Begun("new")
    assert await requests.begin("s", "kk", b"other", NOW) == Begun("new")


async def test_begun_at_once(requests):
    """Of many equal requests at the same moment exactly one is new."""
    states = await asyncio.gather(*(requests.begin("s", "k", PRINT, NOW) for _ in range(50)))
    assert Counter(begun.state for begun in states) == {"new": 1, "in_progress": 49}


async def test_abandoned(backend, requests):
    """An abandoned request is new again; an answered one cannot be abandoned."""
    await requests.begin("s", "k", PRINT, NOW)
    await requests.abandon("s", "k")
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("new")
    receipt = Receipt("s", "k", PRINT, b"answer", KEPT)
    await backend.store.apply(creation("a"), backend.box.record_mac, receipt)
    await requests.abandon("s", "k")
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("answered", b"answer")
    await requests.abandon("s", "unknown")


async def test_forgotten_in_time(requests):
    """A request that never came to an end may be begun anew, after exactly its time."""
    await requests.begin("s", "k", PRINT, NOW)
    later = NOW + BEGUN_SECONDS * SECOND
    assert await requests.begin("s", "k", PRINT, later - 1) == Begun("in_progress")
    assert await requests.begin("s", "k", b"other", later) == Begun("new")


async def test_receipt_and_change_are_one(backend, requests):
    """When the change fails no answer is kept; when the request was not begun nothing changes."""
    store, seal = backend.store, backend.box.record_mac
    await store.apply(creation("taken"), seal)
    await requests.begin("s", "k", PRINT, NOW)
    receipt = Receipt("s", "k", PRINT, b"answer", KEPT)
    with pytest.raises(Exception, match="taken"):
        await store.apply(creation("taken"), seal, receipt)
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("in_progress")
    with pytest.raises(ConflictError):
        await store.apply(creation("a"), seal, receipt._replace(key="not-begun"))
    assert await store.load(["a"]) == [None]


async def test_one_answer(backend, requests):
    """A request that was answered cannot change anything a second time."""
    store, seal = backend.store, backend.box.record_mac
    await requests.begin("s", "k", PRINT, NOW)
    await store.apply(creation("a"), seal, Receipt("s", "k", PRINT, b"first", KEPT))
    with pytest.raises(ConflictError):
        await store.apply(creation("b"), seal, Receipt("s", "k", PRINT, b"second", KEPT))
    assert await store.load(["b"]) == [None]
    assert await requests.begin("s", "k", PRINT, NOW) == Begun("answered", b"first")


async def test_answer_of_a_request_that_lost_its_key(backend, requests):
    """A request that stalled until another one had its key changes nothing, and its answer never
    shows under that key."""
    store, seal = backend.store, backend.box.record_mac
    later = NOW + (BEGUN_SECONDS + 1) * SECOND
    await requests.begin("s", "k", b"slow", NOW)
    assert await requests.begin("s", "k", b"quick", later) == Begun("new")
    with pytest.raises(ConflictError):
        await store.apply(creation("a"), seal, Receipt("s", "k", b"slow", b"of slow", KEPT))
    assert await store.load(["a"]) == [None]
    assert await requests.begin("s", "k", b"quick", later) == Begun("in_progress")
    await store.apply(creation("b"), seal, Receipt("s", "k", b"quick", b"of quick", KEPT))
    assert await requests.begin("s", "k", b"quick", later) == Begun("answered", b"of quick")
