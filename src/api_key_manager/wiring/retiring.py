"""Taking a pepper out of use: which keys die with it, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from api_key_manager.core.changing import Origin
from api_key_manager.core.exceptions import ConflictError, StorageError
from api_key_manager.core.lifecycle import retire as retire_record
from api_key_manager.core.models import ADMIN_REALM
from api_key_manager.core.records import is_intact
from api_key_manager.wiring.deployment import Deployment
from api_key_manager.wiring.keyring import StoredKeyring

__all__ = ["Survey", "retire", "survey"]

_TRIES = 5


@dataclass
class Survey:
    """What would happen.

    Attributes:
        keys: ids of keys that would be revoked.
        tokens: ids of admin tokens that would be.
        versions: ids of keys that would lose an older version only, or are revoked already.
        damaged: ids of keys that cannot be believed; they have to be deleted first.
    """

    keys: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def revoked(self) -> int:
        """How many would be revoked."""
        return len(self.keys) + len(self.tokens)


async def survey(deployment: Deployment, keys: StoredKeyring, least: int) -> Survey:
    """Which keys have live digests under peppers older than ``least``. Changes nothing."""
    found, after, manager = Survey(), "", deployment.manager
    now = int(manager.clock() * 1_000_000)
    while page := await keys.under(least, after):
        after = page[-1]
        for key_id, record in zip(page, await manager.store.load(page), strict=True):
            if record is None or not is_intact(record, manager.box):
                found.damaged.append(key_id)
                continue
            change = retire_record(record, least, "", now)
            if change is None or change.record.revoked == record.revoked:
                found.versions.append(key_id)
            elif record.realm == ADMIN_REALM:
                found.tokens.append(key_id)
            else:
                found.keys.append(key_id)
    return found


async def retire(
    deployment: Deployment,
    keys: StoredKeyring,
    least: int,
    by: Origin,
    progress: Callable[[int, int | None], None],
) -> int:
    """End what is under peppers older than ``least``, then remove those; how many keys changed.

    It can be cut off anywhere and begun again: a pepper goes when nothing is left under it.

    Raises:
        StorageError: it cannot be done now, or a key that cannot be believed is in the way.
    """
    done, manager = 0, deployment.manager
    for _ in range(_TRIES):
        after = ""
        while page := await keys.under(least, after):
            after = page[-1]
            try:
                done += await manager.retire_digests(page, least, by)
            except ConflictError:
                continue  # the next round sees to them
            progress(done, None)
        if not await keys.remove_peppers(least, by.actor):
            return done
    raise StorageError(
        f"digests are left under pepper {least - 1}: their keys change all the time, or cannot be"
        " believed (`akm doctor` names those; delete them)"
    )
