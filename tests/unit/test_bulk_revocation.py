"""Many keys are revoked together, and still all of them when the store can do a few at a time."""

from __future__ import annotations

from typing import Any

import pytest

from api_key_manager.core import KeyManager, StorageError
from api_key_manager.core.memory import MemoryStore


class Slow(MemoryStore):
    """Does at most so many changes at once."""

    def __init__(self, most: int, *, uncertain: bool = False) -> None:
        super().__init__()
        self.most = most
        self.uncertain = uncertain
        self.asked: list[int] = []

    async def apply(self, changes: Any, *rest: Any) -> Any:
        self.asked.append(len(changes))
        if len(changes) > self.most:
            raise StorageError("a statement took too long", uncertain=self.uncertain)
        return await super().apply(changes, *rest)


async def with_keys(store: Slow, count: int) -> KeyManager:
    most, store.most = store.most, 1
    manager = KeyManager(store=store)
    for i in range(count):
        await manager.create_key(f"k{i:04d}", owner="acme")
    store.most = most
    store.asked.clear()
    return manager


@pytest.mark.parametrize("most", [1, 7, 99, 100])
async def test_half_by_half(most: int):
    """A store that fails at so many changes gets fewer, down to one, until all are done."""
    store = Slow(most)
    manager = await with_keys(store, 230)
    done = await manager.revoke_keys(owner="acme", reason="leak")
    assert (done["matched"], done["revoked"]) == (230, 230)
    assert (await manager.store.count("default", 0))["revoked"] == 230
    assert max(store.asked) == 100
    if most == 100:
        assert store.asked == [100, 100, 30]


async def test_a_store_that_is_away():
    """It is told soon, not after a try for every key."""
    store = Slow(0)
    manager = await with_keys(store, 230)
    with pytest.raises(StorageError):
        await manager.revoke_keys(owner="acme")
    assert store.asked == [100, 50, 25, 12, 6, 3, 1]


async def test_perhaps_done():
    """What may have been committed is not asked for again."""
    store = Slow(10, uncertain=True)
    manager = await with_keys(store, 50)
    with pytest.raises(StorageError) as caught:
        await manager.revoke_keys(owner="acme")
    assert caught.value.uncertain
    assert store.asked == [50]
