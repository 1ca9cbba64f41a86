"""nginx before the nodes: one address, and requests only to nodes that are ready."""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.cluster.parts import Part, listens
from scripts.cluster.programs import find, require

__all__ = ["CONFIG", "Gateway"]

CONFIG = """\
# Written anew at each start of the cluster. What each line is for: docs/cluster.md.
pid "{folder}/nginx.pid";
error_log stderr warn;
worker_processes 2;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    server_tokens off;
    # As the nodes' own limit; held in memory, so that no body is ever written to a file.
    client_max_body_size 1m;
    client_body_buffer_size 1m;
    proxy_max_temp_file_size 0;
    client_body_temp_path "{folder}/temp";
    proxy_temp_path "{folder}/temp";
    fastcgi_temp_path "{folder}/temp";
    uwsgi_temp_path "{folder}/temp";
    scgi_temp_path "{folder}/temp";

    upstream akm {{
        include "{folder}/nodes.conf";
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://akm;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            # The caller's own address, and nothing of what the caller claims to be forwarded for.
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Forwarded "";
            proxy_connect_timeout 1s;
            # Longer than a node waits for its stores (DATABASE_TIMEOUT_SECONDS).
            proxy_read_timeout 10s;
            proxy_buffers 8 64k;
            proxy_buffer_size 64k;
            # Another node is tried when this one could not be reached or broke off. A POST that
            # was sent is never sent again: the first may have been carried out, and a second
            # create makes another key, a second nonce is a replay. Its caller knows which
            # Idempotency-Key to send; nginx does not. A 503 goes to the caller as it is: all
            # nodes share the store that is missing.
            proxy_next_upstream error timeout;
            proxy_next_upstream_tries 3;
            proxy_next_upstream_timeout 12s;
        }}
    }}
}}
"""


class Gateway:
    """nginx.

    Args:
        folder: for its files; made when it is not there.
        log: what it prints goes here.
        port: on loopback.
        nodes: the ports of the nodes.
    """

    def __init__(self, folder: Path, log: Path, port: int, nodes: Sequence[int]) -> None:
        require(["nginx"])
        self.port = port
        self._folder = folder
        self._nodes = nodes
        self._out: frozenset[int] = frozenset()
        command = [
            find("nginx") or "nginx", "-p", str(folder.absolute()), "-e", "stderr",
            "-c", str(folder.absolute() / "nginx.conf"), "-g", "daemon off;",
        ]  # fmt: skip
        # SIGQUIT lets running requests end.
        self.part = Part(
            "nginx", command, log, lambda: listens(port), stop_signal=signal.SIGQUIT, patience=12
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it with all nodes in."""
        (self._folder / "temp").mkdir(parents=True, exist_ok=True, mode=0o700)
        text = CONFIG.format(folder=self._folder.absolute(), port=self.port)
        (self._folder / "nginx.conf").write_text(text, encoding="utf-8")
        self._out = frozenset()
        self._write_nodes()
        self.part.start()

    def take_out(self, not_ready: Collection[int]) -> bool:
        """Send no requests to these nodes; to all others again. Returns whether that is news.

        When no node is ready, all stay in: what they can still say (a refusal with its reason, an
        answer from the cache within the bound) is more than nginx could.
        """
        out = frozenset(not_ready) & frozenset(self._nodes)
        if len(out) == len(self._nodes):
            out = frozenset()
        if out == self._out:
            return False
        self._out = out
        self._write_nodes()
        self.part.send(signal.SIGHUP)
        return True

    def _write_nodes(self) -> None:
        # After one failure a node is left alone for a second; who is told to be down, for good.
        lines = [
            f"server 127.0.0.1:{port} max_fails=1 fail_timeout=1s"
            f"{' down' if port in self._out else ''};\n"
            for port in self._nodes
        ]
        (self._folder / "nodes.conf").write_text("".join(lines), encoding="ascii")
