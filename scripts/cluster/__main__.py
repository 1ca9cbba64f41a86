"""`make cluster`: the cluster in the foreground, until Ctrl-C.

A part that ends is started again after a pause, long enough to see what its absence does.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from scripts.cluster.errors import ClusterError
from scripts.cluster.parts import Part
from scripts.cluster.whole import Cluster, Ports

_FOLDER = Path("data/cluster")
_LOOK_SECONDS = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends it in good order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cluster; returns the exit code."""
    given = _parse(arguments)
    stop = Event()
    for sig in SIGNALS:
        signal.signal(sig, lambda *_: stop.set())
    try:
        ports = Ports.from_first(given.port, given.nodes)
        cluster = Cluster(given.folder, ports, workers=given.workers, fresh=given.fresh)
        _say("starting PostgreSQL, Redis, the nodes and nginx")
        with cluster:
            print(_greeting(cluster), flush=True)
            Watch(cluster, given.restart_after).run(stop)
            _say("stopping: nginx, the nodes, Redis, PostgreSQL")
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    _say("stopped; the data is kept in " + str(cluster.folder))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make cluster", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="forget the data of earlier starts")
    parser.add_argument("--port", type=_port, default=5000, help="of nginx; the others follow")
    parser.add_argument("--nodes", type=_count, default=3, help="how many")
    parser.add_argument("--workers", type=_count, default=2, help="of each node")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where everything is kept")
    parser.add_argument(
        "--restart-after", type=float, default=5, metavar="SECONDS",
        help="until a part that ended is started again; a negative number for never",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    return _between(text, 1024, 65_000)


def _count(text: str) -> int:
    return _between(text, 1, 16)


def _between(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"a whole number from {least} to {most} is allowed")
    return int(text)


def _greeting(cluster: Cluster) -> str:
    ports, folder = cluster.ports, cluster.folder
    nodes = ", ".join(cluster.node_urls)
    workers = cluster.environment["WORKERS"]
    rows = {
        "nginx": cluster.url,
        "nodes": f"{nodes}, {workers} worker{'s' * (workers != '1')} each",
        "PostgreSQL": f"127.0.0.1:{ports.postgres}, data in {cluster.postgres.folder}",
        "Redis": f"127.0.0.1:{ports.redis}, data in {folder / 'redis'}",
        "logs": str(folder / "logs"),
        "master key": str(cluster.material.master_key_file),
        "admin token": f"in {cluster.material.admin_token_file}",
        "docs": f"{cluster.url}/docs",
    }
    lines = [f"  {name:<12} {text}" for name, text in rows.items()]
    return "\n".join(["", "The cluster is ready. Ctrl-C stops it.", "", *lines, ""])


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Watch:
    """Keeps nginx informed of who is ready, and starts again what has ended.

    Args:
        cluster: running.
        restart_after: seconds; negative for never.
    """

    def __init__(self, cluster: Cluster, restart_after: float) -> None:
        self._cluster = cluster
        self._restart_after = restart_after
        self._ended: dict[Part, float] = {}

    def run(self, stop: Event) -> None:
        """Look after the cluster until told to stop."""
        while not stop.wait(_LOOK_SECONDS):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """One look at everything."""
        for part in self._cluster.parts:
            if part.running:
                self._ended.pop(part, None)
            elif part not in self._ended:
                self._ended[part] = now
                _say(f"{part.name} has ended; its log: {part.log}")
            elif 0 <= self._restart_after <= now - self._ended[part]:
                _say(f"starting {part.name} again")
                part.start()
                del self._ended[part]
        not_ready = self._cluster.not_ready()
        if self._cluster.gateway.part.running and self._cluster.gateway.take_out(not_ready):
            names = [f"node {self._cluster.ports.nodes.index(port) + 1}" for port in not_ready]
            _say(f"nginx leaves out {', '.join(names)}" if names else "nginx uses all nodes")


if __name__ == "__main__":
    sys.exit(main())
