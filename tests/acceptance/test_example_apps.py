"""The example apps, started as their first line says, let callers with a key through."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_key_manager.client import HttpxSignature
from tests.acceptance.programs import clean_environment, output
from tests.services import free_port

ROOT = Path(__file__).resolve().parents[2]
APPS = ["fastapi_app.py", "starlette_app.py", "flask_app.py", "django_app.py"]

# As `akm keys create` would, in the database that the app opens.
MAKE_KEYS = """
import asyncio, json
from api_key_manager import open_manager

async def main():
    async with open_manager() as manager:
        print(json.dumps({
            "writer": await manager.create_key(permissions=["documents.*"], metadata={"a": 1}),
            "trial": await manager.create_key(permissions=["documents.*", "trial"]),
            "reader": await manager.create_key(kind="bearer", permissions=["documents.read"]),
        }))

asyncio.run(main())
"""


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[str]:
    """An example, listening; gives its URL."""
    port = free_port()
    log = folder / "log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(ROOT / "examples" / name), str(port)],
            cwd=folder, env=clean_environment(folder), stdin=subprocess.DEVNULL, stdout=stream,
            stderr=stream,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 30
            while True:
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, log.read_text(encoding="utf-8")
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/healthz", timeout=5).json() == {"ok": True}:
                        break
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", APPS)
def test_app(name: str, tmp_path: Path):
    """Without a key nothing but the health check; with one what it may do, its body verified."""
    keys: Any = json.loads(output([sys.executable, "-c", MAKE_KEYS], tmp_path))
    writer, trial = (
        HttpxSignature(keys[who]["key_id"], keys[who]["secret"]) for who in ("writer", "trial")
    )
    token = {"Authorization": f"Bearer {keys['reader']['token']}"}
    with running(name, tmp_path) as url, httpx.Client(base_url=url, timeout=20) as http:
        refused = http.get("/documents")
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert http.get("/documents", headers=token).json()["key_id"] == keys["reader"]["key_id"]
        told = http.get("/documents", auth=writer).json()
        assert told == {"key_id": keys["writer"]["key_id"], "metadata": {"a": 1}}
        answer = http.post("/documents", json={"b": "c"}, auth=writer)
        assert answer.status_code == 200, answer.text
        if name != "starlette_app.py":
            assert answer.json()["document"] == {"b": "c"}
            assert answer.json()["body_verified"] is True
        assert http.post("/documents", json={"b": "c"}, auth=trial).status_code == 403
        assert http.post("/documents", json={"b": "c"}, headers=token).status_code == 403


def test_rate_limits(tmp_path: Path):
    """The app of the rate limits lets five requests a minute through, and says so."""
    keys: Any = json.loads(output([sys.executable, "-c", MAKE_KEYS], tmp_path))
    token = {"X-Api-Key": keys["reader"]["token"]}
    with running("starlette_app.py", tmp_path) as url:
        answers = [httpx.get(f"{url}/documents", headers=token, timeout=20) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[0].headers["ratelimit"].startswith('"app";r=4;')
    assert answers[5].json()["reason"] == "rate_limited"
