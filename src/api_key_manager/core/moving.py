"""Digests under an older pepper, each moved to the newest one after the token was seen again.

Only who holds a token can make its digest anew. So a validation that proved one notes the new
digest, in memory and for next to nothing, and a task writes what was noted, many in one
transaction. What anybody changed meanwhile is left alone: the next use of the token notes it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from api_key_manager.core.exceptions import ConflictError
from api_key_manager.core.lifecycle import event_action
from api_key_manager.core.models import ApiKey, AuditEvent, Change, canonical_json
from api_key_manager.core.ports import SecretBox
from api_key_manager.core.records import is_intact

__all__ = ["Moves"]

_MOST: Final = 10_000
_BATCH: Final = 256


class _Move(NamedTuple):
    pepper: int
    digest: bytes

    def __repr__(self) -> str:
        return f"_Move({self.pepper})"


class Moves:
    """What waits to be written; at most 10,000, the rest is noted at its next use.

    Args:
        box: makes digests under the newest pepper.
    """

    def __init__(self, box: SecretBox) -> None:
        self._box = box
        self._waiting: dict[tuple[str, int], _Move] = {}

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def note(self, record: ApiKey, number: int | None, token: bytes) -> None:
        """A token was proved to be this version of a bearer key."""
        place = (record.key_id, number or 0)
        if place in self._waiting or len(self._waiting) >= _MOST:
            return
        for version in record.versions:
            current = version.pepper is None or self._box.is_newest(version.pepper)
            if version.version == number and not current:
                self._waiting[place] = _Move(*self._box.digest(token))

    async def write(
        self,
        load: Callable[[Sequence[str]], Awaitable[list[ApiKey | None]]],
        write: Callable[[Sequence[Change]], Awaitable[list[ApiKey]]],
        now: int,
    ) -> None:
        """Write what waits, batch by batch. ``now`` in µs.

        Args:
            load: records as they are stored.
            write: makes all changes or none.

        Raises:
            StorageError: it cannot be written; what was taken is noted again at its next use.
        """
        while self._waiting:
            places = list(self._waiting)[:_BATCH]
            moves = {place: self._waiting.pop(place) for place in places}
            records = await load(list(dict.fromkeys(key_id for key_id, _ in moves)))
            changes = [change for r in records if r and (change := self._moved(r, moves, now))]
            if not changes:
                continue
            try:
                await write(changes)
            except ConflictError:
                for change in changes:
                    # Revoked, rotated or moved by somebody else: theirs stands.
                    with contextlib.suppress(ConflictError):
                        await write([change])

    def _moved(
        self, record: ApiKey, moves: dict[tuple[str, int], _Move], now: int
    ) -> Change | None:
        if record.revoked or not is_intact(record, self._box):
            return None
        versions, events = [], []
        for version in record.versions:
            move = moves.get((record.key_id, version.version))
            # A number is never given to another secret, so it is the token's that was proved.
            if move and version.digest is not None and (version.pepper or 0) < move.pepper:
                version = replace(version, pepper=move.pepper, digest=move.digest)
                events.append(_event(record, version.version, move.pepper, now))
            versions.append(version)
        if not events:
            return None
        return Change(replace(record, versions=tuple(versions)), record.revision, events)


def _event(record: ApiKey, version: int, pepper: int, now: int) -> AuditEvent:
    return AuditEvent(
        now, event_action(record, "digest_moved"), record.key_id, "system",
        detail_json=canonical_json({"version": version, "pepper": pepper}),
        environment=record.environment,
    )  # fmt: skip
