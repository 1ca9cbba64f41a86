"""``SECRET_STORE=vault``, on the stand-in and on a real Vault where there is one."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.core.exceptions import (
    ConfigurationError,
    KeyExistsError,
    StorageError,
)
from api_key_manager.vault_integration import VaultClient
from tests.integration.places import Place, signed
from tests.vault_server import StandIn, Vault, stand_in


def settings(vault: Vault, **more: Any) -> dict[str, Any]:
    return {
        "VAULT_ENABLED": True, "VAULT_ADDR": vault.address, "VAULT_TOKEN": vault.root,
        "SECRET_STORE": "vault", **more,
    }  # fmt: skip


def places(vault: Vault, key_id: str) -> list[str]:
    with VaultClient(vault.address, vault.root) as client:
        folder = f"api-keys/{key_id}"
        return [f"{folder}/{name}" for name in client.list(folder)]


async def until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


async def test_life(vault: Vault, tmp_path: Path):
    """Create, validate, rotate and delete: the secret is in Vault, and nowhere in the database."""
    place = Place(tmp_path)
    key_id = f"life-{time.time_ns()}"
    async with place.open(**settings(vault)) as deployment:
        manager = deployment.manager
        key = await manager.create_key(key_id)
        assert await manager.verify(**signed(manager, key))
        (path,) = places(vault, key_id)
        with VaultClient(vault.address, vault.root) as client:
            assert client.get_secret(path, "secret") == key["secret"]
        await manager.update_key(key_id, metadata={"a": 1})
        second = await manager.rotate_key(key_id, 3600)
        assert await manager.verify(**signed(manager, key))
        assert await manager.verify(**signed(manager, second))
        assert len(places(vault, key_id)) == 2
        third = await manager.rotate_key(key_id)
        assert await manager.verify(**signed(manager, third))
        await until(lambda: len(places(vault, key_id)) == 1)
        await manager.delete_key(key_id)
        await until(lambda: not places(vault, key_id))
    rows = place.sql(
        "SELECT sealed FROM key_versions WHERE sealed IS NOT NULL AND substr(sealed,1,1)<>x'02'"
    )
    assert all(key["secret"].encode() not in row[0] for row in rows)


async def test_another_node(vault: Vault, tmp_path: Path):
    """A process that did not make the key reads its secret from Vault, once for all who ask."""
    place = Place(tmp_path)
    async with place.open(**settings(vault)) as deployment:
        key = await deployment.manager.create_key()
    if isinstance(vault, StandIn):
        vault.asked.clear()
    async with place.open(**settings(vault)) as deployment:
        manager = deployment.manager
        verdicts = await asyncio.gather(
            *(manager.verify(**signed(manager, key)) for _ in range(20))
        )
        assert all(verdicts)
    if isinstance(vault, StandIn):
        reads = [a for a in vault.asked if a[1].startswith("kv/data/api-keys/")]
        assert len(reads) == 1


async def test_changed_in_vault(vault: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Another value put there is seen within the lease; a deletion makes the key unavailable, and
    the log names the key."""
    place = Place(tmp_path)
    async with place.open(**settings(vault, VAULT_LEASE_SECONDS=1)) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        assert await manager.verify(**signed(manager, key))
        (path,) = places(vault, key["key_id"])
        with VaultClient(vault.address, vault.root) as client:
            client.write(path, {"secret": "another-secret"})
            changed = time.monotonic()
            edited = {**key, "secret": "another-secret"}
            while not await manager.verify(**signed(manager, edited)):
                assert time.monotonic() - changed < 1.5
                await asyncio.sleep(0.05)
            assert str((await manager.verify(**signed(manager, key))).reason) == "bad_signature"
            client.delete(path)
            changed = time.monotonic()
            while verdict := await manager.verify(**signed(manager, edited)):
                assert time.monotonic() - changed < 1.5
                await asyncio.sleep(0.05)
            assert str(verdict.reason) == "unavailable"
            assert key["key_id"] in caplog.text
            assert "another-secret" not in caplog.text
            client.undelete(path, 2)
            await asyncio.sleep(1.1)
            assert await manager.verify(**signed(manager, edited))


async def test_mixed(vault: Vault, tmp_path: Path):
    """Keys from before work on, and keys in Vault work on after switching back."""
    place = Place(tmp_path)
    async with place.open() as deployment:
        old = await deployment.manager.create_key()
    async with place.open(**settings(vault)) as deployment:
        manager = deployment.manager
        assert await manager.verify(**signed(manager, old))
        new = await manager.create_key()
    async with place.open(**settings(vault, SECRET_STORE="database")) as deployment:
        manager = deployment.manager
        last = await manager.create_key()
        for key in (old, new, last):
            assert await manager.verify(**signed(manager, key))
        assert places(vault, last["key_id"]) == []
    async with place.open() as deployment:
        manager = deployment.manager
        assert str((await manager.verify(**signed(manager, new))).reason) == "unavailable"
        assert await manager.verify(**signed(manager, old))


async def test_taken_id(vault: Vault, tmp_path: Path):
    """A create that is refused leaves nothing in Vault, and the secret that was there alone."""
    place = Place(tmp_path)
    key_id = f"taken..{time.time_ns()}"
    async with place.open(**settings(vault)) as deployment:
        manager = deployment.manager
        key = await manager.create_key(key_id)
        with pytest.raises(KeyExistsError):
            await manager.create_key(key_id, secret="something-else-entirely")
        assert await manager.verify(**signed(manager, key))
    with VaultClient(vault.address, vault.root) as client:
        assert len(client.list(f"api-keys/{key_id.replace('.', '%2E')}")) == 1


async def test_copied_reference(fake: StandIn, tmp_path: Path):
    """A reference in another row fails its MAC, and would lead nowhere."""
    place = Place(tmp_path)
    async with place.open(**settings(fake)) as deployment:
        one = await deployment.manager.create_key("one")
        await deployment.manager.create_key("two")
    place.sql(
        "UPDATE key_versions SET sealed = (SELECT sealed FROM key_versions WHERE key_id='two')"
        " WHERE key_id='one'"
    )
    async with place.open(**settings(fake)) as deployment:
        manager = deployment.manager
        assert str((await manager.verify(**signed(manager, one))).reason) == "unavailable"


@pytest.fixture
def sealable(vault: Vault) -> Vault:
    if not vault.unseal_key:
        pytest.skip("this Vault is somebody else's: it is not to be sealed")
    return vault


async def test_sealed_in_the_middle(
    sealable: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Sealed: what was read goes on for the lease, nothing is made, bearer keys go on; unsealed,
    all of it works again by itself."""
    place = Place(tmp_path)
    caplog.set_level(logging.ERROR)
    async with place.open(**settings(sealable)) as deployment:
        cold = await deployment.manager.create_key()
    async with place.open(**settings(sealable, VAULT_LEASE_SECONDS=2)) as deployment:
        manager = deployment.manager
        warm = await manager.create_key()
        bearer = await manager.create_key(kind="bearer")
        assert await manager.verify(**signed(manager, warm))
        await asyncio.to_thread(sealable.seal)
        try:
            assert await manager.verify(**signed(manager, warm))
            assert str((await manager.verify(**signed(manager, cold))).reason) == "unavailable"
            with pytest.raises(StorageError):
                await manager.create_key()
            assert await manager.verify(token=bearer["token"])
            assert await manager.create_key(kind="bearer")
            assert any("Vault" in text for text in deployment.degraded())
            await asyncio.sleep(2.1)
            assert str((await manager.verify(**signed(manager, warm))).reason) == "unavailable"
        finally:
            await asyncio.to_thread(sealable.unseal)
        begun = time.monotonic()
        while not (
            await manager.verify(**signed(manager, warm))
            and await manager.verify(**signed(manager, cold))
        ):
            assert time.monotonic() - begun < 10
            await asyncio.sleep(0.05)
        assert deployment.degraded() == []
    assert caplog.text.count("secrets cannot be read") == 1


async def test_restarted(tmp_path: Path):
    """Vault goes and comes again at the same address: nothing has to be restarted here."""
    place, state = Place(tmp_path), StandIn()
    with stand_in(state=state) as vault:
        vault.prepare()
        port = int(vault.address.rpartition(":")[2])
        async with place.open(**settings(vault)) as deployment:
            key = await deployment.manager.create_key()
    opened = place.open(**settings(state))
    async with opened as deployment:
        manager = deployment.manager
        assert str((await manager.verify(**signed(manager, key))).reason) == "unavailable"
        with stand_in(port, state):
            await asyncio.sleep(1.1)
            assert await manager.verify(**signed(manager, key))


async def test_slow(fake: StandIn, tmp_path: Path):
    """Vault takes its time: bearer keys do not wait, and signed ones not for ever."""
    place = Place(tmp_path)
    async with place.open(**settings(fake)) as deployment:
        key = await deployment.manager.create_key()
    async with place.open(**settings(fake)) as deployment:
        manager = deployment.manager
        bearer = await manager.create_key(kind="bearer")
        await asyncio.sleep(0.1)
        fake.delay = 30
        begun = time.monotonic()
        asked = asyncio.ensure_future(manager.verify(**signed(manager, key)))
        assert await manager.verify(token=bearer["token"])
        assert time.monotonic() - begun < 1
        assert str((await asked).reason) == "unavailable"
        assert time.monotonic() - begun < 6
        fake.delay = 0


async def test_token_ended(vault: Vault, tmp_path: Path):
    """A token that has ended is replaced where there is a role, in the middle of traffic."""
    role, secret = vault.approle("server")
    place = Place(tmp_path)
    given = settings(vault, VAULT_TOKEN="", VAULT_ROLE_ID=role, VAULT_SECRET_ID=secret)
    async with place.open(**given) as deployment:
        manager = deployment.manager
        await manager.create_key()
        box: Any = manager.box
        session = box._client._session
        vault.revoke(box._client._transport.token)
        session._logged_in = float("-inf")
        key = await manager.create_key()
        assert await manager.verify(**signed(manager, key))


@pytest.mark.parametrize(
    "wrong",
    [{"VAULT_ENABLED": False}, {"VAULT_TOKEN": ""}, {"VAULT_ROLE_ID": "r", "VAULT_SECRET_ID": "s"},
     {"VAULT_TOKEN": "", "VAULT_ROLE_ID": "r"}],
)  # fmt: skip
def test_settings(wrong: dict[str, Any], tmp_path: Path):
    """Settings that do not go together stop the start."""
    with pytest.raises(ConfigurationError):
        Place(tmp_path).settings(
            **settings(StandIn(), **{"VAULT_ADDR": "http://127.0.0.1:1", **wrong})
        )


async def test_doctor(fake: StandIn, tmp_path: Path):
    """`akm doctor` says whether Vault does what is asked of it."""
    place = Place(tmp_path)
    async with place.open(**settings(fake)) as deployment:
        await deployment.manager.create_key()
    env = {k: str(v).lower() if isinstance(v, bool) else v for k, v in settings(fake).items()}
    done = await asyncio.to_thread(lambda: place.akm("doctor", **env))
    assert "vault: it does what is asked of it" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    poor = fake.token("nothing")
    done = await asyncio.to_thread(lambda: place.akm("doctor", **{**env, "VAULT_TOKEN": poor}))
    assert "vault_permission_denied" in done.stdout
    assert done.returncode == 1
    assert poor not in done.stdout + done.stderr
