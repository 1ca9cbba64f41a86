"""Where a database and its master key lie."""

from __future__ import annotations

import os
from pathlib import Path

from api_key_manager.config import Settings
from api_key_manager.config.kinds import decode_master_key
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.encryption import MasterKey, make_key_file, read_key_file

__all__ = ["database_path", "find_master_key", "key_path", "read_shared_master_key"]


def database_path(settings: Settings) -> Path | None:
    """The absolute path of the SQLite file, ``None`` when there is none."""
    if settings.DATABASE_URL == "memory://" or settings.on_network:
        return None
    return Path(settings.DATABASE_URL.removeprefix("sqlite:///")).absolute()


def key_path(settings: Settings, origin: str) -> Path:
    """The master key's file: the one that is set, else one named after the database's origin.

    By default it lies in the user's configuration folder: not beside the database, so that a
    copy of the data folder is not a copy of the key, and found from any working directory.
    """
    if settings.AKM_MASTER_KEY_FILE:
        return Path(settings.AKM_MASTER_KEY_FILE).absolute()
    home = os.environ.get("XDG_CONFIG_HOME")
    try:
        base = Path(home) if home else Path.home() / ".config"
    except RuntimeError:
        raise ConfigurationError(
            "there is no home folder for the master key: set AKM_MASTER_KEY_FILE to a path"
        ) from None
    return base.absolute() / "api-key-manager-pro" / f"{origin}.key"


def find_master_key(settings: Settings, database: Path, origin: str, *, make: bool) -> MasterKey:
    """The master key of this database.

    Args:
        make: whether a new one may be made when there is none: for an empty database only.

    Raises:
        ConfigurationError: there is none, it is unusable, or it lies beside the database.
    """
    if settings.AKM_MASTER_KEY:
        return MasterKey(decode_master_key(settings.AKM_MASTER_KEY), "AKM_MASTER_KEY")
    path = key_path(settings, origin)
    if path.parent.resolve() == database.parent.resolve():
        raise ConfigurationError(
            f"AKM_MASTER_KEY_FILE: {path} lies in the database's folder; choose another folder,"
            " so that a copy of the data is not a copy of the key"
        )
    key = read_key_file(path, decode_master_key)
    if key is None and make:
        make_key_file(path)
        key = read_key_file(path, decode_master_key)
    if key is None:
        raise ConfigurationError(
            f"the master key of {database} is missing: looked at {path};"
            " put it back there, or set AKM_MASTER_KEY or AKM_MASTER_KEY_FILE"
        )
    return key


def read_shared_master_key(settings: Settings, origin: str, *, make: bool) -> MasterKey:
    """The master key of a database that several nodes share: theirs is the same, so none is made.

    Raises:
        ConfigurationError: there is none, or it is unusable.
    """
    if settings.AKM_MASTER_KEY:
        return MasterKey(decode_master_key(settings.AKM_MASTER_KEY), "AKM_MASTER_KEY")
    if not settings.AKM_MASTER_KEY_FILE:
        raise ConfigurationError(
            "DATABASE_URL=postgresql://… needs AKM_MASTER_KEY, the same on every node:"
            " `openssl rand -base64 32` makes one for a new database"
        )
    path = Path(settings.AKM_MASTER_KEY_FILE).absolute()
    key = read_key_file(path, decode_master_key)
    if key is None:
        what = "a new one" if make else f"the one of database {origin}"
        raise ConfigurationError(f"AKM_MASTER_KEY_FILE: {path} is not there: put {what} there")
    return key
