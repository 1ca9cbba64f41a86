"""AES-256-GCM against Project Wycheproof's vectors, by the library's own calls."""

from __future__ import annotations

from collections import Counter

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from api_key_manager.core import EncryptionError
from api_key_manager.encryption import DATA, EnvelopeBox, Keyring, LocalKey, MasterKey, envelopes


def test_wycheproof(vectors):
    """Every valid 256-bit vector opens and is made alike; every invalid one is refused."""
    seen: Counter[str] = Counter()
    for group in vectors("wycheproof-aes_gcm.json")["testGroups"]:
        # Other nonces than of 96 bits are never made nor taken here: the envelope has room for 12
        # bytes, and its tests cut them off and prolong them.
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            seen["other sizes"] += len(group["tests"])
            continue
        for test in group["tests"]:
            key, nonce, aad, plain, cipher, tag = (
                bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            seen[test["result"]] += 1
            if test["result"] == "valid":
                assert AESGCM(key).decrypt(nonce, cipher + tag, aad) == plain, test["tcId"]
                assert AESGCM(key).encrypt(nonce, plain, aad) == cipher + tag, test["tcId"]
            else:
                with pytest.raises(InvalidTag):
                    AESGCM(key).decrypt(nonce, cipher + tag, aad)
    assert seen == {"valid": 39, "invalid": 27, "other sizes": 316 - 39 - 27}


def test_wycheproof_other_nonces(vectors):
    """So do the 256-bit vectors whose nonce has another length, as far as the library takes one:
    shorter than 8 bytes and longer than 128 it refuses."""
    seen: Counter[str] = Counter()
    for group in vectors("wycheproof-aes_gcm.json")["testGroups"]:
        if group["keySize"] != 256 or group["ivSize"] == 96:
            continue
        for test in group["tests"]:
            key, nonce, aad, plain, cipher, tag = (
                bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            if not 8 <= len(nonce) <= 128:
                seen["refused"] += 1
                with pytest.raises(ValueError, match="between 8 and 128"):
                    AESGCM(key).decrypt(nonce, cipher + tag, aad)
            else:
                seen[test["result"]] += 1
                assert test["result"] == "valid"
                assert AESGCM(key).decrypt(nonce, cipher + tag, aad) == plain, test["tcId"]
    assert sum(seen.values()) == 39


def test_envelope_keys_are_hkdf(monkeypatch):
    """The key of an envelope is HKDF-Expand (RFC 5869) of the data key, as the library makes it."""
    made: list[bytes] = []

    def spy(key: bytes) -> AESGCM:
        made.append(key)
        return AESGCM(key)

    ring = Keyring.fresh()
    monkeypatch.setattr(envelopes, "AESGCM", spy)
    EnvelopeBox(ring).seal("secret", "k", 7, b"x")
    bound = envelopes._bound("secret", "k", 7, 1)
    assert made == [HKDFExpand(SHA256(), 32, info=bound).derive(ring.get(DATA, 1))]


@pytest.fixture
def box() -> EnvelopeBox:
    return EnvelopeBox(Keyring.fresh())


def test_any_flipped_bit_is_found(box):
    """An envelope with any one bit changed, cut short or prolonged does not open."""
    sealed = box.seal("secret", "k", 1, b"the secret")
    assert box.open("secret", "k", 1, sealed) == b"the secret"
    wrong = [
        sealed[:i] + bytes([sealed[i] ^ (1 << bit)]) + sealed[i + 1 :]
        for i in range(len(sealed))
        for bit in range(8)
    ]
    wrong += [sealed[:length] for length in range(len(sealed))] + [sealed + b"\0"]
    for bad in wrong:
        with pytest.raises(EncryptionError):
            box.open("secret", "k", 1, bad)


@pytest.mark.parametrize(
    "bound", [("secre", "tk", 1), ("secret", "k1", 1), ("secret", "k", 11), ("token", "k", 1)]
)
def test_envelope_opens_in_its_own_place_only(box, bound):
    """Purpose, name and version are bound, and none can borrow from its neighbour."""
    sealed = box.seal("secret", "k", 1, b"the secret")
    with pytest.raises(EncryptionError):
        box.open(*bound, sealed)


def test_same_secret_never_looks_the_same(box):
    """Two envelopes of one secret share no byte pattern beyond their head."""
    first, second = (box.seal("secret", "k", 1, b"the secret") for _ in range(2))
    assert first[:5] == second[:5]
    assert first[5:17] != second[5:17]
    assert first[17:] != second[17:]


def test_repr_shows_no_key(box):
    """Master key, keyring and box print as names."""
    master = MasterKey(b"\xabMARKED-MASTER-KEY-32-BYTES-LONG", "a test")
    ring = Keyring.fresh()
    shown = repr([master, LocalKey(master), ring, box, ring.__class__])
    assert "MARKED" not in shown
    assert ring.get(DATA, 1).hex() not in shown
    assert repr(ring.get(DATA, 1)) not in shown
