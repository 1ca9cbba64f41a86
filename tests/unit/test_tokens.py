"""Ids, secrets and bearer tokens: what is minted reads back, and nothing else does."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api_key_manager.core import KeyExistsError, ValidationError
from api_key_manager.core.tokens import (
    ALPHABET,
    MAX_SECRET_BYTES,
    ParsedToken,
    check_bearer_id,
    check_key_id,
    check_new_id,
    check_prefix,
    checksum,
    holds_a_secret,
    is_key_id,
    mint_id,
    mint_secret,
    mint_token,
    parse_token,
    secret_bytes,
)
from api_key_manager.webhooks.signing import mint

ids = st.text(string.ascii_letters + string.digits + ".:-", min_size=1, max_size=128)
prefixes = st.from_regex(r"[a-z][a-z0-9]{0,6}(_[a-z0-9]{1,6}){0,3}", fullmatch=True)


def test_checksum_is_githubs(vectors):
    """The checksum is the one that GitHub documents, so scanners can verify a find."""
    published = vectors("published-examples.json")["github_token_checksum"]
    assert published["alphabet"] == ALPHABET
    assert checksum(published["random"]) == published["crc32_base62"]


def test_checksum_known_values():
    """CRC-32 in base62 digits 0-9A-Za-z, most significant first, padded with zeros."""
    assert checksum("") == "000000"
    assert checksum("zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ") == "0mLq17"


@given(prefixes, ids)
def test_minted_token_reads_back(prefix: str, key_id: str):
    """A minted token names its prefix and id, also when the prefix itself holds underscores."""
    token = mint_token(prefix, key_id)
    assert re.fullmatch(rf"{prefix}_{re.escape(key_id)}_[0-9A-Za-z]{{36}}", token)
    assert parse_token(token) == ParsedToken(prefix, key_id)


@given(prefixes, ids, st.data())
def test_any_single_character_matters(prefix: str, key_id: str, data: st.DataObject):
    """One character changed, dropped or put in: the token is refused without the store."""
    token = mint_token(prefix, key_id)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != token[at]))
    assert parse_token(token[:at] + other + token[at + 1 :]) is None
    shorter, longer = token[:at] + token[at + 1 :], token[:at] + other + token[at:]
    assert parse_token(shorter) is None
    assert parse_token(longer) is None


@given(st.text() | st.integers() | st.none() | st.binary())
@example("_" * 40)
@example("akm_id_" + "0" * 36)
@example("_id_" + "a" * 36)
def test_other_things_are_no_tokens(value: object):
    """Whatever was not minted is refused, and never raises."""
    assert parse_token(value) is None


def test_right_checksum_does_not_excuse_the_form():
    """A correct checksum over a bad prefix, id, secret or length is refused all the same."""
    tail = "a" * 30
    for head in (f"Akm_id_{tail}", f"akm__{tail}", f"akm_i d_{tail}", f"_id_{tail}", f"id_{tail}",
                 f"akm_id_{tail}a", f"akm_id_{tail[1:]}", f"1akm_id_{tail}", f"akm__x_id_{tail}",
                 f"{'a' * 49}_id_{tail}", f"akm_{'a' * 129}_{tail}"):  # fmt: skip
        assert parse_token(head + checksum(head)) is None
    assert parse_token(f"akm_id_{tail}" + checksum(f"akm_id_{tail}")) == ("akm", "id")


def test_text_like_objects_are_refused():
    """Only plain text is read: a subclass could say one thing and be another."""

    class Text(str):
        pass

    assert parse_token(Text(mint_token("akm", "id"))) is None


def test_minted_secret_has_the_scannable_form():
    """Secrets of signed keys carry prefix and checksum too."""
    secret = mint_secret("acme_live")
    assert re.fullmatch(r"acme_live_secret_[0-9A-Za-z]{36}", secret)
    assert secret[-6:] == checksum(secret[:-6])


def test_minted_values_are_new():
    """Nothing minted twice, every character of the alphabet in use, ids of 16 characters."""
    minted = [mint_id() for _ in range(1000)]
    assert len(set(minted)) == 1000
    assert {len(key_id) for key_id in minted} == {16}
    assert set("".join(minted)) == set(ALPHABET)
    assert len({mint_token("akm", "id") for _ in range(100)}) == 100


@given(st.text(max_size=130))
@example("a" * 128)
@example("a" * 129)
@example("")
@example("id\n")
@example("a\x00b")
@example("\N{PILE OF POO}")
@example("é")
@example("٣")
def test_key_id_alphabet(text: str):
    """1 to 128 of A-Z a-z 0-9 . _ : - and nothing else, a trailing newline included."""
    allowed = string.ascii_letters + string.digits + "._:-"
    good = 1 <= len(text) <= 128 and all(char in allowed for char in text)
    assert bool(is_key_id(text)) is good
    if good:
        assert check_key_id(text) == text
    else:
        with pytest.raises(ValidationError, match="key_id"):
            check_key_id(text)


@pytest.mark.parametrize("value", [None, 1, b"id", ["id"], True])
def test_key_id_is_text(value: object):
    """What is no text is no id."""
    with pytest.raises(ValidationError):
        check_key_id(value)


def test_bearer_id_holds_no_underscore():
    """A token is split at underscores, so the id of a bearer key has none."""
    assert check_bearer_id("client-1") == "client-1"
    with pytest.raises(ValidationError, match="_"):
        check_bearer_id("client_1")


@pytest.mark.parametrize("prefix", ["a", "akm", "acme_live", "a1_2_3", "a" * 48])
def test_good_prefixes(prefix: str):
    """Lower-case groups joined by single underscores."""
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize(
    "prefix", ["", "A", "1a", "_a", "a_", "a__b", "a-b", "a\n", "a" * 49, "ä", None, 7]
)
def test_bad_prefixes(prefix: object):
    """Anything else is refused, a trailing newline included."""
    with pytest.raises(ValidationError, match="prefix"):
        check_prefix(prefix)


@pytest.mark.parametrize(
    ("secret", "raw"),
    [
        ("s", b"s"), ("pässword", "pässword".encode()), ("x" * 1024, b"x" * 1024), ("", None),
        ("x" * (MAX_SECRET_BYTES + 1), None), ("ä" * 513, None), ("\ud800", None), (b"s", None),
        (None, None), (5, None),
    ],
)  # fmt: skip
def test_secret_bytes(secret: object, raw: bytes | None):
    """The MAC key is the secret's UTF-8 bytes, 1 to 1024 of them."""
    assert secret_bytes(secret) == raw


@pytest.mark.parametrize("mint", [lambda: mint_secret("akm"), lambda: mint_token("akm", "client")])
def test_a_secret_is_never_an_id(mint):
    """Ids are logged: what ends like one of our secrets is refused as one, and not repeated."""
    secret = mint()
    with pytest.raises(ValidationError) as caught:
        check_key_id(secret)
    assert secret not in str(caught.value)
    assert check_key_id(secret[:-1] + ("0" if secret[-1] != "0" else "1"))


def test_a_webhook_secret_is_found():
    """It has no checksum: its form is enough, wherever it stands."""
    secret = mint()
    for text in (secret, f"see {secret}, please", f'{{"a": "{secret}"}}', f"x_{secret}"):
        assert holds_a_secret(text)
    assert not holds_a_secret("the secret that begins with whsec_ is not in here")


def test_id_of_the_first_token_is_reserved():
    """Only an admin token can be called so; to name one that is there stays allowed."""
    with pytest.raises(KeyExistsError):
        check_new_id("first-admin", "default")
    assert check_new_id("first-admin", "admin") == "first-admin"
    assert check_new_id("first-admin2", "default") == "first-admin2"
    assert check_key_id("first-admin") == "first-admin"
    with pytest.raises(ValidationError):
        check_new_id("a b", "admin")
