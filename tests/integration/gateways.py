"""nginx by the very configuration of the examples, between a client and two real servers."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.places import Place

__all__ = ["Answer", "Gateway", "everything", "free_port", "nginx", "running", "serving_service"]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "gateways"


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    """Names in lower case."""
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header that is there at most once."""
        found = [value for known, value in self.headers if known == name]
        assert len(found) < 2, found
        return found[0] if found else None


class Gateway:
    """What listens before the service."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.host = f"127.0.0.1:{port}"

    def raw(self, data: bytes) -> Answer:
        """Bytes as they are, which ask for an end of the connection; what comes back until then.

        This side stays open: to nginx, closing it takes the request back.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65_536):
                received += chunk
        head, _, rest = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = [(n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines)]
        answer = Answer(int(status.split(" ")[1]), headers, b"")
        length = answer.header("content-length")
        return answer._replace(body=rest if length is None else rest[: int(length)])

    def __call__(
        self, method: str, uri: str, headers: list[tuple[str, str]] | None = None,
        body: bytes = b"", *, host: str | None = None, version: str = "1.1",
    ) -> Answer:  # fmt: skip
        lines = [f"{method} {uri} HTTP/{version}", f"Host: {host or self.host}"]
        lines += [f"{name}: {value}" for name, value in headers or []]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        return self.raw("\r\n".join(lines).encode("latin-1") + body)


def nginx() -> str:
    """The program; without it the test is skipped, or fails where it must be there."""
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing = "nginx is not installed: what goes through it is not tested"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def process(command: list[str], port: int, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens on a port, until the block ends."""
    log = more["cwd"] / f"{port}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, **more)
        try:
            deadline = time.monotonic() + 20
            while not answers(port):
                assert child.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def serving_service(folder: Path) -> Iterator[int]:
    """The service of the examples; gives its port."""
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "service.py"), str(port)]
    with process(command, port, cwd=folder):
        yield port


@contextmanager
def running(
    folder: Path, akm: int, service: int, change: dict[str, str] | None = None
) -> Iterator[Gateway]:
    """nginx by the example, with other ports.

    Args:
        folder: empty, for whatever nginx writes.
        akm, service: the ports of the two servers.
        change: what else stands in the place of what.
    """
    port = free_port()
    text = (EXAMPLES / "nginx.conf").read_text(encoding="utf-8")
    ports = {"127.0.0.1:5000": akm, "127.0.0.1:8000": service, "127.0.0.1:8080": port}
    for written, real in ports.items():
        text, count = re.subn(rf"(?m)^(\s+(?:server|listen) ){re.escape(written)};",
                              rf"\g<1>127.0.0.1:{real};", text)  # fmt: skip
        assert count == 1, written
    for written, other in (change or {}).items():
        assert written in text
        text = text.replace(written, other)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = [nginx(), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"),
               "-g", "daemon off;"]  # fmt: skip
    with process(command, port, cwd=folder):
        yield Gateway(port)


@contextmanager
def everything(place: Place, **settings: str) -> Iterator[tuple[Gateway, subprocess.Popen[bytes]]]:
    """A server on the keys of a place, the service and nginx before both."""
    nginx()
    port = free_port()
    folder = place.folder / "nginx"
    folder.mkdir()
    environment = place.environment(PORT=str(port), AUTHORIZE_PROFILE="nginx", **settings)
    command = [sys.executable, "-m", "api_key_manager", "serve"]
    with ExitStack() as stack:
        akm = stack.enter_context(process(command, port, cwd=place.folder, env=environment))
        service = stack.enter_context(serving_service(place.folder))
        yield stack.enter_context(running(folder, port, service)), akm
