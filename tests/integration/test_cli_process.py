"""``akm`` as a process of its own: the story of a key, locally and against a running server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_key_manager import sign
from tests.integration.commands import AkmProcess

pytestmark = pytest.mark.slow

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


class Akm(AkmProcess):
    """With what must not show: a wish for colour, and a proxy."""

    def __init__(self, home: Path, **more: str) -> None:
        # It would colour a pipe if it were asked. And nobody listens there: a token for this
        # machine must not go through a proxy.
        super().__init__(home, FORCE_COLOR="1", HTTP_PROXY="http://127.0.0.1:9", **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Akm, str]]:
    """A server on a free port, and a local ``akm`` on its database."""
    akm = Akm(tmp_path_factory.mktemp("server"))
    process = akm.start("serve", "--port", "0")
    try:
        yield akm, _address(process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    while line := process.stdout.readline():
        said += line
        found = re.search(r"https?://[\w.:-]+\d", line)
        if found:
            return found[0]
    assert process.stderr is not None
    raise AssertionError(said + process.stderr.read())


@pytest.fixture(scope="module")
def remote(server: tuple[Akm, str], tmp_path_factory: pytest.TempPathFactory) -> Akm:
    """``akm`` of somebody who has an address and a token, and no database."""
    local, url = server
    # Beside the running server, and without a token: nobody is locked out.
    token = local.json("tokens", "create", "--scope", "admin", "--name", "ops")["token"]
    return Akm(tmp_path_factory.mktemp("remote"), AKM_URL=url, AKM_TOKEN=token)


def _tell_the_story(akm: Akm) -> None:
    created = akm.json("keys", "create", "story", "--owner", "acme", "--permission", "docs.read")
    secret = created["secret"]
    now = int(time.time())
    assert "story" in akm("keys", "list").stdout
    signed = akm.json("sign", "story", "--nonce", "auto", stdin=f"{secret}\n")
    proof = ("validate", "story", signed["signature"], "--timestamp", str(signed["timestamp"]),
             "--nonce", signed["nonce"])  # fmt: skip
    assert akm(*proof, "--permissions", "docs.*").stdout.startswith("valid\n")
    assert akm(*proof, code=1).stdout.startswith("refused: replayed")
    assert akm.json("validate", "story", sign(secret, "story", now), "--timestamp", str(now),
                    "--permissions", "admin", code=1)["reason"] == "forbidden"  # fmt: skip

    rotated = akm.json("keys", "rotate", "story")["secret"]
    stale = akm.json("validate", "story", sign(secret, "story"), code=1)
    assert stale["reason"] == "bad_signature"
    assert akm.json("validate", "story", sign(rotated, "story"))["version"] == 2

    akm("keys", "revoke", "story", "--reason", "left")
    gone = akm("validate", "story", sign(rotated, "story"), code=1)
    assert gone.stdout.startswith("refused: revoked")

    # Validations are written in batches.
    deadline = time.monotonic() + 20
    while True:
        events = [
            json.loads(line)
            for line in akm("audit", "tail", "--key-id", "story", "--json").stdout.splitlines()
        ]
        # Refusals fold for a second: they can stand behind what came after them.
        events.sort(key=lambda event: event["timestamp"])
        told = [event["action"] for event in events]
        if told[-1:] == ["key_refused"] or time.monotonic() > deadline:
            break
    assert told == [
        "key_created", "key_validated", "key_refused", "key_refused", "key_rotated",
        "key_refused", "key_validated", "key_revoked", "key_refused",
    ]  # fmt: skip
    assert secret not in json.dumps(events)


def test_the_story_of_a_key_on_the_local_database(tmp_path: Path) -> None:
    akm = Akm(tmp_path)
    missing = akm("keys", "create", code=2)
    assert str(tmp_path / "data" / "akm.db") in missing.stderr
    akm("db", "upgrade")
    _tell_the_story(akm)
    assert "fit their MACs" in akm("doctor").stdout


def test_the_same_story_against_a_running_server(remote: Akm) -> None:
    _tell_the_story(remote)
    assert not (remote.home / "data").exists()


def test_a_revocation_on_the_database_beside_a_warm_server(
    server: tuple[Akm, str], remote: Akm
) -> None:
    local, _ = server
    secret = local.json("keys", "create", "beside")["secret"]
    signature = sign(secret, "beside")
    remote("validate", "beside", signature)
    local("keys", "revoke", "beside")
    time.sleep(2)  # the bound
    assert remote.json("validate", "beside", signature, code=1)["reason"] == "revoked"


def test_import_and_export_against_a_server(remote: Akm) -> None:
    lines = "".join(f'{{"key_id": "bulk-{number:04}"}}\n' for number in range(50))
    done = remote("keys", "import", "-", stdin=lines + '{"key_id": "bulk-0000"}\n', code=1)
    assert len(done.stdout.splitlines()) == 50
    assert "line 51 (bulk-0000)" in done.stderr
    ids = [json.loads(line)["key_id"] for line in remote("keys", "export").stdout.splitlines()]
    assert {f"bulk-{number:04}" for number in range(50)} <= set(ids)


def test_a_server_that_is_not_there_or_takes_no_token(server: tuple[Akm, str], remote: Akm) -> None:
    nowhere = remote("keys", "list", "--url", "http://127.0.0.1:1", code=2)
    assert nowhere.stderr.startswith("akm: http://127.0.0.1:1 cannot be reached")
    wrong = remote("keys", "list", AKM_TOKEN="not-a-token-of-yours", code=2)
    assert "AKM_TOKEN" in wrong.stderr
    assert "not-a-token-of-yours" not in wrong.stderr
    weak = server[0].json("tokens", "create", "--scope", "validate")["token"]
    assert "keys:read" in remote("keys", "list", AKM_TOKEN=weak, code=1).stderr


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("sh")) and os.environ.get("CI") != "true",
    reason="needs curl and sh; in CI they must be there",
)
def test_the_curl_line_of_sign_works_when_pasted(server: tuple[Akm, str], remote: Akm) -> None:
    _, url = server
    secret = remote.json("keys", "create", "pasted")["secret"]
    printed = remote("sign", "pasted", "--nonce", "auto", AKM_SECRET=secret).stdout
    line = printed.splitlines()[-1]
    assert line.startswith(f"curl -sS -g -w '\\n' {url}/v1/validate")
    environment = {"PATH": os.environ["PATH"], "AKM_TOKEN": remote.environment["AKM_TOKEN"]}
    for expected in ("valid", "replayed"):
        done = subprocess.run(
            ["sh", "-c", line], env=environment, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["reason"] == expected, done


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("sh")) and os.environ.get("CI") != "true",
    reason="needs curl and sh; in CI they must be there",
)
def test_the_curl_line_of_a_signed_request_is_accepted_once(
    server: tuple[Akm, str], remote: Akm, tmp_path: Path
) -> None:
    """Pasted, the line sends what was signed; sent again, or with another body, it is refused."""
    _, url = server
    secret = remote.json("keys", "create", "wired", "--min-scheme", "request")["secret"]
    body = tmp_path / "order.json"

    def line(method: str, *options: str) -> str:
        request = ("--request", f"{url}/v1/authorize?a=%2F", "--method", method)
        return str(remote.json("sign", "wired", *request, *options, AKM_SECRET=secret)["curl"])

    def sent(line: str) -> str:
        whole = f"{line} -o {os.devnull} -w '%{{http_code}}'"
        done = subprocess.run(["sh", "-c", whole], capture_output=True, text=True, check=True)
        return done.stdout

    body.write_text("{}")
    for method, options in (("GET", ()), ("HEAD", ()), ("POST", ("--body", str(body)))):
        made = line(method, *options)
        assert [sent(made), sent(made)] == ["200", "401"], method
    assert sent(line("GET").replace("a=%2F", "a=/")) == "401"


def test_follow_shows_what_happens_and_ends_cleanly(server: tuple[Akm, str], remote: Akm) -> None:
    local, _ = server
    remote("keys", "create", "before-follow")
    process = remote.start("audit", "tail", "--follow", "-n", "1", "--json", "--action",
                           "key_created")  # fmt: skip
    try:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())["key_id"]]
        for name in ("follow-1", "follow-2"):
            local("keys", "create", name)
            seen.append(json.loads(process.stdout.readline())["key_id"])
        assert seen == ["before-follow", "follow-1", "follow-2"]
    finally:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    if os.name == "posix":
        assert (process.returncode, out, err) == (130, "", "")


@posix_only
def test_a_pipe_that_is_closed_is_no_error(tmp_path: Path) -> None:
    akm = Akm(tmp_path)
    akm("db", "upgrade")
    lines = "".join(f'{{"key_id": "k{number}", "owner": "{"o" * 120}"}}\n' for number in range(500))
    akm("keys", "import", "-", stdin=lines)
    for command in (["keys", "list"], ["keys", "export"], ["audit", "export"], ["--version"]):
        process = akm.start(*command)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 141
        process.stderr.close()


def test_help_is_quick_and_sign_loads_no_server() -> None:
    program = (
        "import sys\n"
        "from api_key_manager.cli import main\n"
        "sys.argv = ['akm', *sys.argv[1:]]\n"
        "code = main()\n"
        "heavy = {'fastapi', 'sqlalchemy', 'alembic', 'uvicorn', 'httpx'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    for command in (["--help"], ["sign", "k"], ["keys", "create", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *command], input="secret", capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert done.stderr.strip() == ""
