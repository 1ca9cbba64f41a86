"""Loads made together: everybody gets his own, and nobody pays for another."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.cache import Gathering
from api_key_manager.core.exceptions import StorageError


class Store:
    """Answers with what it was asked for, when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.let = asyncio.Event()
        self.let.set()

    async def load(self, key_ids):
        self.asked.append(list(key_ids))
        await self.let.wait()
        if "broken" in key_ids:
            raise StorageError("gone")
        return [None if key_id == "nobody" else key_id.upper() for key_id in key_ids]


async def settled(turns: int = 10) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5), max_size=40))
async def test_everybody_gets_his_own(wanted):
    """Whatever is asked for together, each gets his records in his order."""
    store = Store()
    gathering = Gathering(store.load)
    found = await asyncio.gather(*(gathering.load(key_ids) for key_ids in wanted))
    assert found == [[key_id.upper() for key_id in key_ids] for key_ids in wanted]
    assert len(store.asked) <= max(1, -(-sum(map(len, wanted)) // 256))


async def test_one_turn_is_one_look_up():
    """What is asked for in one turn goes out together, each key once; never too much at once."""
    store = Store()
    gathering = Gathering(store.load)
    await asyncio.gather(*(gathering.load([f"k{i % 50}"]) for i in range(100)))
    assert [len(ids) for ids in store.asked] == [50]
    await asyncio.gather(*(gathering.load([f"k{i}"]) for i in range(600)))
    assert [len(ids) for ids in store.asked[1:]] == [256, 256, 88]


async def test_few_are_under_way():
    """While four look-ups are under way what comes waits, and then goes out as one."""
    store = Store()
    gathering = Gathering(store.load)
    store.let.clear()
    calls = []
    for i in range(20):
        calls.append(asyncio.create_task(gathering.load([f"k{i}"])))
        await settled()
    assert len(store.asked) == 4
    store.let.set()
    await asyncio.gather(*calls)
    assert [len(ids) for ids in store.asked] == [1, 1, 1, 1, 16]


async def test_a_failure_is_told_to_all_of_it():
    """What cannot be loaded is so for all who asked with it, and for nobody after them."""
    store = Store()
    gathering = Gathering(store.load)
    found = await asyncio.gather(
        gathering.load(["a"]), gathering.load(["broken"]), return_exceptions=True
    )
    assert [type(each) for each in found] == [StorageError, StorageError]
    assert await gathering.load(["a", "nobody"]) == ["A", None]


@pytest.mark.parametrize("moment", ["waiting", "under way"])
async def test_who_is_cancelled_takes_nothing_along(moment):
    """Others get their records although one who asked with them has gone."""
    store = Store()
    gathering = Gathering(store.load)
    store.let.clear()
    calls = [asyncio.create_task(gathering.load([key_id])) for key_id in "abc"]
    await asyncio.sleep(0)
    if moment == "under way":
        await settled()
    calls[1].cancel()
    await settled()
    store.let.set()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert found[::2] == [["A"], ["C"]]
    assert isinstance(found[1], asyncio.CancelledError)


async def test_closing():
    """What is under way ends with it."""
    store = Store()
    gathering = Gathering(store.load)
    store.let.clear()
    call = asyncio.create_task(gathering.load(["a"]))
    await settled()
    await gathering.close()
    with pytest.raises(asyncio.CancelledError):
        await call
