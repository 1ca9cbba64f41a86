"""``akm keys import`` and ``export``: every line is taken, or reported; nothing is lost."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_key_manager import sign
from api_key_manager.cli import client
from tests.integration.commands import Akm, run

SECRET = "an-old-secret-of-ours"


@pytest.fixture
def akm(akm: Akm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Akm:
    """The same with an empty database, one of several."""
    use_database(monkeypatch, tmp_path, "one")
    return akm


def use_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/{name}/akm.db")
    assert run("db", "upgrade").exit_code == 0


def keys(akm: Akm) -> dict[str, dict[str, Any]]:
    return {key["key_id"]: key for key in json.loads(akm("keys", "list", "--json").stdout)}


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_export_holds_no_secret_and_fits_an_import(
    akm: Akm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = json.loads(
        akm("keys", "create", "signed", "--owner", "o", "--ip", "10.0.0.0/8", "--permission", "p",
            "--metadata", '{"é": [1]}', "--prefix", "acme", "--min-scheme", "timestamped",
            "--expires", "30d", "--json").stdout
    )  # fmt: skip
    bearer = json.loads(akm("keys", "create", "bearer", "--kind", "bearer", "--json").stdout)
    for name in ("off", "gone", "going"):
        akm("keys", "create", name)
    akm("keys", "update", "off", "--disable")
    akm("keys", "revoke", "gone", "--reason", "leak")
    akm("keys", "revoke", "going", "--at", "1d")
    before = keys(akm)

    exported = akm("keys", "export")
    assert exported.exit_code == 0
    assert signed["secret"] not in exported.stdout
    assert bearer["token"] not in exported.stdout
    assert {line["key_id"] for line in json_lines(exported.stdout)} == set(before)

    use_database(monkeypatch, tmp_path, "two")
    imported = akm("keys", "import", "-", stdin=exported.stdout)
    assert imported.exit_code == 0, imported.stderr
    assert "5 imported (4 with a new secret or token" in imported.stderr
    after = keys(akm)
    own = {"created_at", "updated_at", "last_used", "revoked_at"}
    for key_id, key in before.items():
        same = {name: value for name, value in key.items() if name not in own}
        if key_id == "gone":
            same["disabled"] = True  # it was never alive here
        assert {name: after[key_id][name] for name in same} == same
    assert after["going"]["revoked_at"] == before["going"]["revoked_at"]
    minted = {line["key_id"]: line for line in json_lines(imported.stdout)}
    assert set(minted) == {"signed", "bearer", "off", "going"}
    judged = akm("validate", "--token-stdin", stdin=minted["bearer"]["token"])
    assert judged.stdout.startswith("valid"), judged.output
    assert minted["signed"]["secret"].startswith("acme_secret_")


def test_bad_lines_are_reported_with_number_and_field_and_skipped(akm: Akm) -> None:
    akm("keys", "create", "taken")
    lines = [
        '{"key_id": "first"}',
        "no json at all",
        '{"key_id": "typo", "permisions": ["x"]}',
        "",
        '{"key_id": "taken"}',
        '["a", "list"]',
        '{"key_id": "soiled", "secret": "' + SECRET + '", "metadata": {"x": "' + SECRET + '"}}',
        '{"key_id": "number", "secret": 5}',
        '{"key_id": "old", "expires_at": "2001-01-01T00:00:00Z"}',
        '{"key_id": "odd", "revoked_at": "yesterday"}',
        '{"key_id": "t", "kind": "bearer", "token": "akm_t_' + "x" * 36 + '"}',
        '{"key_id": NaN}',
        "[" * 10_000,
        '{"key_id": "last", "secret": "' + SECRET + '"}',
    ]
    result = akm("keys", "import", "-", stdin="\n".join(lines))
    assert result.exit_code == 1
    said = result.stderr.splitlines()
    expected = {
        2: "not JSON", 3: "permisions", 5: "taken", 6: "not a JSON object", 7: "metadata",
        8: "secret", 9: "expires_at", 10: "revoked_at", 11: "token", 12: "not JSON",
        13: "not JSON",
    }  # fmt: skip
    assert len(said) == len(expected) + 1
    for (number, word), line in zip(expected.items(), said, strict=False):
        assert line.startswith(f"akm: line {number}")
        assert word in line
    assert said[-1].startswith("2 imported (1 with")
    assert "11 failed" in said[-1]
    assert SECRET not in result.output
    assert set(keys(akm)) == {"taken", "first", "last"}
    judged = akm("validate", "last", sign(SECRET, "last"))
    assert judged.stdout.startswith("valid"), judged.output
    assert [line["key_id"] for line in json_lines(result.stdout)] == ["first"]


def test_json_has_a_line_for_every_line(akm: Akm) -> None:
    lines = f'{{"key_id": "a", "secret": "{SECRET}"}}\n{{"bad": 1}}\n{{}}\n'
    result = akm("keys", "import", "-", "--json", stdin=lines)
    first, second, third = json_lines(result.stdout)
    assert first == {"line": 1, "key_id": "a", "imported": True}
    assert (second["line"], second["imported"]) == (2, False)
    assert "bad" in second["error"]
    assert third["secret"].startswith("akm_secret_")


@pytest.mark.parametrize("mark", [{"active": False}, {"state": "disabled"}, {"state": "expired"}])
def test_what_did_not_work_elsewhere_does_not_begin_to_work_here(
    akm: Akm, mark: dict[str, Any]
) -> None:
    line = json.dumps({"key_id": "k", "secret": SECRET, **mark})
    assert akm("keys", "import", "-", stdin=line).exit_code == 0
    assert keys(akm)["k"]["state"] == "disabled"


@pytest.mark.parametrize(
    "mark",
    [
        {"state": "revoked"},
        {"revoked_at": "2020-01-01T00:00:00+00:00", "expires_at": "2021-01-01T00:00:00Z"},
        {"state": "revoked", "revoke_reason": "leak", "revoked_at": None},
    ],
)
def test_a_revoked_key_stays_revoked(akm: Akm, mark: dict[str, Any]) -> None:
    result = akm("keys", "import", "-", stdin=json.dumps({"key_id": "k", **mark}))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    key = keys(akm)["k"]
    assert key["state"] == "revoked"
    assert key["revoke_reason"] == mark.get("revoke_reason")


def test_a_scheduled_revocation_is_kept(akm: Akm) -> None:
    at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    akm("keys", "import", "-", stdin=json.dumps({"key_id": "k", "revoked_at": at}))
    assert keys(akm)["k"]["revoked_at"] == at


def test_secrets_go_to_a_new_private_file(akm: Akm, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    # Windows editors write a byte order mark and CRLF.
    source.write_bytes(b'\xef\xbb\xbf{"key_id": "a"}\r\n\r\n{"key_id": "b"}')
    result = akm("keys", "import", str(source), "--output", str(target))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert [line["key_id"] for line in json_lines(target.read_text())] == ["a", "b"]
    assert os.name != "posix" or target.stat().st_mode & 0o777 == 0o600
    again = akm("keys", "import", str(source), "--output", str(target))
    assert again.exit_code == 2
    assert "not overwritten" in again.stderr


def test_a_line_without_end_does_not_fill_the_memory(akm: Akm) -> None:
    long = '{"key_id": "x", "owner": "' + "o" * (3 * 1024 * 1024) + '"}'
    result = akm("keys", "import", "-", stdin=f'{long}\n{{"key_id": "next"}}')
    assert result.exit_code == 1
    assert result.stderr.startswith("akm: line 1: longer than")
    assert set(keys(akm)) == {"next"}


def test_a_server_that_goes_away_stops_the_import_and_says_where(
    akm: Akm, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        if len(calls) == 1:
            raise httpx.ReadError("the answer got lost")
        if len(calls) == 2:
            return httpx.Response(201, json={"key_id": "a", "secret": "s"})
        raise httpx.ConnectError("refused")

    real = httpx.AsyncClient
    monkeypatch.setattr(
        client.httpx,
        "AsyncClient",
        lambda **options: real(transport=httpx.MockTransport(answer), **options),
    )
    monkeypatch.setenv("AKM_TOKEN", "opaque")
    lines = '{"key_id": "a"}\n{"key_id": "b"}\n{"key_id": "c"}\n'
    result = akm("keys", "import", "-", "--url", "http://host", stdin=lines)
    assert result.exit_code == 2
    # The lost answer was asked for again, as the same request: it may hold the only secret.
    assert len({call.headers["Idempotency-Key"] for call in calls[:2]}) == 1
    assert [line["key_id"] for line in json_lines(result.stdout)] == ["a"]
    assert result.stderr == "akm: stopped at line 2: http://host cannot be reached: refused\n"
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("response", "code", "word"),
    [
        (httpx.Response(401, json={"detail": "no"}), 2, "AKM_TOKEN"),
        (httpx.Response(403, json={"detail": "This needs the scope keys:read."}), 1, "keys:read"),
        (httpx.Response(302, headers={"location": "http://else"}), 2, "redirects"),
        (httpx.Response(200, text="<html>"), 2, "does not answer as"),
        (httpx.Response(200, json=[1]), 2, "does not answer as"),
        (httpx.Response(200, json={"items": 5}), 2, "does not answer as"),
        (httpx.Response(502, text="<html>bad gateway"), 1, "502"),
        (httpx.Response(500, json={"detail": "Oops.", "request_id": "r-1"}), 1, "r-1"),
        (httpx.Response(422, json={"detail": "wrong type", "field": "limit"}), 2, "limit: wrong"),
    ],
)
def test_what_other_servers_answer_is_one_line(
    akm: Akm, monkeypatch: pytest.MonkeyPatch, response: httpx.Response, code: int, word: str
) -> None:
    real = httpx.AsyncClient
    transport = httpx.MockTransport(lambda _: response)
    monkeypatch.setattr(
        client.httpx, "AsyncClient", lambda **options: real(transport=transport, **options)
    )
    monkeypatch.setenv("AKM_TOKEN", "opaque-admin-token")
    result = akm("keys", "list", "--url", "http://host/")
    assert result.exit_code == code
    assert word in result.stderr
    assert result.stderr.startswith("akm: ")
    assert result.stderr.count("\n") == 1
    assert "opaque-admin-token" not in result.output
