"""What is done about a secret or token that was found where it must not be.

Only what matches a stored digest or secret acts, whoever reports it: anybody can write down a
token of a key whose id they know.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

from api_key_manager.core import lifecycle
from api_key_manager.core.changing import LIBRARY, Changing, Origin
from api_key_manager.core.exceptions import KeyNotFoundError
from api_key_manager.core.models import (
    ADMIN_REALM,
    ApiKey,
    AuditEvent,
    Change,
    KeyVersion,
)
from api_key_manager.core.records import edited, is_intact
from api_key_manager.core.signing import matches
from api_key_manager.core.tokens import (
    ends_like_a_secret,
    holds_a_secret,
    parse_token,
    secret_bytes,
)

__all__ = ["LEAKED", "Leak", "LeakReport", "Leaks", "place"]

_log = logging.getLogger(__name__)
LEAKED: Final = "leaked"
_LONGEST_READ: Final = 4096
_REDACTED: Final = "***REDACTED***"

Action = Literal["revoked", "version_ended", "flagged", "none"]


class LeakReport(NamedTuple):
    """A token that was found, and where. Its ``repr`` shows neither."""

    token: str
    url: str | None = None
    source: str | None = None

    def __repr__(self) -> str:
        return "LeakReport()"


class Leak(NamedTuple):
    """Whose a reported token is, and what was done: ``none`` where all was done before."""

    key_id: str
    realm: str
    version: int
    action: Action


def place(text: str | None, longest: int) -> str | None:
    """Where something was found, fit for the audit log: bounded, printable, without a secret."""
    if not text:
        return None
    text = text[:_LONGEST_READ]
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return _REDACTED if holds_a_secret(text) else text[:longest]


class Leaks(Changing):
    """Matches reports with keys, and acts."""

    on_leak: str = "revoke"
    """``revoke``, or ``flag``: a key is only reported. An admin token is always revoked."""

    async def report_leaks(
        self, reports: Sequence[LeakReport], *, by: Origin = LIBRARY
    ) -> list[Leak | None]:
        """Do what the policy says about each token that is one of ours and alive.

        A version that was reported before, or has ended, changes nothing and adds no event.

        Args:
            reports: tokens and secrets, with where they were found.
            by: who reports them.

        Returns:
            In order whose each is; ``None`` when it is nobody's, or was some time ago.

        Raises:
            StorageError, EncryptionError: it cannot be told now; what was done stays done, and the
                same report may be sent again.
        """
        known: dict[str, Leak | None] = {}
        for report in reports:
            if report.token not in known:
                known[report.token] = await self._report(report, by)
        return [known[report.token] for report in reports]

    async def _report(self, report: LeakReport, by: Origin) -> Leak | None:
        raw = secret_bytes(report.token)
        if raw is None or not report.token.isascii() or not ends_like_a_secret(report.token):
            return None
        parsed = parse_token(report.token)
        named = [] if parsed is None else [parsed.key_id]
        found = None
        # A secret may be two keys', if somebody brought it along twice.
        for key_id in dict.fromkeys([*named, *await self.store.marked(self.box.mark(raw))]):
            found = await self._act(key_id, raw, report, by) or found
        return found

    async def _act(self, key_id: str, raw: bytes, report: LeakReport, by: Origin) -> Leak | None:
        found: Leak | None = None

        def step(record: ApiKey, now: int) -> Change | None:
            nonlocal found
            version = self._whose(record, raw, now)
            found = None
            if version is None:
                return None
            action, changed = self._consequence(record, version, now)
            found = Leak(record.key_id, record.realm, version.version, action)
            if changed is None:
                return None
            events = self._events(changed, found, report, by)
            return Change(_flagged(changed, version.version, now), record.revision, events)

        try:
            # In whichever realm it is: admin tokens leak as well.
            await self._change(key_id, "", step, self._of_any_realm)
        except KeyNotFoundError:
            return None
        return found

    async def _of_any_realm(self, key_id: str, _: str) -> ApiKey:
        (record,) = await self.store.load([key_id])
        if record is None:
            raise KeyNotFoundError("no such key")
        lifecycle.require_found(record, record.realm, self.environment)
        if not is_intact(record, self.box):
            # Nobody is let in by it either.
            _log.error("%s: whether it leaked cannot be told", edited(record))
            raise KeyNotFoundError("no such key")
        return record

    def _whose(self, record: ApiKey, raw: bytes, now: int) -> KeyVersion | None:
        """The live version that this is the secret or token of."""
        for version in record.versions:
            if version.ends_at is not None and version.ends_at <= now:
                continue
            if version.digest is not None:
                known, shown = version.digest, self.box.pepper(version.pepper or 0).digest(raw)
            elif version.sealed is not None:
                known = self.box.open("secret", record.key_id, version.version, version.sealed)
                shown = raw
            else:
                continue
            if matches(known, shown):
                return version
        return None

    def _consequence(
        self, record: ApiKey, version: KeyVersion, now: int
    ) -> tuple[Action, ApiKey | None]:
        """What is to be done, and the record after that; ``None`` when it was done before."""
        if record.revoked:
            return "none", None
        if record.realm == ADMIN_REALM or self.on_leak == "revoke":
            if version.version != record.version:
                # Who has rotated already is not to lose the new secret for the old one.
                return "version_ended", lifecycle.end_version(record, version.version, now)
            return "revoked", lifecycle.revoke(record, LEAKED, now, now)
        return ("none", None) if version.leaked_at is not None else ("flagged", record)

    def _events(
        self, record: ApiKey, leak: Leak, report: LeakReport, by: Origin
    ) -> list[AuditEvent]:
        detail: dict[str, Any] = {"version": leak.version, "action": leak.action}
        for name, text, longest in (("url", report.url, 512), ("source", report.source, 64)):
            if (told := place(text, longest)) is not None:
                detail[name] = told
        events = [self._event(record, "leaked", by, detail, LEAKED)]
        if leak.action != "flagged":
            event = self._event(record, leak.action, by, {"version": leak.version}, LEAKED)
            events.append(event)
        return events


def _flagged(record: ApiKey, number: int, now: int) -> ApiKey:
    versions = tuple(
        replace(version, leaked_at=now) if version.version == number else version
        for version in record.versions
    )
    return replace(record, versions=versions, updated_at=max(now, record.updated_at))
