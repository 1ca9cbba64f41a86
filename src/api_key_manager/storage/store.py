"""The key store over SQL: scripts on a driver."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from api_key_manager.core.models import (
    ApiKey,
    AuditEvent,
    AuditQuery,
    Change,
    KeyQuery,
    KeyVersion,
    Page,
    Use,
)
from api_key_manager.core.ports import Begun, Receipt, Seal
from api_key_manager.storage import idempotency, scripts
from api_key_manager.storage.sqlite import SqliteDriver
from api_key_manager.storage.timing import Observe, reads, untold, writes

__all__ = ["SqlStore"]


class SqlStore:
    """Keys, changes, audit log and requests of one database.

    Args:
        driver: where the scripts run.
        observe: is told how long each operation took.
    """

    def __init__(self, driver: SqliteDriver, *, observe: Observe = untold) -> None:
        self.driver = driver
        self.observe = observe

    @reads
    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        # In this very thread: an indexed row costs less than a trip to another one.
        return self.driver.read(scripts.load_many(key_ids))

    @writes
    async def apply(
        self, changes: Sequence[Change], seal: Seal, receipt: Receipt | None = None
    ) -> list[ApiKey]:
        return await self.driver.write(scripts.apply(changes, seal, receipt))

    @reads
    async def find(self, query: KeyQuery) -> Page[ApiKey]:
        return await asyncio.to_thread(self.find_now, query)

    def find_now(self, query: KeyQuery) -> Page[ApiKey]:
        return self.driver.read_aside(scripts.find(query))

    @reads
    async def versions(self, key_id: str) -> list[KeyVersion]:
        return self.driver.read(scripts.versions_of(key_id))

    @reads
    async def ending(self, before: int, limit: int) -> list[ApiKey]:
        return self.driver.read(scripts.ending(before, limit), snapshot=True)

    @reads
    async def count(self, realm: str, now: int) -> dict[str, int]:
        return await asyncio.to_thread(self.driver.read_aside, scripts.count(realm, now))

    @reads
    async def census(
        self, realm: str, now: int, environment: str | None = None
    ) -> dict[str | None, dict[str, int]]:
        script = scripts.census(realm, now, environment)
        return await asyncio.to_thread(self.driver.read_aside, script)

    @writes
    async def record(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        await self.driver.write(scripts.record_events(events, used))

    def record_now(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        self.driver.write_now(scripts.record_events(events, used))

    @reads
    async def find_audit(self, query: AuditQuery) -> Page[AuditEvent]:
        return await asyncio.to_thread(self.find_audit_now, query)

    def find_audit_now(self, query: AuditQuery) -> Page[AuditEvent]:
        return self.driver.read_aside(scripts.find_audit(query))

    @writes
    async def begin(self, scope: str, key: str, fingerprint: bytes, now: int) -> Begun:
        return await self.driver.write(idempotency.begin(scope, key, fingerprint, now))

    @writes
    async def abandon(self, scope: str, key: str) -> None:
        await self.driver.write(idempotency.abandon(scope, key))

    async def close(self) -> None:
        await asyncio.to_thread(self.driver.close)
