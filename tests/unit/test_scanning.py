"""Finding secrets and tokens in any bytes."""

from __future__ import annotations

import io
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_key_manager.core import scanning
from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.scanning import Hit, Scanner
from api_key_manager.core.tokens import ALPHABET, mint_secret, mint_token

PREFIXES = ("akm", "acme", "acme_live", "a", "x1_2")
ids = st.text("ABCxyz019.:-", min_size=1, max_size=128)
noise = st.binary(max_size=300) | st.text("ak_m0Z", max_size=300).map(str.encode)


def hits(data: bytes, *prefixes: str) -> list[Hit]:
    scanner = Scanner(prefixes or None)
    return [hit for hit in scanner.scan(io.BytesIO(data).read) if isinstance(hit, Hit)]


def minted(prefix: str, key_id: str | None) -> bytes:
    return (mint_secret(prefix) if key_id is None else mint_token(prefix, key_id)).encode()


@settings(deadline=None)
@given(
    st.sampled_from(PREFIXES), st.none() | ids, noise, noise, st.booleans(),
    st.integers(1, 400),
)  # fmt: skip
def test_found_wherever_it_stands(prefix, key_id, before, after, any_prefix, chunk):
    """A minted secret or token is found at any offset between any bytes, across any borders of
    what is read at once, at its line and column, with its prefix and id."""
    data = before + minted(prefix, key_id) + after
    small = io.BytesIO(data)
    scanner = Scanner(None if any_prefix else [prefix])
    whole = list(Scanner(None if any_prefix else [prefix]).scan(io.BytesIO(data).read))
    pieces = [
        hit for hit in scanner.scan(lambda size: small.read(min(size, chunk)))
        if isinstance(hit, Hit)
    ]  # fmt: skip
    assert pieces == [hit for hit in whole if isinstance(hit, Hit)]
    line = before.count(b"\n") + 1
    column = len(before) - (before.rfind(b"\n") + 1) + 1
    assert [(h.line, h.column, h.prefix, h.key_id) for h in pieces] == [
        (line, column, prefix, None if key_id == "secret" else key_id)
    ]


@settings(deadline=None)
@given(st.sampled_from(PREFIXES), st.none() | ids, st.data())
def test_one_changed_character_is_none_of_ours(prefix, key_id, data):
    """Whichever character is another one, nothing is found: the checksum covers all of it."""
    token = minted(prefix, key_id)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from([c for c in ALPHABET.encode() if c != token[at]]))
    assert hits(token[:at] + bytes([other]) + token[at + 1 :], prefix) == []


@pytest.mark.parametrize("size", [0, 100, 1 << 16, (1 << 16) + 300, (1 << 22) - 20, 1 << 22])
def test_huge_lines_and_chunk_borders(size):
    """Also where a line is longer than what is kept, the place is exact and nothing is doubled."""
    token = minted("akm", "k")
    data = b"one\n" + b"x" * size + token + b"y" * (1 << 16) + token + b"\nlast " + token
    second = size + len(token) + (1 << 16) + 1
    assert [(h.line, h.column) for h in hits(data, "akm")] == [(2, size + 1), (2, second), (3, 6)]


def test_only_the_named_prefixes_and_what_goes_on_behind_them():
    """`akm` finds admin tokens of `akm` too; another prefix is none of ours unless it is named."""
    data = b"\n".join(minted(p, "k") for p in ("akm", "akm_admin", "acme", "akmx"))
    assert [h.kind for h in hits(data, "akm")] == ["bearer", "admin"]
    assert [h.prefix for h in hits(data, "akm", "acme")] == ["akm", "akm_admin", "acme"]
    assert len(hits(data, "akm", "akm_admin")) == 2
    assert len(hits(data)) == 4
    assert hits(minted("akm", None))[0].kind == "secret"
    with pytest.raises(ValidationError, match="prefix"):
        Scanner(["AKM"])


def test_an_allowed_line_is_passed_over():
    """The marker counts for its own line only, before or behind."""
    token = minted("akm", "k")
    data = token + b" # akm:allow\n" + token + b"\nakm:allow " + token + b"\n"
    assert [h.line for h in hits(data, "akm")] == [2]


@pytest.mark.parametrize(
    "piece",
    [b"akm_", b"a_", b"_", b"a" * 36 + b"_", b"a_" + b"b" * 36, b"akm_" + b"b" * 36, b"akm_a_"],
)
@pytest.mark.parametrize("prefixes", [("akm",), ()])
def test_hostile_bytes_cost_no_more_than_their_length(piece, prefixes):
    """What nearly fits, again and again, is passed in time that grows with the length only."""

    def seconds(size: int) -> float:
        data = (piece * (size // len(piece) + 1))[:size]
        began = time.process_time()
        assert hits(data, *prefixes) == []
        return time.process_time() - began

    # Quadratic work would take minutes.
    assert seconds(400_000) < 10


def test_random_bytes_hold_nothing():
    """The checksum leaves no false alarms."""
    assert hits(random.Random(1).randbytes(2_000_000)) == []


def test_what_is_read_at_once_is_bounded(monkeypatch):
    """Memory does not grow with the content."""
    monkeypatch.setattr(scanning, "_CHUNK", 1000)
    asked = []

    def read(size: int) -> bytes:
        asked.append(size)
        return b"x" * size if len(asked) < 50 else b""

    assert sum(n for n in Scanner(["akm"]).scan(read) if isinstance(n, int)) == 49_000
    assert set(asked) == {1000}
