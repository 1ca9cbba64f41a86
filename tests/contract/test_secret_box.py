"""What every secret box promises: what was put in comes out, in its own place only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_key_manager.core import ApiKey, EncryptionError, KeyVersion

names = st.from_regex(r"[A-Za-z0-9._:-]{1,40}", fullmatch=True)
places = st.tuples(st.sampled_from(["secret", "answer"]), names, st.integers(0, 2**40))
SECRET = b"a-secret-that-must-not-be-seen-at-rest"


@pytest.fixture
def box(backend):
    return backend.box


@given(places, st.binary(min_size=1, max_size=2000))
@settings(max_examples=50)
async def test_round_trip(box, place, plaintext: bytes):
    """What was sealed opens under the same purpose, name and version, any number of times."""
    sealed = box.seal(*place, plaintext)
    assert box.open(*place, sealed) == plaintext
    assert box.open(*place, sealed) == plaintext


@given(places, places, st.binary(min_size=1, max_size=40))
@settings(max_examples=50)
async def test_bound_to_its_place(box, place, other, plaintext: bytes):
    """It opens in no other place: another purpose, name or version each."""
    sealed = box.seal(*place, plaintext)
    for i in range(3):
        moved = (*place[:i], other[i], *place[i + 1 :])
        if moved != place:
            with pytest.raises(EncryptionError):
                box.open(*moved, sealed)


async def test_every_byte_counts(box):
    """No byte can be changed, dropped or added."""
    sealed = box.seal("secret", "k", 1, SECRET)
    for i in range(len(sealed)):
        with pytest.raises(EncryptionError):
            box.open("secret", "k", 1, sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :])
    for wrong in (b"", sealed[:1], sealed[:-1], sealed + b"\0", b"\0" + sealed, sealed[:32]):
        with pytest.raises(EncryptionError):
            box.open("secret", "k", 1, wrong)


async def test_no_secret_at_rest(backend):
    """What goes to disk holds no piece of the plaintext, and no two seals are alike."""
    if not backend.persistent:
        pytest.skip("the memory box keeps nothing at rest")
    sealed = [backend.box.seal("secret", "k", 1, SECRET) for _ in range(20)]
    assert len(set(sealed)) == 20
    for one in sealed:
        assert all(SECRET[i : i + 6] not in one for i in range(len(SECRET) - 6))


async def test_digest(box):
    """A token's digest is that of its numbered pepper, 32 bytes, and not the token's hash."""
    number, digest = box.digest(b"token")
    assert box.digest(b"token") == (number, digest)
    assert box.pepper(number).digest(b"token") == digest
    assert len(digest) == 32
    assert box.digest(b"tokem")[1] != digest
    for unknown in (0, number + 1, -1):
        with pytest.raises(EncryptionError):
            box.pepper(unknown)


async def test_record_mac(box):
    """The MAC is 32 bytes over the record's covered columns, and a secret's: not anyone's."""
    record = ApiKey("k", "signed", 1, 2, (KeyVersion(1, 1, sealed=b"s"),), revision=3)
    mac = box.record_mac(record)
    assert len(mac) == 32
    assert box.record_mac(replace(record, mac=mac, last_used_at=9)) == mac
    for edited in (replace(record, revision=4), replace(record, disabled=True)):
        assert box.record_mac(edited) != mac


async def test_errors_and_repr_hide(box):
    """Neither `repr` nor an error shows a secret or a key."""
    sealed = box.seal("secret", "k", 1, SECRET)
    with pytest.raises(EncryptionError) as caught:
        box.open("secret", "k", 2, sealed)
    number, _ = box.digest(b"token")
    shown = repr(box) + repr(box.pepper(number)) + str(caught.value) + repr(caught.value)
    assert SECRET.decode() not in shown
    assert "\\x" not in shown
    assert len(repr(box)) < 40


async def test_marks_are_keyed_and_stay(backend):
    """The mark of a secret is the same each time, 16 bytes, another for another secret."""
    box = backend.box
    assert box.mark(b"one") == box.mark(b"one") != box.mark(b"two")
    assert len(box.mark(b"one")) == 16
