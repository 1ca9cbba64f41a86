"""What runs in this process: a server on keys in memory, and the command line."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_key_manager.config import Settings
from api_key_manager.server.app import build_app
from api_key_manager.wiring import Deployment, open_deployment
from api_key_manager.wiring.worker import Worker
from tests.integration.commands import Akm, run
from tests.integration.places import Place
from tests.integration.postgres_nodes import Shared
from tests.vault_server import RealVault, StandIn, Vault, real_vault, stand_in


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the developer's `.env` or writes into their folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


class Api:
    """A client of a server, with an admin token unless told otherwise."""

    def __init__(self, client: httpx.AsyncClient, deployment: Deployment, token: str) -> None:
        self.client = client
        self.deployment = deployment
        self.token = token

    async def __call__(
        self, method: str, path: str, body: Any = None, *, token: str | None = "", **more: Any
    ) -> httpx.Response:
        """`token`: another one, or `None` for no header at all."""
        headers = dict(more.pop("headers", {}))
        shown = self.token if token == "" else token
        if shown is not None:
            headers["Authorization"] = f"Bearer {shown}"
        if body is not None:
            more["json"] = body
        return await self.client.request(method, path, headers=headers, **more)

    async def key(self, **fields: Any) -> dict[str, Any]:
        """A new key, as its creation answered."""
        answer = await self("POST", "/v1/keys", fields)
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def scoped(self, *scopes: str, **fields: Any) -> dict[str, Any]:
        """A new admin token."""
        answer = await self("POST", "/v1/tokens", {"scopes": list(scopes), **fields})
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created


@asynccontextmanager
async def serving(
    peer: str = "127.0.0.1",
    *,
    worker: Worker | None = None,
    opentelemetry: bool = False,
    **overrides: Any,
) -> AsyncIterator[Api]:
    """A server on its own deployment; `peer` is the address that it sees."""
    settings = Settings.load(**{"DATABASE_URL": "memory://", **overrides})
    async with open_deployment(settings, worker=worker, opentelemetry=opentelemetry) as deployment:
        await deployment.mint_first_token(on_terminal=True)
        transport = httpx.ASGITransport(build_app(deployment), client=(peer, 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://akm.test") as client:
            yield Api(client, deployment, deployment.first_token or settings.AKM_ADMIN_TOKEN)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving() as api:
        yield api


@pytest.fixture(params=["memory", "sqlite"])
async def stored(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Api]:
    """The same on each store."""
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/data/akm.db"}
    async with serving(DATABASE_URL=urls[request.param]) as api:
        yield api


def signed(key: dict[str, Any], timestamp: int | None = None, nonce: str = "") -> dict[str, Any]:
    """A validation of a signed key, made without the package's own signer."""
    at = int(time.time()) if timestamp is None else timestamp
    message = f"AKM1\n{key['key_id']}\n{at}\n{nonce}".encode()
    mac = hmac.new(key["secret"].encode(), message, hashlib.sha256).hexdigest()
    body = {"key": key["key_id"], "signature": mac, "timestamp": at}
    return {**body, "nonce": nonce} if nonce else body


@pytest.fixture
def akm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Akm:
    """Runs a command with a database of its own, which does not exist yet."""
    for name in ("AKM_URL", "AKM_TOKEN", "AKM_SECRET", "DEBUG", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/data/akm.db")
    return run


@pytest.fixture
def db(akm: Akm) -> Akm:
    """The same with a database."""
    assert akm("db", "upgrade").exit_code == 0
    return akm


@pytest.fixture(params=["sqlite", "postgres"])
def either_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place for a database of either kind."""
    if request.param == "sqlite":
        yield Place(tmp_path)
        return
    shared = Shared(tmp_path, request.getfixturevalue("postgres"))
    yield shared
    shared.drop()


@pytest.fixture(scope="session")
def real_bao() -> Iterator[RealVault | None]:
    address, token = os.environ.get("VAULT_ADDR"), os.environ.get("VAULT_TOKEN")
    if address and token:
        yield RealVault(address, token)  # prepared as docs/vault.md says
        return
    with real_vault() as vault:
        if vault is not None:
            vault.prepare()
        yield vault


@pytest.fixture(params=["stand-in", "real"])
def vault(request: pytest.FixtureRequest, real_bao: RealVault | None) -> Iterator[Vault]:
    if request.param == "real":
        if real_bao is None:
            pytest.skip("neither bao nor vault is on PATH, and VAULT_ADDR is not set")
        yield real_bao
        return
    with stand_in() as vault:
        vault.prepare()
        yield vault


@pytest.fixture
def fake() -> Iterator[StandIn]:
    with stand_in() as vault:
        vault.prepare()
        yield vault
