"""The first admin token: once in a database's life, and for the eyes of its owner only."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from api_key_manager.core import ConfigurationError, KeyExistsError
from api_key_manager.wiring.first_token import FIRST_TOKEN_ID
from tests.integration.places import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def start(place: Place, *, on_terminal: bool = False, **overrides: str):
    """One start; returns the token and the file that it named."""
    async with place.open(**overrides) as deployment:
        await deployment.mint_first_token(on_terminal=on_terminal)
        return deployment.first_token, deployment.first_token_file


async def test_file_when_nobody_watches(place):
    """Not on a terminal it goes into a 0600 file apart from the database, and it works."""
    token, file = await start(place)
    assert file.read_text() == token + "\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent != place.file.parent
    assert [path for path in file.parent.iterdir() if path.name.startswith(".")] == []
    async with place.open() as deployment:
        verdict = await deployment.manager.verify(token=token, realm="admin", permissions="admin")
        assert verdict.valid
        assert not await deployment.manager.verify(token=token), "of its own realm only"


async def test_terminal(place):
    """On a terminal it is handed over to be shown, and written nowhere."""
    token, file = await start(place, on_terminal=True)
    assert token.startswith("akm_admin_")
    assert file is None
    for path in place.folder.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()


@pytest.mark.parametrize("end", ["nothing", "revoke_key", "delete_key"])
async def test_once(place, end):
    """No start after the first mints another one, not even when that one was ended."""
    _, file = await start(place)
    if end != "nothing":
        async with place.open() as deployment:
            await getattr(deployment.manager, end)(FIRST_TOKEN_ID, realm="admin")
    before = file.read_bytes()
    for on_terminal in (False, True):
        assert await start(place, on_terminal=on_terminal) == (None, None)
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 2, "the token and the master key, nothing staged"
    assert place.sql("SELECT count(*) FROM keys") == [(1,)]


async def test_two_first_starts(place):
    """Of starts at the same moment one mints; the file holds the one that works."""
    async with place.open() as first, place.open() as second:
        deployments = [first, second]
        await asyncio.gather(*(d.mint_first_token(on_terminal=False) for d in deployments))
        minted = [d for d in deployments if d.first_token]
        assert len(minted) == 1
        token = minted[0].first_token_file.read_text().strip()
        assert token == minted[0].first_token
        assert await second.manager.verify(token=token, realm="admin")
    assert len(list(place.key_file.parent.iterdir())) == 2


async def test_not_with_one_from_the_settings(place):
    """AKM_ADMIN_TOKEN is enough: none is minted while it is set, one is once it is not."""
    assert await start(place, AKM_ADMIN_TOKEN=secrets.token_hex(32)) == (None, None)
    assert place.sql("SELECT count(*) FROM keys") == [(0,)]
    token, _ = await start(place)
    assert token


@pytest.mark.parametrize("kind", ["signed", "bearer"])
async def test_its_id_cannot_be_taken(place, kind):
    """No ordinary key can have its id, so that it can still be minted later."""
    async with place.open(AKM_ADMIN_TOKEN=secrets.token_hex(32)) as deployment:
        with pytest.raises(KeyExistsError):
            await deployment.manager.create_key(FIRST_TOKEN_ID, kind=kind)
    assert place.sql("SELECT count(*) FROM keys") == [(0,)]
    token, _ = await start(place)
    assert token


async def test_not_minted_when_it_cannot_be_kept(place):
    """When the file cannot be written the start stops, and the next one may still mint."""
    async with place.open(AKM_MASTER_KEY="A" * 43 + "=") as deployment:
        (place.folder / "keys").write_text("a file where the folder would be")
        deployment.settings = place.settings()
        with pytest.raises(ConfigurationError, match="set AKM_ADMIN_TOKEN"):
            await deployment.mint_first_token(on_terminal=False)
        assert deployment.first_token is None
    assert place.sql("SELECT count(*) FROM keys") == [(0,)]
