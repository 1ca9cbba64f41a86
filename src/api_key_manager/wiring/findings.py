"""What a check of a database finds, and what it finds of the keyring."""

from __future__ import annotations

from typing import Literal, NamedTuple

from api_key_manager.wiring.deployment import Deployment
from api_key_manager.wiring.keyring import StoredKeyring

__all__ = ["Finding", "keyring_findings"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: Literal["ok", "warning", "error"]
    topic: str
    message: str


async def keyring_findings(deployment: Deployment) -> list[Finding]:
    """Whether a former key-encryption key is still needed, and who is under an older pepper."""
    keys = deployment.backend.keys
    if keys is None:
        return []
    return [await _key_encryption(keys), *await _peppers(keys)]


async def _key_encryption(keys: StoredKeyring) -> Finding:
    standing = await keys.standing()
    topic, previous = "key-encryption key", keys.providers.previous
    if standing.previous:
        return Finding(
            "warning", topic,
            f"{standing.previous} of {sum(standing.wrapped.values())} keys are still wrapped under"
            f" the previous one: run `akm secrets rotate-kek` before you remove it",
        )  # fmt: skip
    if previous:
        named = ", ".join(each.source for each in previous)
        return Finding(
            "warning", topic,
            f"all keys are under {standing.current}: the previous one ({named}) can be removed now",
        )  # fmt: skip
    return Finding("ok", topic, f"all keys are under {standing.current}")


async def _peppers(keys: StoredKeyring) -> list[Finding]:
    counted = await keys.digests()
    newest = max(counted)
    older = {number: count for number, count in counted.items() if number != newest}
    found = [
        Finding(
            "warning", "peppers",
            f"{count} digests are still under pepper {number}; they move to {newest} as their"
            f" tokens are used (`akm secrets rotate-pepper --retire {number}` ends the rest)",
        )
        for number, count in older.items()
        if count
    ]  # fmt: skip
    if found:
        return found
    told = f"all digests are under pepper {newest}"
    if older:
        told += f"; `akm secrets rotate-pepper --retire {max(older)}` removes the older ones"
    return [Finding("ok", "peppers", told)]
