"""What `akm serve` writes on its standard error stream, as LOG_FORMAT and LOG_LEVEL say."""

from __future__ import annotations

import io
import json
import logging
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_key_manager.core import StorageError
from api_key_manager.server.app import build_app
from api_key_manager.telemetry.logs import formatter
from tests.integration.conftest import Api, signed
from tests.integration.test_server_serve import TOKEN, started

REQUEST_ID = "from-the-caller-1"


def logged(tmp_path: Path, **settings: str) -> str:
    """What is logged while a server gets good, bad and garbled requests, and loses its tables."""
    database = tmp_path / "data" / "akm.db"
    with started(
        tmp_path, AKM_ADMIN_TOKEN=TOKEN, DATABASE_URL=f"sqlite:///{database}", **settings
    ) as server:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=server.url, headers=headers) as client:
            made = client.post("/v1/keys", json={"kind": "bearer"}).json()
            token = made["token"]
            assert client.post("/v1/validate", json={"token": token}).json()["valid"]
            client.post("/v1/validate", content=b"{" + token.encode())
            client.get(f"/v1/keys/{token}", headers={"X-Request-Id": token})
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("ALTER TABLE keys RENAME TO gone")
            for path in ("/v1/keys", f"/v1/keys/{token}", "/v1/keys/nobody"):
                answer = client.get(path, headers={"X-Request-Id": REQUEST_ID})
                assert answer.status_code >= 500 or token in path, answer.text
        assert server.stop() == 0
    text = (tmp_path / "stderr").read_text()
    for secret in (token, token[-36:], TOKEN):
        assert secret not in text
    return text


@pytest.mark.parametrize("debug", ["true", "false"])
def test_json(tmp_path: Path, debug: str):
    """Every line is one object, whoever logged it, at the lowest level too."""
    text = logged(tmp_path, LOG_FORMAT="json", LOG_LEVEL="DEBUG", DEBUG=debug)
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert line.keys() <= {"time", "level", "logger", "message", "request_id", "exception"}
    of_requests = [line for line in lines if "request_id" in line]
    assert {line["request_id"] for line in of_requests} == {REQUEST_ID}
    assert {"ERROR"} <= {line["level"] for line in of_requests}
    assert any("exception" in line for line in lines) is (debug == "true")


def test_text(tmp_path: Path):
    """One line each, with the request's id; nothing of what went well."""
    text = logged(tmp_path)
    lines = text.splitlines()
    assert lines
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (WARNING|ERROR) [\w.]+: ", line), (
            line
        )
    assert any(REQUEST_ID in line for line in lines)


def test_level(tmp_path: Path):
    """What is less severe than LOG_LEVEL is not logged."""
    assert logged(tmp_path, LOG_LEVEL="CRITICAL") == ""


async def test_whoever_logs(api: Api, monkeypatch: pytest.MonkeyPatch):
    """What the core says while it serves a request carries that request's id. What is out of order
    is said by the first that meets it."""
    key = await api.key()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter("json", debug=False))

    async def broken(*_: Any) -> Any:
        raise StorageError("gone")

    monkeypatch.setattr(api.deployment.manager._verifier._nonces, "claim", broken)
    logger = logging.getLogger("api_key_manager")
    logger.addHandler(handler)
    try:
        for number in range(2):
            headers = {"X-Request-Id": f"r-{number}"}
            await api("POST", "/v1/validate", signed(key, None, "n" * 20), headers=headers)
    finally:
        logger.removeHandler(handler)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    said = [(line["message"], line["request_id"]) for line in lines]
    assert said == [("nonces cannot be claimed: gone", "r-0")]


async def test_fast_lane(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """So does what goes wrong in the protocol, where there is no task of the request's own."""

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    app: Any = build_app(api.deployment)
    monkeypatch.setattr(api.deployment.manager, "verify_now", broken)
    headers = [(b"authorization", f"Bearer {api.token}".encode()), (b"x-request-id", b"r-1")]
    visit = app.front.begin("POST", "/v1/validate", b"", headers, ("127.0.0.1", 1), b"{}")
    assert app.front.advance(visit).status == 500
    (record,) = caplog.records
    assert json.loads(formatter("json", debug=False).format(record))["request_id"] == "r-1"
