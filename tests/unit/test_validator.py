"""AsyncAPIKeyValidator, as published: what it accepts, how it refuses, and what it remembers."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import (
    AsyncAPIKeyValidator,
    ConfigurationError,
    InvalidSignatureError,
    KeyExpiredError,
    Reason,
    ValidationError,
    sign,
)
from api_key_manager.core.exceptions import OUTCOMES

KEY, SECRET = "my-api-key", "my-secret-key"
NONCE = "n" * 16


@pytest.fixture
def validator(clock) -> AsyncAPIKeyValidator:
    return AsyncAPIKeyValidator(clock=clock)


def test_published_signature():
    """Names, order and defaults of the published arguments."""
    made = inspect.signature(AsyncAPIKeyValidator).parameters
    assert {name: p.default for name, p in made.items() if p.kind is not p.KEYWORD_ONLY} == {
        "validation_window_minutes": 360, "clock_skew_tolerance_seconds": 60,
        "cache_ttl_seconds": 300, "cache_max_entries": 10_000, "allow_static_signatures": True,
    }  # fmt: skip
    validate = inspect.signature(AsyncAPIKeyValidator.validate).parameters
    assert list(validate) == ["self", "key", "signature", "secret", "timestamp", "use_cache"]
    assert validate["timestamp"].default is None
    assert validate["use_cache"].default is True


async def test_accepts(validator, clock):
    """The three forms of a right signature, cached and not: `True` itself."""
    stamp = clock.seconds
    for use_cache in (True, True, False):
        assert await validator.validate(KEY, sign(SECRET, KEY), SECRET, None, use_cache) is True
        assert await validator.validate(KEY, sign(SECRET, KEY), SECRET, stamp, use_cache) is True
        signature = sign(SECRET, KEY, stamp)
        assert await validator.validate(KEY, signature, SECRET, stamp, use_cache) is True
        assert await validator.validate(KEY, signature.upper(), SECRET, stamp, use_cache) is True


@pytest.mark.parametrize("minutes", [5, 360, 30 * 24 * 60, 10**6])
async def test_window(minutes: int, clock):
    """Outside the window on either side: KeyExpiredError, to the second; also from the cache."""
    validator = AsyncAPIKeyValidator(minutes, clock=clock)
    stamp = clock.seconds
    signature = sign(SECRET, KEY, stamp)
    start = clock.now
    for now, reason in (
        (start - 61, "future_timestamp"),
        (start - 60, None),
        (start, None),
        (start + minutes * 60 + 60, None),
        (start + minutes * 60 + 60.5, "stale_timestamp"),
        (start - 61, "future_timestamp"),
    ):
        clock.now = now
        if reason is None:
            assert await validator.validate(KEY, signature, SECRET, stamp)
        else:
            with pytest.raises(KeyExpiredError) as caught:
                await validator.validate(KEY, signature, SECRET, stamp)
            assert caught.value.reason == reason


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "0" * 64}, {"secret": "another"}, {"key": "another"},
        {"timestamp": 1_760_000_001}, {"timestamp": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("warm", [False, True])
async def test_refuses(validator, clock, change: dict[str, Any], warm: bool):
    """A wrong signature, secret, key or timestamp is refused, warm cache or not."""
    good = {
        "key": KEY, "signature": sign(SECRET, KEY, clock.seconds), "secret": SECRET,
        "timestamp": clock.seconds,
    }  # fmt: skip
    if warm:
        assert await validator.validate(**good)
    with pytest.raises(InvalidSignatureError) as caught:
        await validator.validate(**{**good, **change})
    assert caught.value.reason == "bad_signature"
    assert str(caught.value) == OUTCOMES[Reason.BAD_SIGNATURE].message


@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("warm", [False, True])
async def test_every_byte_counts(validator, clock, stamped: bool, warm: bool):
    """A signature that differs in a single bit of any byte is refused, warm cache or not."""
    stamp = clock.seconds if stamped else None
    good = bytes.fromhex(sign(SECRET, KEY, stamp))
    if warm:
        assert await validator.validate(KEY, good.hex(), SECRET, stamp)
    for i in range(32):
        wrong = good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]
        with pytest.raises(InvalidSignatureError):
            await validator.validate(KEY, wrong.hex(), SECRET, stamp)


async def test_a_hit_on_a_clock_that_stepped_back(validator, clock):
    """A remembered success is judged by its window too, when the clock says it is too early."""
    stamp = clock.seconds
    signature = sign(SECRET, KEY, stamp)
    assert await validator.validate(KEY, signature, SECRET, stamp)
    clock.now = stamp - 61
    with pytest.raises(KeyExpiredError) as caught:
        await validator.validate(KEY, signature, SECRET, stamp)
    assert caught.value.reason == "future_timestamp"


GOOD = {"key": KEY, "signature": sign(SECRET, KEY), "secret": SECRET}


@pytest.mark.parametrize(
    "change",
    [
        {"key": ""}, {"key": "a" * 129}, {"key": "a\n"}, {"key": "a\x00"}, {"key": "é"},
        {"key": "\N{KEY}"}, {"key": "x" * 10_000_000}, {"key": None}, {"key": 5}, {"key": ["k"]},
        {"key": b"k"}, {"signature": ""}, {"signature": "abc123def456..."},
        {"signature": GOOD["signature"][:63]}, {"signature": GOOD["signature"] + " "},
        {"signature": " " + GOOD["signature"]}, {"signature": "é" * 64}, {"signature": None},
        {"signature": GOOD["signature"].encode()}, {"signature": "0x" + GOOD["signature"][:62]},
        {"secret": ""}, {"secret": None}, {"secret": b"my-secret-key"}, {"secret": "x" * 1025},
        {"secret": "\ud800"}, {"timestamp": True}, {"timestamp": "1760000000"},
        {"timestamp": 1_760_000_000.0}, {"timestamp": math.nan}, {"timestamp": math.inf},
        {"timestamp": -math.inf}, {"timestamp": -1}, {"timestamp": 10**30}, {"timestamp": [1]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("warm", [False, True])
async def test_unusable(validator, change: dict[str, Any], warm: bool):
    """Unusable input is a ValidationError, never another exception and never accepted."""
    if warm:
        assert await validator.validate(**GOOD)
    with pytest.raises(ValidationError):
        await validator.validate(**{**GOOD, **change})


async def test_static_switch(clock):
    """With static signatures off, one over the key alone is refused, its timestamp or not."""
    strict = AsyncAPIKeyValidator(allow_static_signatures=False, clock=clock)
    for stamp in (None, clock.seconds):
        with pytest.raises(InvalidSignatureError) as caught:
            await strict.validate(KEY, sign(SECRET, KEY), SECRET, stamp)
        assert caught.value.reason == "weak_scheme"
    assert await strict.validate(KEY, sign(SECRET, KEY, clock.seconds), SECRET, clock.seconds)


async def test_cache_statistics(validator, clock):
    """Hits, misses and size as published; refusals are never remembered."""
    assert validator.get_cache_stats() == {
        "cache_size": 0, "hits": 0, "misses": 0, "evictions": 0, "max_entries": 10_000,
    }  # fmt: skip
    for _ in range(3):
        await validator.validate(**GOOD)
    with pytest.raises(InvalidSignatureError):
        await validator.validate("other", GOOD["signature"], SECRET)
    stats = validator.get_cache_stats()
    assert (stats["cache_size"], stats["hits"], stats["misses"]) == (1, 2, 2)
    assert await validator.validate(**GOOD, use_cache=False)
    assert validator.get_cache_stats() == stats
    validator.clear_cache()
    assert validator.get_cache_stats()["cache_size"] == 0
    assert await validator.validate(**GOOD)
    assert validator.get_cache_stats()["misses"] == 3


async def test_cache_time_to_live(clock):
    """A success is remembered for its time to live, and never past its window."""
    validator = AsyncAPIKeyValidator(5, 0, cache_ttl_seconds=1000, clock=clock)
    stamp = clock.seconds
    signature = sign(SECRET, KEY, stamp)
    await validator.validate(KEY, signature, SECRET, stamp)
    await validator.validate(**GOOD)
    assert validator.get_cache_stats()["cache_size"] == 2
    clock.advance(301)
    with pytest.raises(KeyExpiredError):
        await validator.validate(KEY, signature, SECRET, stamp)
    clock.advance(699)
    await validator.validate(**GOOD)
    assert validator.get_cache_stats()["hits"] == 0


async def test_cache_is_bounded_and_can_be_off(clock):
    """Never more than `cache_max_entries`; a time to live of 0 keeps nothing."""
    small = AsyncAPIKeyValidator(cache_max_entries=5, clock=clock)
    off = AsyncAPIKeyValidator(cache_ttl_seconds=0, clock=clock)
    for i in range(20):
        for validator in (small, off):
            assert await validator.validate(f"k{i}", sign(SECRET, f"k{i}"), SECRET)
    assert small.get_cache_stats()["cache_size"] == 5
    assert small.get_cache_stats()["evictions"] == 15
    assert off.get_cache_stats()["cache_size"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"validation_window_minutes": 4}, {"validation_window_minutes": 4.99},
        {"validation_window_minutes": "360"}, {"validation_window_minutes": True},
        {"validation_window_minutes": math.nan}, {"validation_window_minutes": math.inf},
        {"validation_window_minutes": None}, {"clock_skew_tolerance_seconds": -1},
        {"clock_skew_tolerance_seconds": math.inf}, {"cache_ttl_seconds": -1},
        {"cache_max_entries": -1}, {"cache_max_entries": math.nan},
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any]):
    """A window or bound that makes no sense is refused at once, by name."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        AsyncAPIKeyValidator(**arguments)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70) | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
fields = st.sampled_from(["key", "signature", "secret", "timestamp", "nonce", "other"])


@given(st.lists(junk | st.dictionaries(fields, junk), max_size=5), st.integers(0, 5))
async def test_batch_survives_anything(bad: list, at: int):
    """One result per item, in order, whatever the other items are."""
    validator = AsyncAPIKeyValidator()
    results = await validator.batch_validate([*bad[:at], GOOD, *bad[at:]])
    at = min(at, len(bad))
    assert results == [False] * at + [True] + [False] * (len(bad) - at)


async def test_batch(validator, clock):
    """Items may carry a timestamp and a nonce; each missing field is `False`."""
    stamp = clock.seconds
    stamped = {**GOOD, "signature": sign(SECRET, KEY, stamp), "timestamp": stamp}
    nonced = {**stamped, "signature": sign(SECRET, KEY, stamp, NONCE), "nonce": NONCE}
    assert await validator.batch_validate([]) == []
    assert await validator.batch_validate([GOOD, stamped, nonced]) == [True] * 3
    missing = [{k: v for k, v in GOOD.items() if k != gone} for gone in GOOD]
    assert await validator.batch_validate([*missing, {}, None, 5, "x"]) == [False] * 7
    # Its timestamp counts: with the wrong one, or one out of the window, it is refused.
    wrong = [{**stamped, "timestamp": stamp + d} for d in (1, -21661, 61)]
    assert await validator.batch_validate(wrong) == [False] * 3
    old = {**GOOD, "signature": sign(SECRET, KEY, stamp - 21661), "timestamp": stamp - 21661}
    assert await validator.batch_validate([old]) == [False]


async def test_batch_nonces_count_once(validator, clock):
    """A nonce is taken once, in one batch and across batches, and never from the cache."""
    stamp = clock.seconds
    item = {
        "key": KEY, "signature": sign(SECRET, KEY, stamp, NONCE), "secret": SECRET,
        "timestamp": stamp, "nonce": NONCE,
    }  # fmt: skip
    bad = {**item, "signature": "0" * 64}
    assert await validator.batch_validate([bad, item, item]) == [False, True, False]
    assert await validator.batch_validate([item]) == [False]
    assert validator.get_cache_stats()["cache_size"] == 0
    # Nor does a remembered success lend itself to a nonce that it never covered.
    bare = sign(SECRET, KEY, stamp)
    assert await validator.validate(KEY, bare, SECRET, stamp)
    covered = {**item, "signature": bare, "nonce": "k" * 16}
    assert await validator.batch_validate([covered]) == [False]
    static = {**item, "signature": sign(SECRET, KEY), "nonce": "m" * 16}
    without = {**item, "timestamp": None}
    assert await validator.batch_validate([static, without]) == [False, False]
    other = {**item, "key": "other", "signature": sign(SECRET, "other", stamp, NONCE)}
    assert await validator.batch_validate([other]) == [True]
