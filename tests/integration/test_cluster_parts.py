"""The parts of the cluster on one machine, each by itself: what `make cluster` relies on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import asyncpg
import hiredis
import pytest

from scripts.cluster import (
    Cluster,
    ClusterError,
    Gateway,
    Part,
    Ports,
    Postgres,
    Redis,
    accounts,
    claims,
    parts,
    programs,
)
from scripts.cluster import __main__ as command
from scripts.cluster.claims import Claim, marked
from scripts.cluster.material import Material
from scripts.cluster.redis import ask
from tests.integration.gateways import Gateway as Client
from tests.integration.gateways import program
from tests.integration.places import until


def needed(*names: str) -> None:
    """Skip, or fail where they must be there, without these programs."""
    for name in names:
        if programs.find(name) is None:
            program(name)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For a cluster; also what lies elsewhere is gone afterwards."""
    yield tmp_path / "cluster"
    Cluster.empty(tmp_path / "cluster")


class TestStart:
    def test_missing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """One line names all programs that are missing, and the packages that bring them."""
        monkeypatch.setattr(programs, "find", lambda name: None)
        with pytest.raises(ClusterError) as caught:
            Cluster(tmp_path / "cluster", Ports.from_first(6000, 3))
        assert str(caught.value) == (
            "initdb, redis-server, nginx not found: install postgresql redis-server nginx"
            " (Debian, Ubuntu: apt-get install postgresql redis-server nginx)"
        )
        assert not (tmp_path / "cluster").exists()

    def test_port_in_use(self):
        """A taken port is told before anything is started."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ClusterError, match=f"^port {port} for node 2 is in use"):
                parts.refuse_taken({"node 1": parts.free_port(), "node 2": port})

    @pytest.mark.parametrize(("first", "other"), [(5000, 6000), (6000, 7000), (64_900, 6000)])
    def test_way_out(self, first: int, other: int, monkeypatch: pytest.MonkeyPatch):
        """What is suggested is another first port, and the folder that a second cluster needs."""
        monkeypatch.setattr(parts, "listens", lambda port: port == first + 1)
        with pytest.raises(ClusterError) as caught:
            parts.refuse_taken(Ports.from_first(first, 3).named())
        suggested = f"make cluster ARGS='--port {other} --folder data/cluster-{other}'"
        assert str(caught.value).endswith(suggested)

    @pytest.mark.parametrize("fresh", [False, True])
    def test_port_in_use_changes_nothing(self, folder: Path, fresh: bool):
        """Where a port is taken, no data is removed, no secret is made, and nothing is kept."""
        needed("initdb", "redis-server", "nginx")
        (folder / "redis").mkdir(parents=True)
        (folder / "redis" / "data").write_text("kept")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ports = Ports(parts.free_port(), (parts.free_port(),), parts.free_port(), port)
            with pytest.raises(ClusterError, match=f"^port {port} for Redis is in use"):
                Cluster(folder, ports, fresh=fresh)
        assert (folder / "redis" / "data").read_text() == "kept"
        assert {path.name for path in folder.iterdir()} == {"redis", "lock"}
        Claim(folder).release()

    @pytest.mark.parametrize("inside", ["file", "file/deeper", "cluster"])
    def test_no_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str):
        """What cannot be a folder, or has something else where a part's belongs, is one line."""
        needed("initdb", "redis-server", "nginx")
        (tmp_path / "file").touch()
        (tmp_path / "cluster").mkdir()
        (tmp_path / "cluster" / "keys").touch()
        wanted = tmp_path / inside
        before = {sig: signal.getsignal(sig) for sig in command.SIGNALS}
        try:
            assert command.main(["--folder", str(wanted), "--port", "40100"]) == 1
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
        said = capsys.readouterr().err
        assert said.startswith(f"{wanted} cannot be used as a folder: ")
        assert said.count("\n") == 1

    def test_ports(self):
        """No two parts share a port."""
        for ports in (Ports.from_first(5000, 16), Ports.free(5)):
            all_of_them = [ports.gateway, *ports.nodes, ports.postgres, ports.redis]
            assert len(set(all_of_them)) == len(all_of_them)
        assert Ports.from_first(5000, 3)[:2] == (5000, (5001, 5002, 5003))

    @pytest.mark.parametrize(
        "arguments", [["--port", "80"], ["--nodes", "0"], ["--workers", "x"], ["--no-such"]]
    )
    def test_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]):
        """A wrong argument starts nothing."""
        with pytest.raises(SystemExit) as caught:
            command.main(arguments)
        assert caught.value.code == 2
        assert arguments[0] in capsys.readouterr().err

    def test_fresh_removes_its_own(self, tmp_path: Path):
        """What lies beside the cluster's own folders stays."""
        for name in ("postgres", "redis", "keys", "mine"):
            (tmp_path / name).mkdir()
        (tmp_path / "notes").touch()
        Cluster.empty(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "mine", "notes"}

    @pytest.mark.parametrize(("workers", "said"), [(1, "1 worker each"), (2, "2 workers each")])
    def test_greeting(self, folder: Path, workers: int, said: str):
        """It counts as people do."""
        needed("initdb", "redis-server", "nginx")
        with ExitStack() as stack:
            cluster = Cluster(folder, Ports.free(1), workers=workers)
            stack.callback(cluster.stop)
            assert said in command._greeting(cluster)


class TestClaim:
    def test_one_cluster(self, folder: Path):
        """While one cluster has the folder, another one is refused before it does anything."""
        needed("initdb", "redis-server", "nginx")
        with Claim(folder):
            (folder / "keys").mkdir()
            for fresh in (False, True):
                with pytest.raises(ClusterError) as caught:
                    Cluster(folder, Ports.from_first(40_100, 1), fresh=fresh)
                assert str(caught.value) == (
                    f"another cluster runs in {folder}: choose another first port and folder,"
                    " as in make cluster ARGS='--port 41100 --folder data/cluster-41100'"
                )
            with pytest.raises(ClusterError, match="another cluster runs in"):
                Cluster.empty(folder)
            assert {path.name for path in folder.iterdir()} == {"keys", "lock"}
            assert not list((folder / "keys").iterdir())
        Cluster.empty(folder)

    def test_not_inherited(self, folder: Path):
        """It ends with its holder: what that has started is told apart from it."""
        held = Claim(folder)
        with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
            held.release()
            Claim(folder).release()
            child.kill()

    def test_left_running(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        """Parts that a killed cluster left are told by name and number, with what ends them and
        what they started; the number alone, which another process may have by now, says nothing."""
        monkeypatch.setattr(claims, "_ENDING_SECONDS", 0.2)
        log = folder / "logs" / "node-1.log"
        log.parent.mkdir(parents=True)
        # A master that is gone, and its worker that is not.
        part = Part("node 1", ["sh", "-c", "sleep 60 & exit 0"], log, lambda: True)
        part.start()
        until(lambda: not part.running)
        (folder / "logs" / "redis.pid").write_text(str(os.getpid()))
        with pytest.raises(ClusterError) as caught:
            Claim(folder)
        assert str(caught.value) == (
            f"a cluster in {folder} was killed and left running: node-1 ({part.pid});"
            f" end them: kill -- -{part.pid}"
        )
        subprocess.run(["sh", "-c", str(caught.value).rpartition("end them: ")[2]], check=True)
        monkeypatch.undo()
        Claim(folder).release()

    def test_just_started(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        """A part whose number was not written yet is told, and no command ends what is unknown."""
        monkeypatch.setattr(claims, "_ENDING_SECONDS", 0)
        (folder / "logs").mkdir(parents=True)
        with marked(folder / "logs" / "redis.log"), pytest.raises(ClusterError) as caught:
            Claim(folder)
        assert "redis (just started)" in str(caught.value)
        assert " -" not in str(caught.value).replace(" --", "")


class TestMaterial:
    def test_private_and_kept(self, tmp_path: Path):
        """Secrets are made once, for their owner only, and the same is read again."""
        first = Material(tmp_path / "keys")
        assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
        files = list((tmp_path / "keys").iterdir())
        assert len(files) == 4
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert vars(Material(tmp_path / "keys")) == vars(first)
        assert vars(Material(tmp_path / "other")) != vars(first)
        assert repr(first) == "Material()"


class TestPart:
    def part(self, tmp_path: Path, code: str, ready: Callable[[], bool], patience: float) -> Part:
        return Part(
            "it", [sys.executable, "-c", code], tmp_path / "log" / "it.log", ready,
            patience=patience,
        )  # fmt: skip

    def test_ends_at_its_start(self, tmp_path: Path):
        """What it said last stands in the error."""
        part = self.part(tmp_path, "print('no port left'); raise SystemExit(3)", lambda: False, 5)
        part.start()
        with pytest.raises(ClusterError, match=r"^it ended at its start:\nno port left$"):
            part.wait()

    def test_stop(self, tmp_path: Path):
        """It is told to stop, and killed only when it doesn't."""
        marker = tmp_path / "ready"
        loop = f"import pathlib, time; pathlib.Path({str(marker)!r}).touch(); time.sleep(60)"
        part = self.part(tmp_path, loop, marker.exists, 5)
        part.start()
        part.wait()
        assert part.running
        assert part.stop() == -signal.SIGTERM
        marker.unlink()
        deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {loop}"
        part = self.part(tmp_path, deaf, marker.exists, 0.2)
        part.start()
        part.wait()
        assert part.stop() == -signal.SIGKILL
        assert not part.running


class TestAccount:
    def test_closed_above(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """A folder that the account cannot reach stays closed; the data lies elsewhere, its own."""
        if os.geteuid() != 0:
            pytest.skip("only root has somebody else run PostgreSQL")
        monkeypatch.setattr(accounts, "_ELSEWHERE", tmp_path / "var")
        (tmp_path / "var").mkdir()
        (tmp_path / "open").mkdir(mode=0o755)
        (tmp_path / "shut").mkdir(mode=0o700)
        who = accounts.account()
        assert who is not None
        monkeypatch.setattr(accounts, "_may_pass", lambda f, _: f != tmp_path / "shut")
        near = accounts.home(tmp_path / "open" / "postgres", who)
        far = accounts.home(tmp_path / "shut" / "postgres", who)
        assert near == tmp_path / "open" / "postgres"
        assert far == accounts.elsewhere(tmp_path / "shut" / "postgres") != near
        assert accounts.home(tmp_path / "shut" / "postgres", who) == far
        for home in (near, far):
            found = home.stat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (who.uid, 0o700)
        assert stat.S_IMODE((tmp_path / "shut").stat().st_mode) == 0o700

    def test_somebody_elses(self, tmp_path: Path):
        """A folder, or a link to one, that another user put there is not used."""
        if os.geteuid() != 0:
            pytest.skip("only root has somebody else run PostgreSQL")
        who = accounts.account()
        assert who is not None
        (tmp_path / "data").mkdir()
        (tmp_path / "link").symlink_to(tmp_path)
        for name in ("data", "link"):
            with pytest.raises(ClusterError, match="is not a folder of"):
                accounts._own(tmp_path / name, who)

    @pytest.mark.parametrize(
        ("mode", "uid", "gid", "passes"),
        [
            (0o755, 7, 7, True), (0o750, 7, 7, False), (0o710, 0, 7, True), (0o700, 0, 7, True),
            (0o700, 7, 0, False), (0o601, 0, 7, False), (0o711, 7, 7, True), (0o701, 7, 0, False),
        ],
    )  # fmt: skip
    def test_may_pass(self, tmp_path: Path, mode: int, uid: int, gid: int, passes: bool):
        """The kernel's order: owner, else group, else others."""
        tmp_path.chmod(mode)
        found = tmp_path.stat()
        who = accounts.Account("x", found.st_uid + uid, found.st_gid + gid)
        assert accounts._may_pass(tmp_path, who) is passes
        tmp_path.chmod(0o700)


class TestPostgres:
    def test_keeps_data(self, folder: Path):
        """One role with a password, whom nobody gets around, and data that outlives a stop."""
        needed("initdb")
        port = parts.free_port()

        def server() -> Postgres:
            return Postgres(
                folder / "postgres", folder / "log", port, "pass0word", durable=False
            )  # fmt: skip

        @contextmanager
        def running() -> Iterator[Postgres]:
            postgres = server()
            try:
                postgres.start()
                postgres.part.wait()
                yield postgres
            finally:
                assert postgres.part.stop() == 0

        async def run(url: str, *statements: str) -> list[asyncpg.Record]:
            connection = await asyncpg.connect(url)
            try:
                for statement in statements:
                    rows = await connection.fetch(statement)
                return rows
            finally:
                await connection.close()

        async def refused(*urls: str) -> None:
            for url in urls:
                with pytest.raises(asyncpg.InvalidPasswordError):
                    await run(url, "SELECT 1")

        with running() as postgres:
            asyncio.run(run(postgres.url, "CREATE TABLE t (a int)", "INSERT INTO t VALUES (7)"))
            wrong = [
                postgres.url.replace("pass0word", "other"),
                postgres.url.replace(":pass0word", ""),
                postgres.url.replace("akm:", "postgres:"),
            ]
            if postgres.socket_folder:
                wrong += [
                    f"postgresql://{who}@/akm?host={postgres.socket_folder}&port={port}"
                    for who in ("akm", "akm:other", "postgres")
                ]
            asyncio.run(refused(*wrong))
        with running() as postgres:
            assert [tuple(row) for row in asyncio.run(run(postgres.url, "TABLE t"))] == [(7,)]

    def test_cut_short(self, folder: Path):
        """A data folder that was never finished is made anew, not taken for one."""
        needed("initdb")
        port = parts.free_port()
        server = Postgres(folder / "postgres", folder / "log", port, "pw", durable=False)
        (server.folder / "PG_VERSION").write_text("9.0\n")
        server.start()
        server.part.wait()
        assert server.part.stop() == 0


class TestRedis:
    def test_keeps_data(self, folder: Path):
        """What it was told survives a stop; without the password it says nothing."""
        needed("redis-server")
        port = parts.free_port()
        for expected in (None, "7"):
            server = Redis(folder / "redis", folder / "log", port, "pass0word")
            server.start()
            try:
                server.part.wait()
                assert server.ask("GET", "a") == expected
                server.ask("SET", "a", "7")
                with pytest.raises(hiredis.ReplyError, match="NOAUTH"):
                    ask(port, "PING")
                command_line = Path(f"/proc/{server.part.pid}/cmdline")
                if command_line.exists():
                    assert b"pass0word" not in command_line.read_bytes()
            finally:
                assert server.part.stop() == 0


class Node:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5)
                received = b""
                while b"\r\n\r\n" not in received:
                    chunk = connection.recv(65_536)
                    if not chunk:
                        break
                    received += chunk
                if received:
                    self.asked.append(received)
                    answer = self._answer(received)
                    if answer is not None:
                        connection.sendall(answer)

    def close(self) -> None:
        # Wakes the thread, which close() alone does not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def good(_: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


def away(_: bytes) -> bytes:
    return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"


def breaks_off(_: bytes) -> None:
    return None


@contextmanager
def nginx(
    folder: Path, *answers: Callable[[bytes], bytes | None]
) -> Iterator[tuple[Gateway, Client, list[Node]]]:
    """nginx before such nodes."""
    needed("nginx")
    with ExitStack() as stack:
        nodes = [Node(answer) for answer in answers]
        for node in nodes:
            stack.callback(node.close)
        gateway = Gateway(
            folder / "nginx", folder / "nginx.log", parts.free_port(), [n.port for n in nodes]
        )
        gateway.start()
        stack.callback(gateway.part.stop)
        gateway.part.wait()
        yield gateway, Client(gateway.port), nodes


class TestGateway:
    def test_forwarded_for(self, folder: Path):
        """A node hears who called, and nothing of what the caller claims about that."""
        with nginx(folder, good) as (_, ask, (node,)):
            claims = [("X-Forwarded-For", "203.0.113.7"), ("Forwarded", "for=203.0.113.7")]
            assert ask("GET", "/healthz?a=%2F", claims).status == 200
        (head,) = node.asked
        assert head.startswith(b"GET /healthz?a=%2F HTTP/1.1\r\n")
        assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in head
        assert b"203.0.113.7" not in head
        assert f"\r\nHost: {ask.host}\r\n".encode() in head

    def test_get_is_asked_again(self, folder: Path):
        """A call that changes nothing goes to another node when the first breaks off."""
        with nginx(folder, breaks_off, good) as (_, ask, nodes):
            assert [ask("GET", "/v1/stats").status for _ in range(6)] == [200] * 6
            assert nodes[0].asked

    @pytest.mark.parametrize("path", ["/v1/keys", "/v1/validate"])
    def test_post_is_sent_once(self, folder: Path, path: str):
        """What may have been carried out is not carried out twice: its caller hears of it."""
        with nginx(folder, breaks_off, breaks_off) as (_, ask, nodes):
            assert ask("POST", path, body=b"{}").status == 502
            assert sum(len(node.asked) for node in nodes) == 1

    def test_post_that_was_not_sent(self, folder: Path):
        """A node that takes no connection has seen nothing: another one gets the call."""
        with nginx(folder, good, good) as (_, ask, nodes):
            nodes[0].close()
            assert [ask("POST", "/v1/keys", body=b"{}").status for _ in range(6)] == [200] * 6
            assert len(nodes[1].asked) == 6

    def test_unavailable_is_told(self, folder: Path):
        """A 503 is the node's answer, not a failure of the node: no other one is bothered."""
        with nginx(folder, away, away) as (_, ask, nodes):
            answers = [ask("GET", "/v1/stats") for _ in range(4)]
            assert [(a.status, a.body) for a in answers] == [(503, b"no")] * 4
            assert sum(len(node.asked) for node in nodes) == 4

    def test_taken_out(self, folder: Path):
        """Who isn't ready gets nothing until it is; when nobody is ready, all are asked."""
        with nginx(folder, good, good) as (gateway, ask, nodes):
            ports = [node.port for node in nodes]
            assert gateway.take_out([ports[0]])
            assert not gateway.take_out([ports[0]])
            self.until_only(ask, nodes[1], nodes[0])
            assert gateway.take_out(ports)
            self.until_only(ask, nodes[0], None)

    @staticmethod
    def until_only(ask: Client, wanted: Node, unwanted: Node | None) -> None:
        """Ask until nginx goes by its new configuration; it takes a moment."""
        deadline = time.monotonic() + 10
        while True:
            for node in (wanted, unwanted):
                if node is not None:
                    node.asked.clear()
            assert all(ask("GET", "/").status == 200 for _ in range(6))
            if wanted.asked and not (unwanted and unwanted.asked):
                return
            assert time.monotonic() < deadline, "nginx does not heed it"
            time.sleep(0.05)

    def test_large_body(self, folder: Path):
        """A body up to the nodes' own limit passes without touching the disk, a larger one not."""
        with nginx(folder, good) as (_, ask, _nodes):
            assert ask("POST", "/v1/keys", body=b"x" * 1_000_000).status == 200
            assert ask("POST", "/v1/keys", body=b"x" * 1_100_000).status == 413
        assert not list((folder / "nginx" / "temp").iterdir())


class FakePart:
    def __init__(self, name: str) -> None:
        self.name, self.log, self.running, self.starts = name, Path("log"), True, 0

    def start(self) -> None:
        self.running, self.starts = True, self.starts + 1


class FakeCluster:
    def __init__(self) -> None:
        self.parts = [FakePart("node 1"), FakePart("nginx")]
        self.ports = Ports(1, (2, 3), 4, 5)
        self.out: list[int] = []
        self.told: list[list[int]] = []
        self.gateway = self
        self.part = self.parts[1]

    def not_ready(self) -> list[int]:
        return self.out

    def take_out(self, not_ready: list[int]) -> bool:
        self.told.append(list(not_ready))
        return False


class TestWatch:
    def test_starts_again(self, capsys: pytest.CaptureFixture[str]):
        """A part that ended is started again after the pause, once; it is told once."""
        cluster = FakeCluster()
        watch = command.Watch(cluster, 5)
        part = cluster.parts[0]
        part.running = False
        for now in (0.0, 1.0, 4.9):
            watch.look(now)
        assert part.starts == 0
        watch.look(5.0)
        watch.look(5.5)
        assert part.starts == 1
        said = capsys.readouterr().out
        assert said.count("node 1 has ended") == 1
        assert said.count("starting node 1 again") == 1

    def test_never(self):
        """A negative pause leaves it down."""
        cluster = FakeCluster()
        watch = command.Watch(cluster, -1)
        cluster.parts[0].running = False
        for now in (0.0, 1e6):
            watch.look(now)
        assert cluster.parts[0].starts == 0

    def test_tells_nginx(self):
        """Who is not ready is told at each look, while nginx runs."""
        cluster = FakeCluster()
        watch = command.Watch(cluster, 5)
        cluster.out = [3]
        watch.look(0.0)
        cluster.part.running = False
        watch.look(1.0)
        assert cluster.told == [[3]]
