"""Envelopes: what they are made of, and that they open for nobody else."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from api_key_manager.core.exceptions import EncryptionError
from api_key_manager.encryption import DATA, EnvelopeBox, Keyring
from api_key_manager.encryption.envelopes import _bound


@pytest.fixture
def keyring_and_box() -> tuple[Keyring, EnvelopeBox]:
    keyring = Keyring.fresh()
    return keyring, EnvelopeBox(keyring)


def test_an_envelope_opens_with_the_library_s_own_hkdf_and_aes(keyring_and_box) -> None:
    """The format is what the docstring says, byte for byte, by independent code."""
    keyring, box = keyring_and_box
    sealed = box.seal("secret", "client-123", 2, b"hello")
    assert sealed[:5] == b"\x01\x00\x00\x00\x01"
    bound = b"akm-envelope-1\n1 2 6:secret10:client-123"
    key = HKDFExpand(SHA256(), 32, info=bound).derive(keyring.get(DATA, 1))
    assert AESGCM(key).decrypt(sealed[5:17], sealed[17:], bound) == b"hello"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "bc", 1, 1), ("ab", "c", 1, 1)),
        (("a", "1:b", 1, 1), ("a", "b", 1, 1)),
        (("a", "b", 1, 11), ("a", "b", 11, 1)),
        (("a", "b", 11, 1), ("a", "b", 1, 11)),
    ],
)
def test_no_field_runs_into_its_neighbour(one, other) -> None:
    """Different things are bound to different bytes, however their texts are cut."""
    assert _bound(*one) != _bound(*other)


def test_sealing_twice_shows_nothing_of_the_plaintext(keyring_and_box) -> None:
    """Two envelopes of one text differ, and neither holds it."""
    _, box = keyring_and_box
    one, other = (box.seal("secret", "k", 1, b"plaintext") for _ in range(2))
    assert one != other
    assert b"plaintext" not in one + other


@pytest.mark.parametrize("cut", [0, 4, 5, 17, 20])
def test_a_short_envelope_is_refused(keyring_and_box, cut) -> None:
    """Truncated bytes are an EncryptionError, not an accident."""
    _, box = keyring_and_box
    sealed = box.seal("secret", "k", 1, b"hello")
    with pytest.raises(EncryptionError):
        box.open("secret", "k", 1, sealed[:cut])
