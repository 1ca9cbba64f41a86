"""The master key: 32 random bytes that live outside the database, and the keys derived from it."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from api_key_manager.core.exceptions import ConfigurationError

__all__ = ["MasterKey", "make_key_file", "read_key_file"]

KEY_BYTES = 32


class MasterKey:
    """Derives one key per purpose (HKDF-SHA256, RFC 5869). Its ``repr`` shows none.

    Args:
        raw: 32 bytes.
        source: where it came from, in words for people.

    Raises:
        ConfigurationError: not 32 bytes.
    """

    __slots__ = ("_raw", "source")

    def __init__(self, raw: bytes, source: str) -> None:
        if len(raw) != KEY_BYTES:
            raise ConfigurationError(f"the master key ({source}) must be {KEY_BYTES} bytes")
        self._raw = raw
        self.source = source

    def __repr__(self) -> str:
        return f"MasterKey({self.source!r})"

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose; no purpose's key tells anything of another's."""
        info = f"api-key-manager-pro/{purpose}".encode()
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self._raw)


def read_key_file(path: Path, decode: Callable[[str], bytes]) -> MasterKey | None:
    """The master key of a file, ``None`` when there is no such file.

    Args:
        path: the file.
        decode: turns its text into bytes, ``ValueError`` when it cannot.

    Raises:
        ConfigurationError: others may read the file, or it holds no master key.
    """
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1024)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(f"the master key file {path} cannot be read: {reason}") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigurationError(
            f"the master key file {path} can be read by others: chmod 600 {path}"
        )
    try:
        return MasterKey(decode(text.strip()), str(path))
    except ValueError:
        raise ConfigurationError(
            f"the master key file {path} must hold base64 of exactly {KEY_BYTES} bytes"
        ) from None


def make_key_file(path: Path) -> None:
    """Write a new master key, readable by its owner only, unless the file is already there.

    The file appears whole or not at all, so that two first starts agree on one key.

    Raises:
        ConfigurationError: it cannot be written.
    """
    text = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode() + "\n"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        finally:
            temporary.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"the master key file {path} cannot be made ({error.strerror}):"
            " set AKM_MASTER_KEY_FILE to a path that can be written, or AKM_MASTER_KEY"
        ) from None


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
