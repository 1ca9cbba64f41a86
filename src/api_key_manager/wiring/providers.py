"""Which key-encryption keys the settings name: the one in force, and the ones before it."""

from __future__ import annotations

from pathlib import Path

from api_key_manager.config import Settings
from api_key_manager.config.kinds import decode_master_key
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.encryption import (
    KeyEncryption,
    LocalKey,
    MasterKey,
    Providers,
    read_key_file,
)
from api_key_manager.wiring.places import find_master_key, read_shared_master_key
from api_key_manager.wiring.vault import transit_key

__all__ = ["find_providers"]


def find_providers(
    settings: Settings, database: Path | None, origin: str, *, make: bool
) -> Providers:
    """The key-encryption keys of a database. None of them is asked anything yet.

    Args:
        database: its file; ``None`` when several nodes share it.
        origin: its own.
        make: whether a local one may be made when there is none: for an empty database only.

    Raises:
        ConfigurationError: there is none, or one is unusable.
    """
    return Providers(_current(settings, database, origin, make=make), _previous(settings))


def _current(
    settings: Settings, database: Path | None, origin: str, *, make: bool
) -> KeyEncryption:
    if settings.KEK_PROVIDER == "vault-transit":
        return transit_key(settings)
    if database is None:
        return LocalKey(read_shared_master_key(settings, origin, make=make))
    return LocalKey(find_master_key(settings, database, origin, make=make))


def _previous(settings: Settings) -> tuple[KeyEncryption, ...]:
    if settings.AKM_PREVIOUS_MASTER_KEY:
        raw = decode_master_key(settings.AKM_PREVIOUS_MASTER_KEY)
        return (LocalKey(MasterKey(raw, "AKM_PREVIOUS_MASTER_KEY")),)
    if not settings.AKM_PREVIOUS_MASTER_KEY_FILE:
        before = settings.VAULT_ENABLED and settings.vault_credentials
        if before and settings.KEK_PROVIDER == "local" and settings.SECRET_STORE == "database":
            # Vault is enabled for nothing else: for what is still wrapped there, or was kept there.
            return (transit_key(settings),)
        return ()
    path = Path(settings.AKM_PREVIOUS_MASTER_KEY_FILE).absolute()
    key = read_key_file(path, decode_master_key)
    if key is None:
        raise ConfigurationError(f"AKM_PREVIOUS_MASTER_KEY_FILE: {path} is not there")
    return (LocalKey(key),)
