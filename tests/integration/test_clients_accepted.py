"""Each client, its request over a real connection, before a real server: accepted as sent, refused
after any change of a byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_key_manager.client import Client, HttpxSignature, RequestsSignature
from tests.acceptance.programs import tool
from tests.integration.test_server_serve import started

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "t" * 40
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class Echo:
    """A service that has each request judged by the server, and answers what it said."""

    def __init__(self, server: Client) -> None:
        self.server = server
        self.seen: list[dict[str, Any]] = []
        echo = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                # As it arrived: the handler's own `path` is tidied up.
                method, target, _ = self.requestline.split(" ")
                request = {
                    "method": method,
                    "url": f"http://{self.headers['Host']}{target}",
                    "headers": [[name, value] for name, value in self.headers.items()],
                    "body_sha256": hashlib.sha256(body).hexdigest(),
                }
                echo.seen.append(request)
                said = {"reason": "not asked"} if echo.quiet else echo.judge(request)
                content = json.dumps(said).encode()
                self.send_response(200 if said["reason"] != "bad_signature" else 401)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.quiet = False
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        verdict = self.server.validate(request=request)
        return {"reason": verdict.reason, "scheme": verdict.scheme, "body": verdict.body_verified}


VALID = {"reason": "valid", "scheme": "request", "body": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("clients")
    with started(folder, AKM_ADMIN_TOKEN=TOKEN) as process, Client(process.url, TOKEN) as client:
        yield client


@pytest.fixture(scope="module")
def key(server: Client) -> dict[str, Any]:
    return dict(server.create_key("client-123", min_scheme="request"))


@pytest.fixture(scope="module")
def echo(server: Client) -> Iterator[Echo]:
    echo = Echo(server)
    thread = threading.Thread(target=echo.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield echo
    finally:
        echo.http.shutdown()
        thread.join()
        echo.http.server_close()


@contextmanager
def quiet(echo: Echo) -> Iterator[list[dict[str, Any]]]:
    """Requests are noted and not judged, so that their nonces are still to be claimed."""
    echo.seen.clear()
    echo.quiet = True
    try:
        yield echo.seen
    finally:
        echo.quiet = False


Sender = Callable[[dict[str, Any], str, str, bytes], Any]


def by_httpx(key: dict[str, Any], method: str, url: str, body: bytes) -> Any:
    with httpx.Client(auth=HttpxSignature(key["key_id"], key["secret"])) as client:
        return client.request(method, url, content=body or None).json()


def by_requests(key: dict[str, Any], method: str, url: str, body: bytes) -> Any:
    auth = RequestsSignature(key["key_id"], key["secret"])
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, data=body or None, auth=auth).json()


NODE = """
import { signedFetch } from "%s/clients/javascript/index.js";
const { AKM_KEY, AKM_SECRET } = process.env;
const [method, url, body] = process.argv.slice(2);
const answer = await signedFetch(AKM_KEY, AKM_SECRET)(url, {
  method, body: body ? Buffer.from(body, "base64") : undefined,
});
console.log(await answer.text());
"""


def run(command: list[str], key: dict[str, Any], text: str = "") -> Any:
    env = {"PATH": os.environ["PATH"], "AKM_KEY": key["key_id"], "AKM_SECRET": key["secret"]}
    done = subprocess.run(
        command, env=env, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def by_node(key: dict[str, Any], method: str, url: str, body: bytes) -> Any:
    command = [tool("node"), "--input-type=module", "-", method, url, b64encode(body).decode()]
    return run(command, key, NODE % ROOT.as_uri())


def by_curl(key: dict[str, Any], method: str, url: str, body: bytes) -> Any:
    for program in ("curl", "openssl"):
        tool(program)
    script = str(ROOT / "examples" / "send_signed.sh")
    command = [tool("sh"), script, key["key_id"], method, url]
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        return run([*command, *([file.name] if body else [])], key)


SENDERS = [by_httpx, by_requests, by_node, by_curl]
every_client = pytest.mark.parametrize("send", SENDERS, ids=lambda send: send.__name__)


@every_client
@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/", b""),
        ("GET", "", b""),
        ("GET", "/orders?limit=10&after=a%2Fb", b""),
        ("GET", "/?", b""),
        ("GET", "?a=b", b""),
        ("GET", "/a%20b;c=d/@:!$&'()*+,~?x=/:@?!$'()*,;", b""),
        ("POST", "/orders", b'{"item": 7}'),
        ("PATCH", "/orders/%E4%BD%A0?q=%C3%BC", "ü".encode()),
        ("DELETE", "/orders/7", b""),
    ],
)
def test_accepted(
    send: Sender, key: dict[str, Any], echo: Echo, method: str, target: str, body: bytes
):
    """What a client signs is what it sends: method, authority with port, path, query and body."""
    assert send(key, method, echo.url + target, body) == VALID


def changes(request: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The request with one byte changed, at every place in turn."""

    def flipped(text: str) -> Iterator[str]:
        for i, letter in enumerate(text):
            # To another letter, digit or sign of the same kind; both stay visible.
            other = chr(ord(letter) ^ 1)
            yield text[:i] + (other if "!" <= other <= "~" else "x") + text[i + 1 :]

    for method in flipped(request["method"]):
        yield "method", {**request, "method": method}
    scheme, _, rest = request["url"].partition("://")
    for changed in flipped(rest):
        yield "url", {**request, "url": f"{scheme}://{changed}"}
    for more in ("x", "&", "%"):
        yield "url", {**request, "url": request["url"] + more}
    yield "body", {**request, "body_sha256": hashlib.sha256(b'{"item": 6}').hexdigest()}
    yield "body", {**request, "body_sha256": hashlib.sha256(b'{"item": 7} ').hexdigest()}
    signed = ("content-digest", "signature-input", "signature")
    for i, (name, value) in enumerate(request["headers"]):
        if name.lower() in signed:
            for changed in [*flipped(value), value + "x", value[:-1]]:
                headers = [*request["headers"]]
                headers[i] = [name, changed]
                yield name, {**request, "headers": headers}
            for changed in flipped(name):
                headers = [*request["headers"]]
                headers[i] = [changed, value]
                yield name, {**request, "headers": headers}
            yield name, {**request, "headers": [*request["headers"], [name, value]]}
            yield name, {
                **request, "headers": request["headers"][:i] + request["headers"][i + 1 :]
            }  # fmt: skip


@every_client
def test_one_byte_changed(send: Sender, key: dict[str, Any], echo: Echo, server: Client):
    """A change of any one byte of method, authority, path, query, body or a signature header is
    refused, and uses nothing up: the request as it was sent is accepted after all of them, once."""
    with quiet(echo) as seen:
        send(key, "POST", f"{echo.url}/orders/a%2Fb?limit=10&x=", b'{"item": 7}')
    [request] = seen
    tampered = list(changes(request))
    assert {place.lower() for place, _ in tampered} == {
        "method", "url", "body", "content-digest", "signature-input", "signature",
    }  # fmt: skip
    assert len(tampered) > 300
    for start in range(0, len(tampered), 200):
        batch = tampered[start : start + 200]
        verdicts = server.validate_batch({"request": changed} for _, changed in batch)
        for (place, changed), verdict in zip(batch, verdicts, strict=True):
            assert not verdict, (place, changed)
            assert verdict.reason in (
                "malformed", "bad_signature", "not_found", "stale_timestamp", "future_timestamp",
            )  # fmt: skip
    assert echo.judge(request) == VALID
    assert echo.judge(request)["reason"] == "replayed"


visible = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FF), max_size=40)
raw = st.text("abc/.%2fF;=&?+ ~!'()*@:,$-_|^`{}[]\"<>\\é", max_size=30)


@pytest.mark.parametrize("send", [by_httpx, by_requests], ids=lambda send: send.__name__)
def test_any_request(send: Sender, key: dict[str, Any], echo: Echo):
    """However a client encodes a path, a query or a body: it is signed as it is sent."""

    @settings(
        max_examples=60, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.sampled_from(METHODS), raw, st.none() | raw, st.binary(max_size=50))
    def check(method: str, path: str, query: str | None, body: bytes) -> None:
        url = f"{echo.url}/{path.replace('?', '')}" + ("" if query is None else f"?{query}")
        assert send(key, method, url, body) == VALID

    check()


@pytest.mark.parametrize("send", [by_httpx, by_requests], ids=lambda send: send.__name__)
def test_each_send_has_its_own_nonce(send: Sender, key: dict[str, Any], echo: Echo):
    """The same request sent again is another one."""
    for _ in range(2):
        assert send(key, "GET", f"{echo.url}/same", b"") == VALID


async def test_async_httpx(key: dict[str, Any], echo: Echo):
    """The asynchronous client signs by the same flow."""
    async with httpx.AsyncClient(auth=HttpxSignature(key["key_id"], key["secret"])) as client:
        for content in (b"", b"x"):
            answer = await client.post(f"{echo.url}/orders?a=b", content=content)
            assert answer.json() == VALID


def test_requests_bodies(key: dict[str, Any], echo: Echo):
    """Forms, files, JSON and text are signed as requests encodes them."""
    auth = RequestsSignature(key["key_id"], key["secret"])
    for body in (
        {"data": {"a": "ü b"}}, {"data": "grüße"}, {"json": {"a": ["ü"]}},
        {"files": {"file": ("name.txt", b"content")}, "data": {"a": "b"}},
        {"params": {"q": "a b/ü"}},
    ):  # fmt: skip
        answer = requests.post(f"{echo.url}/form", auth=auth, timeout=10, **body)
        answer.close()
        assert answer.json() == VALID, body


def test_wrong_secret(echo: Echo, key: dict[str, Any]):
    """A client with another secret is refused."""
    with httpx.Client(auth=HttpxSignature(key["key_id"], "another")) as client:
        assert client.get(echo.url).json()["reason"] == "bad_signature"


def test_node_signer():
    """The JavaScript signer's own tests pass: every vector, body, URL and refusal."""
    tests = ROOT / "clients" / "javascript" / "test" / "signer.test.js"
    done = subprocess.run(
        [tool("node"), "--test", str(tests)], capture_output=True, text=True, timeout=120,
        check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]


def test_curl_usage(tmp_path: Path):
    """Without a secret, or with too few arguments, the script says how it is used."""
    script = str(ROOT / "examples" / "send_signed.sh")
    for arguments, env in (([], {"AKM_SECRET": "s"}), (["k", "GET", "http://a/"], {})):
        done = subprocess.run(
            [tool("sh"), script, *arguments], env={"PATH": os.environ["PATH"], **env},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("usage: AKM_SECRET=")
