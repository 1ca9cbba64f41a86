"""Gateways by the very configuration of the examples, between a client and two real servers."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.places import Place
from tests.services import free_port

__all__ = [
    "EXAMPLES", "RUNS", "Answer", "Gateway", "configured", "everything", "process", "program",
    "running_nginx", "serving_service",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
NEEDED_IN_CI = {"nginx", "redis-server"}
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


def program(name: str) -> str:
    """The path of a gateway; without it the test is skipped, or fails where it must be there."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing = f"{name} is not installed: what goes through it is not tested"
        if name in NEEDED_IN_CI and os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


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


Run = Callable[[Path, int, int], AbstractContextManager[Gateway]]
"""Runs a gateway in an empty folder, before a server and a service on these ports."""


def configured(name: str, pattern: str, akm: int, service: int, port: int) -> str:
    """A configuration of the examples with other ports.

    Args:
        name: of the file.
        pattern: what stands around an address, with ``{}`` in its place.
        akm, service, port: where the server, the service and the gateway listen.
    """
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for written, real in (("5000", akm), ("8000", service), ("8080", port)):
        around = pattern.format(re.escape(written))
        text, count = re.subn(around, lambda found, real=real: found[1] + str(real), text)
        assert count == 1, written
    return text


@contextmanager
def running_nginx(
    folder: Path, akm: int, service: int, change: dict[str, str] | None = None
) -> Iterator[Gateway]:
    """nginx; ``change`` says what else stands in the place of what."""
    port = free_port()
    address = r"(?m)(^ +(?:server|listen) 127\.0\.0\.1:){}(?=;)"
    text = configured("nginx.conf", address, akm, service, port)
    for written, other in (change or {}).items():
        assert written in text
        text = text.replace(written, other)
    file = folder / "nginx.conf"
    file.write_text(text, encoding="utf-8")
    command = [program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(file)]
    with process([*command, "-g", "daemon off;"], port, cwd=folder):
        yield Gateway(port)


@contextmanager
def running_caddy(folder: Path, akm: int, service: int) -> Iterator[Gateway]:
    """Caddy, without the port by which it is administered."""
    port = free_port()
    address = r"(?m)(^\t*(?:[a-z_]+ 127\.0\.0\.1)?:){}(?= *\{{?$)"
    text = configured("Caddyfile", address, akm, service, port)
    file = folder / "Caddyfile"
    file.write_text(f"{{\n\tadmin off\n}}\n{text}", encoding="utf-8")
    caddy = program("caddy")
    said = subprocess.run([caddy, "version"], capture_output=True, text=True, check=True).stdout
    if (version := re.match(r"v?2\.(\d+)\.", said)) and int(version[1]) < 9:
        pytest.skip(f"Caddy {said.strip()} is older than what is supported")
    command = [caddy, "run", "--adapter", "caddyfile", "--config", str(file)]
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder),
                   "XDG_CONFIG_HOME": str(folder)}  # fmt: skip
    with process(command, port, cwd=folder, env=environment):
        yield Gateway(port)


RUNS: dict[str, Run] = {"nginx": running_nginx, "caddy": running_caddy}


@contextmanager
def everything(place: Place, profile: str, **settings: str) -> Iterator[tuple[Gateway, int]]:
    """A server on the keys of a place, the service and a gateway before both.

    Args:
        place: the keys.
        profile: which gateway.
        **settings: of the server.

    Yields:
        The gateway, and the port of the server.
    """
    program(profile)
    port = free_port()
    folder = place.folder / profile
    folder.mkdir()
    environment = place.environment(PORT=str(port), AUTHORIZE_PROFILE=profile, **settings)
    command = [sys.executable, "-m", "api_key_manager", "serve"]
    with ExitStack() as stack:
        stack.enter_context(process(command, port, cwd=place.folder, env=environment))
        service = stack.enter_context(serving_service(place.folder))
        yield stack.enter_context(RUNS[profile](folder, port, service)), port
