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

__all__ = ["SqlStore"]


class SqlStore:
    """Keys, changes, audit log and requests of one database.

    Args:
        driver: where the scripts run.
    """

    def __init__(self, driver: SqliteDriver) -> None:
        self.driver = driver

    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        # In this very thread: an indexed row costs less than a trip to another one.
        return self.driver.read(scripts.load_many(key_ids))

    async def apply(
        self, changes: Sequence[Change], seal: Seal, receipt: Receipt | None = None
    ) -> list[ApiKey]:
        return await self.driver.write(scripts.apply(changes, seal, receipt))

    async def find(self, query: KeyQuery) -> Page[ApiKey]:
        return await asyncio.to_thread(self.find_now, query)

    def find_now(self, query: KeyQuery) -> Page[ApiKey]:
        return self.driver.read_aside(scripts.find(query))

    async def versions(self, key_id: str) -> list[KeyVersion]:
        return self.driver.read(scripts.versions_of(key_id))

    async def ending(self, before: int, limit: int) -> list[ApiKey]:
        return self.driver.read(scripts.ending(before, limit), snapshot=True)

    async def record(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        await self.driver.write(scripts.record_events(events, used))

    def record_now(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        self.driver.write_now(scripts.record_events(events, used))

    async def find_audit(self, query: AuditQuery) -> Page[AuditEvent]:
        return await asyncio.to_thread(self.find_audit_now, query)

    def find_audit_now(self, query: AuditQuery) -> Page[AuditEvent]:
        return self.driver.read_aside(scripts.find_audit(query))

    async def begin(self, scope: str, key: str, fingerprint: bytes, now: int) -> Begun:
        return await self.driver.write(idempotency.begin(scope, key, fingerprint, now))

    async def abandon(self, scope: str, key: str) -> None:
        await self.driver.write(idempotency.abandon(scope, key))

    async def close(self) -> None:
        await asyncio.to_thread(self.driver.close)
