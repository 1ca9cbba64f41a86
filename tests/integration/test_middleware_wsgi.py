"""What only WSGI has: a thread with the manager, forks, and servers that tell half of a request."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api_key_manager import ConfigurationError, KeyManager, open_manager
from api_key_manager.core.memory import MemoryNonceStore
from api_key_manager.integrations.wsgi import ApiKeyMiddleware
from tests.integration.faces import App, Service

HOST = "app.test"


@pytest.fixture
def manager() -> KeyManager:
    return KeyManager(nonces=MemoryNonceStore(0), failures_per_minute=0)


def create(manager: KeyManager, **fields: Any) -> dict[str, Any]:
    return asyncio.run(manager.create_key(**fields))


def call(app: Any, headers: dict[str, str], body: bytes = b"", **environ: Any) -> tuple[int, bytes]:
    """One request as a server would make it of these."""
    seen: list[str] = []
    given = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    path = {"SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": "", "wsgi.url_scheme": "http"}
    request = {
        "REQUEST_METHOD": "GET", "HTTP_HOST": HOST, "REMOTE_ADDR": "192.0.2.1",
        "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)),
        **path, **given, **environ,
    }  # fmt: skip
    request = {name: value for name, value in request.items() if value is not None}
    content = b"".join(app(request, lambda status, headers: seen.append(status)))
    return int(seen[0].split()[0]), content


def signed(key: dict[str, Any], target: str = "/", body: bytes = b"") -> dict[str, str]:
    return Service(0, App()).signed(key, "GET", target, body, base=f"http://{HOST}")


@pytest.mark.parametrize(
    ("target", "environ", "status"),
    [
        ("/a%2Fb", {"PATH_INFO": "/a/b", "REQUEST_URI": "/a%2Fb"}, 200),
        ("/a%2Fb", {"PATH_INFO": "/a/b", "RAW_URI": "/a%2Fb"}, 200),
        ("/a/b", {"PATH_INFO": "/a/b", "REQUEST_URI": "/a%2Fb"}, 401),
        # An app below another one, and what both would make of the same line.
        ("/api/b?c", {"SCRIPT_NAME": "/api", "PATH_INFO": "/b", "QUERY_STRING": "c"}, 200),
        ("/api/b", {"SCRIPT_NAME": "/api", "PATH_INFO": "/b", "RAW_URI": "/api/b"}, 200),
        # Somebody between the server and the app has written it anew.
        ("/a", {"PATH_INFO": "/b", "REQUEST_URI": "/a"}, 401),
        ("/a?x", {"PATH_INFO": "/a", "QUERY_STRING": "y", "REQUEST_URI": "/a?x"}, 401),
        ("/a", {"PATH_INFO": "/a", "REQUEST_URI": f"http://{HOST}/a"}, 401),
        ("/a", {"PATH_INFO": "/a", "REQUEST_URI": "/a#b"}, 401),
        # What may have been an escape that is gone now.
        ("/%2525", {"PATH_INFO": "/%25"}, 401),
        ("/a%3Fb", {"PATH_INFO": "/a?b"}, 401),
        ("/caf%C3%A9", {"PATH_INFO": "/caf\xc3\xa9"}, 200),
        ("/", {"PATH_INFO": "/caf\u20ac"}, 401),
        ("/", {"PATH_INFO": ""}, 200),
    ],
)  # fmt: skip
def test_target(manager: KeyManager, target: str, environ: dict[str, str], status: int):
    """The line that was sent must agree with what the app goes by."""
    app = App()
    guarded = ApiKeyMiddleware(app.wsgi, manager=manager)
    answered, _ = call(guarded, signed(create(manager), target), **environ)
    guarded.close()
    assert (answered, len(app.calls)) == (status, 1 if status == 200 else 0)


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({"CONTENT_LENGTH": "4"}, 200),
        ({"CONTENT_LENGTH": "5"}, 400),
        ({"CONTENT_LENGTH": "3"}, 401),
        ({"CONTENT_LENGTH": None}, 401),
        ({"CONTENT_LENGTH": ""}, 401),
        ({"CONTENT_LENGTH": "-1"}, 413),
        ({"CONTENT_LENGTH": "4, 4"}, 413),
        ({"CONTENT_LENGTH": "\u0664"}, 413),
        ({"CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": "chunked"}, 411),
        (
            {
                "CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": "chunked",
                "wsgi.input_terminated": True,
            },
            200,
        ),
    ],
)  # fmt: skip
def test_length(manager: KeyManager, environ: dict[str, Any], status: int):
    """A body is exactly as long as is said, and what is not said is not read."""
    app = App()
    guarded = ApiKeyMiddleware(app.wsgi, manager=manager)
    answered, _ = call(guarded, signed(create(manager), body=b"body"), b"body", **environ)
    guarded.close()
    assert answered == status
    assert [told["body"] for told in app.calls] == (["body"] if status == 200 else [])


def test_threads(manager: KeyManager):
    """Requests of many threads are judged in one; of equal nonces one passes."""
    app = App()
    guarded = ApiKeyMiddleware(app.wsgi, manager=manager)
    headers = signed(create(manager))
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: call(guarded, headers)[0], range(64)))
    running = [thread for thread in threading.enumerate() if thread.name == "akm-manager"]
    guarded.close()
    assert sorted(statuses) == [200] + [401] * 63
    assert len(running) == 1
    assert not running[0].is_alive()


def test_close(manager: KeyManager):
    """Once closed, nothing passes, whether it had been started or not; twice is no harm."""
    key = create(manager, kind="bearer")
    for started in (False, True):
        app = App()
        guarded = ApiKeyMiddleware(app.wsgi, manager=manager)
        if started:
            assert call(guarded, {"X-Api-Key": key["token"]})[0] == 200
        guarded.close()
        guarded.close()
        assert call(guarded, {"X-Api-Key": key["token"]})[0] == 503
        assert len(app.calls) == started


def test_cannot_be_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A manager that cannot be opened lets nobody pass, and the log says why."""
    (tmp_path / "file").write_text("no folder")
    app = App()
    guarded = ApiKeyMiddleware(app.wsgi, manager=open_manager(f"sqlite:///{tmp_path}/file/x.db"))
    for _ in range(2):
        assert call(guarded, {"X-Api-Key": "x"})[0] == 503
    guarded.close()
    assert app.calls == []
    assert "the key manager ended" in caplog.text


def test_wrong_manager():
    """What is no manager is refused at once."""
    with pytest.raises(ConfigurationError, match=r"^manager: "):
        ApiKeyMiddleware(App().wsgi, manager="sqlite:///keys.db")


PROGRAM = """
import asyncio, os, sys
from api_key_manager import open_manager
from api_key_manager.integrations.wsgi import ApiKeyMiddleware

def app(environ, start_response):
    start_response("200 OK", [])
    return [environ["api_key"].key_id.encode()]

def call():
    told = []
    environ = {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": "",
        "wsgi.url_scheme": "http", "HTTP_X_API_KEY": sys.argv[2],
    }
    body = b"".join(guarded(environ, lambda status, headers: told.append(status)))
    print(told[0], flush=True)

guarded = ApiKeyMiddleware(app, manager=open_manager(sys.argv[1], AUDIT_FLUSH_SECONDS=10))
"""
FORKED_BEFORE = """
for _ in range(2):
    if (pid := os.fork()) == 0:
        call()
        sys.exit(0)
    os.waitpid(pid, 0)
"""
FORKED_AFTER = """
call()
if os.fork() == 0:
    call()
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    ("ending", "said", "logged"),
    [
        ("call()", ["200 OK"], 1),
        (FORKED_BEFORE, ["200 OK"] * 2, 2),
        (FORKED_AFTER, ["200 OK", "503 Service Unavailable"], 1),
    ],
)
def test_processes(tmp_path: Path, ending: str, said: list[str], logged: int):
    """The thread starts in the process that serves, and what it judged is in the audit log when
    the process has ended; a process forked off a running one does not share its database."""
    url = f"sqlite:///{tmp_path}/data/keys.db"

    async def prepare() -> dict[str, Any]:
        async with open_manager(url) as manager:
            return await manager.create_key(kind="bearer")

    async def told() -> list[str]:
        async with open_manager(url) as manager:
            return [event["action"] for event in manager.get_audit_log()]

    key = asyncio.run(prepare())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + ending, url, key["token"]],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == said, done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert asyncio.run(told()) == ["key_created", *["key_validated"] * logged]
