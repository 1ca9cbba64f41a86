"""Several processes, one set of numbers: whoever answers a scrape answers for all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from api_key_manager.wiring.worker import Worker
from tests.integration.conftest import Api, serving
from tests.integration.places import Place
from tests.integration.scrapes import Samples, of, scrape, value

ADMIN = "t" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "workers"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def worker(stack: AsyncExitStack, place: Place, number: int, folder: Path):
    return stack.enter_async_context(
        serving(
            worker=Worker(number, 2, folder),
            DATABASE_URL=f"sqlite:///{place.file}",
            AKM_MASTER_KEY_FILE=str(place.key_file),
            AKM_ADMIN_TOKEN=ADMIN,
        )
    )


async def counted(api: Api, wanted: int) -> None:
    """Until so many validations are told."""
    for _ in range(400):
        if of(await scrape(api), "akm_validations_total") == {("valid", "bearer"): wanted}:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"there are not {wanted} validations")


async def test_two(place, folder):
    """Both tell the same sums, at once and of all that both did; what is of one process is told
    per worker; of one that stopped the counts stay."""
    async with AsyncExitStack() as stack:
        one = await worker(stack, place, 1, folder)
        second = AsyncExitStack()
        two = await worker(second, place, 2, folder)
        key = await one.key(kind="bearer")
        for api in (one, one, two):
            assert (await api("POST", "/v1/validate", {"token": key["token"]})).json()["valid"]
        # The numbers of who is not asked are up to a second old.
        await counted(one, 3)
        seen, same = await scrape(one), await scrape(two)
        for samples in (seen, same):
            assert of(samples, "akm_validations_total") == {("valid", "bearer"): 3}
            assert of(samples, "akm_ready") == {("1",): 1, ("2",): 1}
            assert of(samples, "akm_keys")["active",] == 1
            assert len(of(samples, "akm_build_info")) == 1
        requests = of(same, "akm_http_requests_total")
        assert requests["POST", "/v1/validate", "200"] == 3
        assert value(same, "akm_store_operation_duration_seconds_count",
                     access="write", operation="apply") == 1  # fmt: skip
        _never_down(seen, same)
        await two("POST", "/v1/validate", {"token": key["token"]})
        await second.aclose()
        last = await scrape(one)
        assert of(last, "akm_validations_total") == {("valid", "bearer"): 4}
        assert of(last, "akm_ready") == {("1",): 1, ("2",): 0}
        _never_down(same, last)


def _never_down(before: Samples, after: Samples) -> None:
    for where, number in before.items():
        name = where[0]
        if name.startswith("akm_") and name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert after[where] >= number, where


async def test_killed_and_replaced(place, folder):
    """A worker that is killed stays counted, and the one that replaces it goes on from there."""
    async with AsyncExitStack() as stack:
        api = await worker(stack, place, 1, folder)
        key = await api.key(kind="bearer")
        env = {"AKM_ADMIN_TOKEN": ADMIN, "WORKERS_FOLDER": str(folder)}
        with place.child("work", key["token"], **env) as child:
            assert await asyncio.to_thread(child.hear) == "ready"
            child.tell("3")
            await counted(api, 3)
            before = await scrape(api)
            child.process.kill()
            child.process.wait()
        _never_down(before, await scrape(api))
        with place.child("work", key["token"], **env) as child:
            assert await asyncio.to_thread(child.hear) == "ready"
            child.tell("4")
            assert await asyncio.to_thread(child.hear) == "done"
            child.tell("")
            await asyncio.to_thread(child.done)
        after = await scrape(api)
        assert of(after, "akm_validations_total") == {("valid", "bearer"): 7}
        assert of(after, "akm_ready") == {("1",): 1, ("2",): 0}
        _never_down(before, after)
        assert sorted(p.name for p in folder.iterdir()) == ["metrics-1", "metrics-2"]
