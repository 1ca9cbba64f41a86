"""The master key: made once, kept apart, never replaced, and said where it was looked for."""

from __future__ import annotations

import base64
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api_key_manager.core import ConfigurationError, StorageError
from api_key_manager.encryption import make_key_file
from tests.integration.places import Place, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def fill(place: Place, **overrides: str) -> dict[str, dict[str, object]]:
    """A database with a key of each kind."""
    async with place.open(**overrides) as deployment:
        return {
            "signed": await deployment.manager.create_key("s"),
            "bearer": await deployment.manager.create_key("b", kind="bearer"),
        }


async def assert_opens(place: Place, made: dict[str, dict[str, object]], **overrides: str) -> None:
    async with place.open(create=False, **overrides) as deployment:
        manager = deployment.manager
        assert await manager.verify(**signed(manager, made["signed"]))
        assert await manager.verify(token=made["bearer"]["token"])


async def refused(place: Place, **overrides: str) -> str:
    """The one error of a start, which must leave database and key file as they were."""

    def state() -> tuple[object, ...]:
        key = place.key_file
        return (
            key.read_bytes() if key.is_file() else None,
            sorted(path.name for path in key.parent.iterdir()),
            place.sql("SELECT count(*) FROM keyring"),
            place.sql("SELECT revision FROM deployment"),
        )

    before = state()
    with pytest.raises(ConfigurationError) as caught:
        async with place.open(**overrides):
            pass
    assert state() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_default_place(place, tmp_path, monkeypatch):
    """Without settings it lies in the user's configuration folder, mode 0600, named after the
    database's origin, and not in the database's folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    made = await fill(place, AKM_MASTER_KEY_FILE="")
    ((origin,),) = place.sql("SELECT origin FROM deployment")
    path = tmp_path / "home" / "api-key-manager-pro" / f"{origin}.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(base64.b64decode(path.read_text().strip(), validate=True)) == 32
    assert list(path.parent.iterdir()) == [path]
    assert place.file.parent not in path.parents
    await assert_opens(place, made, AKM_MASTER_KEY_FILE="")


async def test_given_place(place):
    """AKM_MASTER_KEY_FILE names where it is made, 0600 as well, and found again."""
    made = await fill(place)
    assert place.key_file.stat().st_mode & 0o777 == 0o600
    before = place.key_file.read_bytes()
    await assert_opens(place, made)
    assert place.key_file.read_bytes() == before


async def test_from_the_environment(place):
    """AKM_MASTER_KEY works alone; no file is written, and another value does not open it."""
    text = base64.b64encode(secrets.token_bytes(32)).decode()
    made = await fill(place, AKM_MASTER_KEY=text)
    assert not place.key_file.parent.exists()
    await assert_opens(place, made, AKM_MASTER_KEY=text)
    with pytest.raises(ConfigurationError, match="AKM_MASTER_KEY") as caught:
        async with place.open(AKM_MASTER_KEY=base64.b64encode(secrets.token_bytes(32)).decode()):
            pass
    assert text not in str(caught.value)
    assert str(place.file) in str(caught.value)


def test_made_once(tmp_path):
    """Of many that make the key at once one does; the file is never written over, and nothing
    else is left beside it."""
    path = tmp_path / "keys" / "master.key"
    with ThreadPoolExecutor(16) as threads:

        def make(_: int) -> bytes:
            make_key_file(path)
            return path.read_bytes()

        assert len(set(threads.map(make, range(64)))) == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622, 0o601])
async def test_key_file_open_to_others_is_refused(place, mode):
    """A key file that anybody else may read or write stops the start, with the way out."""
    await fill(place)
    place.key_file.chmod(mode)
    assert f"chmod 600 {place.key_file}" in await refused(place)


async def test_missing_key(place):
    """Without its key a database with keys does not start, says where it looked, makes none."""
    made = await fill(place)
    aside = place.key_file.rename(place.folder / "aside")
    message = await refused(place)
    assert str(place.key_file) in message
    assert str(place.file) in message
    assert not place.key_file.exists()
    aside.rename(place.key_file)
    await assert_opens(place, made)


async def test_wrong_key(place):
    """Another key, well-formed, does not open the database and is not written over."""
    made = await fill(place)
    right = place.key_file.read_bytes()
    place.key_file.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    message = await refused(place)
    assert str(place.key_file) in message
    assert str(place.file) in message
    place.key_file.write_bytes(right)
    await assert_opens(place, made)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"short", b"\xff" * 44, bytes(32), base64.b64encode(bytes(31)), b"A" * 2000],
    ids=["empty", "blank", "no-base64", "no-text", "raw", "31-bytes", "long"],
)
@pytest.mark.parametrize("fresh", [False, True], ids=["used", "fresh"])
async def test_damaged_key_file(place, content, fresh):
    """A truncated or damaged key file stops the start of any database and is left as it is."""
    if fresh:
        async with place.open(AKM_MASTER_KEY=base64.b64encode(bytes(32)).decode()):
            pass
        place.sql("DELETE FROM keyring")
        place.key_file.parent.mkdir()
        place.key_file.touch(0o600)
    else:
        await fill(place)
    place.key_file.write_bytes(content)
    message = await refused(place)
    assert str(place.key_file) in message
    assert content.decode("latin-1").strip()[:5] not in message or not content.strip()


async def test_key_beside_the_database_is_refused(place):
    """A key in the database's folder would be copied along with it: refused, also by a link."""
    beside = place.file.parent / "master.key"
    with pytest.raises(ConfigurationError, match="lies in the database's folder"):
        async with place.open(AKM_MASTER_KEY_FILE=str(beside)):
            pass
    assert not beside.exists()
    (place.folder / "link").symlink_to(place.file.parent)
    with pytest.raises(ConfigurationError, match="lies in the database's folder"):
        async with place.open(AKM_MASTER_KEY_FILE=str(place.folder / "link" / "master.key")):
            pass
    assert not beside.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE keyring SET wrapped = x'00'",
        "UPDATE keyring SET wrapped = substr(wrapped, 1, 20)",
        "UPDATE keyring SET wrapped = 'text'",
        "UPDATE keyring SET wrapped = zeroblob(60)",
        "DELETE FROM keyring WHERE kind = 'data'",
        "DELETE FROM keyring WHERE kind = 'pepper'",
        "UPDATE keyring SET number = 2 WHERE kind = 'pepper'",
        "UPDATE keyring SET kind = 'pepper', number = 2 WHERE kind = 'data'",
        "UPDATE keyring SET kind = zeroblob(3) WHERE kind = 'data'",
        "UPDATE keyring SET number = 'one' WHERE kind = 'data'",
        "DELETE FROM keyring WHERE kind = 'record-mac'",
        "UPDATE keyring SET kek = 'local:00000000'",
        "UPDATE keyring SET kek = zeroblob(1000)",
        "UPDATE keyring SET seal = NULL",
        "UPDATE keyring SET seal = NULL WHERE kind = 'data'",
        "UPDATE keyring SET seal = iif(kind = 'record-mac', seal, NULL), number = number * 2",
        "UPDATE keyring SET seal = 'text'",
        "UPDATE keyring SET seal = (SELECT seal FROM keyring WHERE kind = 'pepper')",
    ],
)
async def test_edited_keyring(place, damage):
    """Wrapped keys that were edited, moved or removed stop the start, with the file's path."""
    await fill(place)
    place.sql(damage)
    with pytest.raises((ConfigurationError, StorageError)) as caught:
        async with place.open():
            pass
    assert str(place.file) in str(caught.value)


async def test_made_to_look_old(place):
    """A keyring without what its own version puts there is not taken for an older one."""
    await fill(place)
    place.sql("DELETE FROM keyring WHERE kind NOT IN ('data', 'pepper')")
    place.sql("UPDATE keyring SET seal = NULL")
    assert "there is no record-mac key" in await refused(place)


async def test_emptied_keyring_stops_the_start(place):
    """With every wrapped key gone but keys there, no new ones are minted in their place."""
    await fill(place)
    place.sql("DELETE FROM keyring")
    with pytest.raises(ConfigurationError, match="lost their data keys"):
        async with place.open():
            pass
    assert place.sql("SELECT count(*) FROM keyring") == [(0,)]
