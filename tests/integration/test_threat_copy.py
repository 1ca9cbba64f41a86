"""Somebody who has a copy of the database, every row of it, and no master key."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from api_key_manager.core import KeyManager, sign
from api_key_manager.core.models import ADMIN_REALM, KEY_REALM
from api_key_manager.core.tokens import checksum
from tests.integration import marks
from tests.integration.attackers import dump
from tests.integration.places import Place


@pytest.fixture
def place(either_place: Place) -> Place:
    return either_place


class Loot:
    """What the victims have, and what stands in the copy."""

    def __init__(self, made: dict[str, dict[str, Any]], copy: dict[str, list[tuple[Any, ...]]]):
        self.made = made
        self.copy = copy
        values = {value for rows in copy.values() for row in rows for value in row}
        self.bytes = sorted({bytes(v) for v in values if isinstance(v, bytes | memoryview)})
        self.texts = sorted({v for v in values if isinstance(v, str) and v})

    def windows(self) -> Iterator[bytes]:
        """Every stretch of 32 bytes that could be a key."""
        for value in self.bytes:
            for at in range(max(0, min(len(value), 512) - 31)):
                yield value[at : at + 32]
        for text in self.texts:
            yield hashlib.sha256(text.encode()).digest()

    def candidates(self) -> Iterator[str]:
        """Everything in the copy, in every form that a credential could have."""
        for value in self.bytes:
            for part in (value, value[5:], value[17:], value[-32:]):
                if 0 < len(part) <= 512:
                    yield part.hex()
                    yield base64.b64encode(part).decode()
                    yield base64.urlsafe_b64encode(part).rstrip(b"=").decode()
        yield from (text for text in self.texts if len(text) <= 512 and text.isascii())


async def looted(place: Place, manager: KeyManager) -> Loot:
    made = {
        "signed": await manager.create_key("signed", permissions=["*"]),
        "bearer": await manager.create_key("bearer", kind="bearer", permissions=["*"]),
        "admin": await manager.create_key(
            "admin", kind="bearer", realm=ADMIN_REALM, permissions=["admin"]
        ),
        "own": await manager.create_key("own", secret="chosen by its caller, not minted"),
    }
    await manager.rotate_key("signed", 3600)
    await manager.recorder.flush(manager.clock())
    return Loot(made, dump(place))


async def test_no_secret_is_in_it(place):
    """No secret and no token, in plain, hex, base64 or percent-encoded, at any alignment."""
    async with place.open(background=False) as deployment:
        loot = await looted(place, deployment.manager)
        shown = {
            name: marks.random_part(key.get("token") or key["secret"])
            for name, key in loot.made.items()
        }
        whole = b"\n".join([*loot.bytes, *(text.encode() for text in loot.texts)])
        assert marks.find(shown, whole) == []
        assert marks.find({"id": "signed"}, whole)  # the search itself finds


async def test_nothing_in_it_is_a_credential(place):
    """Whatever stands in the copy, as it is, in hex or in base64: none of it is a token, a part of
    a token, or the secret of a signed key."""
    async with place.open(background=False, AUDIT_VALIDATIONS="none") as deployment:
        manager = deployment.manager
        loot = await looted(place, manager)
        prefixes = {"bearer": "akm_bearer_", "admin": "akm_admin_"}
        at, tried, accepted = int(manager.clock()), 0, []
        for candidate in dict.fromkeys(loot.candidates()):
            shown: list[dict[str, Any]] = [{"token": candidate, "realm": KEY_REALM}]
            shown += [
                {"token": text + checksum(text), "realm": realm}
                for realm, text in (
                    (KEY_REALM, prefixes["bearer"] + candidate),
                    (ADMIN_REALM, prefixes["admin"] + candidate),
                )
            ]
            shown += [
                {"key_id": name, "signature": sign(candidate, name, at), "timestamp": at}
                for name in ("signed", "own")
            ]
            for each in shown:
                tried += 1
                if await manager.verify(**each):
                    accepted.append(each)
        assert tried > 500
        assert accepted == []
        for name in ("bearer", "admin"):  # the same prefixes, with the real thing
            assert loot.made[name]["token"].startswith(prefixes[name])


async def test_no_guess_can_be_checked(place):
    """Not even who knows a token or a secret finds its digest or its mark again: what is stored was
    made with a key that is not in the copy. Nor does anything in it open what is sealed."""
    async with place.open(background=False) as deployment:
        loot = await looted(place, deployment.manager)
    names = ("digest", "mark", "sealed")
    stored = {
        name: [
            bytes(value)
            for (value,) in place.sql(f"SELECT {name} FROM key_versions WHERE {name} IS NOT NULL")
            if value
        ]
        for name in names
    }
    known = [(k.get("token") or k["secret"]).encode() for k in loot.made.values()]
    plain = [
        digest
        for each in known
        for digest in (
            hashlib.sha256(each).digest(), hashlib.sha512(each).digest()[:32],
            hashlib.blake2b(each, digest_size=32).digest(), hashlib.sha3_256(each).digest(),
        )
    ]  # fmt: skip
    keyed = [hmac.digest(key, each, "sha256") for key in set(loot.windows()) for each in known]
    found = set(plain) | set(keyed)
    assert not found & set(stored["digest"])
    assert not {each[:16] for each in found} & set(stored["mark"])
    for envelope in stored["sealed"]:
        for key in set(loot.windows()):
            with pytest.raises(InvalidTag):
                AESGCM(key).decrypt(envelope[5:17], envelope[17:], None)


async def test_equal_secrets_do_not_show(place):
    """Two keys with one secret, of their caller's choosing, look like any two."""
    async with place.open(background=False) as deployment:
        for name in ("one", "two"):
            await deployment.manager.create_key(name, secret="the same secret of a caller")
    rows = place.sql("SELECT sealed, digest, mark FROM key_versions")
    assert len({bytes(row[0]) for row in rows}) == 2
    assert {bytes(row[2] or b"") for row in rows} == {b""}


async def test_what_the_copy_shows(place):
    """Ids, owners, metadata, permissions, networks and the log: they are in clear."""
    async with place.open(background=False) as deployment:
        await deployment.manager.create_key(
            "plain-id", owner="plain-owner", metadata={"a": "plain-metadata"},
            permissions=["plain.permission"], ip_allowlist=["203.0.113.7/32"],
        )  # fmt: skip
    texts = "\n".join(str(row) for rows in dump(place).values() for row in rows)
    for shown in ("plain-id", "plain-owner", "plain-metadata", "plain.permission", "203.0.113.7"):
        assert shown in texts
    assert "key_created" in texts
