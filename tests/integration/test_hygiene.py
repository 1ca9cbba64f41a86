"""Everything is driven with marked secrets, then all that was said and kept is searched for them.

Nothing may hold one, in plain, hex, base64 or percent-encoded, but the one answer that shows a
secret by contract. What drives an endpoint or a command stands in `driven`: a new one that nobody
drives fails here.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.main import get_command

from api_key_manager.cli.app import app
from api_key_manager.core import sign
from tests.integration.commands import AKM, run
from tests.integration.driven import COMMANDS, ENDPOINTS, Ask, Run
from tests.integration.marks import find, random_part
from tests.integration.redis_servers import redis_server
from tests.integration.servers import Server, environment, started
from tests.integration.test_server_otel import Sink, sink

__all__ = ["sink"]
SHOWN_AT_BIRTH = ("secret", "token")


class Story:
    """What the run knows: ids, secrets, and which of them must be found nowhere."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.marks: dict[str, str | bytes] = {}
        for name in ("own", "imported"):
            self.mark(name, f"{name}-{secrets.token_hex(16)}")
        self.mark("admin", f"adm{secrets.token_hex(24)}")
        master = secrets.token_bytes(32)
        self.mark("master key", base64.b64encode(master).decode())
        self.marks["master key's bytes"] = master
        self.mark("Redis' password", f"red{secrets.token_hex(16)}")
        self.mark("Vault's token", f"hvs.{secrets.token_hex(16)}")
        self.mark("collector", f"col{secrets.token_hex(16)}")
        self.known["wide"] = self.known["admin"]
        self.mark("static", sign(self.known["own"], "own"))

    def mark(self, name: str, secret: str) -> None:
        self.known[name] = secret
        self.marks[name] = random_part(secret)
        if secret.startswith("whsec_"):
            # What it stands for is as good as the text.
            self.marks[f"{name}'s bytes"] = base64.b64decode(random_part(secret))

    def fill(self, thing: Any) -> Any:
        """With what stands in braces put in."""
        if isinstance(thing, Mapping):
            return {self.fill(name): self.fill(value) for name, value in thing.items()}
        if isinstance(thing, list | tuple):
            return [self.fill(value) for value in thing]
        if not isinstance(thing, str):
            return thing
        now = int(time.time())
        if thing == "{now}":
            return now
        if thing == "{signature}":
            signature = sign(self.known["own"], "own", now)
            self.mark(f"signature at {now}", signature)
            return signature
        fresh = {"nonce": secrets.token_hex(16)}
        return re.sub(r"\{([\w ]+)\}", lambda name: (fresh | self.known)[name[1]], thing)

    def keep(self, wanted: Mapping[str, str], answer: dict[str, Any]) -> set[str]:
        """Remember parts of an answer; gives the secrets that it may show."""
        shown = set()
        for field, name in wanted.items():
            if field in SHOWN_AT_BIRTH:
                self.mark(name, answer[field])
                shown |= {name, f"{name}'s bytes"}
            else:
                self.known[name] = answer[field]
        return shown

    def check(self, where: str, data: bytes | str, shown: set[str] | tuple[str, ...] = ()) -> None:
        raw = data.encode() if isinstance(data, str) else data
        found = find({n: mark for n, mark in self.marks.items() if n not in shown}, raw)
        assert found == [], (where, found)

    def check_folder(self, folder: Path, *left_out: str) -> set[str]:
        """Search every file; gives their names."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            if path.name not in left_out:
                self.check(str(path), path.read_bytes())
        return {path.name for path in files}


class Receiver:
    """Takes webhooks, and keeps them whole."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.append(self.requestline.encode() + bytes(self.headers) + body)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/hook"

    def wait_for(self, *types: str) -> None:
        """Until an event of each type is there."""
        deadline = time.monotonic() + 20
        while missing := [t for t in types if not any(f'"{t}"'.encode() in g for g in self.got)]:
            assert time.monotonic() < deadline, missing
            time.sleep(0.02)


@pytest.fixture
def receiver(story: Story) -> Iterator[Receiver]:
    """Where ``{receiver}`` leads to."""
    receiver = Receiver()
    story.known["receiver"] = receiver.url
    thread = threading.Thread(target=receiver.http.serve_forever, args=(0.01,))
    thread.start()
    yield receiver
    receiver.http.shutdown()
    thread.join()
    receiver.http.server_close()
    for sent in receiver.got:
        story.check("a webhook", sent)


@pytest.fixture
def story() -> Story:
    return Story()


class Caller:
    """Sends what drives an endpoint, and looks at each answer."""

    def __init__(self, client: httpx.Client, story: Story) -> None:
        self.client = client
        self.story = story

    def ask(self, operation: str, ask: Ask) -> None:
        method, path = operation.split()
        story = self.story
        headers = story.fill(ask.headers)
        if ask.token:
            headers["Authorization"] = f"Bearer {story.fill(ask.token)}"
        body = story.fill(ask.body)
        url = re.sub(r"\{(\w+)\}", lambda name: story.fill(ask.path[name[1]]), path)
        answer = self.client.request(
            method, f"{url}?{story.fill(ask.query)}", headers=headers,
            content=None if body is None else json.dumps(body),
        )  # fmt: skip
        assert answer.status_code == ask.status, (operation, ask, answer.text)
        shown = story.keep(ask.keep, answer.json() if ask.keep else {})
        self.look(operation, answer, shown)

    def look(self, operation: str, answer: httpx.Response, shown: set[str] | None = None) -> None:
        story = self.story
        story.check(operation, answer.content, shown or set())
        story.check(operation, "\n".join(f"{n}: {v}" for n, v in answer.headers.items()))

    def misuse(self, operation: str) -> None:
        """Secrets in all places where they do not belong, on any endpoint."""
        method, path = operation.split()
        secret, admin = self.story.known["token"], self.story.known["admin"]
        good = {"Authorization": f"Bearer {admin}"}
        url = re.sub(r"\{\w+\}", secret, path)
        for content in (
            None,
            secret,
            f'"{secret}"',
            json.dumps({"metadata": secret, "at": secret}),
        ):
            for headers in (good, {}, {"Authorization": f"Bearer {secret}"}):
                self.look(operation, self.client.request(
                    method, url, headers=headers, content=content
                ))  # fmt: skip
        for name in ("X-Request-Id", "User-Agent", "Idempotency-Key", "traceparent", "tracestate",
                     "X-Forwarded-For", "Signature", "Cookie", "Referer"):  # fmt: skip
            answer = self.client.request(
                method, f"{url}?q={secret}", headers={**good, name: secret}
            )
            self.look(f"{operation} with {name}", answer)
        for word in (f"Basic {secret}", f"Bearer  {admin} {secret}", admin):
            self.look(operation, self.client.request(method, url, headers={"Authorization": word}))


@pytest.mark.parametrize(
    ("form", "level"),
    [
        ("text", "DEBUG"),
        ("json", "DEBUG"),
        ("json", "INFO"),
        ("text", "WARNING"),
        ("json", "ERROR"),
    ],
)
def test_a_server(
    story: Story, sink: Sink, receiver: Receiver, tmp_path: Path, form: str, level: str
):
    """Every endpoint, right and wrong, on a server with SQLite, Redis and a collector: answers,
    output, log, metrics, traces, webhooks, database with its WAL, backup and Redis' files."""
    known = story.known
    password = known["Redis' password"]
    options = ("--appendonly", "yes", "--appendfsync", "always", "--rdbcompression", "no")
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis", *options, password=password) as redis:
        settings = {
            "AKM_ADMIN_TOKEN": known["admin"],
            "AKM_MASTER_KEY": known["master key"],
            "REDIS_URL": f"redis://:{password}@127.0.0.1:{redis.port}",
            "LOG_LEVEL": level,
            "LOG_FORMAT": form,
            "DEBUG": str(level == "DEBUG").lower(),
            "VAULT_TOKEN": known["Vault's token"],
            "FAILED_AUTH_PER_MINUTE": "0",
            "WEBHOOK_ALLOW_PRIVATE": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_address[1]}",
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={known['collector']}",
        }
        with started(tmp_path, **settings) as server:
            drive(server, story)
            receiver.wait_for("webhook.test", "key.created", "key.leaked", "key.deleted")
            backup = [*AKM, "db", "backup", str(tmp_path / "copy.db")]
            done = subprocess.run(
                backup, env=environment(tmp_path, **settings), cwd=tmp_path, capture_output=True,
                timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            story.check("the backup's output", done.stdout + done.stderr)
            names = story.check_folder(tmp_path)
            assert {"akm.db", "akm.db-wal", "copy.db"} <= names
            assert any(name.endswith(".aof") for name in names)
            assert server.stop() == 0
            output = server.text + server.read_rest()
        assert redis("SAVE") == "OK"
    story.check("standard output", output)
    assert "dump.rdb" in story.check_folder(tmp_path)
    # The search sees what is there.
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert b"acme" in kept[tmp_path / "copy.db"]
    assert any(b":record:" in data for path, data in kept.items() if path.suffix == ".aof")
    assert (
        level in ("WARNING", "ERROR") or b"/v1/keys" in kept[tmp_path / "stderr"] + output.encode()
    )
    for sent in (sink.traces, sink.metrics):
        assert sent
        for each in sent:
            story.check("telemetry", each.SerializeToString())
    assert "POST /v1/keys" in str(sink.traces)


def drive(server: Server, story: Story) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        document = client.get("/openapi.json").json()
        operations = {
            f"{method.upper()} {path}"
            for path, methods in document["paths"].items()
            for method in methods
        }
        assert operations == set(ENDPOINTS), (
            "each endpoint is driven in tests/integration/driven.py"
        )
        caller = Caller(client, story)
        for operation, asks in ENDPOINTS.items():
            for ask in asks:
                caller.ask(operation, ask)
        for operation in ENDPOINTS:
            caller.misuse(operation)
        for path in ("/docs", "/openapi.json", f"/{story.known['token']}", "/v1/../metrics"):
            caller.look(path, client.get(path, headers={"X-Api-Key": story.known["token"]}))
        caller.look("too large", client.post("/v1/validate", content=story.known["token"] * 40_000))


def commands() -> Iterator[tuple[str, bool]]:
    """Each command, and whether it can ask a server."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))
        if not hasattr(command, "commands"):
            yield " ".join(path), any(p.name == "url" for p in command.params)

    return walk(get_command(app), ())


def test_each_command_is_driven():
    assert {name for name, _ in commands()} == set(COMMANDS)


@pytest.fixture
def at_home(
    story: Story, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Runs one command of the table after the other, on a database of their own."""
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("DEBUG", "true")
    monkeypatch.setenv("VAULT_TOKEN", story.known["Vault's token"])
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "true")
    story.known["folder"] = str(tmp_path)
    good = {"key_id": "imported", "kind": "signed", "secret": story.known["imported"]}
    wrong = {"key_id": "wrong", "secret": [story.known["imported"]], "oops": story.known["own"]}
    (tmp_path / "import.jsonl").write_text(json.dumps(good) + "\n")
    (tmp_path / "wrong.jsonl").write_text(json.dumps(wrong) + "\nnot json\n")

    def each(command: str) -> None:
        for one in COMMANDS[command]:
            _run(story, command, one)

    return each


def _run(story: Story, command: str, one: Run) -> None:
    words = [story.fill(word) for word in shlex.split(_quoted(one.words))]
    done = run(*command.split(), *words, stdin=story.fill(one.stdin))
    assert done.exit_code == one.code, (command, one, done.output)
    shown = story.keep(one.keep, json.loads(done.stdout) if one.keep else {})
    story.check(f"{command} {one.words}", done.stdout + done.stderr, {*shown, *one.shows})


def _quoted(words: str) -> str:
    """What stands in braces is one word."""
    return re.sub(r"\{[\w ]+\}", lambda name: f"'{name[0]}'", words)


def test_commands_on_a_database(story, at_home, tmp_path, monkeypatch, caplog):
    """Every command, right and wrong, on the database itself."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/data/akm.db")
    monkeypatch.setenv("AKM_MASTER_KEY", story.known["master key"])
    for command in COMMANDS:
        at_home(command)
    names = story.check_folder(tmp_path, "import.jsonl", "wrong.jsonl")
    assert {"akm.db", "copy.db", "export.jsonl", "audit.jsonl"} <= names
    story.check("the log", caplog.text)


def test_commands_at_a_server(story, at_home, tmp_path, monkeypatch, caplog):
    """The same of a server, as far as they go there."""
    settings = {"LOG_LEVEL": "DEBUG", "WEBHOOK_ALLOW_PRIVATE": "true"}
    with started(tmp_path, AKM_ADMIN_TOKEN=story.known["admin"], **settings) as server:
        monkeypatch.setenv("AKM_URL", server.url)
        monkeypatch.setenv("AKM_TOKEN", story.known["admin"])
        # Those take the option to refuse it.
        local = ("secrets rotate-kek", "secrets rotate-pepper")
        remote = {name for name, can in commands() if can and name not in local}
        for command in COMMANDS:
            # Those of the group only say, of a server, that they need the database itself.
            if (command in remote or command == "sign") and not command.startswith("secrets "):
                at_home(command)
        assert server.stop() == 0
        output = server.text + server.read_rest()
    story.check("standard output", output)
    story.check_folder(tmp_path, "import.jsonl", "wrong.jsonl")
    story.check("the log", caplog.text)
