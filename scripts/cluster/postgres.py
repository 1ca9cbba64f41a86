"""A PostgreSQL of the cluster's own: a new data folder, one role, one database."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

from scripts.cluster.accounts import Account, account, home
from scripts.cluster.errors import ClusterError
from scripts.cluster.parts import Part
from scripts.cluster.programs import postgres_folder, require

__all__ = ["Postgres"]

_NAME = "akm"
# A socket's address has room for 107 bytes, and PostgreSQL adds its own name and the port.
_LONGEST_FOLDER = 85
_HBA = """\
# By password only, also over the socket. The superuser has none, so nobody can be it.
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
"""


class Postgres:
    """The database server.

    Args:
        folder: for the data; made when it is not there.
        log: what it prints goes here.
        port: on loopback.
        password: of the one role.
        durable: ``False`` skips the disk's flushes: for tests that cut no power.
    """

    def __init__(
        self, folder: Path, log: Path, port: int, password: str, *, durable: bool = True
    ) -> None:
        require(["initdb"])
        self.port = port
        self._user = account()
        self.folder = home(folder, self._user)
        self._password = password
        self._durable = durable
        programs = postgres_folder(self._made_by())
        if programs is None:  # require() has looked
            raise ClusterError("PostgreSQL's programs are gone")
        self._programs = programs
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": self.socket_folder or "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            **({} if durable else {"fsync": "off", "full_page_writes": "off"}),
        }
        command = [str(programs / "postgres"), "-D", str(self.folder)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        # SIGINT is the fast stop: clients are sent away, what they committed is on disk.
        self.part = Part(
            "PostgreSQL", command, log, self._answers, stop_signal=signal.SIGINT, user=self._user
        )

    @property
    def url(self) -> str:
        """For `DATABASE_URL`."""
        return f"postgresql://{_NAME}:{self._password}@127.0.0.1:{self.port}/{_NAME}"

    @property
    def socket_folder(self) -> str | None:
        """Where its socket is; ``None`` when the path would be too long for one."""
        path = str(self.folder.absolute())
        return path if len(path) <= _LONGEST_FOLDER else None

    def start(self) -> None:
        """Make the data folder if there is none, and start the server on it.

        Raises:
            ClusterError: PostgreSQL's own tools failed; what they said stands in it.
        """
        if self._made_by() is None:
            self._make()
        self.part.start()

    def _made_by(self) -> str | None:
        """The major version of the data folder; ``None`` when there is none yet."""
        file = self.folder / "PG_VERSION"
        # Written by initdb early; the last thing that _make() writes says that it got to its end.
        done = self.folder / "akm-made"
        return file.read_text().strip() if file.exists() and done.exists() else None

    def _make(self) -> None:
        for left in self.folder.iterdir():  # an earlier attempt that was cut short
            self._run(["rm", "-rf", str(left)])
        self._run(
            [
                str(self._programs / "initdb"), "-D", str(self.folder), "-U", "postgres",
                "--encoding=UTF8", "--locale=C", "--auth=reject",
                *([] if self._durable else ["--no-sync"]),
            ],
        )  # fmt: skip
        (self.folder / "pg_hba.conf").write_text(_HBA, encoding="ascii")
        # Without a server there is no socket and no password yet, and nobody else is let in.
        single = [str(self._programs / "postgres"), "--single", "-D", str(self.folder), "postgres"]
        self._run(
            single,
            f"CREATE ROLE {_NAME} LOGIN PASSWORD '{self._password}'\n"
            f"CREATE DATABASE {_NAME} OWNER {_NAME}\n",
        )
        (self.folder / "akm-made").touch()

    def _run(self, command: list[str], text: str = "") -> None:
        who: Account | None = self._user
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, cwd="/", timeout=120,
            user=None if who is None else who.uid,
            group=None if who is None else who.gid,
            extra_groups=None if who is None else [],
        )  # fmt: skip
        # Single-user mode ends with 0 whatever became of the statements.
        if done.returncode or "ERROR:" in done.stderr:
            said = (done.stderr or done.stdout).replace(self._password, "…")
            raise ClusterError(f"{Path(command[0]).name} failed: {said.strip()[-500:]}")

    def _answers(self) -> bool:
        """Whether it takes connections: asked for TLS, it says N, and nothing while it recovers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                # A start-up message of a user that does not exist: what a server that still
                # recovers refuses with 57P03, it asks for a password, or refuses otherwise.
                body = b"\x00\x03\x00\x00user\x00akm\x00database\x00akm\x00\x00"
                connection.sendall((len(body) + 4).to_bytes(4, "big") + body)
                return connection.recv(1) == b"R"
        except OSError:
            return False
