"""``KEK_PROVIDER=vault-transit``: the keyring under a key that never leaves Vault."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.core.exceptions import ConfigurationError, StorageError, VaultError
from tests.integration.places import Place, signed
from tests.vault_server import StandIn, Vault


def settings(vault: Vault, **more: Any) -> dict[str, Any]:
    return {
        "VAULT_ENABLED": True, "VAULT_ADDR": vault.address, "VAULT_TOKEN": vault.root,
        "KEK_PROVIDER": "vault-transit", **more,
    }  # fmt: skip


async def test_no_master_key(vault: Vault, tmp_path: Path):
    """A new database needs no master key; its keys open again, also after a rotation in Vault."""
    place = Place(tmp_path)
    async with place.open(**settings(vault)) as deployment:
        key = await deployment.manager.create_key()
    assert not place.key_file.exists()
    assert {row[0] for row in place.sql("SELECT kek FROM keyring")} == {"vault-transit:akm"}
    vault.api("POST", "transit/keys/akm/rotate", {})
    async with place.open(**settings(vault)) as deployment:
        manager = deployment.manager
        assert await manager.verify(**signed(manager, key))
    with pytest.raises(ConfigurationError):
        async with place.open(AKM_MASTER_KEY=base64.b64encode(bytes(32)).decode()):
            pass


async def test_from_a_master_key(vault: Vault, tmp_path: Path):
    """A database changes from a master key to Vault and back; its keys stay valid."""
    place = Place(tmp_path)
    async with place.open() as deployment:
        key = await deployment.manager.create_key()
    file = place.key_file
    more = settings(vault, AKM_PREVIOUS_MASTER_KEY_FILE=str(file))
    async with place.open(**more) as deployment:
        assert deployment.backend.keys is not None
        assert await deployment.backend.keys.rewrap("test", lambda *_: None)
    async with place.open(**settings(vault)) as deployment:
        manager = deployment.manager
        assert await manager.verify(**signed(manager, key))
    async with place.open(**settings(vault, KEK_PROVIDER="local")) as deployment:
        assert deployment.backend.keys is not None
        assert await deployment.backend.keys.rewrap("test", lambda *_: None)
    async with place.open() as deployment:
        manager = deployment.manager
        assert await manager.verify(**signed(manager, key))


async def test_the_lease(vault: Vault, tmp_path: Path):
    """Sealed: signed keys go on for the lease and then end; bearer keys go on; none that is signed
    is made. Unsealed, all of it is back by itself."""
    if not vault.unseal_key:
        pytest.skip("this Vault is somebody else's: it is not to be sealed")
    place = Place(tmp_path)
    async with place.open(**settings(vault, VAULT_LEASE_SECONDS=2)) as deployment:
        manager = deployment.manager
        key = await manager.create_key()
        bearer = await manager.create_key(kind="bearer")
        await asyncio.sleep(2.5)  # the lease is renewed meanwhile
        assert await manager.verify(**signed(manager, key))
        await asyncio.to_thread(vault.seal)
        sealed = time.monotonic()
        try:
            assert await manager.verify(**signed(manager, key))
            while await manager.verify(**signed(manager, key)):
                assert time.monotonic() - sealed < 2.5
                await asyncio.sleep(0.05)
            verdict = await manager.verify(**signed(manager, key))
            assert str(verdict.reason) == "unavailable"
            assert await manager.verify(token=bearer["token"])
            assert await manager.create_key(kind="bearer")
            with pytest.raises(StorageError):
                await manager.create_key()
            while not deployment.degraded():
                assert time.monotonic() - sealed < 15
                await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(vault.unseal)
        begun = time.monotonic()
        while not await manager.verify(**signed(manager, key)):
            assert time.monotonic() - begun < 15
            await asyncio.sleep(0.05)
        assert await manager.create_key()
        assert deployment.degraded() == []


async def test_no_start_without(fake: StandIn, tmp_path: Path):
    """A server whose Vault is sealed does not start, and says why."""
    place = Place(tmp_path)
    async with place.open(**settings(fake)):
        pass
    fake.sealed = True
    with pytest.raises(VaultError) as caught:
        async with place.open(**settings(fake)):
            pass
    assert caught.value.reason == "vault_sealed"
