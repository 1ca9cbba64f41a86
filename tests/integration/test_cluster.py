"""A whole cluster: as `make cluster` runs it, and as the benchmarks measure it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from benchmarks.cluster import bulk, limits, revocation
from benchmarks.cluster.figures import percentile
from benchmarks.cluster.keys import make_keys
from benchmarks.cluster.wire import Connection, reach_each_worker, request
from scripts.cluster import Cluster, Ports
from scripts.cluster.parts import listens
from tests.integration.places import until
from tests.integration.test_cluster_parts import needed

ROOT = Path(__file__).resolve().parents[2]
ALL = ("initdb", "redis-server", "nginx")


PORTS = (0, 1, 2, 32, 79)
"""Of a cluster of two nodes, behind its first."""


def first_port() -> int:
    """One behind which all are free; not of those that systems give to clients."""
    while True:
        first = random.randrange(10_000, 31_000)
        with ExitStack() as bound:
            try:
                for more in PORTS:
                    bound.enter_context(socket.create_server(("127.0.0.1", first + more)))
            except OSError:
                continue
        return first


class Foreground:
    """`make cluster` in its own process."""

    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        self.log = folder.with_suffix(".log")
        self.folder, self.port = folder, port
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "scripts.cluster", "--folder", str(folder),
                    "--port", str(port), "--nodes", "2", "--workers", "1",
                    "--restart-after", "1", *arguments,
                ],
                stdout=output, stderr=output, cwd=ROOT,
            )  # fmt: skip
        self.until("Ctrl-C stops it")
        self.parts = [
            int(file.read_text(encoding="ascii")) for file in (folder / "logs").glob("*.pid")
        ]

    def until(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while words not in self.said:
            alive = self.process.poll() is None and time.monotonic() < deadline
            assert alive, self.said
            time.sleep(0.05)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        token = (self.folder / "keys" / "admin-token").read_text(encoding="ascii").strip()
        return httpx.request(
            method, f"http://127.0.0.1:{self.port}{path}", json=body,
            headers={"Authorization": f"Bearer {token}"},
        )  # fmt: skip

    def answers(self, path: str) -> bool:
        """Whether several calls in a row are answered soon."""
        try:
            return all(
                httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=1).status_code == 200
                for _ in range(4)
            )
        except httpx.TimeoutException:
            return False

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@contextmanager
def foreground(folder: Path, port: int, *arguments: str) -> Iterator[Foreground]:
    running = Foreground(folder, port, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def test_make_cluster(tmp_path: Path):
    """It starts from nothing, serves by all nodes, starts again what dies, stops in order, keeps
    its data until told to forget it, and prints no secret."""
    needed(*ALL)
    folder, port = tmp_path / "cluster", first_port()
    try:
        with foreground(folder, port) as cluster:
            made = cluster.call("POST", "/v1/keys", {"kind": "bearer"})
            assert made.status_code == 201
            token = {"token": made.json()["token"]}
            for _ in range(4):  # nginx takes turns
                assert cluster.call("POST", "/v1/validate", token).json()["valid"] is True
            listed = subprocess.run(
                ["pgrep", "-P", str(cluster.process.pid), "-f", "api_key_manager serve"],
                capture_output=True, text=True, check=True,
            ).stdout.split()  # fmt: skip
            os.kill(int(listed[0]), signal.SIGKILL)
            for _ in range(4):
                assert cluster.call("POST", "/v1/validate", token).json()["valid"] is True
            cluster.until("starting node 1 again")
            until(lambda: listens(port + 1))
            # One that hangs takes connections, and would keep whoever is sent to it waiting.
            os.kill(int(listed[1]), signal.SIGSTOP)
            cluster.until("nginx leaves out node 2")
            until(lambda: cluster.answers("/healthz"))  # until nginx goes by it
            for _ in range(4):
                assert cluster.call("POST", "/v1/validate", token).json()["valid"] is True
            os.kill(int(listed[1]), signal.SIGCONT)
            cluster.until("nginx uses all nodes")
            assert cluster.stop() == 0
            assert not any(listens(port + more) for more in PORTS)
            said = cluster.said
            for file in (folder / "keys").iterdir():
                assert file.read_text(encoding="ascii").strip() not in said
        with foreground(folder, port) as cluster:
            assert cluster.call("POST", "/v1/validate", token).json()["valid"] is True
            assert cluster.stop() == 0
        with foreground(folder, port, "--fresh") as cluster:
            reason = cluster.call("POST", "/v1/validate", token).json()["reason"]
            assert reason == "not_found"
            assert cluster.stop() == 0
    finally:
        Cluster.empty(folder)


def refused(folder: Path, port: int, *arguments: str) -> str:
    """What a start that fails says."""
    done = subprocess.run(
        [
            sys.executable, "-m", "scripts.cluster", "--folder", str(folder),
            "--port", str(port), "--nodes", "2", *arguments,
        ],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_second_start(tmp_path: Path):
    """A start beside a running cluster takes nothing from it, nor does one beside what a killed
    one left: it says which processes these are, and how to end them; then the data is there."""
    needed(*ALL)
    folder, port = tmp_path / "cluster", first_port()
    left: list[int] = []
    try:
        with foreground(folder, port) as cluster:
            left = cluster.parts
            made = cluster.call("POST", "/v1/keys", {"kind": "bearer"})
            token = {"token": made.json()["token"]}
            secrets = {f.name: f.read_bytes() for f in (folder / "keys").iterdir()}
            for other in (port, first_port()):
                for arguments in ((), ("--fresh",)):
                    assert f"another cluster runs in {folder}" in refused(folder, other, *arguments)
            assert f"port {port} for nginx is in use" in refused(tmp_path / "other", port)
            assert {f.name: f.read_bytes() for f in (folder / "keys").iterdir()} == secrets
            for _ in range(4):
                assert cluster.call("POST", "/v1/validate", token).json()["valid"] is True
            cluster.process.kill()
            cluster.process.wait(10)
        assert len(left) == 5
        said = refused(folder, port, "--fresh")
        assert said.startswith(f"a cluster in {folder} was killed and left running: nginx (")
        assert all(f"({pid})" in said for pid in left)
        end = said.rpartition("end them: ")[2]
        assert sorted(end.split()) == sorted(["kill", "--", *(f"-{pid}" for pid in left)])
        subprocess.run(["sh", "-c", end], check=True)
        until(lambda: not any(listens(port + more) for more in PORTS))
        with foreground(folder, port) as cluster:
            left = cluster.parts
            assert cluster.call("POST", "/v1/validate", token).json()["valid"] is True
            assert cluster.stop() == 0
            left = []
    finally:
        for pid in left:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        Cluster.empty(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of two workers, for the tests of the benchmarks."""
    needed(*ALL)
    folder = tmp_path_factory.mktemp("cluster")
    try:
        with Cluster(folder, Ports.free(2), durable=False) as running:
            yield running
    finally:
        Cluster.empty(folder)


class TestBenchmarks:
    async def test_each_worker(self, cluster: Cluster):
        """Each worker of a node is reached, by a connection that stays with it."""
        url = cluster.node_urls[0]
        workers = await reach_each_worker(url, 2)
        ask = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        names = [[(await worker.ask(ask)).worker for _ in range(5)] for worker in workers]
        assert [len(set(some)) for some in names] == [1, 1]
        assert names[0] != names[1]
        for worker in workers:
            worker.close()

    async def test_answers_in_order(self, cluster: Cluster):
        """Answers to requests that were sent at once belong to them."""
        connection = await Connection.open(cluster.node_urls[0])
        admin = cluster.material.admin_token
        asked = [
            request("POST", "/v1/validate", admin, {"token": f"akm_{n}"}) if n % 2 else
            request("GET", f"/v1/keys/none{n}", admin)
            for n in range(40)
        ]  # fmt: skip
        answers = await asyncio.gather(*(connection.ask(raw) for raw in asked))
        assert [answer.status for answer in answers] == [404, 200] * 20
        connection.close()
        with pytest.raises(ConnectionError):
            await connection.ask(asked[0])

    async def test_bulk(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
        """Keys that were loaded are as good as keys that were made one by one, also when somebody
        makes one meanwhile: they validate, every MAC fits, the feed has no gap."""
        monkeypatch.setattr(bulk, "_CHUNK", 200)
        admin, urls = cluster.material.admin_token, cluster.node_urls

        async def others() -> None:
            connection = await Connection.open(urls[0])
            while not done.is_set():
                made = await connection.ask(request("POST", "/v1/keys", admin, {}))
                assert made.status == 201
                await asyncio.sleep(0.005)
            connection.close()

        done = asyncio.Event()
        meanwhile = asyncio.create_task(others())
        loaded = await bulk.load_keys(cluster, 1_000)
        done.set()
        await meanwhile
        assert len(set(loaded.tokens)) == 1_000
        connection = await Connection.open(urls[1])
        for token in loaded.tokens[::20]:
            answer = await connection.ask(request("POST", "/v1/validate", admin, {"token": token}))
            assert answer.json()["valid"] is True
        connection.close()
        found = await asyncio.to_thread(cluster.akm, "doctor", "--json")
        assert "error" not in {finding["level"] for finding in findings(found)}
        database = await asyncpg.connect(cluster.postgres.url)
        revision = await database.fetchval("SELECT revision FROM deployment")
        changes = await database.fetchval("SELECT count(*) FROM changes")
        newest = await database.fetchval("SELECT max(revision) FROM changes")
        events = await database.fetchval(
            "SELECT count(*) FROM audit_events WHERE action = 'key_imported'"
        )
        await database.close()
        assert (changes, newest, events) == (revision, revision, 1_000)

    async def test_revocation(self, cluster: Cluster, capsys: pytest.CaptureFixture[str]):
        """Every worker refuses in time, with wake-ups and without."""
        assert await revocation.run(cluster, Namespace(revocations=20, load=50))
        assert capsys.readouterr().out.count("accepted after the bound") == 2

    async def test_late(self):
        """An acceptance counts as late when it was asked for past the bound."""

        class Worker:
            now = 0.0

            async def ask(self, _: bytes) -> Any:
                self.now += 0.5
                valid = b"true" if self.now < 3.2 else b"false"
                return Namespace(
                    status=200, body=b'"valid":' + valid, asked=self.now, at=self.now + 0.1
                )

        seen = revocation.Seen()
        pace = revocation.Pace(1, 0)
        ended = await revocation._refused(Worker(), b"", 0.0, seen, pace)
        assert (seen.late, ended) == (2, pytest.approx(3.6))

    async def test_limits(self, cluster: Cluster):
        """What two nodes accept at once is the limit, exactly."""
        await with_redis(cluster)
        assert await limits.run(cluster, Namespace(rounds=2, attempts=600))

    @pytest.mark.parametrize(
        ("share", "value"), [(0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.995, 100), (1, 100)]
    )
    def test_percentile(self, share: float, value: float):
        """By nearest rank: so many are at or below it."""
        assert percentile(list(range(100, 0, -1)), share) == value


async def with_redis(cluster: Cluster) -> None:
    """Wait until every worker counts by Redis again, which other tests stop."""
    admin, deadline = cluster.material.admin_token, time.monotonic() + 20
    fields = {"rate_limits": [{"name": "a", "limit": 1000, "window_seconds": 1}]}
    (key,) = await make_keys(cluster.node_urls[:1], admin, 1, **fields)
    for url in cluster.node_urls:
        for worker in await reach_each_worker(url, 2):
            while True:
                # One that is asked nothing need not look for Redis.
                await worker.ask(request("POST", "/v1/validate", admin, {"token": key.token}))
                ready = await worker.ask(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
                if ready.json() == {"status": "ready"}:
                    break
                assert time.monotonic() < deadline, ready.body
                await asyncio.sleep(0.05)
            worker.close()


def findings(text: str) -> list[dict[str, Any]]:
    """What `akm doctor --json` says."""
    parsed = json.loads(text)
    items: list[dict[str, Any]] = parsed["findings"] if isinstance(parsed, dict) else parsed
    return items
