"""Which admin tokens somebody should look at: without an end, near it, or unused for long."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import ADMIN_REALM

__all__ = ["tokens_to_look_at"]

_DAY: Final = 86_400
UNUSED_DAYS: Final = 90
ENDING_DAYS: Final = 14
_PAGE: Final = 500
_SHOWN: Final = 10


async def tokens_to_look_at(manager: KeyManager) -> list[str]:
    """What is to be said of the active admin tokens; empty when all are well kept.

    Raises:
        StorageError: they cannot be read.
    """
    endless: list[str] = []
    ending: list[str] = []
    unused: list[str] = []
    cursor: str | None = None
    while True:
        page = await manager.find_keys(
            realm=ADMIN_REALM, state="active", limit=_PAGE, cursor=cursor
        )
        for token in page["items"]:
            key_id, now = token["key_id"], manager.clock()
            if token["expires_at"] is None:
                endless.append(key_id)
            elif _seconds(token["expires_at"]) - now < ENDING_DAYS * _DAY:
                ending.append(key_id)
            # One that never was used counts from the day on which it was made.
            if now - _seconds(token["last_used"] or token["created_at"]) > UNUSED_DAYS * _DAY:
                unused.append(key_id)
        cursor = page["next_cursor"]
        if cursor is None:
            break
    told = [
        (endless, "never end: akm tokens create --expires-in 90d makes others"),
        (ending, f"end within {ENDING_DAYS} days: make others in their place"),
        (unused, f"were not used for {UNUSED_DAYS} days: akm tokens revoke ends them"),
    ]
    return [f"{len(found)} {what} ({_some(found)})" for found, what in told if found]


def _seconds(instant: Any) -> float:
    return datetime.fromisoformat(instant).timestamp()


def _some(key_ids: list[str]) -> str:
    more = len(key_ids) - _SHOWN
    return ", ".join(key_ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
