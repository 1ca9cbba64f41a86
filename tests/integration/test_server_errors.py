"""The shape of every refusal, the bounds of a request, idempotency, and the documentation."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from api_key_manager.connections import Many, Statement
from api_key_manager.connections.tables import idempotency
from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    EncryptionError,
    KeyRevokedError,
    StorageError,
)
from api_key_manager.core.ports import Receipt
from api_key_manager.core.tokens import mint_token
from api_key_manager.server import errors, front
from api_key_manager.storage import idempotency as requests
from api_key_manager.wiring import deployment as wired
from tests.integration.conftest import Api, serving, signed

MIB = 1024 * 1024
JSON = {"Content-Type": "application/json"}


def assert_problem(answer: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    """A problem document with all its members, and nothing of the inside."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == "about:blank"
    assert (document["status"], document["reason"]) == (status, reason)
    assert document["title"]
    assert document["detail"]
    assert document.get("request_id") == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text
    return document


async def test_problems_look_alike(api: Api):
    """404, 405, 409, 400, 413, 415 and 422 share one shape."""
    await api.key(key_id="k")
    bad = {"headers": JSON, "content": b"{"}
    assert_problem(await api("GET", "/v1/keys/none"), 404, "not_found")
    assert_problem(await api("GET", "/nothing"), 404, "not_found")
    assert_problem(await api("PUT", "/v1/keys"), 405, "method_not_allowed")
    assert_problem(await api("POST", "/v1/keys", {"key_id": "k"}), 409, "key_exists")
    assert_problem(await api("POST", "/v1/keys", **bad), 400, "malformed")
    assert_problem(await api("POST", "/v1/validate", **bad), 400, "malformed")
    assert_problem(await api("GET", "/v1/keys?limit=x"), 422, "malformed")
    assert_problem(
        await api("POST", "/v1/keys", headers=JSON, content=b"x" * (MIB + 1)), 413, "too_large"
    )
    assert_problem(
        await api("POST", "/v1/keys", headers={"Content-Type": "text/plain"}, content=b"{}"),
        415,
        "unsupported_media_type",
    )


def test_every_exception_has_a_row():
    """Each exception that a use case may raise has a status; a subclass is not lost in its base."""
    found: list[type[APIKeyManagerException]] = []
    pending: list[type[APIKeyManagerException]] = [APIKeyManagerException]
    while pending:
        subclasses = pending.pop().__subclasses__()
        # What a client raises is never raised in a server.
        found += [cls for cls in subclasses if cls.__module__.startswith("api_key_manager.core")]
        pending += subclasses
    statuses = {cls.__name__: errors.problem_of(cls("x")).status for cls in found}
    assert statuses["KeyRevokedError"] == 409
    assert statuses["KeyNotFoundError"] == 404
    unexpected = {name for name, status in statuses.items() if status == 500}
    assert unexpected <= {"ConfigurationError", "InvalidSignatureError"}


@pytest.mark.parametrize("path", ["/v1/keys/k", "/v1/validate"])
async def test_unexpected_error(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
):
    """What nobody foresaw is a 500 that says nothing; the log has it by request id."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(api.deployment.manager, "get_key", broken)
    # The token is judged by the same call: break it for keys only.
    judge = api.deployment.manager.verify_now
    monkeypatch.setattr(
        api.deployment.manager, "verify_now",
        lambda p, now: judge(p, now) if p.realm == "admin" else broken(),
    )  # fmt: skip
    body = {"key": "k", "signature": "0" * 64} if path == "/v1/validate" else None
    with caplog.at_level(logging.ERROR):
        answer = await api("POST" if body else "GET", path, body, params={"q": "in-the-query"})
    document = assert_problem(answer, 500, "error")
    assert "inside" not in answer.text
    assert document["request_id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert "inside" not in caplog.text
    assert "in-the-query" not in caplog.text
    assert api.token not in caplog.text


async def test_no_path_forges_a_line_of_the_log(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A line break in a path stays within its line, and a long path does not fill the log."""

    async def broken(*_: Any) -> Any:
        raise StorageError("gone")

    monkeypatch.setattr(api.deployment.manager.store, "load", broken)
    token = mint_token("akm", "nobody")
    monkeypatch.setattr(front, "_OUTAGE_SECONDS", 0)
    for path in ("/v1/x%0a%0d%1b%e2%80%a82030-01-01 ERROR akm: forged", "/v1/" + "x" * 5000):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert (await api("GET", path, token=token)).status_code == 503
        (line,) = [r.getMessage() for r in caplog.records if r.name == front.__name__]
        assert line.isprintable()
        assert len(line) < 600
        assert "'/v1/x" in line


async def test_debug_logs_the_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """`DEBUG=true` is what it takes to have tracebacks in the log."""
    async with serving(DEBUG=True) as api:
        monkeypatch.setattr(api.deployment.manager, "get_key", lambda _: 1 / 0)
        await api("GET", "/v1/keys/k")
    assert "ZeroDivisionError: division by zero" in caplog.text


@pytest.mark.parametrize("error", [StorageError("disk /dev/x is full"), EncryptionError("bad tag")])
async def test_unavailable(api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception):
    """A store that cannot answer is a 503 with Retry-After, without the store's words."""

    async def broken(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(api.deployment.manager.store, "find", broken)
    answer = await api("GET", "/v1/keys")
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert str(error) not in answer.text


async def test_store_down_at_the_door(api: Api, monkeypatch: pytest.MonkeyPatch):
    """A token that cannot be checked is a 503: neither let in, nor told that it is wrong."""
    made = await api.scoped("keys:read")

    async def broken(_: Any) -> Any:
        raise StorageError("gone")

    monkeypatch.setattr(api.deployment.manager.store, "load", broken)
    assert_problem(await api("GET", "/v1/keys", token=made["token"]), 503, "unavailable")


async def test_request_id(api: Api):
    """A safe id of the caller's is kept, any other is replaced; every answer has one."""
    for given in ("abc-1.2_X", "a" * 64):
        answer = await api("GET", "/healthz", headers={"X-Request-Id": given})
        assert answer.headers["X-Request-Id"] == given
    seen = set()
    for given in ("", "a" * 65, "a b", "<script>", "é", 'a"b'):
        answer = await api("GET", "/v1/keys", headers={"X-Request-Id": given.encode()})
        seen.add(answer.headers["X-Request-Id"])
    assert len(seen) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", one) for one in seen)


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/validate", "/v1/validate/batch"])
async def test_body_cap(api: Api, path: str):
    """Over 1 MiB is a 413, announced or not; up to it the body is read."""

    async def chunks(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 65_536):
            yield b" " * 65_536
        yield b"{}" + b" " * (size % 65_536 - 2)

    for body in (b" " * (MIB + 1), chunks(MIB + 2)):
        answer = await api("POST", path, headers=JSON, content=body)
        assert_problem(answer, 413, "too_large")
    for body in (b"{}" + b" " * (MIB - 2), chunks(MIB - 65_536 + 2)):
        answer = await api("POST", path, headers=JSON, content=body)
        assert answer.status_code in (201, 422)


async def test_an_announced_body_is_refused_before_it_is_read(api: Api):
    """Of a body that is too large by its own words, not a byte is taken."""
    app: Any = api.client._transport.app  # type: ignore[attr-defined]  # only this transport has one
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {api.token}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/keys", "query_string": b""}
    for length, status in [(b"9999999", 413), (b"9" * 30, 413), (b"-1", 413)]:
        sent.clear()
        await app({**scope, "headers": [*headers, (b"content-length", length)]}, receive, send)
        assert sent[0]["status"] == status


async def test_without_a_token_no_body_is_read(api: Api):
    """A stranger cannot make the server hold a body."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        raise AssertionError("read")

    answer = await api("POST", "/v1/keys", token=None, headers=JSON, content=chunks())
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 201), ("application/json; charset=utf-8", 201),
        ("application/vnd.akm+json", 201), ("APPLICATION/JSON", 201), (None, 201),
        ("text/plain", 415), ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415), ("application/jsonx", 415),
    ],
)  # fmt: skip
async def test_content_type(api: Api, kind: str | None, status: int):
    """JSON, or nothing said; anything else is a mistake that is named."""
    headers = {"Content-Type": kind} if kind else {}
    assert (await api("POST", "/v1/keys", headers=headers, content=b"{}")).status_code == status
    hot = await api("POST", "/v1/validate", headers=headers, content=b'{"token":"x"}')
    assert hot.status_code == (200 if status == 201 else status)


async def test_content_encoding(api: Api):
    """A packed body is not unpacked: who knows how large it would be."""
    answer = await api(
        "POST", "/v1/validate", headers={**JSON, "Content-Encoding": "gzip"}, content=b"x"
    )
    assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"metadata":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
             b'{"owner":"\\ud800"}', b'{"metadata":{"a":"\\ud800"}}', b"\xff", b'{"owner":"\xff"}',
             b"null", b"1", b""],
)  # fmt: skip
async def test_strange_bodies(api: Api, text: bytes):
    """No body makes the server stumble."""
    answer = await api("POST", "/v1/keys", headers=JSON, content=text)
    assert answer.status_code in (400, 422)
    assert answer.json()["reason"] == "malformed"


async def test_probes(api: Api, monkeypatch: pytest.MonkeyPatch):
    """Alive whatever happens; ready only when nothing is wrong, and it says what is."""
    assert (await api("GET", "/readyz", token=None)).json() == {"status": "ready"}
    monkeypatch.setattr(api.deployment, "problems", lambda: ["the follower has stopped"])
    answer = await api("GET", "/readyz", token=None)
    assert assert_problem(answer, 503, "not_ready")["problems"] == ["the follower has stopped"]
    assert (await api("HEAD", "/readyz", token=None)).status_code == 503
    assert (await api("GET", "/healthz", token=None)).status_code == 200


# Idempotency-Key


def once(value: str = "key-1") -> dict[str, str]:
    return {"Idempotency-Key": value}


async def test_replay_of_a_create(stored: Api):
    """Sent again, a create gives the same bytes, and one key exists."""
    first = await stored("POST", "/v1/keys", {"owner": "o"}, headers=once())
    again = await stored("POST", "/v1/keys", {"owner": "o"}, headers=once())
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Content-Type"] == "application/json"
    assert len((await stored("GET", "/v1/keys")).json()["items"]) == 1


async def test_replay_of_a_rotation_and_of_a_token(stored: Api):
    """A rotation that is sent again makes no third version; a token is minted once."""
    key = await stored.key()
    path = f"/v1/keys/{key['key_id']}/rotate"
    for body in (None, {"overlap_seconds": 5}):
        headers = once(f"rotate {body}")
        answers = [await stored("POST", path, body, headers=headers) for _ in range(2)]
        assert answers[0].content == answers[1].content
        assert [answer.status_code for answer in answers] == [200, 200]
    assert (await stored("GET", f"/v1/keys/{key['key_id']}")).json()["version"] == 3
    body = {"scopes": ["metrics"]}
    answers = [await stored("POST", "/v1/tokens", body, headers=once()) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert answers[1].status_code == 201
    assert len((await stored("GET", "/v1/tokens")).json()["items"]) == 2


async def test_idempotency_key_of_another_request(stored: Api):
    """Another body or path under the same key is a 422, and changes nothing."""
    await stored.key(key_id="a")
    assert (await stored("POST", "/v1/keys", {}, headers=once())).status_code == 201
    for path, body in [
        ("/v1/keys", {"key_id": "b"}),
        ("/v1/keys/a/rotate", {}),
        ("/v1/tokens", {"scopes": ["metrics"]}),
    ]:
        answer = await stored("POST", path, body, headers=once())
        document = assert_problem(answer, 422, "idempotency_key")
        assert document["field"] == "Idempotency-Key"
    assert (await stored("GET", "/v1/keys/b")).status_code == 404
    assert (await stored("GET", "/v1/keys/a")).json()["version"] == 1
    assert len((await stored("GET", "/v1/tokens")).json()["items"]) == 1


async def test_idempotency_key_of_another_token(stored: Api):
    """Keys of two admin tokens do not meet: neither gets the other's secret."""
    other = await stored.scoped("keys:write")
    first = await stored("POST", "/v1/keys", {}, headers=once())
    second = await stored("POST", "/v1/keys", {}, headers=once(), token=other["token"])
    assert second.status_code == 201
    assert first.json()["key_id"] != second.json()["key_id"]


async def test_same_request_at_the_same_moment(stored: Api):
    """Of many at once one is run; the others get its answer, or are told to wait."""
    answers = await asyncio.gather(
        *(stored("POST", "/v1/keys", {"owner": "o"}, headers=once()) for _ in range(10))
    )
    done = {answer.content for answer in answers if answer.status_code == 201}
    waiting = [answer for answer in answers if answer.status_code != 201]
    assert len(done) == 1
    for answer in waiting:
        assert_problem(answer, 409, "in_progress")
        assert int(answer.headers["Retry-After"]) > 0
    assert len((await stored("GET", "/v1/keys")).json()["items"]) == 1
    last = await stored("POST", "/v1/keys", {"owner": "o"}, headers=once())
    assert last.content in done


async def test_a_refused_request_keeps_no_key(stored: Api):
    """After a refusal or a failure the same key may be used for the corrected request."""
    await stored.key(key_id="taken")
    for body in ({"key_id": "taken"}, {"key_id": "a b"}):
        refused = await stored("POST", "/v1/keys", body, headers=once())
        assert refused.status_code in (409, 422)
        assert "Idempotency-Replayed" not in refused.headers
    assert (await stored("POST", "/v1/keys", {"key_id": "x"}, headers=once())).status_code == 201


async def test_a_failed_commit_keeps_no_key(stored: Api, monkeypatch: pytest.MonkeyPatch):
    """When the store fails, the retry runs anew."""
    store = stored.deployment.manager.store
    apply = store.apply

    async def broken(*_: Any) -> Any:
        raise StorageError("gone")

    monkeypatch.setattr(store, "apply", broken)
    answer = await stored("POST", "/v1/keys", {}, headers=once())
    assert_problem(answer, 503, "unavailable")
    monkeypatch.setattr(store, "apply", apply)
    assert (await stored("POST", "/v1/keys", {}, headers=once())).status_code == 201


async def test_kept_answers_are_sealed_and_lapse(stored: Api, monkeypatch: pytest.MonkeyPatch):
    """What is kept for a replay does not show the secret to the store's reader, for 10 minutes."""
    store = stored.deployment.manager.store
    apply, kept = store.apply, list[Receipt]()

    async def watched(changes: Any, seal: Any, receipt: Any = None) -> Any:
        kept.extend([receipt] if receipt else [])
        return await apply(changes, seal, receipt)

    monkeypatch.setattr(store, "apply", watched)
    answer = await stored("POST", "/v1/keys", {}, headers=once())
    (receipt,) = kept
    assert (receipt.scope, receipt.key) == ("first-admin", "key-1")
    now = stored.deployment.manager.clock()
    assert 590 < receipt.expires_at / 1e6 - now <= 600
    box = stored.deployment.manager.box
    request = receipt.fingerprint.hex()
    own = f"first-admin\nkey-1\n{request}"
    assert box.open("idempotency", own, 0, receipt.answer) == answer.content
    for other in (f"other\nkey-1\n{request}", f"first-admin\nkey-1\n{bytes(32).hex()}"):
        with pytest.raises(EncryptionError):
            box.open("idempotency", other, 0, receipt.answer)


async def test_a_stalled_request_leaves_its_successor_alone(
    stored: Api, monkeypatch: pytest.MonkeyPatch
):
    """A request that stalls until another one has its key is refused, changes nothing, and the
    other one gets its own answer."""
    manager = stored.deployment.manager
    apply, clock = manager.store.apply, manager.clock
    stalled, go_on = asyncio.Event(), asyncio.Event()

    async def slow(changes: Any, seal: Any, receipt: Any = None) -> Any:
        if changes[0].record.key_id in ("slow", "quick"):
            waits = stalled if changes[0].record.key_id == "slow" else quick_waits
            waits.set()
            await (go_on if waits is stalled else quick_goes_on).wait()
        return await apply(changes, seal, receipt)

    quick_waits, quick_goes_on = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(manager.store, "apply", slow)
    first = asyncio.create_task(stored("POST", "/v1/keys", {"key_id": "slow"}, headers=once()))
    await stalled.wait()
    monkeypatch.setattr(manager, "clock", lambda: clock() + 61)
    second = asyncio.create_task(stored("POST", "/v1/keys", {"key_id": "quick"}, headers=once()))
    await quick_waits.wait()
    go_on.set()
    assert_problem(await first, 409, "conflict")
    quick_goes_on.set()
    made = await second
    assert (made.status_code, made.json()["key_id"]) == (201, "quick")
    again = await stored("POST", "/v1/keys", {"key_id": "quick"}, headers=once())
    assert again.content == made.content
    assert (await stored("GET", "/v1/keys/slow")).status_code == 404


async def test_lapsed_answers_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ten minutes later the background work has removed the sealed answer, without any request."""
    monkeypatch.setattr(wired, "_PRUNE_SECONDS", 0.02)
    async with serving(DATABASE_URL=f"sqlite:///{tmp_path}/akm.db") as api:
        manager = api.deployment.manager
        await api("POST", "/v1/keys", {}, headers=once())

        def rows() -> list[Any]:
            return manager.store.driver.read_now(kept)  # type: ignore[attr-defined]  # SQLite's store

        def kept() -> Any:
            return (yield Statement(select(idempotency))())

        await asyncio.sleep(0.2)
        assert len(rows()) == 1, "still replayed"
        clock = manager.clock
        monkeypatch.setattr(manager, "clock", lambda: clock() + 601)
        async with asyncio.timeout(10):
            while rows():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


async def test_prune_goes_in_steps(tmp_path: Path):
    """However many have lapsed, the writer is never held up for long."""
    async with serving(DATABASE_URL=f"sqlite:///{tmp_path}/akm.db") as api:
        driver = api.deployment.manager.store.driver  # type: ignore[attr-defined]  # as above
        await api.deployment.supervisor.stop()

        def fill() -> Any:
            rows = [("s", str(i), b"f", b"answer", 5 if i else 7) for i in range(2501)]
            for some in range(0, len(rows), 500):
                yield Many(Statement(idempotency.insert()), rows[some : some + 500])

        await driver.write(fill)
        counts = [await driver.write(requests.prune, at) for at in (4, 5, 5, 5, 5, 6, 7, 7)]
        assert counts == [0, 1000, 1000, 500, 0, 0, 1, 0]


@pytest.mark.parametrize("value", ["", "x" * 256, "é", "tab\t"])
async def test_idempotency_key_form(api: Api, value: str):
    """1 to 255 printable ASCII characters; anything else is refused, not ignored."""
    answer = await api("POST", "/v1/keys", {}, headers={"Idempotency-Key": value.encode()})
    assert_problem(answer, 422, "idempotency_key")
    assert (await api("GET", "/v1/keys")).json()["items"] == []


async def test_idempotency_key_twice(api: Api):
    """Two keys on one request are refused."""
    headers = [
        ("Authorization", f"Bearer {api.token}"),
        ("Idempotency-Key", "a"),
        ("Idempotency-Key", "b"),
    ]
    answer = await api.client.post("/v1/keys", json={}, headers=headers)
    assert_problem(answer, 422, "idempotency_key")


async def test_longest_idempotency_key(stored: Api):
    """255 characters are fine."""
    value = "~" * 255
    answers = [await stored("POST", "/v1/keys", {}, headers=once(value)) for _ in range(2)]
    assert answers[0].content == answers[1].content


# Documentation

# For callers' keys, and for GitHub's signature: not for admin tokens.
OTHERS_LET_IN = ("/v1/authorize", "/v1/leaks/github")


async def test_openapi_hides_nothing(api: Api):
    """The document is complete: shapes of bodies and answers, refusals, who may call."""
    document = (await api("GET", "/openapi.json", token=None)).json()
    assert document["openapi"].startswith("3.")
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    for name in set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document))):
        assert name in schemas
    names = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names.add(operation["operationId"])
            assert operation["responses"], path
            if path.startswith("/v1/") and not path.startswith(OTHERS_LET_IN):
                assert operation["security"] == [{"admin_token": []}]
            # These say all by their path.
            bare = operation["operationId"].startswith(("replay_", "send_test_"))
            assert ("requestBody" in operation) == (method in ("post", "patch") and not bare)
            if "requestBody" in operation:
                assert operation["requestBody"]["content"]["application/json"]["schema"]
    assert len(names) == sum(len(operations) for operations in document["paths"].values())
    fields = schemas["Answer"]["properties"]
    key = await api.key()
    assert list(fields) == list((await api("POST", "/v1/validate", signed(key))).json())
    assert set(schemas["Validation"]["properties"]) == {
        "key", "signature", "timestamp", "nonce", "token", "request", "permissions", "ip",
        "cost", "tags",
    }  # fmt: skip


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.targets: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset") and value:
                if value.startswith("#"):
                    self.targets.add(value[1:])
                elif value != "/openapi.json":
                    self.outside.append(value)
            if name == "id" and value:
                self.ids.add(value)
        if tag in ("script", "link", "img", "iframe", "object"):
            self.outside.append(tag)


async def test_docs_need_nobody(api: Api):
    """The page shows every route, loads nothing, and its links lead somewhere."""
    answer = await api("GET", "/docs", token=None)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    page = _Links()
    page.feed(answer.text)
    assert page.outside == []
    assert page.targets <= page.ids
    document = (await api("GET", "/openapi.json")).json()
    for path, operations in document["paths"].items():
        assert path in answer.text
        for operation in operations.values():
            assert operation["operationId"] in page.ids


async def test_docs_examples_are_accepted(api: Api):
    """What the page shows as a body is one that the server takes."""
    text = (await api("GET", "/docs")).text.replace("&#x27;", "'").replace("&quot;", '"')
    await api.key(key_id="k")
    examples = re.findall(r"<pre>curl -s (?:-X (\w+) )?.*?(?:-d '(.*?)' )?\"\$AKM_URL(.*?)\"", text)
    assert len(examples) > 15
    for method, body, path in examples:
        if path.startswith(OTHERS_LET_IN):
            continue
        answer = await api(
            method or "GET", path.replace("{key_id}", "k"), json.loads(body) if body else None
        )
        assert answer.status_code < 300 or answer.status_code in (404, 409), (method, path)


def test_the_table_knows_a_segment_from_two():
    """`{name}` stands for one segment, so that no path slips under another's scope."""
    routes = front.Routes()
    routes.add("GET", "/v1/keys/{key_id}", "keys:read")
    routes.add("POST", "/v1/keys/revoke", "keys:write")
    assert routes.find("GET", "/v1/keys/a.b") == {"GET": "keys:read"}
    assert routes.find("POST", "/v1/keys/revoke") == {"POST": "keys:write"}
    assert routes.find("GET", "/v1/keys/revoke")["GET"] == "keys:read"
    for path in ("/v1/keys/", "/v1/keys/a/b", "/v1/keys/a/", "x/v1/keys/a", "/v1/keysx"):
        assert routes.find("GET", path) == {}


def test_a_revoked_key_on_the_wire_is_no_404():
    """The subclass has a row of its own, above its base."""
    problem = errors.problem_of(KeyRevokedError("the key is revoked"))
    assert (problem.status, problem.reason) == (409, "revoked")


@pytest.mark.parametrize(
    ("method", "path", "body", "told"),
    [
        (
            "POST", "/v1/keys", {"rate_limits": [{"limit": "9", "window_seconds": 1}]},
            "rate_limits[0].limit: a whole number from 1 to 1000000000 is allowed",
        ),
        (
            "POST", "/v1/keys", {"rate_limits": [{"limit": 9, "window_seconds": 1.5}]},
            "rate_limits[0].window_seconds: a whole number from 1 to 31536000 is allowed",
        ),
        (
            "POST", "/v1/keys", {"quota": {"limit": True, "refill": "daily"}},
            "quota.limit: a whole number from 1 to 1000000000000000 is allowed",
        ),
        (
            "POST", "/v1/keys", {"quota": {"limit": 1, "refill": "daily", "hour": "noon"}},
            "quota.hour: a whole number from 0 to 23 is allowed",
        ),
        (
            "POST", "/v1/keys/k/rotate", {"overlap_seconds": "1h"},
            "overlap_seconds: a whole number from 0 to 7776000 is allowed",
        ),
        ("GET", "/v1/keys?limit=many", None, "limit: a whole number from 1 to 1000 is allowed"),
        ("POST", "/v1/keys", {"kind": "both"}, "kind: 'signed' or 'bearer' is allowed"),
        ("POST", "/v1/keys", {"metadata": []}, "metadata: a JSON object is allowed"),
        ("POST", "/v1/keys", {"permissions": "a"}, "permissions: a list is allowed"),
        ("POST", "/v1/keys", {"owner": 3}, "owner: text is allowed"),
        ("POST", "/v1/keys", {"quota": 3}, "quota: a JSON object is allowed"),
        ("POST", "/v1/keys", [], "body: a JSON object is allowed"),
        ("POST", "/v1/keys/revoke", {"dry_run": "no"}, "dry_run: true or false is allowed"),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) and ":" in value else "",
)  # fmt: skip
async def test_a_wrong_type_is_told_what_is_allowed(
    api: Api, method: str, path: str, body: Any, told: str
):
    """Not that a type is wrong, but what may stand there, with its range."""
    answer = await api(method, path, body)
    assert (answer.status_code, answer.json()["detail"]) == (422, told)
