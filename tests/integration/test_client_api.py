"""The API client, blocking and asynchronous, against a live server: every path, every shape, and
what happens when the connection fails in between.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import httpx
import pytest

from api_key_manager.client import (
    ApiError,
    AsyncClient,
    Client,
    NoAnswerError,
    RemoteVerdict,
    Retries,
    UnauthorizedError,
    faces,
    shapes,
)
from api_key_manager.client.operations import Operations
from api_key_manager.core import (
    ConflictError,
    KeyExistsError,
    KeyNotFoundError,
    KeyRevokedError,
    PermissionDeniedError,
    StorageError,
    ValidationError,
    sign,
)
from api_key_manager.server import schemas
from api_key_manager.server import shapes as wire
from tests.integration.conftest import Api, serving
from tests.integration.test_server_serve import started
from tests.services import free_port

TOKEN = "t" * 40
QUICK = Retries(base_seconds=0.01, most_seconds=2, deadline_seconds=20)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {"AKM_ADMIN_TOKEN": TOKEN, "WEBHOOK_ALLOW_PRIVATE": "true"}
    with started(tmp_path_factory.mktemp("api"), **settings) as server:
        yield server.url


class Either:
    """One of the two clients, asked in one way: what differs is only how it is waited for."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    async def __call__(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncClient):
            found = method(*args, **kwargs)
            if inspect.isasyncgen(found):
                return [item async for item in found]
            return await found
        found = await asyncio.to_thread(method, *args, **kwargs)
        return await asyncio.to_thread(list, found) if inspect.isgenerator(found) else found


@pytest.fixture(params=[Client, AsyncClient], ids=lambda kind: kind.__name__)
async def ask(request: pytest.FixtureRequest, url: str) -> AsyncIterator[Either]:
    if request.param is Client:
        with Client(url, TOKEN) as client:
            yield Either(client)
    else:
        async with AsyncClient(url, TOKEN) as client:
            yield Either(client)


def signed(key: dict[str, Any], nonce: str | None = None) -> dict[str, Any]:
    at = int(time.time())
    return {
        "key_id": key["key_id"], "signature": sign(key["secret"], key["key_id"], at, nonce),
        "timestamp": at, **({} if nonce is None else {"nonce": nonce}),
    }  # fmt: skip


async def test_life_of_a_key(ask: Either):
    """Create, read, validate, change, rotate, list its versions, revoke, delete."""
    owner = f"owner-{type(ask.client).__name__}"
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    key = await ask(
        "create_key", metadata={"plan": "pro"}, permissions=["a.*"], owner=owner,
        expires_at=tomorrow,
    )  # fmt: skip
    key_id = key["key_id"]
    assert key["metadata"] == {"plan": "pro"}
    assert datetime.fromisoformat(key["expires_at"]) == tomorrow

    verdict = await ask("validate", **signed(key), permissions="a.b", tags=("x",), cost=2)
    assert verdict
    assert isinstance(verdict, RemoteVerdict)
    assert (verdict.reason, verdict.key_id, verdict.scheme) == ("valid", key_id, "timestamped")
    assert (verdict.metadata, verdict.permissions) == ({"plan": "pro"}, ["a.*"])
    assert not await ask("validate", **signed(key), permissions=["b"])

    changed = await ask("update_key", key_id, metadata={"plan": "free"}, expires_at=None)
    assert (changed["metadata"], changed["expires_at"], changed["owner"]) == (
        {"plan": "free"}, None, owner,
    )  # fmt: skip
    rotated = await ask("rotate_key", key_id, 60)
    assert rotated["secret"] != key["secret"]
    assert await ask("validate", **signed(key))
    assert await ask("validate", **signed(rotated))
    versions = await ask("key_versions", key_id)
    assert [version["version"] for version in versions] == [2, 1]

    found = await ask("list_keys", owner=owner, state="active", created_before=tomorrow)
    assert [item["key_id"] for item in found] == [key_id]
    assert (await ask("get_key", key_id))["secret"] != rotated["secret"]

    revoked = await ask("revoke_key", key_id, "no longer needed", at=datetime.now(UTC))
    assert (revoked["state"], revoked["revoke_reason"]) == ("revoked", "no longer needed")
    refused = await ask("validate", **signed(rotated))
    assert refused.reason == "revoked"
    with pytest.raises(KeyRevokedError):
        refused.raise_unless_valid()
    assert await ask("delete_key", key_id) is None
    with pytest.raises(KeyNotFoundError):
        await ask("get_key", key_id)


async def test_batch_and_nonce(ask: Either):
    """One verdict per item, in order; a nonce counts once."""
    key, app = await ask("create_key"), await ask("create_key", kind="bearer")
    once = signed(key, f"nonce-of-the-{type(ask.client).__name__}")
    item = {"key" if name == "key_id" else name: value for name, value in once.items()}
    results = await ask("validate_batch", [item, item, {"token": app["token"]}, {"token": "x"}])
    assert [result.reason for result in results] == ["valid", "replayed", "valid", "malformed"]
    assert (await ask("validate", **once)).reason == "replayed"
    assert (await ask("validate", token=app["token"])).scheme == "bearer"


async def test_many_pages(ask: Either, monkeypatch: pytest.MonkeyPatch):
    """A list is gone through to its end, whatever the size of a page."""
    owner = f"many-{type(ask.client).__name__}"
    made = {(await ask("create_key", owner=owner))["key_id"] for _ in range(7)}
    monkeypatch.setattr("api_key_manager.client.asking.PAGE", 3)
    found = await ask("list_keys", owner=owner)
    assert [key["key_id"] for key in found] == sorted(made)
    events = await ask("list_audit", action="key_created", order="asc", since=0)
    assert made <= {event["key_id"] for event in events}
    [event] = await ask("list_audit", key_id=min(made), until=datetime.now(UTC))
    assert event["action"] == "key_created"

    told = await ask("revoke_keys", owner=owner, dry_run=True)
    assert (told["dry_run"], told["matched"], told["revoked"]) == (True, 7, 0)
    done = await ask("revoke_keys", owner=owner, reason="test")
    assert (done["revoked"], set(done["key_ids"])) == (7, made)


async def test_tokens(ask: Either, url: str):
    """Admin tokens are made, listed and revoked; one that is not accepted is told apart."""
    token = await ask("create_token", ("validate",), name="api", ip_allowlist=["127.0.0.0/8"])
    assert token["scopes"] == ["validate"]
    assert token["key_id"] in [item["key_id"] for item in await ask("list_tokens", state="active")]
    with Client(url, token["token"]) as lesser:
        assert not lesser.validate(token="x")
        with pytest.raises(PermissionDeniedError) as denied:
            lesser.create_key()
        assert (denied.value.status, denied.value.reason) == (403, "forbidden")
    await ask("revoke_token", token["key_id"])
    with Client(url, token["token"]) as ended, pytest.raises(UnauthorizedError) as raised:
        ended.validate(token="x")
    assert (raised.value.status, raised.value.reason) == (401, "unauthorized")
    assert token["token"] not in f"{raised.value!r} {ended!r}"


async def test_leaks(ask: Either):
    """A report ends what it is about, and says so again when it is sent again."""
    key = await ask("create_key", kind="bearer")
    told = await ask("report_leak", key["token"], url="https://paste.example/1", source="a chat")
    assert told == {
        "matched": True, "key_id": key["key_id"], "realm": "default", "version": 1,
        "action": "revoked",
    }  # fmt: skip
    assert (await ask("report_leak", key["token"]))["action"] == "none"
    assert (await ask("validate", token=key["token"])).reason == "revoked"
    nothing = await ask("report_leak", "nobody's")
    assert (nothing["matched"], nothing["key_id"]) == (False, None)


async def test_webhooks(ask: Either, monkeypatch: pytest.MonkeyPatch):
    """Create, read, change, test, list and replay deliveries, rotate the secret, delete."""
    refusing = f"http://127.0.0.1:{free_port()}/hook"
    # Of an environment without keys: nothing but what is sent here goes to it.
    hook = await ask(
        "create_webhook", refusing, types=("key.revoked",), environment="empty",
        description="pager",
    )  # fmt: skip
    hook_id, secret = hook["id"], hook["secret"]
    assert secret.startswith("whsec_")
    assert (hook["url"], hook["types"], hook["environment"], hook["description"]) == (
        refusing, ["key.revoked"], "empty", "pager",
    )  # fmt: skip
    shown = {name: value for name, value in hook.items() if name != "secret"}
    assert await ask("get_webhook", hook_id) == shown
    assert shown in await ask("list_webhooks")
    changed = await ask("update_webhook", hook_id, types=["*"], description=None)
    assert (changed["types"], changed["description"], changed["url"]) == (["*"], None, refusing)

    sent = [await ask("test_webhook", hook_id) for _ in range(3)]
    assert {(one["type"], one["state"], one["outcome"]) for one in sent} == {
        ("webhook.test", "dead", "connect_failed")
    }
    monkeypatch.setattr("api_key_manager.client.asking.PAGE", 2)
    listed = await ask("list_webhook_deliveries", hook_id, state="dead")
    assert [one["id"] for one in listed] == [one["id"] for one in reversed(sent)]
    assert await ask("list_webhook_deliveries", hook_id, state="done") == []
    again = await ask("replay_delivery", hook_id, sent[0]["id"])
    assert (again["id"], again["state"]) == (sent[0]["id"], "pending")
    assert await ask("replay_webhook", hook_id) == 2
    assert await ask("replay_webhook", hook_id) == 0

    rotated = await ask("rotate_webhook_secret", hook_id, 60)
    assert rotated["secret"] != secret
    assert rotated["previous_secret_until"] is not None
    at_once = await ask("rotate_webhook_secret", hook_id, 0)
    assert at_once["previous_secret_until"] is None
    assert (await ask("update_webhook", hook_id, disabled=True))["disabled"] is True
    with pytest.raises(ConflictError):
        await ask("replay_webhook", hook_id)
    assert await ask("delete_webhook", hook_id) is None
    for name in ("get_webhook", "delete_webhook", "test_webhook", "list_webhook_deliveries"):
        with pytest.raises(KeyNotFoundError):
            await ask(name, hook_id)
    for wrong in ("", "a/b", "a b", TOKEN * 4):
        with pytest.raises(ValidationError):
            await ask("replay_delivery", hook_id, wrong)


async def test_numbers_and_probes(ask: Either):
    """The counters and the probes."""
    stats = await ask("get_stats")
    assert stats["uptime_seconds"] > 0
    assert stats["cache"]["max_entries"] > 0
    assert await ask("is_healthy") is True
    assert await ask("is_ready") is True


async def test_errors_name_the_field(ask: Either):
    """A refusal is an exception of the core's tree, with what the server said of it."""
    with pytest.raises(ValidationError) as raised:
        await ask("create_key", permissions=["not a permission!"])
    assert isinstance(raised.value, ApiError)
    assert (raised.value.status, raised.value.reason) == (422, "malformed")
    assert raised.value.field is not None
    assert raised.value.field.startswith("permissions")
    assert raised.value.request_id
    key = await ask("create_key")
    with pytest.raises(KeyExistsError) as taken:
        await ask("create_key", key["key_id"])
    assert taken.value.status == 409


async def test_idempotency_key_of_ones_own(ask: Either):
    """Asked again under the same key, the server gives the first answer."""
    mine = f"mine-{type(ask.client).__name__}"
    first = await ask("create_key", owner="a", idempotency_key=mine)
    assert await ask("create_key", owner="a", idempotency_key=mine) == first
    with pytest.raises(ValidationError) as raised:
        await ask("create_key", owner="b", idempotency_key=mine)
    assert raised.value.reason == "idempotency_key"


def test_both_have_everything():
    """Each operation is on both clients, documented, and takes the same arguments on both."""
    operations = {
        name: member
        for name, member in inspect.getmembers(Operations, inspect.isfunction)
        if not name.startswith("_") and name != "page"
    }
    for name, operation in operations.items():
        assert operation.__doc__
        for face in (Client, AsyncClient):
            method = getattr(face, name)
            assert method.__doc__ == operation.__doc__
            assert inspect.signature(method) == inspect.signature(operation)


async def test_every_endpoint(api: Api):
    """Each operation of the server's OpenAPI document is asked for by some method."""
    document = (await api("GET", "/openapi.json")).json()
    known = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    asked: set[tuple[str, str]] = set()

    def note(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        for segment, named in (
            ("k", "key_id"), ("t", "key_id"), ("w", "webhook_id"), ("d", "delivery_id"),
        ):  # fmt: skip
            path = f"{path}/".replace(f"/{segment}/", f"/{{{named}}}/").rstrip("/")
        asked.add((request.method, path))
        answer = {"valid": True, "items": [], "results": [], "replayed": 0}
        return httpx.Response(200, json=answer)

    with Client("http://keys.example", "t", transport=httpx.MockTransport(note)) as client:
        client.validate(token="x"), client.validate_batch([])
        client.create_key("k"), client.get_key("k"), list(client.list_keys())
        client.update_key("k"), client.rotate_key("k"), client.revoke_key("k")
        client.revoke_keys(owner="a"), client.delete_key("k"), client.key_versions("k")
        client.create_token([]), list(client.list_tokens()), client.rotate_token("t")
        client.revoke_token("t"), client.report_leak("x")
        client.create_webhook("https://a.example"), client.list_webhooks()
        client.get_webhook("w"), client.update_webhook("w"), client.delete_webhook("w")
        client.rotate_webhook_secret("w"), client.test_webhook("w"), client.replay_webhook("w")
        list(client.list_webhook_deliveries("w")), client.replay_delivery("w", "d")
        list(client.list_audit()), client.audit_proof(index=1), client.get_stats()
        client.is_healthy(), client.is_ready()
    # For gateways, for GitHub, for Prometheus and for auditors (these two are no JSON).
    others = {"/v1/authorize", "/v1/authorize/{permissions}", "/v1/leaks/github", "/metrics",
              "/v1/audit/checkpoint"}  # fmt: skip
    assert asked == {(method, path) for method, path in known if path not in others}
    assert others <= {path for _, path in known}


SHAPES = [
    (shapes.Key, schemas.Key), (shapes.CreatedKey, schemas.CreatedKey),
    (shapes.KeyVersion, schemas.Version), (shapes.BulkRevocation, schemas.BulkRevocation),
    (shapes.Token, schemas.Token), (shapes.CreatedToken, schemas.CreatedToken),
    (shapes.Event, schemas.Event), (shapes.Stats, schemas.Stats),
    (shapes.Webhook, schemas.Webhook), (shapes.CreatedWebhook, schemas.CreatedWebhook),
    (shapes.WebhookChanges, schemas.UpdateWebhook), (shapes.Delivery, schemas.WebhookDelivery),
    (shapes.LeakOutcome, schemas.LeakOutcome),
    (shapes.CacheStats, schemas.CacheStats), (shapes.KeyChanges, schemas.UpdateKey),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "schema"), SHAPES, ids=lambda value: value.__name__)
def test_shapes(shape: Any, schema: Any):
    """The members of a shape are those that the server writes or reads."""
    assert set(get_type_hints(shape)) == set(schema.model_fields)


def test_more_shapes():
    """The same for what is passed as arguments, and for verdicts."""

    def names(shape: Any) -> set[str]:
        return set(get_type_hints(shape))

    assert names(shapes.NewKey) | {"key_id"} == set(schemas.CreateKey.model_fields)
    paging = {"limit", "cursor"}
    assert names(shapes.KeyFilters) == set(schemas.KeyFilters.model_fields) - paging
    options = {"reason", "dry_run"}
    assert names(shapes.RevocationFilters) == set(schemas.RevokeKeys.model_fields) - options
    assert names(shapes.ValidationItem) == set(wire.Validation.__struct_fields__)
    assert names(shapes.RemoteVerdict) == set(wire.Answer.__struct_fields__)
    hints = get_type_hints(shapes.Key, include_extras=True)
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    assert optional == {"secret", "token"}
    assert get_args(shapes.State) == get_args(schemas.State)


class Flaky:
    """A proxy before the server that does to each request in turn what its plan says."""

    def __init__(self, url: str, plan: list[str]) -> None:
        self.plan = plan
        self.keys: list[str | None] = []
        self.reached = 0
        flaky = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                flaky.keys.append(self.headers["Idempotency-Key"])
                step = flaky.plan.pop(0) if flaky.plan else "pass"
                if step.isdecimal():
                    self.respond(int(step), b"", {"Retry-After": "0"})
                    return
                if step == "drop":
                    self.cut()
                    return
                flaky.reached += 1
                with httpx.Client(base_url=url, trust_env=False) as http:
                    headers = {
                        name: value
                        for name, value in self.headers.items()
                        if name.lower() not in ("host", "content-length", "connection")
                    }
                    done = http.request(self.command, self.path, headers=headers, content=body)
                if step == "lose":
                    self.cut()
                else:
                    self.respond(done.status_code, done.content, {})

            def respond(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def cut(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@contextmanager
def flaky(url: str, *plan: str) -> Iterator[tuple[Flaky, Client]]:
    proxy = Flaky(url, list(plan))
    thread = threading.Thread(target=proxy.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        with Client(proxy.url, TOKEN, retries=QUICK) as client:
            yield proxy, client
    finally:
        proxy.http.shutdown()
        thread.join()
        proxy.http.server_close()


class TestFailures:
    def test_lost_creation(self, url: str):
        """A creation whose answer got lost is asked for again, and makes one key."""
        with flaky(url, "lose", "503", "drop") as (proxy, client):
            key = client.create_key(owner="lost-once")
            assert len(list(client.list_keys(owner="lost-once"))) == 1
            assert client.validate(**signed(dict(key)))
        assert len(set(proxy.keys[:4])) == 1
        assert proxy.keys[0] is not None

    def test_lost_rotation(self, url: str):
        """So is a rotation: one was made, and the secret that comes is the one that works."""
        with flaky(url) as (proxy, client):
            key_id = client.create_key()["key_id"]
            proxy.plan = ["lose"]
            rotated = client.rotate_key(key_id)
            assert rotated["version"] == 2
            assert client.validate(**signed(dict(rotated)))

    def test_lost_validation(self, url: str):
        """A nonce whose verdict got lost is not presented again; the caller is told."""
        with flaky(url) as (proxy, client):
            key = dict(client.create_key())
            for step in ("lose", "drop"):
                proxy.plan, proxy.reached = [step], 0
                with pytest.raises(NoAnswerError) as raised:
                    client.validate(**signed(key, f"nonce-that-was-{step}"))
                assert raised.value.processed is None
                assert proxy.reached == (step == "lose")
            proxy.plan = ["lose"]
            assert client.validate(**signed(key))

    def test_busy(self, url: str):
        """429 is waited for, with a nonce too; 503 with a nonce is an answer."""
        with flaky(url) as (proxy, client):
            key = dict(client.create_key())
            proxy.plan = ["429", "429"]
            assert client.validate(**signed(key, "nonce-that-had-to-wait"))
            proxy.plan = ["503"]
            with pytest.raises(StorageError) as raised:
                client.validate(**signed(key, "nonce-that-was-told-503"))
            assert isinstance(raised.value, ApiError)
            assert (raised.value.status, raised.value.retry_after) == (503, 0)

    def test_unready(self, url: str):
        """A probe that is refused is a no, at once."""
        with flaky(url, "503", "404") as (proxy, client):
            assert client.is_ready() is False
            assert client.is_healthy() is False
            assert proxy.keys == [None, None]


async def test_nobody_there():
    """Where nobody listens nothing was sent, and the error says so."""
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, TOKEN, retries=QUICK) as client, pytest.raises(NoAnswerError) as raised:
        client.validate(token="x")
    assert raised.value.processed is False
    async with AsyncClient(url, TOKEN, retries=QUICK) as another:
        with pytest.raises(NoAnswerError, match="cannot be reached") as again:
            await another.validate(token="x")
    assert again.value.processed is False


@contextmanager
def dripping(head: bytes) -> Iterator[str]:
    """A server that sends a head and then, for ever, a byte now and then."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def drip(connection: socket.socket) -> None:
            with connection:
                connection.recv(65_536)
                try:
                    connection.sendall(head)
                    while not stop.wait(0.02):
                        connection.sendall(b" ")
                except OSError:
                    return

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                workers.append(threading.Thread(target=drip, args=(connection,)))
                workers[-1].start()

        workers: list[threading.Thread] = []
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            acceptor.join()
            for worker in workers:
                worker.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


async def test_slow_answer():
    """An answer that never ends is given up at the deadline, not when each wait was long enough."""
    retries = Retries(deadline_seconds=0.3)
    with dripping(HEAD) as url:
        began = time.monotonic()
        with Client(url, TOKEN, retries=retries) as client:
            with pytest.raises(NoAnswerError, match="took too long") as raised:
                client.validate(token="x")
            assert raised.value.processed is None
        async with AsyncClient(url, TOKEN, retries=retries) as another:
            with pytest.raises(NoAnswerError, match="took too long"):
                await another.validate(token="x")
        assert time.monotonic() - began < 5


def test_silent_server():
    """A server that says nothing is given up when the time-out has passed."""
    retries = Retries(most=0)
    with (
        dripping(b"") as url,
        Client(url, TOKEN, retries=retries, timeout=0.01) as client,
        pytest.raises(NoAnswerError, match="took too long"),
    ):
        client.get_stats()


def test_huge_answer(monkeypatch: pytest.MonkeyPatch):
    """An answer beyond all bounds is not read to its end."""
    monkeypatch.setattr(faces, "MAX_ANSWER", 10_000)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b"x" * 20_000))
    with (
        Client("http://keys.example", TOKEN, transport=transport) as client,
        pytest.raises(ApiError, match="does not answer as an API key manager"),
    ):
        client.get_stats()


def test_broken_encoding():
    """An answer that cannot be decoded is no answer of an API key manager."""
    headers = {"Content-Encoding": "gzip"}
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers=headers, stream=httpx.ByteStream(b"no gzip"))
    )
    with (
        Client("http://keys.example", TOKEN, transport=transport) as client,
        pytest.raises(ApiError, match="does not answer as an API key manager"),
    ):
        client.get_stats()


async def test_in_process():
    """A transport of one's own: the app in this process, over no network."""
    async with serving() as api:
        transport = api.client._transport
        async with AsyncClient("http://akm.test", api.token, transport=transport) as client:
            key = await client.create_key()
            assert [item["key_id"] async for item in client.list_keys()] == [key["key_id"]]


def test_the_token_goes_nowhere_else(url: str):
    """A redirect is an error, and its target hears nothing."""
    heard: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        heard.append(request)
        return httpx.Response(307, headers={"Location": "https://evil.example/"})

    with (
        Client("https://keys.example", TOKEN, transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ApiError, match="redirects elsewhere"),
    ):
        client.get_stats()
    assert [request.url.host for request in heard] == ["keys.example"]


def test_no_proxy_to_this_machine(url: str, monkeypatch: pytest.MonkeyPatch):
    """A proxy in the environment is not asked to reach this machine, with the token in hand."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with Client(url, TOKEN) as client:
        assert client.is_ready()


@pytest.mark.parametrize("token", ["", "a b", "ü", "a\nb", "a\x7f"])
def test_wrong_tokens(token: str):
    """What cannot stand in a header is refused, and not repeated."""
    with pytest.raises(ValidationError, match=r"^token: ") as raised:
        Client("http://keys.example", token)
    assert not token or token not in str(raised.value)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_wrong_timeouts(timeout: float):
    """Nobody waits for ever."""
    with pytest.raises(ValidationError, match=r"^timeout: "):
        Client("http://keys.example", TOKEN, timeout=timeout)


def test_base_path():
    """A server below a path is asked below that path."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"items": []})

    transport = httpx.MockTransport(answer)
    with Client("https://example.com/keys/", TOKEN, transport=transport) as client:
        client.key_versions("..")
        list(client.list_keys(owner="a&b=c +ü"))
    assert asked == [
        "https://example.com/keys/v1/keys/%2E%2E/versions",
        "https://example.com/keys/v1/keys?owner=a%26b%3Dc+%2B%C3%BC&limit=500",
    ]


def test_closed():
    """Closing is final, and may be done twice."""
    client = Client("http://127.0.0.1:9", TOKEN)
    client.close()
    client.close()
    with pytest.raises(RuntimeError):
        client.get_stats()
