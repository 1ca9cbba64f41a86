"""What only ASGI has: WebSockets, the lifespan, streams; and limits of an app's own."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api_key_manager import ConfigurationError, KeyManager, RateLimit, open_manager
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.memory import MemoryNonceStore
from api_key_manager.integrations import ApiKeyMiddleware, RateLimitMiddleware
from tests.integration.faces import App, Service, serving_asgi


@pytest.fixture
def manager() -> KeyManager:
    return KeyManager(nonces=MemoryNonceStore(0))


def create(manager: KeyManager, **fields: Any) -> dict[str, Any]:
    return asyncio.run(manager.create_key(**fields))


async def echo(websocket: Any) -> None:
    await websocket.accept()
    verdict = websocket.state.api_key
    await websocket.send_text("nobody" if verdict is None else verdict.key_id)
    await websocket.close()


class TestWebSocket:
    app = Starlette(routes=[WebSocketRoute("/ws", echo)])

    def hear(self, port: int, headers: dict[str, str], path: str = "/ws") -> str:
        url = f"ws://127.0.0.1:{port}{path}"
        with connect(url, additional_headers=headers, proxy=None) as socket:
            return str(socket.recv(timeout=10))

    def test_accepted(self, manager: KeyManager):
        """The handshake shows a token, or a signature over it; the verdict reaches the app."""
        app, key = create(manager, kind="bearer"), create(manager)
        with serving_asgi(ApiKeyMiddleware(self.app, manager=manager)) as port:
            assert self.hear(port, {"X-Api-Key": app["token"]}) == app["key_id"]
            signed = Service(port, App()).signed(key, "GET", "/ws?a=b")
            assert self.hear(port, signed, "/ws?a=b") == key["key_id"]

    def test_refused(self, manager: KeyManager):
        """Without a key, with a wrong or replayed one, the handshake is a 401."""
        key = create(manager)
        with serving_asgi(ApiKeyMiddleware(self.app, manager=manager)) as port:
            service = Service(port, App())
            used, other = service.signed(key, "GET", "/ws"), service.signed(key, "GET", "/wz")
            self.hear(port, used)
            for headers in ({}, {"X-Api-Key": "akm_x"}, used, other):
                with pytest.raises(InvalidStatus) as refused:
                    self.hear(port, headers)
                response = refused.value.response
                assert response.status_code == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert b'"reason":"unauthorized"' in (response.body or b"")

    async def test_closed(self, manager: KeyManager):
        """A server that cannot send an answer closes with 1008, before anything is accepted."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "websocket", "path": "/ws", "raw_path": b"/ws", "query_string": b"",
            "headers": [], "scheme": "ws", "client": None,
        }  # fmt: skip
        await ApiKeyMiddleware(self.app, manager=manager)(scope, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]

    def test_rate_limit(self):
        """Handshakes count too."""
        limited = RateLimitMiddleware(
            _stating(self.app), limits=[RateLimit("one", 1, 60)], key=lambda scope: "all"
        )
        with serving_asgi(limited) as port:
            assert self.hear(port, {}) == "nobody"
            with pytest.raises(InvalidStatus) as refused:
                self.hear(port, {})
            assert refused.value.response.status_code == 429


def _stating(app: Any) -> Any:
    async def stating(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"api_key": None}}, receive, send)

    return stating


async def test_unknown_scope(manager: KeyManager):
    """A kind of connection that cannot be checked does not pass."""
    app = App()
    with pytest.raises(RuntimeError, match="cannot be checked"):
        await ApiKeyMiddleware(app.asgi, manager=manager)({"type": "new"}, None, None)
    assert app.calls == []


class TestLifespan:
    def served(self, tmp_path: Any, inner: Any, key: dict[str, Any]) -> int:
        url = f"sqlite:///{tmp_path}/data/keys.db"
        app = ApiKeyMiddleware(inner, manager=open_manager(url))
        with serving_asgi(app) as port:
            answer = httpx.get(
                f"http://127.0.0.1:{port}/", headers={"X-Api-Key": key["token"]}, timeout=20
            )
            return answer.status_code

    @pytest.fixture
    def key(self, tmp_path: Any) -> dict[str, Any]:
        async def make() -> dict[str, Any]:
            async with open_manager(f"sqlite:///{tmp_path}/data/keys.db") as manager:
                return await manager.create_key(kind="bearer")

        return asyncio.run(make())

    def events(self, tmp_path: Any) -> list[str]:
        async def told() -> list[str]:
            async with open_manager(f"sqlite:///{tmp_path}/data/keys.db") as manager:
                return [event["action"] for event in manager.get_audit_log()]

        return asyncio.run(told())

    def test_around_the_apps_own(self, tmp_path: Any, key: dict[str, Any]):
        """The manager is open before the app starts; what the app opens and the state that it
        gives are untouched."""
        happened: list[str] = []

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[dict[str, str]]:
            happened.append("start")
            yield {"mine": "here"}
            happened.append("stop")

        async def home(request: Any) -> Any:
            happened.append(f"{request.state.mine} {request.state.api_key.key_id}")
            return StreamingResponse(iter(["ok"]))

        inner = Starlette(routes=[Route("/", home)], lifespan=lifespan)
        assert self.served(tmp_path, inner, key) == 200
        assert happened == ["start", f"here {key['key_id']}", "stop"]
        assert self.events(tmp_path) == ["key_created", "key_validated"]

    def test_an_app_without(self, tmp_path: Any, key: dict[str, Any]):
        """An app that knows no lifespan gets a manager too."""
        assert self.served(tmp_path, App().asgi, key) == 200
        assert self.events(tmp_path) == ["key_created", "key_validated"]

    def test_cannot_be_opened(self, tmp_path: Any):
        """A manager that cannot be opened stops the start, and says why."""
        (tmp_path / "file").write_text("no folder")
        app = ApiKeyMiddleware(App().asgi, manager=open_manager(f"sqlite:///{tmp_path}/file/x.db"))
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(app({"type": "lifespan"}, receive, send))
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert sent[0]["message"]

    @pytest.mark.parametrize("knows", [True, False])
    async def test_closed_before_it_is_said(self, knows: bool):
        """A server that ends as soon as it hears that all is shut loses nothing of the audit."""
        happened: list[str] = []

        @asynccontextmanager
        async def opening() -> AsyncIterator[KeyManager]:
            happened.append("open")
            yield KeyManager()
            happened.append("close")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert knows, "an app without a lifespan raises"
            for step in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{step}"
                await send({"type": f"lifespan.{step}.complete"})

        waiting = ["lifespan.startup", "lifespan.shutdown"]

        async def receive() -> Any:
            return {"type": waiting.pop(0)}

        async def send(message: Any) -> None:
            happened.append(message["type"])

        await ApiKeyMiddleware(app, manager=opening())({"type": "lifespan"}, receive, send)
        assert happened == [
            "open", "lifespan.startup.complete", "close", "lifespan.shutdown.complete",
        ]  # fmt: skip

    async def test_never_opened(self):
        """On a server that runs no lifespan everything is a 503, and the app is not called."""
        app = App()
        guarded = ApiKeyMiddleware(app.asgi, manager=open_manager("memory://"))
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            assert (await client.get("/", headers={"X-Api-Key": "a"})).status_code == 503
        assert app.calls == []

    async def test_asked_at_each_request(self):
        """A call without arguments says which manager it is, as an app's own lifespan opened it."""
        opened: list[KeyManager] = []
        app = App()
        guarded = ApiKeyMiddleware(app.asgi, manager=lambda: opened[0])
        async with open_manager("memory://") as manager:
            opened.append(manager)
            key = await manager.create_key(kind="bearer")
            transport = httpx.ASGITransport(guarded)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                answer = await client.get("/", headers={"X-Api-Key": key["token"]})
        assert answer.json()["key"] == key["key_id"]


def test_streams_pass(manager: KeyManager):
    """An answer is sent piece by piece as the app makes it, and a body with a token is not read
    before the app reads it."""
    key = create(manager, kind="bearer", rate_limits=[RateLimit("r", 100, 60)])
    heard: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not heard or heard[-1] != b"end":
            heard.append((await receive())["body"])
            await send({"type": "http.response.body", "body": heard[-1], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with serving_asgi(ApiKeyMiddleware(app, manager=manager)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("POST", "/")
        connection.putheader("X-Api-Key", key["token"])
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        connection.send(b"5\r\nfirst\r\n")
        answer = connection.getresponse()
        assert answer.getheader("RateLimit", "").startswith('"r";r=99')
        assert answer.read(5) == b"first"  # while the body is still on its way
        connection.send(b"3\r\nend\r\n0\r\n\r\n")
        assert answer.read(3) == b"end"
        connection.close()


async def test_slow_body(manager: KeyManager, monkeypatch: pytest.MonkeyPatch):
    """Who signs and then does not send is not waited for."""
    monkeypatch.setattr("api_key_manager.integrations.scopes._PATIENCE_SECONDS", 0.05)
    app, key = App(), await manager.create_key()
    service = Service(80, app)
    headers = [(n.lower().encode(), v.encode()) for n, v in service.signed(key).items()]
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
        "headers": [*headers, (b"host", b"127.0.0.1")], "scheme": "http", "client": None,
    }  # fmt: skip
    await ApiKeyMiddleware(app.asgi, manager=manager)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert app.calls == []


async def test_client_gone(manager: KeyManager):
    """Who hangs up in the middle of a signed body is answered by nobody."""
    app, key = App(), await manager.create_key()
    headers = [(n.lower().encode(), v.encode()) for n, v in Service(80, app).signed(key).items()]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
        "headers": [*headers, (b"host", b"127.0.0.1")], "scheme": "http", "client": None,
    }  # fmt: skip
    await ApiKeyMiddleware(app.asgi, manager=manager)(scope, receive, send)
    assert sent == app.calls == []


class TestRateLimit:
    def by_header(self, scope: Any) -> str | None:
        found = dict(scope["headers"]).get(b"x-caller")
        return None if found is None else found.decode()

    async def calling(self, app: Any, caller: str | None, **more: str) -> httpx.Response:
        headers = dict(more) if caller is None else {"X-Caller": caller, **more}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/", headers=headers)

    async def test_limits(self):
        """Each caller gets its own share; the limits stand in every answer, refusals included."""
        app = RateLimitMiddleware(
            _plain, limits=[RateLimit("burst", 2, 60), {"limit": 50, "window_seconds": 3600}],
            key=self.by_header,
        )  # fmt: skip
        for caller in ("a", "b"):
            for left in (1, 0):
                answer = await self.calling(app, caller)
                assert answer.status_code == 200
                assert answer.headers["ratelimit"].startswith(f'"burst";r={left};')
            answer = await self.calling(app, caller)
            assert (answer.status_code, answer.json()["reason"]) == (429, "rate_limited")
            assert 29 <= int(answer.headers["retry-after"]) <= 30
            # What one limit refused took nothing from the other.
            assert '"50-per-3600s";r=48;' in answer.headers["ratelimit"]

    async def test_nobody(self):
        """Without a key there is no limit, and no header."""
        app = RateLimitMiddleware(_plain, limits=[RateLimit("r", 1, 60)], key=self.by_header)
        for _ in range(3):
            answer = await self.calling(app, None)
            assert answer.status_code == 200
            assert "ratelimit" not in answer.headers

    async def test_cost(self):
        """A request costs what it is said to cost; 0 is free, more than the limit never passes."""

        def cost(scope: Any) -> int:
            return int(dict(scope["headers"])[b"x-cost"])

        limits = [RateLimit("r", 10, 60)]
        app = RateLimitMiddleware(_plain, limits=limits, key=self.by_header, cost=cost)
        for spent, left in (("7", 3), ("3", 0)):
            answer = await self.calling(app, "a", **{"X-Cost": spent})
            assert answer.headers["ratelimit"].startswith(f'"r";r={left};')
        assert (await self.calling(app, "a", **{"X-Cost": "0"})).status_code == 200
        never = await self.calling(app, "b", **{"X-Cost": "11"})
        assert (never.status_code, "retry-after" in never.headers) == (429, False)
        with pytest.raises(ValueError, match="cost"):
            await self.calling(app, "a", **{"X-Cost": "-1"})

    async def test_limiter_down(self):
        """A limiter that cannot answer is a 503, and one that needs I/O is awaited."""

        class Down:
            def take_now(self, *_: Any) -> None: ...

            async def take(self, asked: Any) -> Any:
                raise StorageError("gone")

        limits = [RateLimit("r", 10, 60)]
        app = RateLimitMiddleware(_plain, limits=limits, key=self.by_header, limiter=Down())
        assert (await self.calling(app, "a")).status_code == 503

    @pytest.mark.parametrize(
        ("named", "more"),
        [
            ("limits", {"limits": []}), ("limits", {"limits": RateLimit("r", 1, 1)}),
            ("limits", {"limits": [RateLimit("r", 0, 1)]}), ("cost", {"cost": 0}),
            ("cost", {"cost": True}), ("key", {"key": "client"}),
        ],
    )  # fmt: skip
    def test_configuration(self, named: str, more: dict[str, Any]):
        """What cannot be meant is refused by name."""
        good: dict[str, Any] = {"limits": [RateLimit("r", 1, 1)], "key": self.by_header}
        with pytest.raises(ConfigurationError, match=rf"^{named}\b"):
            RateLimitMiddleware(_plain, **{**good, **more})

    async def test_with_the_other_middleware(self, manager: KeyManager):
        """Inside the key middleware, the key can be what is counted by; both sets of headers
        are in the answer."""
        key = await manager.create_key(kind="bearer", rate_limits=[RateLimit("key", 9, 60)])
        limited = RateLimitMiddleware(
            _plain, limits=[RateLimit("app", 1, 60)], key=lambda scope: scope["api_key"].key_id
        )
        app = ApiKeyMiddleware(limited, manager=manager)
        first, second = [await self.calling(app, None, **{"X-Api-Key": key["token"]}) for _ in "12"]
        assert (first.status_code, second.status_code) == (200, 429)
        assert len(first.headers.get_list("ratelimit")) == 2


async def _plain(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
