"""Ids, secrets and bearer tokens: how they are minted, written and read back.

A bearer token is ``<prefix>_<key_id>_<secret><checksum>``, a signed key's secret is
``<prefix>_secret_<secret><checksum>``: thirty base62 characters from the system's generator
(178 bits) and the CRC-32 of all that precedes it. The checksum lets scanners find a leaked token
and filters typing errors before the store is asked; it protects nothing.
"""

from __future__ import annotations

import re
import secrets
import zlib
from typing import NamedTuple

from api_key_manager.core.exceptions import KeyExistsError, ValidationError
from api_key_manager.core.models import ADMIN_REALM

__all__ = [
    "ALPHABET",
    "FIRST_TOKEN_ID",
    "MAX_PREFIX",
    "MAX_SECRET_BYTES",
    "MAX_TOKEN",
    "ParsedToken",
    "check_bearer_id",
    "check_key_id",
    "check_new_id",
    "check_prefix",
    "checksum",
    "ends_like_a_secret",
    "holds_a_secret",
    "is_key_id",
    "mint_id",
    "mint_secret",
    "mint_token",
    "parse_token",
    "secret_bytes",
]

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FIRST_TOKEN_ID = "first-admin"
"""Of the admin token that a database mints once. A fixed id makes the row unique: of two first
starts at once one mints."""
MAX_SECRET_BYTES = 1024
MAX_PREFIX = 48
MAX_TOKEN = MAX_PREFIX + 1 + 128 + 1 + 36
"""The longest token or minted secret, in characters."""

_ID_LENGTH = 16
_SECRET_LENGTH = 30
_CHECKSUM_LENGTH = 6
_TAIL_LENGTH = _SECRET_LENGTH + _CHECKSUM_LENGTH

is_key_id = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch
_is_prefix = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*").fullmatch
_is_tail = re.compile(r"[0-9A-Za-z]{36}").fullmatch


class ParsedToken(NamedTuple):
    """What a well-formed bearer token says of itself. Nothing of it is proved yet."""

    prefix: str
    key_id: str


def checksum(text: str) -> str:
    """CRC-32 of ASCII ``text`` as six base62 characters, left-padded with ``0``.

    The form that GitHub documents for its own tokens.
    """
    value = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return digits


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def mint_id() -> str:
    """A new key id: 16 base62 characters (95 bits)."""
    return _random(_ID_LENGTH)


def mint_secret(prefix: str) -> str:
    """A new secret for a signed key. The MAC key is its UTF-8 bytes, as shown."""
    return _with_checksum(f"{prefix}_secret_{_random(_SECRET_LENGTH)}")


def mint_token(prefix: str, key_id: str) -> str:
    """A new bearer token for ``key_id``, which must hold no ``_``."""
    return _with_checksum(f"{prefix}_{key_id}_{_random(_SECRET_LENGTH)}")


def _with_checksum(text: str) -> str:
    return text + checksum(text)


def parse_token(token: object) -> ParsedToken | None:
    """Read a bearer token from the right; ``None`` when it cannot be one of ours."""
    if type(token) is not str or len(token) > MAX_TOKEN or not token.isascii():
        return None
    head, _, tail = token.rpartition("_")
    prefix, _, key_id = head.rpartition("_")
    if not (_is_tail(tail) and is_key_id(key_id) and len(prefix) <= MAX_PREFIX):
        return None
    if not _is_prefix(prefix) or checksum(token[:-_CHECKSUM_LENGTH]) != tail[_SECRET_LENGTH:]:
        return None
    return ParsedToken(prefix, key_id)


def ends_like_a_secret(text: str) -> bool:
    """Whether ASCII ``text`` ends as minted secrets and tokens do, with a checksum that fits.

    Such a text is never an id: ids are logged, and whoever mixes the fields up must not find a
    secret there.
    """
    tail = text[-_TAIL_LENGTH:]
    return (
        len(text) > _TAIL_LENGTH
        and _is_tail(tail) is not None
        and checksum(text[:-_CHECKSUM_LENGTH]) == tail[_SECRET_LENGTH:]
    )


_secret_ends = re.compile(r"_[0-9A-Za-z]{36}(?![0-9A-Za-z])").finditer
_may_start = re.compile(r"(?<![A-Za-z0-9_])[a-z]").finditer
_LONGEST = MAX_TOKEN
# 24 bytes and more in base64 (Standard Webhooks 1.0); they have no checksum.
_webhook_secret = re.compile(r"whsec_[A-Za-z0-9+/]{32}").search


def holds_a_secret(text: str) -> bool:
    """Whether a minted secret or token stands anywhere in ``text``, told by its checksum, or what
    has the form of a webhook's secret.

    For whatever is written down in clear and comes from people: they paste.
    """
    if len(text) <= _TAIL_LENGTH:
        return False
    if _webhook_secret(text) is not None:
        return True
    for found in _secret_ends(text):
        end = found.end()
        for start in _may_start(text, max(0, end - _LONGEST), found.start()):
            candidate = text[start.start() : end]
            if candidate.isascii() and ends_like_a_secret(candidate):
                return True
    return False


def check_key_id(key_id: object) -> str:
    """Return ``key_id``.

    Raises:
        ValidationError: it is not 1 to 128 of ``A-Z a-z 0-9 . _ : -``, or looks like a secret.
    """
    if type(key_id) is str and is_key_id(key_id) and ends_like_a_secret(key_id):
        raise ValidationError("key_id: this looks like a secret or token, which is no id")
    if type(key_id) is not str or not is_key_id(key_id):
        raise ValidationError("key_id: 1 to 128 characters of A-Z a-z 0-9 . _ : - are allowed")
    return key_id


def check_new_id(key_id: object, realm: str) -> str:
    """Return ``key_id``, which shall be a new key's.

    Raises:
        KeyExistsError: it is kept for the first admin token, which could not be minted any more.
        ValidationError: as :func:`check_key_id`.
    """
    if key_id == FIRST_TOKEN_ID and realm != ADMIN_REALM:
        raise KeyExistsError("key_id: this id is taken")
    return check_key_id(key_id)


def check_bearer_id(key_id: str) -> str:
    """Return ``key_id``.

    Raises:
        ValidationError: it holds a ``_``, at which a token could be split wrongly.
    """
    if "_" in key_id:
        raise ValidationError("key_id: the id of a bearer key must not contain _")
    return key_id


def check_prefix(prefix: object) -> str:
    """Return ``prefix``.

    Raises:
        ValidationError: it is no ``[a-z][a-z0-9]*(_[a-z0-9]+)*`` of at most 48 characters.
    """
    if type(prefix) is not str or len(prefix) > MAX_PREFIX or not _is_prefix(prefix):
        raise ValidationError(
            "prefix: at most 48 lower-case letters and digits in groups joined by _,"
            " beginning with a letter"
        )
    return prefix


def secret_bytes(secret: object) -> bytes | None:
    """The MAC key of a secret: its UTF-8 bytes, or ``None`` when it is unusable."""
    if type(secret) is not str:
        return None
    try:
        raw = secret.encode()
    except UnicodeEncodeError:
        return None
    return raw if 0 < len(raw) <= MAX_SECRET_BYTES else None
