"""Secrets of signed keys in Vault: the record holds a reference, under its MAC, and no secret.

The secret of a key's version lies in the field ``secret`` of
``api-keys/<key_id>/<version>-<random>``, below the mount. The random part keeps two changes that
happen at once, and what a crash left behind, apart. Key id and version come from the record, so a
reference copied into another row leads nowhere. Dots that Vault would refuse are written ``%2E``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from api_key_manager.core.cache import BoundedTTLMap
from api_key_manager.core.exceptions import EncryptionError, StorageError, VaultError
from api_key_manager.core.models import ApiKey, KeyVersion
from api_key_manager.core.ports import SecretBox
from api_key_manager.core.records import boot_clock
from api_key_manager.core.signing import MacState
from api_key_manager.vault_integration.errors import (
    DELETED,
    DESTROYED,
    FIELD_NOT_FOUND,
    NOT_FOUND,
)
from api_key_manager.vault_integration.vault_client import VaultClient

__all__ = ["FOLDER", "VaultSecrets", "refers"]

_log = logging.getLogger(__name__)
FOLDER: Final = "api-keys"
_FIELD: Final = "secret"
_REFERENCE: Final = 2  # the first byte; an envelope's is 1
_RANDOM_BYTES: Final = 9
# After a failure Vault is left alone for so long, and so is what was not found there.
_PAUSE_SECONDS: Final = 1.0
_MOST: Final = 100_000
_MISSING: Final = frozenset({NOT_FOUND, FIELD_NOT_FOUND, DELETED, DESTROYED})


class VaultSecrets:
    """The secret box of a deployment whose secrets are, or were, kept in Vault.

    Args:
        box: seals everything else, and opens what was sealed before.
        client: whose token may read and write below :data:`FOLDER`.
        lease: for how many seconds a secret that was read is used.
        writes: whether new secrets go to Vault.
    """

    def __init__(self, box: SecretBox, client: VaultClient, lease: float, *, writes: bool) -> None:
        self._box, self._client, self._lease, self._writes = box, client, lease, writes
        self._known: BoundedTTLMap[str, tuple[bytes, float]] = BoundedTTLMap(_MOST)
        self._missing: BoundedTTLMap[str, bool] = BoundedTTLMap(_MOST)
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._away_until = 0.0
        self.problem: str | None = None

    def __repr__(self) -> str:
        return "VaultSecrets()"

    # What lies in Vault

    async def keep(self, name: str, version: int, secret: bytes) -> bytes:
        if not self._writes:
            return await self._box.keep(name, version, secret)
        sealed = bytes([_REFERENCE]) + secrets.token_urlsafe(_RANDOM_BYTES).encode()
        path = _path(name, version, sealed)
        at = boot_clock()
        try:
            await self._client.run(self._client.write, path, {_FIELD: secret.decode()}, expected=0)
        except VaultError as error:
            raise StorageError(f"the secret cannot be written to Vault: {error.reason}") from None
        self._known.put(path, (secret, at + self._lease), at + self._lease)
        return sealed

    def drop(self, name: str, version: int, sealed: bytes | None = None) -> None:
        self._box.drop(name, version, sealed)
        if sealed is None or refers(sealed):
            self._later(self._erase(name, version, sealed))

    async def fetch(self, records: Sequence[ApiKey]) -> None:
        await self._box.fetch(records)
        now = boot_clock()
        wanted = {
            _path(record.key_id, version.version, version.sealed): record.key_id
            for record in records
            if record.kind == "signed"
            for version in record.versions
            if refers(version.sealed)
        }
        missing = [path for path in wanted if self._known.get(path, now) is None]
        flights = []
        for path in missing:
            if self._missing.get(path, now) or now < self._away_until:
                continue
            flight = self._flights.get(path)
            if flight is None:
                flight = self._flights[path] = self._later(self._read(path, wanted[path]))
            flights.append(flight)
        if flights:
            # wait() leaves what others wait for alone when this caller is cancelled.
            await asyncio.wait(flights)

    def lasts_until(self, record: ApiKey) -> float:
        until = self._box.lasts_until(record)
        for version in record.versions:
            if record.kind == "signed" and refers(version.sealed):
                path = _path(record.key_id, version.version, version.sealed)
                found = self._known.get(path, boot_clock())
                until = min(until, 0.0 if found is None else found[1])
        return until

    async def _read(self, path: str, key_id: str) -> None:
        at = boot_clock()
        try:
            text = await self._client.run(self._client.get_secret, path, _FIELD)
        except VaultError as error:
            if error.reason in _MISSING:
                _log.error("the secret of key %s is not in Vault: %s", key_id, error.reason)
                self._missing.put(path, True, boot_clock() + _PAUSE_SECONDS)
                return
            if self.problem is None:
                _log.error("secrets cannot be read from Vault: %s", error.reason)
            self.problem = f"secrets cannot be read from Vault: {error.reason}"
            self._away_until = boot_clock() + _PAUSE_SECONDS
        else:
            self.problem = None
            self._known.put(path, (text.encode(), at + self._lease), at + self._lease)
        finally:
            self._flights.pop(path, None)

    async def _erase(self, name: str, version: int, sealed: bytes | None) -> None:
        """One secret, or all of a version."""
        folder = _folder(name)
        try:
            if sealed is not None:
                paths = [_path(name, version, sealed)]
            else:
                names = await self._client.run(self._client.list, folder)
                paths = [f"{folder}/{n}" for n in names if n.startswith(f"{version}-")]
            for path in paths:
                self._known.discard(path)
                await self._client.run(self._client.erase, path)
        except VaultError as error:
            _log.error("a former secret of key %s is left in Vault: %s", name, error.reason)

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def renew(self) -> None:
        """Keep the token good, also while nothing is asked for; say so when that fails."""
        try:
            await self._client.run(self._client.renew)
        except VaultError as error:
            self.problem = f"secrets cannot be read from Vault: {error.reason}"
        else:
            if boot_clock() >= self._away_until:
                self.problem = None

    async def close(self) -> None:
        """Finish what was begun and let go of the connections."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()

    # What the record holds, and everything else

    def open(self, purpose: str, name: str, version: int, sealed: bytes) -> bytes:
        if purpose != "secret" or not refers(sealed):
            return self._box.open(purpose, name, version, sealed)
        found = self._known.get(_path(name, version, sealed), boot_clock())
        if found is None:
            raise EncryptionError(
                f"the secret of key {name} could not be had from Vault", reason="unavailable"
            )
        return found[0]

    def knows(self, version: KeyVersion) -> bool:
        return refers(version.sealed) or self._box.knows(version)

    def seal(self, purpose: str, name: str, version: int, plaintext: bytes) -> bytes:
        return self._box.seal(purpose, name, version, plaintext)

    def mac_state(self, key: bytes) -> MacState:
        return self._box.mac_state(key)

    def digest(self, token: bytes) -> tuple[int, bytes]:
        return self._box.digest(token)

    def pepper(self, number: int) -> MacState:
        return self._box.pepper(number)

    def is_newest(self, pepper: int) -> bool:
        return self._box.is_newest(pepper)

    async def learn(self) -> None:
        await self._box.learn()

    def mark(self, secret: bytes) -> bytes:
        return self._box.mark(secret)

    def record_mac(self, record: ApiKey) -> bytes:
        return self._box.record_mac(record)


def refers(sealed: object) -> bool:
    """Whether what is stored of a secret only says where it is kept."""
    return isinstance(sealed, bytes) and sealed[:1] == bytes([_REFERENCE])


def _folder(name: str) -> str:
    whole = name if name.strip(".") and ".." not in name else name.replace(".", "%2E")
    return f"{FOLDER}/{whole}"


def _path(name: str, version: int, sealed: bytes | None) -> str:
    return f"{_folder(name)}/{version}-{(sealed or b'')[1:].decode('ascii', 'replace')}"
