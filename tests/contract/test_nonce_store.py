"""What every nonce store promises: taken once, by one, and never forgotten while it matters."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter

import pytest

from api_key_manager.core.memory import MemoryNonceStore
from api_key_manager.core.ports import Claim, ClaimResult

TAKEN, REPLAYED, REFUSED = ClaimResult.TAKEN, ClaimResult.REPLAYED, ClaimResult.REFUSED
SKEW = 60
serial = itertools.count()


@pytest.fixture
def store(backend):
    return backend.nonces()


def claim(clock, key_id: str = "k", nonce: str | None = None, since: float | None = None) -> Claim:
    """A claim of a key that was made a second after the store, unless said otherwise."""
    return Claim(
        key_id, nonce or f"nonce-{next(serial):012d}", clock.seconds, clock.seconds + 420,
        clock.now if since is None else since,
    )  # fmt: skip


async def test_once(store, clock):
    """A nonce is taken once; again it is a replay, however long the store has it."""
    clock.advance(1)
    one = claim(clock)
    assert await store.claim([one], clock.now, SKEW) == [TAKEN]
    for _ in range(3):
        assert await store.claim([one], clock.now, SKEW) == [REPLAYED]
        clock.advance(100)


async def test_in_one_batch(store, clock):
    """Results in order; of two equal claims in one call the first is taken."""
    clock.advance(1)
    a, b, c = (claim(clock) for _ in range(3))
    assert await store.claim([a, b, a, c, b], clock.now, SKEW) == [
        TAKEN, TAKEN, REPLAYED, TAKEN, REPLAYED,
    ]  # fmt: skip
    assert await store.claim([], clock.now, SKEW) == []


async def test_keys_and_nonces_are_apart(store, clock):
    """The same nonce of two keys are two; letters and case count; no pair runs into another."""
    clock.advance(1)
    for key_id, nonce in [
        ("a", "n" * 16),
        ("b", "n" * 16),
        ("a", "N" * 16),
        ("an", "n" * 15 + "_"),
    ]:
        assert await store.claim([claim(clock, key_id, nonce)], clock.now, SKEW) == [TAKEN]
    again = [claim(clock, "a", "n" * 16), claim(clock, "b", "n" * 16)]
    assert await store.claim(again, clock.now, SKEW) == [REPLAYED, REPLAYED]


async def test_another_timestamp_is_no_other_nonce(store, clock):
    """A nonce is used up for its key, whatever timestamp it comes with next."""
    clock.advance(1)
    one = claim(clock)
    await store.claim([one], clock.now, SKEW)
    later = one._replace(timestamp=one.timestamp + 5, expires_at=one.expires_at + 5)
    assert await store.claim([later], clock.now + 5, SKEW) == [REPLAYED]


async def test_fifty_at_once(store, clock):
    """Of fifty identical claims at the same moment exactly one is taken."""
    clock.advance(1)
    for _ in range(5):
        one = claim(clock)
        results = await asyncio.gather(*(store.claim([one], clock.now, SKEW) for _ in range(50)))
        assert Counter(r for (r,) in results) == {TAKEN: 1, REPLAYED: 49}


async def test_two_openings_share(backend, clock):
    """What one opening of a persistent store has taken, another one knows."""
    clock.advance(1)
    one = claim(clock)
    assert await backend.nonces().claim([one], clock.now, SKEW) == [TAKEN]
    assert await backend.nonces().claim([one], clock.now, SKEW) == [REPLAYED]


async def test_cap_per_key(backend, clock):
    """A key that holds too many is refused, and only that key; a replay stays a replay."""
    store = backend.nonces(3)
    clock.advance(1)
    held = [claim(clock, "greedy") for _ in range(3)]
    assert await store.claim(held, clock.now, SKEW) == [TAKEN] * 3
    more = [claim(clock, "greedy"), claim(clock, "other"), held[0]]
    assert await store.claim(more, clock.now, SKEW) == [REFUSED, TAKEN, REPLAYED]


async def test_room_comes_back(backend, clock):
    """Nonces that can no longer be presented make room, and not a second before."""
    store = backend.nonces(2)
    clock.advance(1)
    held = [claim(clock, "k") for _ in range(2)]
    await store.claim(held, clock.now, SKEW)
    clock.now = held[0].expires_at - 1
    await prune(store, clock)
    late = claim(clock, "k")
    assert await store.claim([held[0], late], clock.now, SKEW) == [REPLAYED, REFUSED]
    clock.advance(120)
    await prune(store, clock)
    assert await store.claim([late, claim(clock, "k")], clock.now, SKEW) == [TAKEN, TAKEN]


async def prune(store, clock) -> None:
    """Stores that do not tidy up while they claim have a call for it."""
    if hasattr(store, "prune"):
        while await store.prune(clock.now):
            pass


async def test_birth(backend, store, clock):
    """What may have been claimed before the store was born is refused, for keys as old as that; a
    key counts as younger only past the skew, since its age is told by another clock."""
    birth = backend.birth
    clock.now = math.ceil(birth) + 1.0
    for timestamp, since, expected in (
        (birth + SKEW - 1, birth - 1, REFUSED),
        (birth + SKEW + 1, birth - 1, TAKEN),
        (birth + SKEW - 1, birth + SKEW + 1, TAKEN),
        (birth - 1, birth - 0.001, REFUSED),
    ):
        one = claim(clock, since=since)._replace(timestamp=int(timestamp))
        assert await store.claim([one], clock.now, SKEW) == [expected]
    young = claim(clock, since=birth + SKEW + 1)
    refused = young._replace(nonce="refused" * 4, key_since=birth - 1)
    mixed = [young, refused, young._replace(nonce="another" * 4)]
    assert await store.claim(mixed, clock.now, SKEW) == [TAKEN, REFUSED, TAKEN]
    # Refused is not taken: nothing was written down for it.
    again = refused._replace(key_since=birth + SKEW + 1)
    assert await store.claim([again], clock.now, SKEW) == [TAKEN]


async def test_a_key_made_by_a_clock_that_is_ahead(backend, store, clock):
    """A key that seems younger than the store by less than the skew may be older: a store whose
    clock is not the keys' does not believe it."""
    if isinstance(store, MemoryNonceStore):
        pytest.skip("memory has one clock: that of the process in which the keys are too")
    clock.now = math.ceil(backend.birth) + 1.0
    ahead = claim(clock, since=backend.birth + SKEW - 1)
    assert await store.claim([ahead], clock.now, SKEW) == [REFUSED]
