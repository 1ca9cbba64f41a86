"""How one record is read, believed, changed and written: what every use case builds on."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from api_key_manager.core import lifecycle
from api_key_manager.core.exceptions import ConflictError, PermissionDeniedError, StorageError
from api_key_manager.core.models import (
    MICROSECONDS,
    ApiKey,
    AuditEvent,
    Change,
    canonical_json,
)
from api_key_manager.core.ports import KeyStore, Receipt, SecretBox
from api_key_manager.core.recorder import Recorder
from api_key_manager.core.records import Records, edited, is_intact
from api_key_manager.core.tokens import check_key_id

__all__ = ["LIBRARY", "Changing", "Origin", "Step"]

_log = logging.getLogger(__name__)
_TRIES = 5

Step = Callable[[ApiKey, int], Change | None]
"""Takes a record and the time (µs), gives the change to make of it, if any."""


class Origin(NamedTuple):
    """On whose behalf something is done, for the audit log."""

    actor: str = "library"
    ip: str | None = None
    request_id: str | None = None

    def storable(self) -> Origin:
        """The same in text that every store keeps: an event that one of them refuses would be
        tried again and again, and hold up all behind it."""
        if self is LIBRARY:
            return self
        return Origin(
            _storable(self.actor, 128) or "",
            _storable(self.ip, 45),
            _storable(self.request_id, 64),
        )


LIBRARY: Final = Origin()


def _storable(value: object, longest: int) -> str | None:
    """Text without what cannot be printed (NUL, half of a surrogate pair), cut at its column."""
    if value is None:
        return None
    text = str(value)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text[:longest]


class Changing:
    """Reads records that can be believed, and writes them with what follows from that."""

    store: KeyStore
    box: SecretBox
    records: Records
    recorder: Recorder
    prefix: str
    clock: Callable[[], float]
    limits_shared: bool = True
    environment: str | None = None
    """The only one whose keys there are for who uses this; ``None``: every key."""

    @property
    def closed(self) -> bool:
        """Whether nothing is changed any more."""
        return False

    def _now(self) -> int:
        return int(self.clock() * MICROSECONDS)

    async def _write(
        self, changes: Sequence[Change], receipt: Receipt | None = None
    ) -> list[ApiKey]:
        if self.closed:
            raise StorageError("this manager is closed")
        # What was validated before the change stands before it in the log.
        await self.recorder.flush(self.clock())
        try:
            written = await self.store.apply(changes, self.box.record_mac, receipt)
        finally:
            # Also after a failure: nobody knows whether it was written.
            self.records.changed([change.record.key_id for change in changes])
        for change in changes:
            for version in change.record.versions:
                if version.ended and change.record.kind == "signed":
                    self.box.drop(change.record.key_id, version.version)
        return written

    async def _record(self, key_id: str, realm: str) -> ApiKey:
        """One record that can be believed.

        Raises:
            KeyNotFoundError: no such key.
            StorageError: it was edited; a change would put a new seal under what was written there.
        """
        record = await self._stored(key_id, realm)
        if not is_intact(record, self.box):
            raise StorageError(f"{edited(record)}: it can only be deleted")
        if not all(map(self.box.knows, record.versions)):
            await self.box.learn()
        return record

    async def _stored(self, key_id: str, realm: str) -> ApiKey:
        check_key_id(key_id)
        (record,) = await self.store.load([key_id])
        return lifecycle.require_found(record, realm, self.environment)

    def _stay_within(self, fields: dict[str, Any], *, new: bool) -> dict[str, Any]:
        """Fields of a key that is to be in the environment that this is confined to.

        Raises:
            PermissionDeniedError: they name another one, or would take the key out of it.
        """
        own = self.environment
        if own is None or ("environment" not in fields and not new):
            return fields
        named = fields.get("environment")
        if named == own or (named is None and new):
            return {**fields, "environment": own}
        raise PermissionDeniedError("environment: only the one that this token is confined to")

    def _intact(self, records: Sequence[ApiKey]) -> list[ApiKey]:
        """The records that can be believed; the others are reported."""
        found = []
        for record in records:
            if is_intact(record, self.box):
                found.append(record)
            else:
                _log.error("%s", edited(record))
        return found

    async def _change(
        self,
        key_id: str,
        realm: str,
        step: Step,
        read: Callable[[str, str], Awaitable[ApiKey]] | None = None,
    ) -> ApiKey:
        """Read, step, write; again when somebody else was faster."""
        tries = _TRIES
        while True:
            record = await (read or self._record)(key_id, realm)
            change = step(record, self._now())
            if change is None:
                return record
            tries -= 1
            try:
                return (await self._write([change]))[0]
            except ConflictError:
                if not tries:
                    raise

    def _event(
        self,
        record: ApiKey,
        verb: str,
        by: Origin,
        detail: dict[str, Any],
        reason: str | None = None,
    ) -> AuditEvent:
        action, by = lifecycle.event_action(record, verb), by.storable()
        return AuditEvent(
            self._now(),
            action,
            record.key_id,
            by.actor,
            reason,
            by.ip,
            by.request_id,
            canonical_json(detail) if detail else None,
            environment=record.environment,
        )

    def _public(self, record: ApiKey) -> dict[str, Any]:
        use = self.recorder.last_use(record.key_id)
        if use is not None:
            record = replace(record, last_used_at=use.at)
        return record.to_dict(self._now())

    def _shown(self, record: ApiKey, secret: str) -> dict[str, Any]:
        field = "secret" if record.kind == "signed" else "token"
        return {**self._public(record), field: secret}
