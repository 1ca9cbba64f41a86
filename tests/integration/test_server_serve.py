"""`akm serve` as a process: what it prints, what it refuses, how it stops."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import re
import shlex
import signal
import socket
import stat
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.server import protocol
from api_key_manager.server.serve import serve
from tests.integration.conftest import signed
from tests.integration.servers import TOKEN, refused, started


def test_first_start_without_a_terminal(tmp_path: Path):
    """The token lies in a file that only its owner reads, and the printed lines work as pasted."""
    with started(tmp_path) as server:
        text = server.text
        assert str(tmp_path / "data" / "akm.db") in text
        assert re.search(rf"master key +{tmp_path}/config/\S+\.key", text)
        found = re.search(r"admin token +in (\S+)", text)
        assert found
        file = Path(found[1])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        token = file.read_text().strip()
        assert token.startswith("akm_admin_")
        assert token not in text
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("curl ")]
        assert len(lines) == 2
        kinds = []
        for line in lines:
            made = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
            kinds.append(httpx.Response(200, text=made.stdout).json()["kind"])
        assert kinds == ["signed", "bearer"]
        assert server.stop() == 0
    with started(tmp_path) as server:
        assert "akm tokens create" in server.text
        assert "curl" not in server.text
        answer = httpx.get(f"{server.url}/v1/keys", headers={"Authorization": f"Bearer {token}"})
        assert len(answer.json()["items"]) == 2
    assert token not in (tmp_path / "stderr").read_text()


def test_first_start_on_a_terminal(tmp_path: Path):
    """A terminal shows the token, once, and a line that works as pasted; no file holds it."""
    with started(tmp_path, terminal=True) as server:
        found = re.search(r"admin token +(akm_admin_\S+)", server.text)
        assert found
        line = next(part for part in server.text.splitlines() if "curl " in part)
        assert found[1] in shlex.split(line)[shlex.split(line).index("-H") + 1]
        made = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
        assert '"key_id"' in made.stdout
        assert server.stop(signal.SIGINT) == 0
    for file in (tmp_path / "config").rglob("*"):
        assert file.is_dir() or found[1] not in file.read_text()
    with started(tmp_path, terminal=True) as server:
        assert "akm_admin_" not in server.text


def test_token_of_the_environment(tmp_path: Path):
    """`AKM_ADMIN_TOKEN` is named, never printed, and no other token is minted."""
    with started(tmp_path, AKM_ADMIN_TOKEN=TOKEN, DATABASE_URL="memory://") as server:
        assert "AKM_ADMIN_TOKEN" in server.text
        assert TOKEN not in server.text
        headers = {"Authorization": f"Bearer {TOKEN}"}
        tokens = httpx.get(f"{server.url}/v1/tokens", headers=headers)
        assert tokens.json()["items"] == []
        assert "server" not in tokens.headers
        assert "date" in tokens.headers


def test_keys_in_memory_without_a_terminal(tmp_path: Path):
    """Also then there is a way in, which goes with the process."""
    with started(tmp_path, DATABASE_URL="memory://", TMPDIR=str(tmp_path)) as server:
        found = re.search(r"admin token +in (\S+)", server.text)
        assert found
        file = Path(found[1])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        headers = {"Authorization": f"Bearer {file.read_text().strip()}"}
        assert httpx.get(f"{server.url}/v1/keys", headers=headers).status_code == 200
        assert server.stop() == 0
    assert not file.exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_orderly_stop_loses_nothing(tmp_path: Path, how: signal.Signals):
    """What was validated just before the stop is in the audit log after it."""
    settings = {"AKM_ADMIN_TOKEN": TOKEN, "AUDIT_FLUSH_SECONDS": "10"}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with started(tmp_path, **settings) as server:
        with httpx.Client(base_url=server.url, headers=headers) as client:
            key = client.post("/v1/keys", json={}).json()
            for _ in range(20):
                assert client.post("/v1/validate", json=signed(key)).json()["valid"]
        assert server.stop(how) == 0
    with started(tmp_path, **settings) as server:
        path = f"{server.url}/v1/audit?action=key_validated"
        events = httpx.get(path, headers=headers).json()["items"]
        assert len(events) == 20
        shown = httpx.get(f"{server.url}/v1/keys/{key['key_id']}", headers=headers).json()
        assert shown["last_used"] is not None


def test_port_in_use(tmp_path: Path):
    """One line says what to do, and no database is made."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(tmp_path, PORT=str(port))
    other = port + 1 if port < 65_535 else port - 1
    assert line.endswith(
        f"Port {port} on 127.0.0.1 is in use. Stop what uses it, or choose another:"
        f" PORT={other} akm serve"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_plain_http_stays_on_this_machine(tmp_path: Path, host: str):
    """Another address than loopback needs TLS, a proxy, or a word of one's own."""
    settings = {"HOST": host, "AKM_ADMIN_TOKEN": TOKEN, "DATABASE_URL": "memory://"}
    line = refused(tmp_path, **settings)
    for way in ("TLS_CERT", "TLS_KEY", "TRUSTED_PROXIES", "ALLOW_PLAIN_HTTP=true"):
        assert way in line
    if host == "0.0.0.0":
        for name, value in (("ALLOW_PLAIN_HTTP", "true"), ("TRUSTED_PROXIES", "10.0.0.1")):
            with started(tmp_path, **settings, **{name: value}) as server:
                assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"HOST": "192.0.2.1", "ALLOW_PLAIN_HTTP": True}, "HOST=192.0.2.1"),
        ({"HOST": "no.such.host.invalid"}, "HOST=no.such.host.invalid"),
        ({"TLS_CERT": "none.pem", "TLS_KEY": "none.key"}, "TLS_CERT=none.pem"),
        ({"WORKERS": 2}, "DATABASE_URL=memory://"),
        ({"WORKERS": 2, "DATABASE_URL": "sqlite:///x.db", "RATE_LIMIT_ENABLED": True}, "RATE_LIM"),
    ],
)
def test_what_cannot_be_served(settings: dict[str, Any], word: str):
    """A wrong address or certificate stops the start with the setting's name."""
    with pytest.raises(ConfigurationError, match=re.escape(word)):
        serve(Settings.load(**{"PORT": 0, "DATABASE_URL": "memory://", **settings}))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


def test_tls(tmp_path: Path):
    """With a certificate it speaks HTTPS, and nothing else."""
    cert_file, key_file = make_certificate(tmp_path)
    with started(
        tmp_path, TLS_CERT=str(cert_file), TLS_KEY=str(key_file), HOST="0.0.0.0",
        AKM_ADMIN_TOKEN=TOKEN, DATABASE_URL="memory://",
    ) as server:  # fmt: skip
        assert server.url.startswith("https://127.0.0.1:")
        import ssl

        trusting = ssl.create_default_context(cafile=str(cert_file))
        assert httpx.get(f"{server.url}/healthz", verify=trusting).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url.replace('https', 'http')}/healthz")


def test_heads_are_bounded(tmp_path: Path):
    """A head without end is cut off, and a large one that ends in time is served."""
    with started(tmp_path, AKM_ADMIN_TOKEN=TOKEN, DATABASE_URL="memory://") as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        with socket.create_connection(address, timeout=10) as endless:
            endless.sendall(b"GET /healthz HTTP/1.1\r\n")
            # Ten megabytes are more than the buffers between hold, so the end of it shows here.
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                endless.sendall((b"X-A: " + b"a" * 1000 + b"\r\n") * 10_000)
        assert httpx.get(f"{server.url}/healthz", headers={"X": "a" * 30_000}).status_code == 200


WHOLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/keys HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture
async def address(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, int]]:
    """A server that answers without reading a body, and gives up after 0.3 seconds; uvicorn's own
    limit for idle connections is far away."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await asyncio.sleep(0.6)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(
        app, http=protocol.BoundedProtocol, lifespan="off", log_config=None, timeout_keep_alive=60
    )
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield bound.getsockname()
        server.should_exit = True
        await task


@pytest.mark.parametrize("start", [b"", b"GET / HT", WHOLE + b"GET / HT"])
async def test_slow_heads_are_given_up(address: tuple[str, int], start: bytes):
    """A connection that does not come to the end of its head is closed, also the second time."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(start)
    received = await asyncio.wait_for(reader.read(), 5)
    assert received.startswith(b"HTTP/1.1 204") is (WHOLE in start)
    writer.close()


@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize(("asked", "more"), [(WHOLE, b"\r\n"), (POST, b"x")])
async def test_bytes_behind_an_answer_hold_nothing(
    address: tuple[str, int], asked: bytes, more: bytes, drips: bool
):
    """A blank line, or a body that nobody reads, keeps no connection; nor do ever more of them."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(asked)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
    begun = time.monotonic()
    writer.write(more)

    async def drip() -> None:
        while True:
            await asyncio.sleep(0.05)
            writer.write(more)

    dripping = asyncio.create_task(drip()) if drips else None
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert 0.2 < time.monotonic() - begun < 2
    if dripping:
        dripping.cancel()
    writer.close()


async def test_connections_in_use_are_kept(address: tuple[str, int]):
    """The clock runs only while a head is awaited: not on one that is served, or was."""
    reader, writer = await asyncio.open_connection(*address)

    async def answer() -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")

    for _ in range(3):
        writer.write(WHOLE)
        await answer()
        await asyncio.sleep(0.45)
    # A blank line in front of a request is allowed, and its clock ends with the head.
    writer.write(b"\r\n")
    await asyncio.sleep(0.1)
    writer.write(WHOLE)
    await answer()
    await asyncio.sleep(0.45)
    # A body that comes after its answer, and a request behind it.
    writer.write(POST)
    await answer()
    writer.write(b"x" * 1_000_000 + WHOLE)
    await answer()
    await asyncio.sleep(0.45)
    # Several at once, the first slow to answer; then some of which the last is in two parts.
    writer.write(WHOLE.replace(b"/", b"/slow", 1) + WHOLE * 3)
    for _ in range(4):
        await answer()
    writer.write(WHOLE * 2 + WHOLE[:10])
    await asyncio.sleep(0.1)
    writer.write(WHOLE[10:])
    for _ in range(3):
        await answer()
    await asyncio.sleep(0.45)
    writer.write(WHOLE)
    await answer()
    writer.close()
