"""Looking after a database: upgrade, and a check of everything that can be checked."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    ConfigurationError,
    EncryptionError,
    StorageError,
)
from api_key_manager.core.records import open_record
from api_key_manager.storage import SqlStore, scripts
from api_key_manager.storage.schema import HEAD, KNOWN, current
from api_key_manager.wiring.deployment import Deployment, open_deployment
from api_key_manager.wiring.findings import Finding, keyring_findings
from api_key_manager.wiring.limits import unshared_between_nodes
from api_key_manager.wiring.marking import marks_fit
from api_key_manager.wiring.places import database_path
from api_key_manager.wiring.token_care import tokens_to_look_at
from api_key_manager.wiring.vault import vault_problems

__all__ = ["Finding", "diagnose", "upgrade"]

_PAGE = 500
_SHOWN = 10
_MOST_BEHIND = 10_000


async def upgrade(settings: Settings) -> str:
    """Make the database, or bring it to this version's schema.

    Returns:
        What was done, in words.

    Raises:
        ConfigurationError, StorageError: it cannot be done.
    """
    name, before = await _schema(settings)
    async with open_deployment(settings, background=False):
        pass
    if before is not None and before not in KNOWN:
        return f"{name} has the newer schema {before}, on which this version can run as well"
    if before == HEAD:
        return f"{name} is up to date (schema {HEAD})"
    return f"{name}: schema {before} -> {HEAD}" if before else f"{name} was made (schema {HEAD})"


async def _schema(settings: Settings) -> tuple[str, str | None]:
    """The database in words, and its schema version."""
    if settings.on_network:
        from api_key_manager.wiring.postgres import current_of, name_of

        return name_of(settings.DATABASE_URL), await current_of(settings.DATABASE_URL)
    path = database_path(settings)
    if path is None:
        raise ConfigurationError("DATABASE_URL: memory:// has no file to look after")
    return str(path), await asyncio.to_thread(current, path) if path.exists() else None


async def diagnose(settings: Settings) -> AsyncIterator[Finding]:
    """Check settings, files, keys and records; yields what it finds as it goes."""
    if settings.DATABASE_URL == "memory://":
        yield Finding("warning", "database", "keys live in memory and end with the process")
        return
    path = database_path(settings)
    if path is not None and not path.exists():
        yield Finding("error", "database", f"there is no database at {path}")
        return
    try:
        name, schema = await _schema(settings)
    except (ConfigurationError, StorageError) as error:
        yield Finding("error", "database", str(error))
        return
    try:
        async with open_deployment(settings, create=False, background=False) as deployment:
            yield Finding("ok", "database", f"{name}, schema {schema}")
            yield Finding("ok", "master key", f"{deployment.master_key} opens the database")
            for finding in await keyring_findings(deployment):
                yield finding
            for finding in _files(settings, path, deployment):
                yield finding
            limits = await unshared_between_nodes(settings, deployment.manager.store)
            if limits is not None:
                yield Finding("warning", "rate limits", limits)
            for told in await tokens_to_look_at(deployment.manager):
                yield Finding("warning", "admin tokens", told)
            if settings.VAULT_ENABLED and settings.vault_credentials:
                wrong = await vault_problems(settings)
                for message in wrong:
                    yield Finding("error", "vault", message)
                if not wrong:
                    lease = settings.VAULT_LEASE_SECONDS
                    yield Finding("ok", "vault", f"it does what is asked of it; lease {lease} s")
            async for finding in _records(deployment):
                yield finding
            for finding in await _log(deployment):
                yield finding
    except (ConfigurationError, EncryptionError) as error:
        yield Finding("error", "configuration", str(error))
    except (StorageError, APIKeyManagerException) as error:
        yield Finding("error", "database", str(error))


def _files(settings: Settings, path: Path | None, deployment: Deployment) -> list[Finding]:
    found = []
    private = path is None or os.name != "posix" or not stat.S_IMODE(path.stat().st_mode) & 0o077
    if not private:
        found.append(Finding("warning", "database", f"others may read it: chmod 600 {path}"))
    if settings.AKM_ADMIN_TOKEN:
        found.append(
            Finding("warning", "admin token", "AKM_ADMIN_TOKEN is set and opens everything")
        )
    if not settings.AKM_MASTER_KEY and settings.KEK_PROVIDER == "local":
        found.append(
            Finding(
                "ok",
                "backup",
                f"a backup needs the master key beside it: save {deployment.master_key}",
            )
        )
    return found


async def _records(deployment: Deployment) -> AsyncIterator[Finding]:
    """Every record must fit its MAC and open; static signatures are worth a word."""
    manager = deployment.manager
    broken: list[str] = []
    static: list[str] = []
    hidden: list[str] = []
    count = 0
    store = manager.store
    last = ""
    # Whatever its row says of it: an edit may have put a key into another realm, or erased it.
    while isinstance(store, SqlStore):
        page = await store.driver.read_aside(scripts.every, last, _PAGE)
        if not page:
            break
        await manager.box.fetch(page)
        for record in page:
            count += 1
            static_now = record.min_scheme == "static" and record.deleted_at is None
            if record.static_used_at is not None and static_now:
                static.append(record.key_id)
            try:
                open_record(record, manager.box)
                if not marks_fit(record, manager.box):
                    hidden.append(record.key_id)
            except EncryptionError:
                broken.append(record.key_id)
        last = page[-1].key_id
    if broken:
        yield Finding(
            "error", "records", f"{len(broken)} of {count} were edited or damaged: {_some(broken)}"
        )
    else:
        yield Finding("ok", "records", f"all {count} fit their MACs and open")
    if hidden:
        words = f"the marks of {len(hidden)} were edited, by which a leaked secret is found"
        yield Finding("error", "records", f"{words}: {_some(hidden)}")
    if static:
        yield Finding(
            "warning", "static signatures",
            f"{len(static)} keys still use them, which can be replayed: {_some(static)}",
        )  # fmt: skip
    else:
        yield Finding("ok", "static signatures", "no key has used one")


async def _log(deployment: Deployment) -> list[Finding]:
    """The records against the log, and the log's end against itself and the sink."""
    store, sealer = deployment.manager.store, deployment.sealer
    if not isinstance(store, SqlStore) or sealer is None:
        return []
    found = []
    behind = await store.driver.read_aside(scripts.rolled_back, _MOST_BEHIND)
    for what, told in (
        ("rolled back to an older state", [k for k, _, row in behind if row is not None]),
        ("removed", [k for k, _, row in behind if row is None]),
    ):
        if told:
            words = f"{len(told)} keys were {what}, the log knows better: {_some(told)}"
            found.append(Finding("error", "records", words))
    if not behind:
        found.append(Finding("ok", "records", "none is older than the log has it"))
    wrong = await sealer.look()
    found.extend(Finding("error", "audit log", words) for words in wrong)
    if sealer.state is not None and sealer.state.origin > 1:
        words = f"it was started anew: {sealer.state.name} goes on (`akm audit verify` says why)"
        found.append(Finding("warning", "audit log", words))
    if not wrong:
        size = 0 if sealer.state is None else sealer.state.size
        words = f"{size} leaves, and its end fits; `akm audit verify` checks all of it"
        found.append(Finding("ok", "audit log", words))
    if not deployment.settings.AUDIT_SINK:
        words = "AUDIT_SINK is not set: nothing outside the database shows that its end was cut off"
        found.append(Finding("ok", "audit log", words))
    return found


def _some(key_ids: list[str]) -> str:
    more = len(key_ids) - _SHOWN
    return ", ".join(map(str, key_ids[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
