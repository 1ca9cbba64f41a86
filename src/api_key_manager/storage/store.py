"""The key store over SQL: scripts on a driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
from api_key_manager.core.sealed import Stamp
from api_key_manager.storage import events as log_events
from api_key_manager.storage import idempotency, marks, scripts
from api_key_manager.storage.driver import Driver
from api_key_manager.storage.sqlite import SqliteDriver
from api_key_manager.storage.timing import Observe, reads, untold, writes

__all__ = ["SqlStore", "SqliteStore"]


def _nobody() -> None:
    """Is told of changes that nobody waits for."""


class SqlStore:
    """Keys, changes, audit log and requests of one database.

    Args:
        driver: where the scripts run.
        observe: is told how long each operation took.
        announce: is called after each change that was committed here.
        stamp: makes the rows of events, with their MACs.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        observe: Observe = untold,
        announce: Callable[[], None] = _nobody,
        stamp: Stamp = log_events.unstamped,
    ) -> None:
        self.driver = driver
        self.observe = observe
        self.announce = announce
        self.stamp = stamp

    @reads
    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        return await self.driver.read(scripts.load_many, key_ids)

    @writes
    async def apply(
        self, changes: Sequence[Change], seal: Seal, receipt: Receipt | None = None
    ) -> list[ApiKey]:
        done = await self.driver.write(scripts.apply, changes, seal, receipt, self.stamp)
        self.announce()
        return done

    @reads
    async def find(self, query: KeyQuery) -> Page[ApiKey]:
        return await self.driver.read_aside(scripts.find, query)

    @reads
    async def versions(self, key_id: str) -> list[KeyVersion]:
        return await self.driver.read(scripts.versions_of, key_id)

    @reads
    async def marked(self, mark: bytes) -> list[str]:
        return await self.driver.read(marks.find, mark)

    @reads
    async def ending(self, before: int, limit: int) -> list[ApiKey]:
        return await self.driver.read_aside(scripts.ending, before, limit)

    @reads
    async def count(self, realm: str, now: int) -> dict[str, int]:
        return await self.driver.read_aside(scripts.count, realm, now)

    @reads
    async def census(
        self, realm: str, now: int, environment: str | None = None
    ) -> dict[str | None, dict[str, int]]:
        return await self.driver.read_aside(scripts.census, realm, now, environment)

    @writes
    async def record(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        await self.driver.write(log_events.record_events, events, used, self.stamp)

    @reads
    async def find_audit(self, query: AuditQuery) -> Page[AuditEvent]:
        return await self.driver.read_aside(log_events.find_audit, query)

    @writes
    async def begin(self, scope: str, key: str, fingerprint: bytes, now: int) -> Begun:
        return await self.driver.write(idempotency.begin, scope, key, fingerprint, now)

    @writes
    async def abandon(self, scope: str, key: str) -> None:
        await self.driver.write(idempotency.abandon, scope, key)

    async def close(self) -> None:
        await self.driver.close()


class SqliteStore(SqlStore):
    """One in this process, which answers plain calls too."""

    driver: SqliteDriver

    def find_now(self, query: KeyQuery) -> Page[ApiKey]:
        return self.driver.read_aside_now(scripts.find, query)

    def record_now(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        self.driver.write_now(log_events.record_events, events, used, self.stamp)

    def find_audit_now(self, query: AuditQuery) -> Page[AuditEvent]:
        return self.driver.read_aside_now(log_events.find_audit, query)
