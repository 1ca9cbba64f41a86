"""``akm`` in this process: arguments, answers, exit codes, and what must never be printed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from api_key_manager.cli import client, inputs, local
from api_key_manager.cli.errors import Failure, explain, one_line, redact
from api_key_manager.core.exceptions import StorageError
from tests.integration.commands import NONCE, SECRET, Akm, refused

COMMANDS = [
    [], ["serve"], ["keys"], ["tokens"], ["audit"], ["db"], ["validate"], ["sign"], ["doctor"],
    ["version"],
    *(["keys", name] for name in (
        "create", "list", "show", "update", "rotate", "revoke", "delete", "import", "export",
        "versions",
    )),
    *(["tokens", name] for name in ("create", "list", "revoke")),
    *(["audit", name] for name in ("tail", "export")),
    *(["db", name] for name in ("upgrade", "backup")),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_takes_no_secret_as_an_argument(
    akm: Akm, command: list[str]
) -> None:
    result = akm(*command, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert not re.search(r"--(secret|token)(?!-stdin)\b", result.stdout)


def test_version(akm: Akm) -> None:
    assert akm("--version").stdout == akm("version").stdout == "akm 0.1.0\n"
    assert json.loads(akm("version", "--json").stdout) == {"version": "0.1.0"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense"]),
        (["keys", "show"], ["KEY_ID"]),
        (["keys", "create", "--nope"], ["--nope"]),
        (["keys", "create", "--metadata", "[1]"], ["--metadata", "JSON object"]),
        (["keys", "create", "--metadata", '{"a": NaN}'], ["--metadata"]),
        (["keys", "create", "--metadata", "[" * 100_000], ["--metadata"]),
        (["keys", "create", "--expires", "tomorrow"], ["--expires", "RFC 3339", "30d"]),
        (["keys", "create", "--expires", "2030-01-01T00:00:00"], ["--expires", "offset"]),
        (["keys", "create", "--expires", "999999999w"], ["--expires"]),
        (["keys", "rotate", "x", "--overlap", "soon"], ["--overlap", "15m"]),
        (["keys", "update", "x"], ["at least one option"]),
        (["keys", "update", "x", "--expires", "1d", "--no-expiry"], ["--no-expiry"]),
        (["keys", "revoke"], ["KEY_ID", "--owner"]),
        (["keys", "revoke", "x", "--owner", "o"], ["KEY_ID"]),
        (["keys", "revoke", "x", "--dry-run"], ["--dry-run"]),
        (["keys", "revoke", "--owner", "o", "--at", "1d"], ["--at"]),
        (["keys", "delete", "x"], ["--yes"]),
        (["keys", "show", "a/b"], ["key_id", "A-Z a-z 0-9"]),
        (["validate"], ["KEY_ID", "--token-stdin"]),
        (["validate", "x"], ["SIGNATURE"]),
        (["validate", "x", "--token-stdin"], ["--token-stdin"]),
        (["sign", "x"], ["AKM_SECRET"]),
        (["sign", "x y"], ["key_id"]),
        (["sign", "x", "--timestamp", "soon"], ["--timestamp"]),
        (["sign", "x", "--timestamp", "-1"], ["--timestamp"]),
        (["sign", "x", "--timestamp", "none", "--nonce", NONCE], ["nonce", "timestamp"]),
        (["sign", "x", "--nonce", "short"], ["--nonce", "16 to 128"]),
        (["sign", "x", "--url", "ftp://h"], ["--url", "http://"]),
        (["sign", "x", "--method", "PUT"], ["--request"]),
        (["sign", "x", "--request", "/orders"], ["--request", "absolute"]),
        (["sign", "x", "--request", "http://h/", "--timestamp", "none"], ["--timestamp"]),
        (["sign", "x", "--request", "http://h/", "--body", "no-such-file"], ["--body"]),
        (["keys", "list", "--url", "http://user:pass@h"], ["--url", "without user name"]),
        (["keys", "list", "--url", "http://127.0.0.1:1"], ["AKM_TOKEN is not set"]),
        (["serve", "--port", "70000"], ["PORT"]),
        (["tokens", "create"], ["--scope"]),
        (["audit", "tail", "-n", "-1"], ["-n"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_misuse_is_one_line_and_exit_code_2(
    akm: Akm, arguments: Sequence[str], words: Sequence[str]
) -> None:
    refused(akm(*arguments), 2, *words)


NEED_A_DATABASE = [
    ["keys", "create"], ["keys", "list"], ["keys", "show", "x"], ["keys", "versions", "x"],
    ["keys", "update", "x", "--disable"], ["keys", "rotate", "x"], ["keys", "revoke", "x"],
    ["keys", "revoke", "--owner", "o", "--yes"], ["keys", "delete", "x", "--yes"],
    ["keys", "export"], ["keys", "import", "-"], ["tokens", "create", "--scope", "admin"],
    ["tokens", "list"], ["tokens", "revoke", "x"], ["validate", "x", "00"], ["audit", "tail"],
    ["audit", "export"], ["db", "backup", "copy.db"],
]  # fmt: skip


@pytest.mark.parametrize("command", NEED_A_DATABASE, ids=" ".join)
def test_a_missing_database_is_named_by_its_path_and_not_made(
    akm: Akm, command: list[str], tmp_path: Path
) -> None:
    refused(akm(*command), 2, str(tmp_path / "data" / "akm.db"))
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "copy.db").exists()


def test_doctor_on_a_missing_database_names_its_path_and_fails(akm: Akm, tmp_path: Path) -> None:
    result = akm("doctor")
    assert result.exit_code == 1
    assert result.stdout.startswith("error")
    assert str(tmp_path / "data" / "akm.db") in result.stdout


def test_a_database_in_memory_has_nothing_for_another_process(
    akm: Akm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "memory://")
    refused(akm("keys", "list"), 2, "--url")


def test_a_wrong_setting_is_named(akm: Akm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALIDATION_WINDOW_MINUTES", "1")
    refused(akm("keys", "list"), 2, "VALIDATION_WINDOW_MINUTES=")


# What goes wrong inside


def test_an_unexpected_error_is_one_line_without_its_text(
    akm: Akm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"bound parameters: {SECRET}")

    monkeypatch.setattr(client, "connect", broken)
    monkeypatch.setattr(local, "load_settings", broken)
    for command in (["keys", "list"], ["doctor"]):
        result = akm(*command)
        refused(result, 1, "internal error", "RuntimeError", "DEBUG=true")
        assert SECRET not in result.output
    monkeypatch.setenv("DEBUG", "true")
    monkeypatch.setenv("AKM_SECRET", SECRET)
    result = akm("keys", "list")
    assert "Traceback" in result.stderr
    assert SECRET not in result.output


def test_messages_hold_no_secret_and_no_control_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKM_TOKEN", "opaque-token")
    token = "akm_abc_" + "x" * 36
    assert redact(f"a opaque-token b {token} c", "c") == "a ***REDACTED*** b ***REDACTED*** c"
    assert one_line("a\n\tb\x1b[31m\x9bc") == "a b\\x1b[31m\\x9bc"
    assert explain(StorageError("the\nstore")) == ("the store", 1)
    assert explain(PermissionError(13, "Permission denied", "f")) == ("f: Permission denied", 2)


def test_durations_and_instants() -> None:
    assert inputs.read_duration("90", "--x") == 90
    assert inputs.read_duration("1h30m", "--x") == 5400
    assert inputs.read_duration("2w", "--x") == 1_209_600
    assert inputs.read_when("2030-01-01T02:00:00+02:00", "--x") == "2030-01-01T00:00:00+00:00"
    for wrong in ("", "h", "1y", "-1h", "1.5h", "١h", "1 h"):
        with pytest.raises(Failure, match="--x"):
            inputs.read_duration(wrong, "--x")
