"""What a manager shows, by the plain calls where its store has them and page by page elsewhere."""

from __future__ import annotations

from typing import Any

from api_key_manager.core import KeyManager
from api_key_manager.core.ports import is_embedded

__all__ = ["listed", "logged"]


async def listed(manager: KeyManager, active_only: bool = True) -> list[dict[str, Any]]:
    if is_embedded(manager.store):
        return manager.list_keys(active_only)
    return await _every(manager.find_keys, **({"state": "active"} if active_only else {}))


async def logged(manager: KeyManager) -> list[dict[str, Any]]:
    if is_embedded(manager.store):
        return manager.get_audit_log()
    return await _every(manager.find_audit, ascending=True)


async def _every(find: Any, **filters: Any) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        page = await find(limit=1000, cursor=cursor, **filters)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
