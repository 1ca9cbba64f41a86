"""The first admin token: minted once in the life of a database."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from api_key_manager.core.changing import Origin
from api_key_manager.core.exceptions import ConfigurationError, KeyExistsError
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import ADMIN_REALM
from api_key_manager.core.tokens import FIRST_TOKEN_ID

__all__ = ["FIRST_TOKEN_ID", "mint_first_token"]


async def mint_first_token(manager: KeyManager, file: Path | None) -> str | None:
    """Mint the first admin token, unless this database has had one.

    Args:
        manager: whose database it is.
        file: where the token is put, readable by its owner only; ``None`` to put it nowhere.

    Returns:
        The token, or ``None`` when there was one before, also if it was revoked since.

    Raises:
        ConfigurationError: the file cannot be written; then nothing was minted.
    """
    staged = None if file is None else file.with_name(f".{file.name}.{secrets.token_hex(8)}")

    def keep(answer: dict[str, Any]) -> None:
        # Before the commit: a token that nobody can read again must not be the only one.
        if staged is not None:
            _write(staged, answer["token"])

    try:
        created = await manager.create_key(
            FIRST_TOKEN_ID,
            metadata={"name": "first"},
            kind="bearer",
            prefix=f"{manager.prefix}_admin",
            realm=ADMIN_REALM,
            permissions=["admin"],
            by=Origin("system"),
            receipt=keep,
        )
    except KeyExistsError:
        if staged is not None:
            staged.unlink(missing_ok=True)
        return None
    if staged is not None and file is not None:
        staged.replace(file)
    return str(created["token"])


def _write(path: Path, token: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(
            f"the first admin token cannot be written to {path.parent} ({error.strerror}):"
            " set AKM_ADMIN_TOKEN, or start once on a terminal"
        ) from None
