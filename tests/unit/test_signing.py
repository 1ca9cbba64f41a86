"""Messages, MACs and comparisons: against outside vectors, and against what they must not take."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api_key_manager.core import sign
from api_key_manager.core.signing import (
    MAX_TIMESTAMP,
    MacState,
    is_nonce,
    is_timestamp,
    mac,
    matches,
    parse_signature,
    static_message,
    timestamped_message,
)
from api_key_manager.encryption.envelopes import FastMac


def wycheproof(vectors, tag_bits: int):
    for group in vectors("wycheproof-hmac_sha256.json")["testGroups"]:
        if group["tagSize"] == tag_bits:
            yield from group["tests"]


def test_wycheproof_full_tags(vectors):
    """HMAC-SHA256 with all 32 bytes agrees with Wycheproof, pre-keyed or not."""
    seen: Counter[str] = Counter()
    for case in wycheproof(vectors, 256):
        key, message = bytes.fromhex(case["key"]), bytes.fromhex(case["msg"])
        given = parse_signature(case["tag"])
        assert given is not None
        accepted = matches(mac(key, message, "sha256"), given)
        assert accepted is (case["result"] == "valid"), case["tcId"]
        assert matches(MacState(key).digest(message), given) is accepted
        assert matches(FastMac(key).digest(message), given) is accepted
        seen[case["result"]] += 1
    assert seen == {"valid": 33, "invalid": 54}


def test_wycheproof_truncated_tags(vectors):
    """A truncated tag is refused by the parse, however right its bytes are."""
    cases = list(wycheproof(vectors, 128))
    everything = vectors("wycheproof-hmac_sha256.json")["numberOfTests"]
    # With the whole ones above that is all of them.
    assert (len(cases), everything) == (87, 2 * 87)
    for case in cases:
        assert parse_signature(case["tag"]) is None
        # Nor does the compare take a prefix for the whole.
        full = mac(bytes.fromhex(case["key"]), bytes.fromhex(case["msg"]), "sha256")
        assert not matches(full, bytes.fromhex(case["tag"]))


def test_rfc_4231_case_2():
    """A value that can be checked with any other tool."""
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert mac(b"Jefe", b"what do ya want for nothing?", "sha256").hex() == expected


@given(st.binary(min_size=32, max_size=32), st.data())
def test_signature_case(raw: bytes, data: st.DataObject):
    """Hex digits in either case, also mixed, are the same signature."""
    upper = data.draw(st.lists(st.booleans(), min_size=64, max_size=64))
    text = "".join(c.upper() if up else c for c, up in zip(raw.hex(), upper, strict=True))
    assert parse_signature(text) == raw


@given(st.text() | st.binary() | st.integers() | st.none())
@example("a" * 63)
@example("a" * 65)
@example(" " + "a" * 63)
@example("a" * 63 + "\n")
@example("0x" + "a" * 62)
@example("é" * 64)
@example("١" * 64)
@example("g" * 64)
@example("aa " * 21 + "a")
@example(b"a" * 64)
def test_other_signatures_are_unreadable(value: object):
    """Truncated, padded, non-ASCII or non-hex: unreadable, and never an exception."""
    assert parse_signature(value) is None


def test_messages_are_the_published_formats():
    """The bytes that callers in every language must sign."""
    assert static_message("client-123") == b"client-123"
    assert timestamped_message("k", 1_700_000_000) == b"AKM1\nk\n1700000000\n"
    nonce = "0123456789abcdef"
    assert timestamped_message("k", 0, nonce) == b"AKM1\nk\n0\n0123456789abcdef"


key_ids = st.from_regex(r"[A-Za-z0-9._:-]{1,8}", fullmatch=True)
moments = st.none() | st.tuples(
    st.integers(0, 20), st.none() | st.from_regex(r"[A-Za-z0-9_-]{16,18}", fullmatch=True)
)


@given(key_ids, moments, key_ids, moments)
def test_messages_are_unambiguous(a_id, a_moment, b_id, b_moment):
    """Two different requests never have the same bytes to sign, across the schemes too."""

    def message(key_id, moment):
        return static_message(key_id) if moment is None else timestamped_message(key_id, *moment)

    same = (a_id, a_moment) == (b_id, b_moment)
    assert (message(a_id, a_moment) == message(b_id, b_moment)) is same


def test_sign_is_plain_hmac():
    """`sign` is what a caller without this package would compute."""

    def expected(message: bytes) -> str:
        return hmac.new(b"secret", message, hashlib.sha256).hexdigest()

    assert sign("secret", "k") == expected(b"k")
    assert sign("secret", "k", 5) == expected(b"AKM1\nk\n5\n")
    assert sign("secret", "k", 5, "n" * 16) == expected(b"AKM1\nk\n5\n" + b"n" * 16)


def test_nonce_needs_a_timestamp():
    """Without a timestamp a nonce would have to be kept for ever."""
    with pytest.raises(ValueError, match="timestamp"):
        sign("secret", "k", nonce="n" * 16)


@pytest.mark.parametrize(
    "value",
    [
        True, False, 1.0, "1", -1, MAX_TIMESTAMP + 1, 10**400, None, [], float("nan"),
        float("inf"), -float("inf"), 1e300, b"1", 1 + 0j,
    ],
)  # fmt: skip
def test_bad_timestamps(value: object):
    """Booleans, floats, text, negative and huge numbers are no timestamps."""
    assert not is_timestamp(value)


def test_good_timestamps():
    """Whole seconds from the epoch to the year 9999."""
    assert is_timestamp(0)
    assert is_timestamp(MAX_TIMESTAMP)


@pytest.mark.parametrize(
    ("nonce", "good"),
    [
        ("a" * 16, True), ("a" * 128, True), ("A-z_0" * 4, True), ("a" * 15, False),
        ("a" * 129, False), ("a" * 16 + "\n", False), ("é" * 16, False), ("a b" * 8, False),
        ("", False),
    ],
)  # fmt: skip
def test_nonce_alphabet(nonce: str, good: bool):
    """16 to 128 of A-Z a-z 0-9 _ -, a trailing newline excluded."""
    assert bool(is_nonce(nonce)) is good


@given(st.binary(max_size=200), st.lists(st.binary(max_size=200), max_size=4))
def test_mac_state_is_reusable(key: bytes, messages: list[bytes]):
    """A pre-keyed state answers any number of messages like a fresh MAC."""
    state = MacState(key)
    for message in messages * 2:
        assert state.digest(message) == hmac.digest(key, message, "sha256")
