"""The same thing done on two nodes at once, and a server that is lost in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.core import ConflictError, KeyExistsError, Reason
from api_key_manager.core.exceptions import StorageError
from api_key_manager.wiring import Deployment
from tests.integration.conftest import Api, serving
from tests.integration.places import signed
from tests.integration.postgres_nodes import MASTER, Fate, Proxy, Shared, ask, eventually
from tests.integration.servers import TOKEN
from tests.services import Postgres


@pytest.fixture
def shared(tmp_path: Path, postgres: Postgres) -> Iterator[Shared]:
    place = Shared(tmp_path, postgres)
    yield place
    place.drop()


@pytest.fixture
async def nodes(shared: Shared) -> AsyncIterator[list[Deployment]]:
    async with shared.open() as one, shared.open() as two:
        yield [one, two]


@pytest.fixture
async def apis(shared: Shared) -> AsyncIterator[list[Api]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(api_on(shared)) for _ in range(2)]


@asynccontextmanager
async def api_on(shared: Shared, **options: Any) -> AsyncIterator[Api]:
    settings = {"DATABASE_URL": shared.url, "AKM_MASTER_KEY": MASTER, "AKM_ADMIN_TOKEN": TOKEN}
    async with serving(**{**settings, **options}) as api:
        yield api


def meet(nodes: list[Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next reading on each node wait until all have read: so each knows the same state."""
    barrier = asyncio.Barrier(len(nodes))
    for node in nodes:
        load, met = node.manager.store.load, list[bool]()

        async def together(key_ids: Any, load: Any = load, met: list[bool] = met) -> Any:
            found = await load(key_ids)
            if not met:
                met.append(True)
                await barrier.wait()
            return found

        monkeypatch.setattr(node.manager.store, "load", together)


async def test_two_nodes_rotate_one_key(nodes, shared, monkeypatch):
    """Of two rotations of one key at the same moment exactly one is made; the other gets a
    ConflictError. The winner's secret works, on both nodes."""
    for _ in range(5):
        key = await nodes[0].manager.create_key()
        meet(nodes, monkeypatch)
        results = await asyncio.gather(
            *(node.manager.rotate_key(key["key_id"]) for node in nodes), return_exceptions=True
        )
        monkeypatch.undo()
        (won,) = [result for result in results if isinstance(result, dict)]
        (lost,) = [result for result in results if not isinstance(result, dict)]
        assert isinstance(lost, ConflictError)
        assert won["version"] == 2
        for node in nodes:
            await eventually(lambda node=node, won=won: ask(node, won))
        rows = shared.sql("SELECT version FROM key_versions WHERE key_id = $1", key["key_id"])
        assert sorted(rows) == [(1,), (2,)]


async def test_two_nodes_rotate_over_http(apis, monkeypatch):
    """The same over HTTP: one 200, and one 409 that says that somebody else was faster."""
    key = await apis[0].key()
    meet([api.deployment for api in apis], monkeypatch)
    path = f"/v1/keys/{key['key_id']}/rotate"
    answers = await asyncio.gather(*(api("POST", path, {}) for api in apis))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    (lost,) = [answer.json() for answer in answers if answer.status_code == 409]
    assert lost["reason"] == "conflict"
    assert "changed by somebody else meanwhile" in lost["detail"]


async def test_two_nodes_create_one_id(nodes, shared):
    """Of many creates of one id on two nodes exactly one is made; all others get a
    KeyExistsError."""
    results = await asyncio.gather(
        *(nodes[n % 2].manager.create_key("same") for n in range(10)), return_exceptions=True
    )
    (won,) = [result for result in results if isinstance(result, dict)]
    assert [type(r) for r in results if r is not won] == [KeyExistsError] * 9
    assert (await ask(nodes[0], won)).valid
    assert (await ask(nodes[1], won)).valid
    assert shared.sql("SELECT count(*) FROM audit_events WHERE action = 'key_created'") == [(1,)]


async def test_two_nodes_claim_one_nonce(nodes):
    """A nonce is accepted once, whichever of two nodes are asked at once."""
    key = await nodes[0].manager.create_key()
    for i in range(10):
        proof = signed(nodes[0].manager, key, f"nonce-{i:020}")
        verdicts = await asyncio.gather(*(nodes[n % 2].manager.verify(**proof) for n in range(6)))
        reasons = sorted(verdict.reason for verdict in verdicts)
        assert reasons == [Reason.REPLAYED] * 5 + [Reason.VALID]


async def test_two_nodes_begin_one_request(apis, shared):
    """The same Idempotency-Key on two nodes at once makes one key: whoever is not first is told to
    wait, or gets the first answer, byte for byte."""
    for i in range(5):
        headers = {"Idempotency-Key": f"once-{i}"}
        answers = await asyncio.gather(
            *(
                apis[n % 2]("POST", "/v1/keys", {"owner": f"o{i}"}, headers=headers)
                for n in range(6)
            )
        )
        made = {answer.content for answer in answers if answer.status_code == 201}
        assert len(made) == 1
        others = [answer.json()["reason"] for answer in answers if answer.status_code != 201]
        assert set(others) <= {"in_progress"}
        again = await apis[1]("POST", "/v1/keys", {"owner": f"o{i}"}, headers=headers)
        assert {again.content} == made
        assert shared.sql("SELECT count(*) FROM keys WHERE owner = $1", f"o{i}") == [(1,)]


@asynccontextmanager
async def through(shared: Shared, **options: Any) -> AsyncIterator[tuple[Api, Proxy]]:
    """A server whose wire to the database can be cut."""
    async with Proxy(shared.server.port).running() as proxy:
        url = shared.url.replace(str(shared.server.port), str(proxy.port))
        options = {"DATABASE_TIMEOUT_SECONDS": 1, **options}
        async with api_on(shared, DATABASE_URL=url, **options) as api:
            yield api, proxy


@pytest.mark.parametrize("fate", ["lost before", "lost after", "silence", "crash"])
async def test_lost_around_a_commit(shared, fate: Fate):
    """When the answer to a commit does not come, whatever became of it, the client gets a 503 that
    says that it may have been done; the retry with the same Idempotency-Key ends in exactly one
    key, and its secret works."""
    async with through(shared) as (api, proxy):
        headers = {"Idempotency-Key": "create-1"}
        proxy.doom(b"victim", fate)
        answer = await api("POST", "/v1/keys", {"key_id": "victim"}, headers=headers)
        assert proxy.struck.is_set()
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"]
        problem = answer.json()
        assert problem["reason"] == "unavailable"
        assert "may or may not have been done" in problem["detail"]
        done = shared.sql("SELECT count(*) FROM keys WHERE key_id = 'victim'")[0][0]
        assert done == (0 if fate == "lost before" else 1)

        async def retried() -> Any:
            answer = await api("POST", "/v1/keys", {"key_id": "victim"}, headers=headers)
            assert answer.status_code in (201, 503, 409), answer.text
            return answer if answer.status_code == 201 else None

        answer = await eventually(retried)
        assert ("idempotency-replayed" in answer.headers) == (fate != "lost before")
        body = {"key": "victim"} | {
            name: value
            for name, value in signed(api.deployment.manager, answer.json()).items()
            if name in ("signature", "timestamp")
        }
        assert (await api("POST", "/v1/validate", body)).json()["valid"]
        assert shared.sql("SELECT count(*) FROM audit_events WHERE action = 'key_created'") == [
            (1,)
        ]


async def test_lost_around_a_rotation(shared):
    """A rotation whose commit was done but not answered is not made again by a retry with the same
    Idempotency-Key, which gets the one new secret."""
    async with through(shared) as (api, proxy):
        key = await api.key(key_id="victim")
        proxy.doom(b"victim", "lost after")
        headers = {"Idempotency-Key": "rotate-1"}
        path = "/v1/keys/victim/rotate"
        assert (await api("POST", path, {}, headers=headers)).status_code == 503

        async def retried() -> Any:
            answer = await api("POST", path, {}, headers=headers)
            return answer if answer.status_code == 200 else None

        new = (await eventually(retried)).json()
        assert (new["version"], new["secret"] == key["secret"]) == (2, False)
        manager = api.deployment.manager
        assert (await manager.verify(**signed(manager, new))).valid


async def test_an_uncertain_commit_is_not_repeated(shared):
    """Without an Idempotency-Key the caller is told, and nothing is written a second time."""
    async with through(shared) as (api, proxy):
        manager = api.deployment.manager
        await manager.create_key("victim")
        proxy.doom(b"victim", "crash")
        with pytest.raises(StorageError, match="may or may not have been done") as told:
            await manager.update_key("victim", owner="o")
        assert told.value.uncertain
        assert shared.sql("SELECT revision FROM deployment") == [(2,)]
        assert (await manager.get_key("victim"))["owner"] == "o"


async def test_killed_before_the_commit(shared):
    """Connections that are killed while a create runs cost at most a retry: it is made once, or the
    caller gets an error and it is not made."""
    async with shared.open(DATABASE_CONNECTIONS=4) as node:
        stop = asyncio.Event()

        async def kill() -> None:
            while not stop.is_set():
                ours = "query NOT LIKE 'LISTEN%'"
                await asyncio.to_thread(shared.kill_connections, ours)
                await asyncio.sleep(0.03)

        killer = asyncio.create_task(kill())
        results: dict[str, Any] = {}
        for n in range(40):
            try:
                results[f"k{n}"] = await node.manager.create_key(f"k{n}")
            except StorageError as error:
                results[f"k{n}"] = error
                await asyncio.sleep(0.05)
        stop.set()
        await killer
        stored = {row[0] for row in shared.sql("SELECT key_id FROM keys")}
        for key_id, result in results.items():
            if isinstance(result, dict):
                assert key_id in stored
            elif not result.uncertain:
                assert key_id not in stored
        made = [result for result in results.values() if isinstance(result, dict)]
        assert len(made) > 20, "kept from working rather than disturbed"
        events = shared.sql(
            "SELECT key_id FROM audit_events WHERE action = 'key_created' ORDER BY key_id"
        )
        assert [row[0] for row in events] == sorted(stored)
        for key in made:
            await eventually(lambda key=key: ask(node, key))
