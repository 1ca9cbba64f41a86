"""`akm serve --workers N`: several processes that behave as one, also when one of them dies."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.server.binding import bind, for_worker
from api_key_manager.server.worker import start_line
from api_key_manager.wiring import Worker
from tests.integration.conftest import signed
from tests.integration.connections import Connection, connected
from tests.integration.places import BOUND, Place, until
from tests.integration.servers import COMMAND, TOKEN, Server, environment, refused, started

# Enough that a worker without one would be a wonder: 3 * (2/3)^48.
MANY = 48
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # One that nobody has waited for has ended all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:  # no /proc here, or no longer
        return not Path("/proc/self").exists()


class Working:
    """A server of several workers."""

    def __init__(self, server: Server, errors: Path) -> None:
        self.server = server
        self.url = server.url
        self._errors = errors

    @property
    def log(self) -> str:
        return self._errors.read_text()

    @property
    def seen(self) -> list[tuple[int, int]]:
        """Number and process of every worker that ever listened, in order."""
        found = re.findall(r"worker (\d+) listens \(process (\d+)\)", self.log)
        return [(int(number), int(pid)) for number, pid in found]

    @property
    def pids(self) -> dict[int, int]:
        """The process that has each number now."""
        return dict(self.seen)


@contextmanager
def working(tmp_path: Path, workers: int = 3, **settings: str) -> Iterator[Working]:
    """Such a server, of which nothing is left afterwards."""
    mine = {"AKM_ADMIN_TOKEN": TOKEN, "WORKERS": str(workers), "TMPDIR": str(tmp_path)}
    working = None
    try:
        with started(tmp_path, **{**mine, **settings}) as server:
            working = Working(server, tmp_path / "stderr")
            yield working
            if server.process.poll() is None:
                server.stop()
    finally:
        # The block may have killed their parent, as `started` does at the latest.
        pids = [pid for _, pid in working.seen] if working else []
        deadline = time.monotonic() + 15
        while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, "workers outlived their parent"


async def ask_all(connections: list[Connection], method: str, path: str, body: Any = None) -> Any:
    return await asyncio.gather(*(one(method, path, body) for one in connections))


def events(place: Path) -> Counter[tuple[str, str]]:
    """Verdicts in the audit log, by action and reason, with their counts."""
    log = Place(place).sql(
        "SELECT action, reason, sum(count) FROM audit_events"
        " WHERE action IN ('key_validated', 'key_refused') GROUP BY action, reason"
    )
    return Counter({(action, reason): count for action, reason, count in log})


@pytest.mark.parametrize("what", ["key", "admin token"])
async def test_a_revocation_is_seen_by_all(tmp_path: Path, what: str):
    """Revoked through one connection, what is warm in every worker is refused by all of them within
    the bound."""
    with working(tmp_path) as served:
        async with connected(served.url, MANY) as (boss, *others):
            if what == "key":
                key = (await boss("POST", "/v1/keys", {})).body
                end = ("POST", f"/v1/keys/{key['key_id']}/revoke", {})
                question, header = ("POST", "/v1/validate", signed(key)), {}
            else:
                token = (await boss("POST", "/v1/tokens", {"scopes": ["keys:read"]})).body
                end = ("DELETE", f"/v1/tokens/{token['key_id']}", None)
                question = ("GET", "/v1/keys", None)
                header = {"Authorization": f"Bearer {token['token']}"}

            async def last_yes(one: Connection) -> float:
                """When it was last asked and said yes; `inf` when it says yes to the end."""
                last = -math.inf
                while (asked := time.monotonic()) < begun + 10:
                    answer = await one(*question, **header)
                    if answer.status == 401 or answer.body.get("reason") == "revoked":
                        return last
                    assert answer.status == 200
                    last = asked
                return math.inf

            async def revoke() -> float:
                await asyncio.sleep(0.5)
                assert (await boss(*end)).status in (200, 204)
                return time.monotonic()

            begun = time.monotonic()
            committed, *lasts = await asyncio.gather(revoke(), *map(last_yes, others))
            assert min(lasts) > begun, "each was asked while it was good"
            assert max(lasts) - committed <= BOUND
            answers = await asyncio.gather(*(one(*question, **header) for one in others))
            assert not any(
                answer.status == 200 and answer.body.get("valid", True) for answer in answers
            )


async def test_a_nonce_is_taken_once(tmp_path: Path):
    """The same request over every connection at the same time: one of all workers accepts it."""
    with working(tmp_path) as served:
        async with connected(served.url, MANY) as connections:
            key = (await connections[0]("POST", "/v1/keys", {})).body
            for i in range(10):
                body = signed(key, nonce=f"nonce-number-{i:08}")
                answers = await ask_all(connections, "POST", "/v1/validate", body)
                reasons = Counter(answer.body["reason"] for answer in answers)
                assert reasons == {"valid": 1, "replayed": MANY - 1}


async def test_a_request_is_made_once(tmp_path: Path):
    """An `Idempotency-Key` that comes to all workers at the same time makes one key."""
    with working(tmp_path) as served:
        async with connected(served.url, MANY) as connections:
            answers = await asyncio.gather(
                *(one("POST", "/v1/keys", {}, Idempotency_Key="once") for one in connections)
            )
            made = {answer.body["secret"] for answer in answers if answer.status == 201}
            assert len(made) == 1
            assert {answer.status for answer in answers} <= {201, 409}
            listed = (await connections[0]("GET", "/v1/keys")).body["items"]
            assert len(listed) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_every_answer_is_in_the_log(tmp_path: Path, how: signal.Signals):
    """After an orderly stop the audit log holds each verdict of each worker, folded ones by their
    counts."""
    answered: Counter[tuple[str, str]] = Counter()
    with working(tmp_path, AUDIT_FLUSH_SECONDS="1") as served:
        async with connected(served.url, MANY) as connections:
            keys = [(await connections[0]("POST", "/v1/keys", {})).body for _ in range(4)]

            async def load(one: Connection, seed: int) -> None:
                chance = random.Random(seed)
                for i in range(60):
                    body = signed(chance.choice(keys))
                    kind = chance.randrange(4)
                    if kind == 0:
                        body = signed(chance.choice(keys), nonce=f"nonce-of-{seed:04}-{i:04}")
                    elif kind == 1:
                        body["signature"] = "00" * 32
                    elif kind == 2:
                        body["key"] = f"nobody-{chance.randrange(99)}"
                    answer = await one("POST", "/v1/validate", body)
                    assert answer.status == 200
                    reason = answer.body["reason"]
                    answered["key_validated" if reason == "valid" else "key_refused", reason] += 1

            await asyncio.gather(*(load(one, seed) for seed, one in enumerate(connections)))
        assert await asyncio.to_thread(served.server.stop, how) == 0
    assert answered.total() == MANY * 60
    assert {reason for _, reason in answered} == {"valid", "bad_signature", "not_found"}
    assert events(tmp_path) == answered
    assert " ERROR " not in served.log


async def test_a_stop_finishes_what_was_accepted(tmp_path: Path):
    """A change that waits for the disk when the stop comes is made, and answered; then all end."""
    with working(tmp_path) as served:
        place = Place(tmp_path)
        async with connected(served.url, 12) as connections:
            assert len(served.pids) == 3
            with held(place):
                for one in connections:
                    await one.send("POST", "/v1/keys", {})
                await asyncio.sleep(0.3)
                served.server.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.5)
                assert served.server.process.poll() is None
                with pytest.raises(OSError, match=r"refused|failed"):
                    async with connected(served.url, 1):
                        pass
            answers = [await asyncio.wait_for(one.receive(), 15) for one in connections]
        assert {answer.status for answer in answers} == {201}
        assert await asyncio.to_thread(served.server.process.wait, 20) == 0
        assert not any(alive(pid) for pid in served.pids.values())
        made = {answer.body["key_id"] for answer in answers}
        kept = {key_id for (key_id,) in place.sql("SELECT key_id FROM keys")}
        assert made <= kept


@contextmanager
def held(place: Place) -> Iterator[None]:
    """The database busy, as when the disk is slow."""
    import sqlite3

    connection = sqlite3.connect(place.file, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


async def test_a_second_interrupt_forces(tmp_path: Path):
    """Ctrl-C waits for a request that does not end; Ctrl-C again does not."""
    with working(tmp_path, 2) as served:
        async with connected(served.url, 6) as connections:
            for one in connections:
                one.writer.write(
                    b"POST /v1/keys HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n"
                    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n{"
                )
            await asyncio.sleep(0.3)
            served.server.process.send_signal(signal.SIGINT)
            await asyncio.sleep(1)
            assert served.server.process.poll() is None
            begun = time.monotonic()
            served.server.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(served.server.process.wait, 20) == 0
            assert time.monotonic() - begun < 5


@linux
async def test_connections_are_spread(tmp_path: Path):
    """Each worker gets its share of the connections, also of those that come while all are idle."""
    with working(tmp_path) as served:

        def sockets(pid: int) -> int:
            links = []
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    links.append(os.readlink(link))
            return sum(link.startswith("socket:") for link in links)

        before = {pid: sockets(pid) for pid in served.pids.values()}
        async with AsyncExitStack() as stack:
            for _ in range(96):
                await stack.enter_async_context(connected(served.url, 1))
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            taken = [sockets(pid) - count for pid, count in before.items()]
        assert sum(taken) == 96
        # 32 each, with a deviation of 4.6; on one socket for all, one may get two thirds.
        assert min(taken) >= 12, taken
        assert max(taken) <= 52, taken


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_dead_worker_is_replaced(tmp_path: Path, how: signal.Signals):
    """Those that live stay ready and go on, nothing acknowledged is lost, and a new one serves."""
    with working(tmp_path) as served:
        async with connected(served.url, MANY) as connections:
            made = (await connections[0]("POST", "/v1/keys", {})).body
            before = served.pids
            os.kill(before[2], how)
            left = list(connections)
            while served.pids[2] == before[2]:
                for one in list(left):
                    try:
                        assert (await one("GET", "/readyz")).status == 200
                    except (OSError, EOFError):
                        left.remove(one)
            assert 0 < len(left) < MANY
        assert {n: pid for n, pid in served.pids.items() if n != 2} == {1: before[1], 3: before[3]}
        assert ("worker 2 ended: killed by SIGKILL" in served.log) is (how is signal.SIGKILL)
        async with connected(served.url, MANY) as connections:
            answers = await ask_all(connections, "POST", "/v1/validate", signed(made))
            assert all(answer.body["valid"] for answer in answers)
        assert await asyncio.to_thread(served.server.stop) == 0


async def test_a_killed_worker_takes_no_promise_with_it(tmp_path: Path):
    """While workers are killed one after the other, each change that was acknowledged is there."""
    with working(tmp_path, 2) as served:
        promised: list[str] = []
        going = True

        async def create() -> None:
            while going:
                with suppress(OSError, EOFError):
                    async with connected(served.url, 1) as (one,):
                        while going:
                            answer = await one("POST", "/v1/keys", {})
                            assert answer.status == 201
                            promised.append(answer.body["key_id"])

        async def kill() -> None:
            for number in (1, 2, 1):
                await asyncio.sleep(0.5)
                victim = served.pids[number]
                os.kill(victim, signal.SIGKILL)
                await asyncio.to_thread(until, lambda n=number, v=victim: served.pids[n] != v)

        lanes = [asyncio.create_task(create()) for _ in range(6)]
        await kill()
        going = False
        await asyncio.gather(*lanes)
        assert len(promised) > 50
        kept = {key_id for (key_id,) in Place(tmp_path).sql("SELECT key_id FROM keys")}
        assert set(promised) <= kept
        assert await asyncio.to_thread(served.server.stop) == 0


async def test_workers_end_with_their_parent(tmp_path: Path):
    """A killed parent leaves nobody behind, and what was validated is in the log."""
    with working(tmp_path, 2, AUDIT_FLUSH_SECONDS="10") as served:
        async with connected(served.url, 8) as connections:
            key = (await connections[0]("POST", "/v1/keys", {})).body
            await ask_all(connections, "POST", "/v1/validate", signed(key))
            served.server.process.kill()
            served.server.process.wait()
            pids = served.pids.values()
            await asyncio.to_thread(until, lambda: not any(alive(pid) for pid in pids), 5)
        assert events(tmp_path) == {("key_validated", "valid"): 8}


BROKEN = """
import os, pathlib, sys
if "api_key_manager.server.worker" in sys.orig_argv and pathlib.Path({flag!r}).exists():
    os._exit(9)
"""


def breakable(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file while which exists every worker dies at its start, and the environment for it."""
    flag = tmp_path / "broken"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BROKEN.format(flag=str(flag)))
    return flag, {"PYTHONPATH": str(tmp_path / "site")}


@pytest.mark.slow
def test_workers_that_cannot_start(tmp_path: Path):
    """Then the parent gives up and says so, instead of trying for ever in silence."""
    flag, environment = breakable(tmp_path)
    flag.touch()
    with pytest.raises(AssertionError, match="it ended"), working(tmp_path, 2, **environment):
        pass
    log = (tmp_path / "stderr").read_text()
    assert "worker 1 ended: exit code 9" in log
    assert "giving up" in log


@pytest.mark.slow
async def test_a_worker_that_cannot_be_replaced(tmp_path: Path):
    """As long as another one serves, the server goes on, tries again ever more slowly, and is whole
    again once it can be."""
    flag, environment = breakable(tmp_path)
    with working(tmp_path, 2, **environment) as served:
        flag.touch()
        victim = served.pids[1]
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(
            until, lambda: served.log.count("worker 1 ended: exit code 9") == 5, 40
        )
        assert served.server.process.poll() is None
        async with connected(served.url, 8) as connections:
            answers = await ask_all(connections, "GET", "/readyz")
            assert {answer.status for answer in answers} == {200}
        flag.unlink()
        await asyncio.to_thread(until, lambda: served.pids[1] != victim, 20)
        assert await asyncio.to_thread(served.server.stop) == 0


async def test_a_worker_says_why_it_cannot_start(tmp_path: Path):
    """One line of the log names what is missing; once it is back, so is the worker."""
    with working(tmp_path, 2) as served:
        (key_file,) = (tmp_path / "config").rglob("*.key")
        elsewhere = key_file.rename(tmp_path / "elsewhere")
        victim = served.pids[2]
        os.kill(victim, signal.SIGKILL)
        told = f"worker 2 cannot go on: the master key of {tmp_path}/data/akm.db is missing"
        await asyncio.to_thread(until, lambda: told in served.log)
        elsewhere.rename(key_file)
        await asyncio.to_thread(until, lambda: served.pids[2] != victim)
        assert "Traceback" not in served.log
        assert await asyncio.to_thread(served.server.stop) == 0


async def test_a_stop_while_a_worker_is_awaited(tmp_path: Path):
    """A stop does not wait for the next attempt to start one."""
    flag, environment = breakable(tmp_path)
    with working(tmp_path, 2, **environment) as served:
        flag.touch()
        os.kill(served.pids[1], signal.SIGKILL)
        await asyncio.to_thread(
            until, lambda: served.log.count("worker 1 ended: exit code 9") == 3, 20
        )
        begun = time.monotonic()
        assert await asyncio.to_thread(served.server.stop) == 0
        assert time.monotonic() - begun < 3


def test_first_start(tmp_path: Path):
    """One token is minted, and the greeting comes once, when all listen."""
    with working(tmp_path, AKM_ADMIN_TOKEN="") as served:
        text = served.server.text
        assert re.search(r"workers +3\n", text)
        assert len(served.pids) == 3
        found = re.search(r"admin token +in (\S+)", text)
        assert found
        token = Path(found[1]).read_text().strip()
        assert token not in served.log
        assert served.server.stop() == 0
        assert served.server.read_rest() == ""
    made = Place(tmp_path).sql("SELECT count(*) FROM keys")
    assert made == [(1,)]


def test_nobody_reads_the_greeting(tmp_path: Path):
    """Then all end, with the exit code that one process has."""
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "stderr").open("wb") as errors:
        environ = environment(tmp_path, WORKERS="2")
        process = subprocess.Popen(
            COMMAND, stdout=writer, stderr=errors, cwd=tmp_path, env=environ
        )  # fmt: skip
        os.close(writer)
        assert process.wait(20) == 141
    log = (tmp_path / "stderr").read_text()
    pids = [int(pid) for pid in re.findall(r"listens \(process (\d+)\)", log)]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_worker_gets_the_settings_of_its_parent(monkeypatch: pytest.MonkeyPatch):
    """Each setting, of whatever type, comes out as it was put in."""
    monkeypatch.setenv("PORT", "81")
    given = Settings.load(
        WORKERS=2, REVOCATION_BOUND_SECONDS=0.5, TRUSTED_PROXIES="10.0.0.0/8, ::1", DEBUG=True,
        AKM_ADMIN_TOKEN=TOKEN, HOST="::1", AKM_MASTER_KEY_FILE="a b/ü", LOG_LEVEL="warning",
    )  # fmt: skip
    line = start_line(given, Worker(1, 2, Path("x")), 7)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    got = Settings.model_construct(**json.loads(line)["settings"])
    assert got.model_dump() == given.model_dump()
    assert {name: type(value) for name, value in got} == {n: type(value) for n, value in given}
    assert got.trusted_proxies == given.trusted_proxies


def test_port_in_use(tmp_path: Path):
    """A second server is told at once, with one worker or with several."""
    with working(tmp_path, 2) as served:
        port = served.url.rpartition(":")[2]
        for workers in ("1", "2"):
            line = refused(tmp_path, PORT=port, WORKERS=workers)
            assert f"Port {port} on 127.0.0.1 is in use" in line
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", int(port)))


@linux
def test_the_port_is_taken_before_anybody_listens():
    """Of two servers that start at the same time only one gets it, whatever their workers."""
    with bind(Settings.load(PORT=0)) as first, for_worker(first) as one, for_worker(first) as two:
        port = first.getsockname()[1]
        assert one.getsockname() == two.getsockname() == first.getsockname()
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="in use"):
                bind(Settings.load(PORT=port))
            one.listen()
            two.listen()


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        ({"DATABASE_URL": "memory://"}, "sqlite:///"),
        ({"RATE_LIMIT_ENABLED": "true"}, "RATE_LIMIT_ENABLED=false"),
    ],
)
def test_what_several_would_get_wrong(tmp_path: Path, settings: dict[str, str], way_out: str):
    """Keys or limits that each worker would have for itself are refused, with the way out."""
    line = refused(tmp_path, WORKERS="2", **settings)
    assert "WORKERS=2" in line
    assert "use WORKERS=1" in line
    assert ("set REDIS_URL" in line) is ("RATE_LIMIT_ENABLED" in settings)
    assert way_out in line
    assert not (tmp_path / "data").exists()


@linux
def test_secrets_are_in_no_list_of_processes(tmp_path: Path):
    """What a worker is started with names a module and a number, nothing else."""
    with working(tmp_path, 2) as served:
        for pid in served.pids.values():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[1:-1]
            assert words[:3] == ["-P", "-m", "api_key_manager.server.worker"]
            assert words[3].isdigit()
            assert len(words) == 4


def test_the_folder_of_the_workers(tmp_path: Path):
    """It is private, and gone after the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    with working(tmp_path, 2, TMPDIR=str(folder)) as served:
        (private,) = folder.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700
        assert served.server.stop() == 0
    assert list(folder.iterdir()) == []
