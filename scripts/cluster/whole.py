"""The cluster: all parts, in the order in which they need each other."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from scripts.cluster.accounts import elsewhere
from scripts.cluster.claims import Claim
from scripts.cluster.errors import ClusterError
from scripts.cluster.gateway import Gateway
from scripts.cluster.material import Material
from scripts.cluster.parts import Part, free_port, listens, refuse_taken
from scripts.cluster.postgres import Postgres
from scripts.cluster.programs import require
from scripts.cluster.redis import Redis

__all__ = ["Cluster", "Ports"]

_FOLDERS = ("keys", "postgres", "redis", "nginx", "logs")
_AKM = [sys.executable, "-P", "-m", "api_key_manager"]


class Ports(NamedTuple):
    """Where everything listens, on loopback."""

    gateway: int
    nodes: tuple[int, ...]
    postgres: int
    redis: int

    @classmethod
    def from_first(cls, first: int, nodes: int) -> Ports:
        """The first for nginx, the next for the nodes; the stores a little higher."""
        return cls(first, tuple(range(first + 1, first + 1 + nodes)), first + 32, first + 79)

    @classmethod
    def free(cls, nodes: int) -> Ports:
        """Any that nobody has right now."""
        found: list[int] = []
        while len(found) < nodes + 3:
            port = free_port()
            if port not in found:
                found.append(port)
        gateway, postgres, redis, *others = found
        return cls(gateway, tuple(others), postgres, redis)

    def named(self) -> dict[str, int]:
        """By the part that listens there, nginx first."""
        nodes = {f"node {number}": port for number, port in enumerate(self.nodes, 1)}
        return {"nginx": self.gateway, **nodes, "PostgreSQL": self.postgres, "Redis": self.redis}


class Cluster:
    """PostgreSQL, Redis, nodes and nginx, from the start to the end of a ``with`` block.

    The folder is its own from here on until it is stopped; nobody else's data there is touched.

    Args:
        folder: holds everything; what is there from an earlier start is used again.
        ports: where they listen.
        workers: of each node.
        settings: of every node, over those that make it part of the cluster.
        durable: ``False`` lets PostgreSQL skip the disk's flushes: for tests that cut no power.
        fresh: forget what is there from an earlier start, once nothing else stands in the way.

    Raises:
        MissingProgramError: one of the programs is not installed.
        ClusterError: one line about who has the folder or a port, or why it cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        ports: Ports,
        *,
        workers: int = 2,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        fresh: bool = False,
    ) -> None:
        require()
        self.folder = folder.absolute()
        self.ports = ports
        try:
            self._claim = Claim(self.folder, ports.gateway)
            try:
                # Before anything is removed or written: a start that fails changes nothing.
                refuse_taken(ports.named())
                if fresh:
                    _remove(self.folder)
                self._make_parts(workers, settings or {}, durable=durable)
            except BaseException:
                self._claim.release()
                raise
        except OSError as error:
            raise ClusterError(
                f"{self.folder} cannot be used as a folder: {error.strerror} ({error.filename})"
            ) from None

    def _make_parts(self, workers: int, settings: Mapping[str, str], *, durable: bool) -> None:
        ports = self.ports
        self.material = Material(self.folder / "keys")
        logs = self.folder / "logs"
        self.postgres = Postgres(
            self.folder / "postgres", logs / "postgres.log", ports.postgres,
            self.material.postgres_password, durable=durable,
        )  # fmt: skip
        self.redis = Redis(
            self.folder / "redis", logs / "redis.log", ports.redis, self.material.redis_password
        )
        self.environment = {
            **os.environ,
            "HOST": "127.0.0.1",
            "WORKERS": str(workers),
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.redis.url,
            "AKM_MASTER_KEY": self.material.master_key,
            "AKM_MASTER_KEY_FILE": "",
            "AKM_ADMIN_TOKEN": self.material.admin_token,
            # nginx, the only one from whom X-Forwarded-For is taken.
            "TRUSTED_PROXIES": "127.0.0.1",
            "TLS_CERT": "",
            "TLS_KEY": "",
            **settings,
        }
        self.nodes = [
            Part(
                f"node {number}",
                [*_AKM, "serve"],
                logs / f"node-{number}.log",
                partial(self.ready, port),
                environment={**self.environment, "PORT": str(port)},
            )
            for number, port in enumerate(ports.nodes, 1)
        ]
        self.gateway = Gateway(
            self.folder / "nginx", logs / "nginx.log", ports.gateway, ports.nodes
        )

    @staticmethod
    def empty(folder: Path) -> None:
        """Remove what a cluster made there, and nothing else.

        Raises:
            ClusterError: it runs.
        """
        folder = folder.absolute()
        with Claim(folder):
            _remove(folder)

    @property
    def parts(self) -> Sequence[Part]:
        """All of them, in the order in which they are started."""
        return [self.postgres.part, self.redis.part, *self.nodes, self.gateway.part]

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def node_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports.nodes]

    def start(self) -> None:
        """Start all, and wait until all answer. What was started is stopped when one cannot be.

        Raises:
            ClusterError: the end of the log of the part.
        """
        try:
            self.postgres.start()
            self.redis.start()
            self.postgres.part.wait()
            self.redis.part.wait()
            self.akm("db", "upgrade")
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.wait()
            self.gateway.start()
            self.gateway.part.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all in order: no new requests, what the nodes still write, then the stores.

        It gives the folder up, so it is not started again.
        """
        try:
            self.gateway.part.stop()
            for node in self.nodes:
                node.ask_to_stop()
            for node in self.nodes:
                node.stop()
            self.redis.part.stop()
            self.postgres.part.stop()
        finally:
            self._claim.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def restart(self, part: Part) -> None:
        """Start a part again that has ended, and wait until it answers."""
        part.start()
        part.wait()

    def akm(self, *arguments: str) -> str:
        """Run `akm` with the settings of a node; what it printed.

        Raises:
            ClusterError: it failed; what it said stands in it.
        """
        done = subprocess.run(
            [*_AKM, *arguments], env=self.environment, cwd=self.folder, text=True,
            capture_output=True, check=False, timeout=600,
        )  # fmt: skip
        if done.returncode:
            raise ClusterError(f"akm {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def status(self, port: int, path: str = "/readyz") -> int:
        """The status that a node or nginx answers with; 0 when it does not."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def ready(self, port: int) -> bool:
        """Whether the node on this port says that it can serve requests."""
        return self.status(port) == 200

    def not_ready(self) -> list[int]:
        """The ports of the nodes that take connections, and say that they cannot serve, or nothing.

        Who takes none is not among them: nginx sees that by itself and loses nothing by it, while
        to hear of it, it would have to let go of its clients' connections.
        """
        return [port for port in self.ports.nodes if listens(port) and not self.ready(port)]


def _remove(folder: Path) -> None:
    """What a cluster made in a folder that is claimed."""
    for made in (*(folder / name for name in _FOLDERS), elsewhere(folder / "postgres")):
        if made.is_dir() and not made.is_symlink():
            shutil.rmtree(made)
