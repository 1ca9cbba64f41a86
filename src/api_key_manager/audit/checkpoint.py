"""Checkpoints: how large the log is and its root, signed, as C2SP's ``tlog-checkpoint`` has it.

A checkpoint is a C2SP *signed note* whose text is the log's origin, its size and its root, a line
each. Whoever has the verifier key needs nothing else of ours to check it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from api_key_manager.core.exceptions import ValidationError

__all__ = ["Checkpoint", "Signer", "Verifier", "read_text"]

_ED25519: Final = b"\x01"
_ID_BYTES: Final = 4
_SIGNATURE_BYTES: Final = 64
_MOST_SIGNATURES: Final = 16
_MOST_CHARACTERS: Final = 16_384
_MARK: Final = "\u2014 "


class Checkpoint(NamedTuple):
    """What a checkpoint says."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The signed text."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def read_text(note: str) -> Checkpoint:
    """What a note says, unverified; lines behind the root are allowed and skipped.

    Raises:
        ValidationError: it is no checkpoint.
    """
    lines = note.split("\n\n", 1)[0].split("\n")
    if len(lines) < 3 or not lines[0] or not lines[1].isascii() or not lines[1].isdigit():
        raise ValidationError("checkpoint: the lines origin, size and root are expected")
    root = _decoded(lines[2])
    if str(int(lines[1][:20])) != lines[1] or len(root) != 32:
        raise ValidationError("checkpoint: its size or root is malformed")
    return Checkpoint(lines[0], int(lines[1]), root)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_ID_BYTES]


class Verifier:
    """Checks notes by one key.

    Args:
        name: of the key: the log's origin.
        public: the 32 bytes of an Ed25519 public key.
    """

    __slots__ = ("_id", "_key", "_public", "name")

    def __init__(self, name: str, public: bytes) -> None:
        self.name = name
        self._public = public
        self._key = Ed25519PublicKey.from_public_bytes(public)
        self._id = _key_id(name, public)

    @classmethod
    def read(cls, text: str) -> Verifier:
        """From a verifier key's text, ``name+id+key``.

        Raises:
            ValidationError: it is none, or of another algorithm than Ed25519.
        """
        # Base64 may hold a plus sign.
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _decoded(encoded)
        if not name or len(raw) != 33 or raw[:1] != _ED25519:
            raise ValidationError("verifier key: name+id+key is expected, an Ed25519 one")
        if key_id.lower() != _key_id(name, raw[1:]).hex():
            raise ValidationError("verifier key: its id does not fit its name and key")
        return cls(name, raw[1:])

    def __str__(self) -> str:
        key = base64.b64encode(_ED25519 + self._public).decode()
        return f"{self.name}+{self._id.hex()}+{key}"

    def verify(self, note: str) -> str:
        """The signed text of a note.

        Signatures of other keys are skipped, as the specification has it.

        Raises:
            ValidationError: no signature of this key, or a wrong one.
        """
        head, gap, tail = note.rpartition("\n\n")
        if not gap or len(note) > _MOST_CHARACTERS or not tail.endswith("\n"):
            raise ValidationError("checkpoint: it is no signed note")
        text, lines = head + "\n", tail[:-1].split("\n")
        if len(lines) > _MOST_SIGNATURES:
            raise ValidationError("checkpoint: it has too many signatures")
        verified = False
        for line in lines:
            name, _, encoded = line.removeprefix(_MARK).partition(" ")
            raw = _decoded(encoded)
            if not line.startswith(_MARK) or not name or len(raw) <= _ID_BYTES:
                raise ValidationError("checkpoint: a signature line is malformed")
            if name != self.name or raw[:_ID_BYTES] != self._id:
                continue
            if len(raw) != _ID_BYTES + _SIGNATURE_BYTES:
                raise ValidationError("checkpoint: its signature has a wrong length")
            try:
                self._key.verify(raw[_ID_BYTES:], text.encode())
            except InvalidSignature:
                raise ValidationError("checkpoint: its signature is wrong") from None
            verified = True
        if not verified:
            raise ValidationError(f"checkpoint: it has no signature by {self.name}")
        return text

    def open(self, note: str) -> Checkpoint:
        """What a checkpoint of this key says.

        Raises:
            ValidationError: it is none, or of another log.
        """
        checkpoint = read_text(self.verify(note))
        if checkpoint.origin != self.name:
            raise ValidationError("checkpoint: it is of another log than its key")
        return checkpoint


class Signer:
    """Signs checkpoints. Its ``repr`` shows no key.

    Args:
        seed: 32 bytes, the Ed25519 private key (RFC 8032).
    """

    __slots__ = ("_key", "_public")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "Signer()"

    def verifier(self, name: str) -> Verifier:
        """Who checks what is signed under a name."""
        return Verifier(name, self._public)

    def sign(self, name: str, text: str) -> str:
        """The signed note of a text, which ends in a line break."""
        signature = _key_id(name, self._public) + self._key.sign(text.encode())
        return f"{text}\n{_MARK}{name} {base64.b64encode(signature).decode()}\n"
