"""What holds of every key-encryption key (docs/encryption.md)."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from api_key_manager.core.exceptions import EncryptionError
from api_key_manager.encryption import KeyEncryption, LocalKey, MasterKey

KEY = bytes(range(32))
BOUND = b"akm-wrap-1\ndata\n1"


def local() -> KeyEncryption:
    return LocalKey(MasterKey(secrets.token_bytes(32), "a test"))


@pytest.fixture(params=[local])
def make(request):
    """Makes key-encryption keys, each another one."""
    return request.param


async def test_round_trip(make):
    """What it wrapped it unwraps, many at once, and no two wrappings look alike or show the key."""
    provider = make()
    wrapped = await asyncio.gather(*(provider.wrap(KEY, BOUND) for _ in range(20)))
    assert len(set(wrapped)) == 20
    assert all(KEY not in each and len(each) <= 4096 for each in wrapped)
    opened = await asyncio.gather(*(provider.unwrap(each, BOUND) for each in wrapped))
    assert set(opened) == {KEY}
    await provider.close()


async def test_bound(make):
    """It opens under what it was bound to and nothing else."""
    provider = make()
    wrapped = await provider.wrap(KEY, BOUND)
    for other in (b"", BOUND[:-1], BOUND + b"1", BOUND.replace(b"data", b"pepper")):
        with pytest.raises(EncryptionError):
            await provider.unwrap(wrapped, other)
    await provider.close()


async def test_changed_or_of_another(make):
    """Changed bytes, bytes of any other length, and those of another key do not open."""
    provider, other = make(), make()
    wrapped = await provider.wrap(KEY, BOUND)
    wrong = [wrapped[:cut] for cut in range(0, len(wrapped), 7)] + [wrapped + b"\0", b"\xff" * 9]
    wrong.append(wrapped[:-1] + bytes([wrapped[-1] ^ 1]))
    for each in wrong:
        with pytest.raises(EncryptionError):
            await provider.unwrap(each, BOUND)
    with pytest.raises(EncryptionError):
        await other.unwrap(wrapped, BOUND)
    await provider.close()
    await other.close()


async def test_name(make):
    """A name tells keys apart, fits its column, and shows nothing of a key; nor does a repr."""
    provider, other = make(), make()
    assert provider.name != other.name
    assert provider.name.isprintable()
    assert 0 < len(provider.name) <= 128
    assert provider.source
    await provider.close()
    await other.close()


async def test_name_is_of_the_key():
    """The same master key has the same name wherever it was read from."""
    raw = secrets.token_bytes(32)
    one, two = LocalKey(MasterKey(raw, "one place")), LocalKey(MasterKey(raw, "another"))
    assert one.name == two.name
    assert await two.unwrap(await one.wrap(KEY, BOUND), BOUND) == KEY
    assert raw.hex() not in repr(one) + one.name
