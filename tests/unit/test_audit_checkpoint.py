"""Checkpoints: C2SP's signed notes, against their own example."""

from __future__ import annotations

import base64

import pytest

from api_key_manager.audit.checkpoint import Checkpoint, Signer, Verifier, read_text
from api_key_manager.core import ValidationError

SIGNER = Signer(bytes(range(32)))
NAME = "api-key-manager-pro/abc/1"
CHECKPOINT = Checkpoint(NAME, 12, bytes(32))
NOTE = SIGNER.sign(NAME, CHECKPOINT.text())
VERIFIER = SIGNER.verifier(NAME)


def test_published_note(vectors):
    """The example of the specification verifies under its key, and no other text does."""
    case = vectors("published-examples.json")["c2sp_signed_note"]
    name, text = case["name"], case["text"]
    key = f"{name}+{case['key_id_hex']}+{case['verifier_key_base64']}"
    note = f"{text}\n\u2014 {name} {case['signature_base64']}\n"
    assert Verifier.read(key).verify(note) == text
    assert str(Verifier.read(key)) == key
    with pytest.raises(ValidationError, match="signature is wrong"):
        Verifier.read(key).verify(note.replace("an example", "an exemple"))


def test_checkpoint_goes_round():
    """What is signed is read again by the key's text alone."""
    assert Verifier.read(str(VERIFIER)).open(NOTE) == CHECKPOINT
    assert NOTE.startswith(f"{NAME}\n12\n{base64.b64encode(bytes(32)).decode()}\n\n\u2014 {NAME} ")


def test_other_signatures_are_skipped():
    """A witness may sign as well; its line is neither needed nor believed."""
    other = Signer(bytes(32)).sign("witness", CHECKPOINT.text()).rpartition("\n\n")[2]
    assert VERIFIER.open(NOTE + other) == CHECKPOINT
    with pytest.raises(ValidationError, match="no signature by"):
        VERIFIER.open(CHECKPOINT.text() + "\n" + other)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "x",
        NOTE[:-1],
        NOTE.replace("\u2014 ", "- "),
        NOTE.replace("\n12\n", "\n13\n"),
        NOTE.replace(NAME, "other"),
        NOTE + NOTE.rpartition("\n\n")[2] * 20,
        NOTE[:-10] + "\n",
        NOTE.replace("\n\n", "\n"),
        CHECKPOINT.text() + "\n",
        "a" * 20_000 + NOTE,
    ],
)
def test_what_is_no_checkpoint(note):
    """Anything but the very note is refused."""
    with pytest.raises(ValidationError):
        VERIFIER.open(note)


@pytest.mark.parametrize("size", ["", "-1", "012", "1e3", "\u0661", "9" * 5000])
def test_malformed_size(size):
    """A signed text with an unusual size is none either."""
    with pytest.raises(ValidationError, match="checkpoint"):
        read_text(NOTE.replace("\n12\n", f"\n{size}\n"))


def test_checkpoint_of_another_log():
    """A key of one log does not open what it signed for another."""
    text = CHECKPOINT._replace(origin="elsewhere").text()
    with pytest.raises(ValidationError, match="another log"):
        VERIFIER.open(SIGNER.sign(NAME, text))


@pytest.mark.parametrize(
    "text",
    ["", "name", "name+id+key", str(VERIFIER).replace("+", "-"), f"x{VERIFIER}"],
)
def test_what_is_no_verifier_key(text):
    """A key's text names its holder, and its id fits both."""
    with pytest.raises(ValidationError, match="verifier key"):
        Verifier.read(text)


def test_repr_shows_no_key():
    """Nothing that may be logged holds the key."""
    assert repr(SIGNER) == "Signer()"
