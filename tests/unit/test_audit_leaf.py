"""Leaves and event MACs: the exact bytes, and what no edit passes."""

from __future__ import annotations

import hmac
import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.audit.leaf import (
    EVENT_FIELDS,
    SALTED_BYTES,
    EventMacs,
    event_body,
    missing_leaf,
    new_salts,
    origin_leaf,
    read_leaf,
    salted,
    split_salt,
)

texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**53) + 1, 2**53 - 1)
rows = st.tuples(
    numbers, numbers, st.text(st.characters(exclude_categories=["Cs"])), texts, texts, texts,
    texts, texts, texts, numbers, texts, st.none() | numbers, st.none() | numbers,
)  # fmt: skip
MACS = EventMacs(bytes(range(32)))
EVENT = (1, "key_created", "k", "me", None, "10.0.0.1", "r1", "{}", 1, None)


@given(st.integers(0, 2**53 - 1), rows)
def test_leaf_is_rfc_8785(index, row):
    """A leaf is, byte for byte, what the rfc8785 package makes of the same object."""
    (salt,) = new_salts(1)
    leaf = salted(event_body(index, row), salt)
    columns = dict(zip(("id", *EVENT_FIELDS, "number"), row, strict=True))
    said = {**columns, "index": index, "kind": "event", "salt": salt.decode()}
    assert leaf == rfc8785.dumps(said)
    assert read_leaf(leaf) == said
    assert split_salt(leaf) == event_body(index, row)
    assert leaf[:-SALTED_BYTES] == event_body(index, row)[:-1]
    assert b"\n" not in leaf


@given(texts.filter(lambda text: text is not None), texts, numbers, st.integers(0, 2**53 - 9))
def test_other_leaves_are_rfc_8785_too(name, previous, at, index):
    """So are those that are of no event."""
    for leaf in (origin_leaf(name, previous, at), missing_leaf(index, index, index + 3, at)):
        assert leaf == rfc8785.dumps(json.loads(leaf))
        assert split_salt(leaf) is not None
        assert b"\n" not in leaf


def test_salts_differ():
    """No two leaves of the same event are equal: their hashes tell nothing to who guesses."""
    salts = list(new_salts(100))
    assert len(set(salts)) == 100
    assert {len(salt) for salt in salts} == {32}


@pytest.mark.parametrize("leaf", [b"", b"{}", b'{"a":1,"salt":"short"}', b'x"salt":"' + b"g" * 34])
def test_leaf_without_a_salt(leaf):
    """What does not end in a salt has none."""
    assert split_salt(leaf) is None


@pytest.mark.parametrize("leaf", [b"", b"[]", b"{", b"\xff", b"1"])
def test_leaf_that_is_none(leaf):
    """What is no JSON object is refused in one way."""
    with pytest.raises(ValueError, match="no JSON object"):
        read_leaf(leaf)


@given(st.binary(min_size=32, max_size=32))
def test_macs_are_hmac_sha256(key):
    """The MACs are those of the standard library's HMAC."""
    message = json.dumps(["akm-log-state-1", 7, None], separators=(",", ":")).encode()
    expected = hmac.digest(key, message, "sha256")
    assert EventMacs(key).of("akm-log-state-1", 7, None) == expected
    assert EventMacs(key).vouches(expected, "akm-log-state-1", 7, None)


def test_stamped_rows_fit():
    """Events get numbers in order and MACs that fit wherever their rows lie."""
    stamped = MACS.stamp(7, [(EVENT, 3), (EVENT, None)])
    assert [row[-2] for row in stamped] == [7, 8]
    assert [row[-3] for row in stamped] == [3, None]
    assert all(MACS.fits((99, *row)) for row in stamped)
    assert not any(EventMacs(bytes(32)).fits((99, *row)) for row in stamped)


@pytest.mark.parametrize("column", range(13))
def test_edited_row_does_not_fit(column):
    """An edit of any column but the id shows; so does another type that JSON writes alike."""
    (row,) = MACS.stamp(7, [(EVENT, 3)])
    edited = list(row)
    for value in (None, "x", 12, b"key_created", 1.0, b""):
        if (type(value), value) != (type(row[column]), row[column]):
            edited[column] = value
            assert not MACS.fits((99, *edited)), value
