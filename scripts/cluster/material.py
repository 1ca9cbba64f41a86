"""What is made once and kept, for its owner only: the master key, the admin token, passwords."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["Material"]


class Material:
    """The secrets of one cluster. Its ``repr`` shows none.

    Args:
        folder: where they lie; made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self.master_key_file = folder / "master.key"
        self.admin_token_file = folder / "admin-token"
        self.master_key = _kept(self.master_key_file, _master_key)
        self.admin_token = _kept(self.admin_token_file, lambda: secrets.token_urlsafe(32))
        self.postgres_password = _kept(folder / "postgres-password", _password)
        self.redis_password = _kept(folder / "redis-password", _password)

    def __repr__(self) -> str:
        return "Material()"


def _master_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _password() -> str:
    # Only letters and digits: it stands in URLs, in SQL and in a configuration file.
    return secrets.token_hex(24)


def _kept(file: Path, make: Callable[[], str]) -> str:
    """The text of a file, made when there is none."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_text(encoding="ascii").strip()
    with os.fdopen(descriptor, "w", encoding="ascii") as new:
        text = make()
        new.write(text + "\n")
    return text
