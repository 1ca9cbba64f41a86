"""Real servers for tests: started on free ports in a private folder, ended by process id."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

__all__ = ["Postgres", "free_port", "in_thread", "need", "running_postgres"]

_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def need(program: str, *, package: str, places: list[Path] | None = None) -> str:
    """Where a program is; without it the test is skipped, and with ``CI=true`` it fails."""
    folders = [*map(str, places or []), os.environ.get("PATH", ""), "/usr/sbin"]
    found = shutil.which(program, path=os.pathsep.join(folders))
    if found is None:
        message = f"{program} is not installed (Debian's package {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


# Below what the system hands out by itself, so that no connection sits on a port before its server
# does; each process of a parallel run has a range of its own.
_RANGE: Final = 2_000
_FIRST: Final = 12_000 + _RANGE * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
_ports = itertools.count(random.randrange(_RANGE))


def free_port() -> int:
    """A port of loopback that nobody has, nor gets from another call."""
    for number in itertools.islice(_ports, _RANGE):
        port = _FIRST + number % _RANGE
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def in_thread(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine to its end in a loop of its own, whatever loop runs here."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(asyncio.run(make()))
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


class Postgres:
    """A PostgreSQL of this test run."""

    def __init__(self, folder: Path, initdb: str, postgres: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._initdb, self._program = initdb, postgres
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None

    def make(self) -> None:
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        subprocess.run(
            [self._initdb, "-D", self.folder / "data", "-U", "akm", "-A", "trust", "-E", "UTF8",
             "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, user=self._user, cwd=self.folder,
        )  # fmt: skip

    def start(self) -> None:
        options = {
            "port": self.port, "listen_addresses": "127.0.0.1", "fsync": "off",
            "unix_socket_directories": "", "max_connections": 300, "shared_buffers": "64MB",
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-D", self.folder / "data", *flags],
                stdout=log, stderr=log, user=self._user, cwd=self.folder,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                self.sql("SELECT 1")
            except (OSError, asyncpg.PostgresError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def kill(self) -> None:
        """End every process of it at once, as a machine does that loses power."""
        assert self._process is not None
        self._tell(signal.SIGSTOP, signal.SIGKILL)
        self._process.wait(60)
        self._process = None

    def freeze(self) -> None:
        """Stop every process of it where it stands."""
        self._tell(signal.SIGSTOP)

    def thaw(self) -> None:
        self._tell(signal.SIGCONT)

    def _tell(self, *signals: signal.Signals) -> None:
        """The parent first, so that it has no more children afterwards."""
        assert self._process is not None
        parent = self._process.pid
        os.kill(parent, signals[0])
        children = subprocess.run(
            ["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False
        ).stdout.split()
        for each in signals:
            for pid in [parent, *map(int, children)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, each)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://akm@127.0.0.1:{self.port}/{database}"

    def sql(self, text: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        async def run() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.url(database), timeout=10)
            try:
                return [tuple(row) for row in await connection.fetch(text, *values)]
            finally:
                await connection.close()

        found: list[tuple[Any, ...]] = in_thread(run)
        return found

    def database(self, template: str = "template1") -> str:
        """A new database's name."""
        name = f"akm_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A new one, or a skip with its reason."""
    programs = [need(name, package="postgresql", places=_DEBIAN) for name in ("initdb", "postgres")]
    with tempfile.TemporaryDirectory(prefix=f"akm-postgres-{getpass.getuser()}-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder), *programs)
        server.make()
        try:
            server.start()
            yield server
        finally:
            server.stop()
