"""The client of Vault or OpenBao, on hvac: key-value secrets (version 2) and transit encryption."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar

from api_key_manager.core.exceptions import ConfigurationError, ValidationError, VaultError
from api_key_manager.vault_integration.auth import Auth
from api_key_manager.vault_integration.errors import FIELD_NOT_FOUND, NOT_FOUND, REFUSED

__all__ = ["Secret", "SecretVersion", "VaultClient"]

P = ParamSpec("P")
R = TypeVar("R")
_THREADS: Final = 4
_ADDRESS: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.ASCII)
_STATES: Final = {
    200: "active", 429: "standby", 472: "disaster recovery secondary", 473: "performance standby",
    501: "not initialised", 503: "sealed",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Secret:
    """What lies at a path. Its ``repr`` shows no value."""

    version: int
    values: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of what lies at a path: when it was written, and what became of it."""

    version: int
    created_at: str
    deleted: bool
    destroyed: bool


class VaultClient:
    """Reads and writes secrets; plain calls, each of which waits for its answer.

    In a coroutine, :meth:`run` makes any of them in a thread::

        secret = await vault.run(vault.get_secret, "api-keys", "client-123")

    Args:
        address: ``http://…`` or ``https://…``.
        token: a token; leave it out and give ``auth`` for one that is got by a login.
        auth: an :class:`~api_key_manager.vault_integration.AppRole` or
            :class:`~api_key_manager.vault_integration.Kubernetes`.
        mount: of the key-value store, version 2; ``VAULT_NAMESPACE`` or ``kv`` when left out.
        namespace: of Vault Enterprise or OpenBao.
        ca_file: certificate authorities (PEM) that are believed; ``VAULT_CACERT`` or those that
            requests brings when left out.
        timeout: seconds for one attempt.
        attempts: how often a request is sent at most, if it may be sent again.

    Raises:
        ConfigurationError: an argument cannot be used.

    Every method raises ``VaultError``, whose ``reason`` says why: see ``docs/vault.md``.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8200",
        token: str = "",
        *,
        auth: Auth | None = None,
        mount: str | None = None,
        namespace: str = "",
        ca_file: str | None = None,
        timeout: float = 5.0,
        attempts: int = 3,
    ) -> None:
        if not _ADDRESS.fullmatch(address):
            raise ConfigurationError(
                "address: a URL that starts with http:// or https:// is allowed"
            )
        if bool(token) == (auth is not None):
            raise ConfigurationError("token: give a token or auth, and not both")
        if not 0 < timeout <= 300 or attempts < 1:
            raise ConfigurationError("timeout: up to 300 seconds, and at least one attempt")
        for name, text in (("token", token), ("namespace", namespace)):
            # A line end would begin another header.
            if not text.isascii() or not text.isprintable() or " " in text:
                raise ConfigurationError(f"{name}: printable ASCII without spaces is allowed")
        if ca_file is None:
            ca_file = os.environ.get("VAULT_CACERT", "")
        if ca_file and not os.path.isfile(ca_file):  # noqa: PTH113 - as requests looks at it
            raise ConfigurationError(f"ca_file: there is no file {ca_file}")
        self.address = address
        self.mount = _checked(mount or os.environ.get("VAULT_NAMESPACE") or "kv")
        # Slow to import, and only who uses Vault needs them.
        import hvac

        from api_key_manager.vault_integration.session import Session
        from api_key_manager.vault_integration.transport import Transport

        self._transport = Transport(
            address, namespace=namespace, verify=ca_file or True, timeout=timeout, attempts=attempts
        )
        # hvac would look for a token, an address and certificates of its own.
        make: Any = hvac.Client
        self._hvac = make(url=address, token="", verify=True, adapter=lambda **_: self._transport)
        self._transport.token = token
        self._session = Session(self._hvac, self._transport, auth)
        self._threads = ThreadPoolExecutor(_THREADS, "akm-vault")

    def __repr__(self) -> str:
        return f"VaultClient({self.address!r}, mount={self.mount!r})"

    def __enter__(self) -> VaultClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections and threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._transport.close()

    async def run(self, method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one of the calls below in a thread, while the event loop goes on."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: method(*args, **kwargs))

    # Key-value secrets

    def get_secret(self, path: str, key: str, *, version: int | None = None) -> str:
        """The text of one field.

        Args:
            path: below the mount, as ``api-keys``.
            key: the name of the field.
            version: the newest when left out.

        Raises:
            VaultError: ``vault_not_found``, ``vault_field_not_found``, ``vault_deleted``,
                ``vault_destroyed``, or why Vault does not answer.
        """
        value = self.read(path, version=version).values.get(key)
        if not isinstance(value, str):
            raise VaultError(
                f"{self.mount}/{path} has no text in a field of that name", reason=FIELD_NOT_FOUND
            )
        return value

    def read(self, path: str, *, version: int | None = None) -> Secret:
        """Every field of a path."""
        path = _checked(path)
        answer = self._kv("read_secret_version", path=path, version=version,
                          raise_on_deleted_version=False)  # fmt: skip
        data = answer.get("data") or {}
        values, metadata = data.get("data"), data.get("metadata") or {}
        if not isinstance(values, dict) or not isinstance(metadata.get("version"), int):
            raise VaultError(
                f"{self.mount}/{path}: the answer is not one of a key-value store, version 2",
                reason=REFUSED,
            )
        return Secret(metadata["version"], values)

    def write(self, path: str, values: Mapping[str, Any], *, expected: int | None = None) -> int:
        """Put a new version in place of all fields; returns its number.

        Args:
            values: the fields.
            expected: write only if this is the newest version, 0 for "nothing is there yet"
                (check-and-set); else ``vault_conflict``.
        """
        answer = self._kv(
            "create_or_update_secret", path=_checked(path), secret=dict(values), cas=expected
        )
        return int((answer.get("data") or {}).get("version") or 0)

    def list(self, path: str = "") -> list[str]:
        """The names right below a path, folders with a slash at their end; none where none are."""
        try:
            answer = self._kv("list_secrets", path=_checked(path) if path else "")
        except VaultError as error:
            if error.reason == NOT_FOUND:
                return []
            raise
        return [str(name) for name in (answer.get("data") or {}).get("keys") or ()]

    def versions(self, path: str) -> Sequence[SecretVersion]:
        """What became of every version that is still known, newest first."""
        answer = self._kv("read_secret_metadata", path=_checked(path))
        known = (answer.get("data") or {}).get("versions") or {}
        return [
            SecretVersion(
                int(number), str(v.get("created_time")), bool(v.get("deletion_time")),
                v.get("destroyed") is True,
            )
            for number, v in sorted(known.items(), key=lambda item: -int(item[0]))
        ]  # fmt: skip

    def delete(self, path: str, *versions: int) -> None:
        """Delete the newest version, or those named; they can be brought back."""
        path = _checked(path)
        if versions:
            self._kv("delete_secret_versions", path=path, versions=list(versions))
        else:
            self._kv("delete_latest_version_of_secret", path=path)

    def undelete(self, path: str, *versions: int) -> None:
        """Bring deleted versions back."""
        self._kv("undelete_secret_versions", path=_checked(path), versions=list(versions))

    def destroy(self, path: str, *versions: int) -> None:
        """Erase the values of these versions for good."""
        self._kv("destroy_secret_versions", path=_checked(path), versions=list(versions))

    def erase(self, path: str) -> None:
        """Erase every version of a path, and that it ever was."""
        self._kv("delete_metadata_and_all_versions", path=_checked(path))

    # Encryption by the transit engine

    def encrypt(self, key: str, plaintext: bytes, bound: bytes, *, mount: str = "transit") -> str:
        """Encrypt under a key that never leaves Vault.

        Args:
            key: the name of a key of a type with associated data, as ``aes256-gcm96``.
            plaintext: what is encrypted.
            bound: associated data: with other bytes it does not decrypt.
            mount: of the transit engine.
        """
        answer = self._transit("encrypt_data", key, mount, bound, plaintext=_base64(plaintext))
        ciphertext = (answer.get("data") or {}).get("ciphertext")
        if not isinstance(ciphertext, str) or not ciphertext:
            raise VaultError("the transit engine gave no ciphertext", reason=REFUSED)
        return ciphertext

    def decrypt(self, key: str, ciphertext: str, bound: bytes, *, mount: str = "transit") -> bytes:
        """Undo :meth:`encrypt`."""
        answer = self._transit("decrypt_data", key, mount, bound, ciphertext=ciphertext)
        try:
            return base64.b64decode(str((answer.get("data") or {})["plaintext"]), validate=True)
        except (KeyError, binascii.Error, ValueError):
            raise VaultError("the transit engine gave no plaintext", reason=REFUSED) from None

    # The rest

    def health(self) -> str:
        """The state of the node: ``active``, ``standby``, ``sealed`` …, without a token."""
        status = self._transport.health()
        return _STATES.get(status, f"unknown ({status})")

    def renew(self) -> None:
        """Log in or renew the token if it is time to; every other call does so by itself."""
        self._session.keep()

    def token_policies(self) -> Sequence[str]:
        """The policies of the token."""
        answer = self._session.call(lambda: self._hvac.auth.token.lookup_self())
        return [str(name) for name in (answer.get("data") or {}).get("policies") or ()]

    def _kv(self, method: str, **arguments: Any) -> dict[str, Any]:
        call = getattr(self._hvac.secrets.kv.v2, method)
        return self._session.call(lambda: call(mount_point=self.mount, **arguments))

    def _transit(
        self, method: str, key: str, mount: str, bound: bytes, **arguments: Any
    ) -> dict[str, Any]:
        call, name = getattr(self._hvac.secrets.transit, method), _checked(key)
        return self._session.call(
            lambda: call(name=name, mount_point=_checked(mount), associated_data=_base64(bound),
                         **arguments)
        )  # fmt: skip


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _checked(path: str) -> str:
    """A path that stays where it is put: what is sent is not to be read as another one."""
    parts = path.split("/")
    # Vault refuses two dots wherever they stand.
    good = all(part not in ("", ".") and ".." not in part and part.isprintable() for part in parts)
    if not good or len(path) > 512:
        raise ValidationError("path: names with slashes between them are allowed, without ..")
    return path
