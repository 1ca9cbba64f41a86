"""Single examples that others have published, by the one function that makes all MACs here."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from api_key_manager.core.signing import mac


@pytest.fixture(scope="module")
def published(vectors):
    return vectors("published-examples.json")


def test_none_is_left_out(published):
    """Each has its test: these here, and the token checksum's beside the tokens' own."""
    mine = {"standard_webhooks", "c2sp_signed_note", "kong_hmac_auth", "apisix_hmac_auth"}
    assert published.keys() == mine | {"github_token_checksum"}


def test_standard_webhooks(published):
    """A delivery's signature covers id, timestamp and body, joined by full stops."""
    given = published["standard_webhooks"]
    signed = f"{given['id']}.{given['timestamp']}.{given['body']}".encode()
    made = mac(b64decode(given["secret_base64"]), signed, "sha256")
    assert f"v1,{b64encode(made).decode()}" == given["signature"]


@pytest.mark.parametrize("gateway", ["kong_hmac_auth", "apisix_hmac_auth"])
def test_gateways(published, gateway: str):
    """The signing strings of other gateways, under their secrets."""
    given = published[gateway]
    made = mac(given["secret"].encode(), given["signing_string"].encode(), "sha256")
    assert b64encode(made).decode() == given["signature_base64"]


def test_signed_note(published):
    """A note's key id names its key; its signature fits its text, and no other."""
    given = published["c2sp_signed_note"]
    key = b64decode(given["verifier_key_base64"])
    named = hashlib.sha256(given["name"].encode() + b"\n" + key).digest()[:4]
    signature = b64decode(given["signature_base64"])
    assert named.hex() == given["key_id_hex"] == signature[:4].hex()
    verifier = Ed25519PublicKey.from_public_bytes(key[1:])
    assert key[0] == 1  # Ed25519
    verifier.verify(signature[4:], given["text"].encode())
    with pytest.raises(InvalidSignature):
        verifier.verify(signature[4:], given["text"].encode() + b"\n")
