"""The FastAPI dependency: with and without the middleware around the app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, Depends, FastAPI, Form, Request, Response

from api_key_manager import ConfigurationError, KeyManager, RateLimit, Reason, Verdict
from api_key_manager.client import HttpxSignature
from api_key_manager.core.memory import MemoryNonceStore
from api_key_manager.integrations import ApiKeyMiddleware
from api_key_manager.integrations.fastapi import KeyRefusedError, problem_response, require_key

Key = Annotated[Verdict, Depends(require_key())]
Reader = Annotated[Verdict, Depends(require_key("documents.read and not trial"))]


def build(**options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/me")
    async def me(key: Key) -> dict[str, Any]:
        return {"key": key.key_id, "owner": key.key.owner if key.key else None}

    @app.get("/documents")
    async def documents(key: Key, reader: Reader) -> dict[str, Any]:
        return {"same": key is reader}

    @app.post("/json")
    async def take_json(key: Key, item: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        return {"item": item, "verified": key.body_verified}

    @app.post("/raw")
    async def take_raw(key: Key, request: Request) -> Response:
        return Response(await request.body())

    @app.post("/form")
    async def take_form(key: Key, name: Annotated[str, Form()]) -> dict[str, str]:
        return {"name": name}

    return app


@pytest.fixture
def manager() -> KeyManager:
    return KeyManager(nonces=MemoryNonceStore(0))


@pytest.fixture(params=["alone", "inside"])
async def client(
    request: pytest.FixtureRequest, manager: KeyManager
) -> AsyncIterator[httpx.AsyncClient]:
    """Of an app without, and with, the middleware."""
    app = build()
    app.state.manager = manager
    app.add_exception_handler(KeyRefusedError, problem_response)
    if request.param == "inside":
        app.add_middleware(ApiKeyMiddleware, manager=lambda: manager)
    async with calling(app) as client:
        yield client


@asynccontextmanager
async def calling(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app.test") as client:
        yield client


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {key['token']}"}


async def test_bearer(client: httpx.AsyncClient, manager: KeyManager):
    """The endpoint gets the verdict, and the answer the key's limits, once."""
    limits = [RateLimit("r", 10, 60)]
    key = await manager.create_key(kind="bearer", owner="acme", rate_limits=limits)
    for left, headers in ((9, bearer(key)), (8, {"X-Api-Key": key["token"]})):
        answer = await client.get("/me", headers=headers)
        assert answer.json() == {"key": key["key_id"], "owner": "acme"}
        (told,) = answer.headers.get_list("ratelimit")
        assert told.startswith(f'"r";r={left};')


async def test_refused(client: httpx.AsyncClient, manager: KeyManager):
    """No key and a wrong one: the problem document of every 401."""
    bodies = set()
    for headers in ({}, {"X-Api-Key": "nonsense"}, {"Authorization": "Bearer x"}):
        answer = await client.get("/me", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        bodies.add(answer.content)
    assert len(bodies) == 1


async def test_permissions(client: httpx.AsyncClient, manager: KeyManager):
    """Each endpoint asks for its own; two dependencies judge a request once, also a signed one."""
    reader = await manager.create_key(permissions=["documents.*"])
    trial = await manager.create_key(permissions=["documents.*", "trial"])
    answer = await client.get("/documents", auth=HttpxSignature(reader["key_id"], reader["secret"]))
    assert answer.json() == {"same": True}
    answer = await client.get("/documents", auth=HttpxSignature(trial["key_id"], trial["secret"]))
    assert (answer.status_code, answer.json()["reason"]) == (403, "forbidden")
    actions = [event["action"] for event in manager.get_audit_log()]
    assert actions.count("key_validated") == 2


async def test_signed_body(client: httpx.AsyncClient, manager: KeyManager):
    """The body is compared with what was signed, whoever reads it first, and reaches the
    endpoint."""
    key = await manager.create_key()
    auth = HttpxSignature(key["key_id"], key["secret"])
    answer = await client.post("/json", json={"a": 1}, auth=auth)
    assert answer.json() == {"item": {"a": 1}, "verified": True}
    assert (await client.post("/raw", content=b"bytes", auth=auth)).content == b"bytes"
    for path, body in (("/json", b'{"a": 1}'), ("/raw", b"bytes")):
        request = client.build_request("POST", path, content=body)
        signed = next(auth.auth_flow(request))
        headers = {**signed.headers, "content-type": "application/json"}
        changed = body.replace(b"a", b"b").replace(b"y", b"z")
        answer = await client.post(path, content=changed, headers=headers)
        assert answer.status_code == 401


async def test_replayed(client: httpx.AsyncClient, manager: KeyManager):
    """A signed request is accepted once."""
    key = await manager.create_key()
    auth = HttpxSignature(key["key_id"], key["secret"])
    headers = dict(next(auth.auth_flow(client.build_request("GET", "/me"))).headers)
    statuses = [(await client.get("/me", headers=headers)).status_code for _ in range(2)]
    assert statuses == [200, 401]


async def test_too_large(manager: KeyManager):
    """A signed body in chunks is read to the bound, and no further."""
    app = FastAPI()
    dependency = require_key(manager=manager, max_body=100)

    @app.post("/", dependencies=[Depends(dependency)])
    async def home() -> None: ...

    key = await manager.create_key()
    auth = HttpxSignature(key["key_id"], key["secret"])

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 40

    async with calling(app) as client:
        assert (await client.post("/", content=b"x" * 100, auth=auth)).status_code == 200
        assert (await client.post("/", content=b"x" * 101, auth=auth)).status_code == 413
        signed = next(auth.auth_flow(client.build_request("POST", "/", content=b"x" * 120)))
        kept = {n: v for n, v in signed.headers.items() if n != "content-length"}
        assert (await client.post("/", content=chunks(), headers=kept)).status_code == 413


async def test_form(manager: KeyManager):
    """A form with a token is taken. A signed one is taken inside the middleware; alone, where its
    bytes are gone by then, nobody is let through unchecked."""
    key, app = await manager.create_key(), await manager.create_key(kind="bearer")
    auth, form = HttpxSignature(key["key_id"], key["secret"]), {"name": "a"}
    alone = build()
    alone.state.manager = manager
    inside = ApiKeyMiddleware(build(), manager=manager)
    for outer in (alone, inside):
        async with calling(outer) as client:
            answer = await client.post("/form", data=form, headers=bearer(app))
            assert answer.json() == form
    async with calling(inside) as client:
        assert (await client.post("/form", data=form, auth=auth)).json() == form
    async with calling(alone) as client:
        with pytest.raises(ConfigurationError, match="middleware"):
            await client.post("/form", data=form, auth=auth)


async def test_without_the_handler(manager: KeyManager):
    """Without a handler of one's own the document is FastAPI's `detail`, with the same status and
    headers."""
    app = build()
    app.state.manager = manager
    async with calling(app) as client:
        answer = await client.get("/me")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["detail"]["reason"] == "unauthorized"


async def test_anonymous_and_exempt(manager: KeyManager):
    """Who was let through without a key has none, for a dependency that wants one."""
    for options in ({"require": False}, {"exempt": ["/me"]}):
        app = ApiKeyMiddleware(build(), manager=manager, **options)
        async with calling(app) as client:
            assert (await client.get("/me")).status_code == 401


async def test_another_manager(manager: KeyManager):
    """A verdict of one manager is none of another's."""
    other = KeyManager()
    app = FastAPI()
    app.state.manager = manager
    ours, theirs = require_key(), require_key(manager=other)

    @app.get("/", dependencies=[Depends(ours), Depends(theirs)])
    async def home() -> None: ...

    key = await manager.create_key(kind="bearer")
    async with calling(app) as client:
        assert (await client.get("/", headers=bearer(key))).status_code == 401
    outer = ApiKeyMiddleware(app, manager=manager)
    async with calling(outer) as client:
        assert (await client.get("/", headers=bearer(key))).status_code == 401


async def test_a_verdict_of_nobody(manager: KeyManager):
    """What somebody else left in the verdict's place is not believed."""
    app = build()
    app.state.manager = manager

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        scope = {**scope, "api_key": Verdict(Reason.VALID, "admin"), "state": {"api_key": "admin"}}
        await app(scope, receive, send)

    async with calling(outer) as client:
        assert (await client.get("/me")).status_code == 401


async def test_no_manager():
    """An app without a manager says so, and lets nobody through."""
    async with calling(build()) as client:
        with pytest.raises(ConfigurationError, match=r"app\.state\.manager"):
            await client.get("/me")


def test_openapi():
    """The document shows how a key is shown, at the endpoints that want one."""
    document = build().openapi()
    schemes = document["components"]["securitySchemes"]
    assert {name: scheme["type"] for name, scheme in schemes.items()} == {
        "ApiKeyBearer": "http", "ApiKeyHeader": "apiKey", "ApiKeySignature": "apiKey",
    }  # fmt: skip
    assert {name for each in document["paths"]["/me"]["get"]["security"] for name in each} == set(
        schemes
    )


def test_configuration():
    """What cannot be read is refused when the app is made."""
    with pytest.raises(ConfigurationError, match=r"^permissions: "):
        require_key("documents.read and")


def test_imports():
    """The package, the middleware included, does not import FastAPI until it is asked for."""
    import subprocess
    import sys

    code = (
        "import sys, api_key_manager.integrations, api_key_manager.integrations.wsgi;"
        "print({'fastapi', 'starlette', 'flask', 'django', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
