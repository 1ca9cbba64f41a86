"""PostgreSQL frozen, killed or cut off, and what the nodes answer meanwhile and afterwards."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from api_key_manager.core import Reason
from api_key_manager.core.exceptions import StorageError
from api_key_manager.server.app import build_app
from api_key_manager.storage import postgres_schema
from api_key_manager.wiring import Deployment
from tests.integration.places import signed
from tests.integration.postgres_nodes import Proxy, Shared, ask, eventually, warm
from tests.integration.servers import TOKEN
from tests.services import Postgres, in_thread, running_postgres

BOUND = 0.8
TIMEOUT = 0.6
# What a machine that is busy with other things may add to a wait.
SLACK = 2.5
OPTIONS = {
    "REVOCATION_BOUND_SECONDS": BOUND,
    "DATABASE_TIMEOUT_SECONDS": TIMEOUT,
    "AKM_ADMIN_TOKEN": TOKEN,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One that may be broken."""
    with running_postgres() as server:
        server.sql("CREATE DATABASE akm_empty")
        in_thread(lambda: postgres_schema.upgrade_at(server.url("akm_empty")))
        yield server


@pytest.fixture
def shared(tmp_path: Path, server: Postgres) -> Iterator[Shared]:
    place = Shared(tmp_path, server)
    yield place
    place.drop()


class Trouble:
    """One way in which a server goes away, and comes back."""

    def __init__(self, how: str, server: Postgres, proxy: Proxy) -> None:
        self._how, self._server, self._proxy = how, server, proxy

    async def begin(self) -> None:
        if self._how == "frozen":
            await asyncio.to_thread(self._server.freeze)
        elif self._how == "killed":
            await asyncio.to_thread(self._server.kill)
        else:
            self._proxy.cut()

    async def end(self) -> None:
        if self._how == "frozen":
            await asyncio.to_thread(self._server.thaw)
        elif self._how == "killed":
            await asyncio.to_thread(self._server.start)
        else:
            self._proxy.mend()


@pytest.fixture(params=["frozen", "killed", "cut"])
async def trouble(request, server: Postgres, shared: Shared) -> AsyncIterator[Trouble]:
    async with Proxy(server.port).running() as proxy:
        trouble = Trouble(request.param, server, proxy)
        if request.param == "cut":
            shared.url = shared.url.replace(str(server.port), str(proxy.port))
        try:
            yield trouble
        finally:
            if request.param == "frozen":
                server.thaw()
            elif request.param == "killed" and server._process is None:
                server.start()


@asynccontextmanager
async def api_of(node: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_app(node))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://akm.test", headers=headers
    ) as client:
        yield client


async def timed(call: Awaitable[Any]) -> tuple[float, Any]:
    started = time.monotonic()
    try:
        result = await call
    except StorageError as error:
        result = error
    return time.monotonic() - started, result


async def works_again(node: Deployment) -> Any:
    """Wait until the node is ready and its store answers: each finds out for itself."""

    async def answers() -> Any:
        try:
            return node.problems() == [] and await node.manager.find_keys()
        except StorageError:
            return None

    return await eventually(answers)


async def watch(
    node: Deployment, key: dict[str, Any], until: Callable[[list[tuple[float, Any]]], bool]
) -> list[tuple[float, Any]]:
    """When each question was asked, from now on, and its verdict; none may take longer than an
    operation may."""
    began, seen = time.monotonic(), list[tuple[float, Any]]()
    while not until(seen):
        asked = time.monotonic()
        took, verdict = await timed(ask(node, key))
        assert took < TIMEOUT + SLACK
        seen.append((asked - began, verdict))
        await asyncio.sleep(0.01)
    return seen


async def test_cached_answers_end_with_the_bound(shared, trouble, caplog):
    """While the server is away a cached key is answered inside the bound, counted from the start of
    the last reading that worked, then it is `unavailable`, quickly; the node is unready meanwhile.
    When the server is back all is well again without a restart, and the log says each once."""
    caplog.set_level(logging.INFO, "api_key_manager")
    async with shared.open(**OPTIONS) as node, api_of(node) as client:
        key, cold = [await node.manager.create_key() for _ in range(2)]
        await warm(node, key)
        assert (await client.get("/readyz")).status_code == 200
        await trouble.begin()
        seen = await watch(node, key, lambda seen: len(seen) > 5 and not seen[-5][1].valid)
        assert seen[0][1].valid, "nothing was answered from the cache"
        assert all(at < BOUND for at, verdict in seen if verdict.valid)
        assert {verdict.reason for _, verdict in seen} == {Reason.VALID, Reason.UNAVAILABLE}
        took, verdict = await timed(ask(node, cold))
        assert verdict.reason is Reason.UNAVAILABLE
        assert took < TIMEOUT + SLACK
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "the change feed cannot be read" in ready.text
        await asyncio.sleep(1)  # so that what would be said again and again is
        await trouble.end()
        await works_again(node)
        await warm(node, key, cold)
        assert (await client.get("/readyz")).status_code == 200
        await node.manager.revoke_key(key["key_id"])
        assert (await ask(node, key)).reason is Reason.REVOKED
    said = Counter(
        record.getMessage().partition(":")[0]
        for record in caplog.records
        if record.name.startswith("api_key_manager") and record.levelno >= logging.INFO
    )
    assert said["the change feed cannot be read"] == 1
    # A seal that begins while the database comes back may find it gone once more.
    assert said.pop("events cannot be sealed", 0) <= 2
    assert max(said.values()) == 1, said
    assert all(record.exc_info is None for record in caplog.records if record.name[:3] == "api")


async def test_serve_stale_ends_too(shared, trouble):
    """With ON_STORE_OUTAGE=serve-stale a cached key is answered past the bound, for at most
    MAX_STALE_SECONDS; then it is `unavailable`, and comes back with the server."""
    stale = {"ON_STORE_OUTAGE": "serve-stale", "MAX_STALE_SECONDS": 1}
    async with shared.open(**OPTIONS, **stale) as node:
        key = await node.manager.create_key()
        await warm(node, key)
        await trouble.begin()
        seen = await watch(node, key, lambda seen: len(seen) > 5 and not seen[-5][1].valid)
        latest = max(at for at, verdict in seen if verdict.valid)
        assert BOUND < latest < BOUND + 1
        first = min(at for at, verdict in seen if not verdict.valid)
        assert first > BOUND, "a gap in between"
        await trouble.end()
        await eventually(lambda: node.problems() == [])
        await warm(node, key)


async def test_nothing_hangs(shared, trouble):
    """Every operation ends in bounded time while the server is away: reads, long reads, changes,
    claims of nonces, also many at once; nothing that was refused is found done later."""
    async with shared.open(**OPTIONS) as node:
        manager = node.manager
        key = await manager.create_key()
        await asyncio.gather(*(manager.find_keys() for _ in range(5)))  # several connections
        await trouble.begin()
        began = time.monotonic()
        calls = [
            manager.find_keys(), manager.find_audit(), manager.get_key(key["key_id"]),
            *(manager.create_key(f"refused-{n}") for n in range(10)), manager.sweep(),
        ]  # fmt: skip
        for took, result in await asyncio.gather(*map(timed, calls)):
            assert isinstance(result, StorageError)
            # A change first writes what waits for the audit log.
            assert took < 2 * TIMEOUT + SLACK
        verdict = await manager.verify(**signed(manager, key, "n" * 20))
        assert verdict.reason is Reason.UNAVAILABLE
        assert time.monotonic() - began < 3 * TIMEOUT + 2 * SLACK
        await trouble.end()
        found = await works_again(node)
        assert [item["key_id"] for item in found["items"]] == [key["key_id"]]


async def test_events_wait(shared, trouble):
    """What was validated from the cache while the server was away is in the log afterwards."""
    async with shared.open(**OPTIONS) as node:
        key = await node.manager.create_key()
        await warm(node, key)
        await trouble.begin()
        accepted = sum([(await ask(node, key)).valid for _ in range(20)])
        assert accepted
        await asyncio.sleep(0.5)
        await trouble.end()
        await works_again(node)
        log = await node.manager.find_audit(action="key_validated", limit=1000)
        assert len(log["items"]) >= accepted


async def test_a_node_that_starts_meanwhile(shared, trouble, monkeypatch):
    """A node that starts while the server is away says so in bounded time."""
    monkeypatch.setattr(postgres_schema, "_CONNECT_SECONDS", 1.0)
    await trouble.begin()
    with pytest.raises(StorageError) as refused:
        await asyncio.wait_for(shared.open(**OPTIONS).__aenter__(), 3)
    assert "the database cannot be used" in str(refused.value)
    await trouble.end()


@asynccontextmanager
async def locked(shared: Shared, *statements: str) -> AsyncIterator[asyncpg.Connection]:
    """A session of somebody else that holds locks."""
    connection = await asyncpg.connect(shared.url)
    try:
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement)
            yield connection
    finally:
        await connection.close()


async def test_exhausted_pool(shared):
    """When every connection is blocked, answers are 503 with Retry-After in bounded time; following
    changes goes on by its own connection, so that cached keys are answered as ever; and it all
    works again by itself."""
    options = {**OPTIONS, "DATABASE_CONNECTIONS": 2, "AUDIT_VALIDATIONS": "none"}
    async with shared.open(**options) as node, api_of(node) as client:
        key, cold = [await node.manager.create_key() for _ in range(2)]
        await warm(node, key)
        async with locked(shared, "LOCK TABLE keys"):
            ends = time.monotonic() + 2 * BOUND

            async def write(n: int) -> None:
                while time.monotonic() < ends:
                    took, answer = await timed(client.post("/v1/keys", json={"key_id": f"k{n}"}))
                    assert answer.status_code == 503
                    assert answer.headers["retry-after"]
                    assert took < 2 * TIMEOUT + SLACK

            writers = [asyncio.create_task(write(n)) for n in range(6)]
            await asyncio.sleep(0.1)
            took, verdict = await timed(ask(node, cold))
            assert verdict.reason is Reason.UNAVAILABLE
            assert took < TIMEOUT + SLACK
            while time.monotonic() < ends:
                verdict = await ask(node, key)
                assert verdict.valid
                assert verdict.cached
                assert node.follower.problem is None
                await asyncio.sleep(0.02)
            await asyncio.gather(*writers)
        await eventually(lambda: node.problems() == [])
        assert (await client.post("/v1/keys", json={"key_id": "k0"})).status_code == 201
        assert (await ask(node, cold)).valid


async def test_a_lock_that_is_held_hurts_nobody_else(shared):
    """A change that waits for a lock until its time is up is refused and says why; the server is
    not taken for one that is away, and reads go on at once."""
    async with shared.open(**OPTIONS) as node:
        key, cold = [await node.manager.create_key() for _ in range(2)]
        async with locked(
            shared, f"SELECT * FROM keys WHERE key_id = '{key['key_id']}' FOR UPDATE"
        ):
            took, error = await timed(node.manager.revoke_key(key["key_id"]))
            assert "a statement took too long (57014)" in str(error)
            assert took < TIMEOUT + SLACK
            assert (await ask(node, cold)).valid
            assert (await node.manager.create_key("other"))["key_id"] == "other"
        await node.manager.revoke_key(key["key_id"])


async def test_a_deadlock_is_tried_again(shared):
    """Of two transactions that wait for each other ours is the one that gives way, and it is done
    all the same."""
    shared.sql(f"ALTER DATABASE {shared.name} SET deadlock_timeout = '50ms'")
    async with shared.open(**{**OPTIONS, "DATABASE_TIMEOUT_SECONDS": 5}) as node:
        key = await node.manager.create_key("k")
        lock = "SELECT * FROM keys WHERE key_id = 'k' FOR UPDATE"
        async with locked(shared, "SET LOCAL deadlock_timeout = '10s'", lock) as other:
            change = asyncio.create_task(node.manager.update_key("k", owner="o"))
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await eventually(lambda: shared.sql(waiting))
            await asyncio.wait_for(other.execute("UPDATE deployment SET revision = revision"), 5)
        assert (await change)["owner"] == "o"
        assert (await ask(node, key)).valid


@pytest.mark.parametrize("times", [3, 1000])
async def test_serialization_failures(shared, times):
    """A transaction that the server refuses because of another one is run again; when that never
    ends, the caller is told in bounded time. It is made once, or not at all."""
    shared.sql("CREATE SEQUENCE refusals")
    shared.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('refusals') <= {times} THEN"
        "  RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$"
    )
    async with shared.open(**{**OPTIONS, "DATABASE_TIMEOUT_SECONDS": 3}) as node:
        shared.sql("CREATE TRIGGER t BEFORE INSERT ON keys FOR EACH ROW EXECUTE FUNCTION refuse()")
        took, result = await timed(node.manager.create_key("k"))
        assert took < 3 + SLACK
        made = shared.sql("SELECT count(*) FROM keys")[0][0]
        assert (isinstance(result, StorageError), made) == ((False, 1) if times == 3 else (True, 0))
        tried = shared.sql("SELECT last_value FROM refusals")[0][0]
        assert tried == (4 if times == 3 else 5)


@pytest.mark.parametrize("turns", [0, 1, 3, 6])
async def test_who_is_cancelled_keeps_no_connection(shared, turns):
    """A caller may hang up at any moment, also while its connection is being given back: the next
    one gets a connection."""
    async with shared.open(**{**OPTIONS, "DATABASE_CONNECTIONS": 1}, background=False) as node:
        await node.manager.create_key("k")
        for _ in range(3):
            call = asyncio.create_task(node.manager.store.load(["k"]))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert (await node.manager.store.load(["k"]))[0].key_id == "k"


async def test_cancelled_while_giving_back(shared, monkeypatch):
    """The same at the one moment that is hard to meet."""
    async with shared.open(**{**OPTIONS, "DATABASE_CONNECTIONS": 1}, background=False) as node:
        await node.manager.create_key("k")
        driver = node.manager.store.driver
        release, giving = driver._release, asyncio.Event()

        async def slow(*connection: Any) -> None:
            await release(*connection)
            giving.set()
            await asyncio.sleep(60)

        monkeypatch.setattr(driver, "_release", slow)
        call = asyncio.create_task(node.manager.store.load(["k"]))
        await giving.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        monkeypatch.undo()
        assert (await node.manager.store.load(["k"]))[0].key_id == "k"
