"""``akm`` in this process, on a database of its own: what each command does and answers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from api_key_manager import sign, sign_request
from tests.integration.commands import NONCE, SECRET, Akm, refused


def test_create_shows_the_secret_once_and_says_so(db: Akm) -> None:
    result = db(
        "keys", "create", "acme", "--metadata", '{"tier": "gold"}', "--permission", "a.b",
        "--permission", "c.*", "--ip", "10.0.0.0/8", "--owner", "acme", "--environment", "live",
        "--min-scheme", "timestamped", "--expires", "30d", "--prefix", "acme",
    )  # fmt: skip
    assert result.exit_code == 0
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert lines["secret"].startswith("acme_secret_")
    assert lines["permissions"] == "a.b, c.*"
    assert lines["ip_allowlist"] == "10.0.0.0/8"
    assert lines["metadata"] == '{"tier": "gold"}'
    assert "shown this once" in result.stderr
    assert lines["secret"] not in db("keys", "show", "acme").stdout
    assert "\x1b" not in result.output
    assert "\t" not in result.output


def test_json_is_one_document(db: Akm) -> None:
    created = json.loads(db("keys", "create", "--kind", "bearer", "--json").stdout)
    assert created["token"].startswith("akm_")
    assert db("keys", "create", "--json").stderr == ""
    listed = json.loads(db("keys", "list", "--json").stdout)
    assert len(listed) == 2
    shown = json.loads(db("keys", "show", created["key_id"], "--json").stdout)
    assert shown["token"] == "***REDACTED***"
    assert json.loads(db("keys", "list", "--state", "revoked", "--json").stdout) == []
    assert json.loads(db("doctor", "--json").stdout)[0]["level"] == "ok"
    assert json.loads(db("db", "upgrade", "--json").stdout)["done"]


def test_an_expiry_from_now_is_counted_from_now(db: Akm) -> None:
    created = json.loads(db("keys", "create", "--expires", "1d12h", "--json").stdout)
    distance = datetime.fromisoformat(created["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=35, minutes=59) < distance <= timedelta(hours=36)


def test_a_given_secret_comes_from_standard_input(db: Akm) -> None:
    created = db("keys", "create", "own", "--secret-stdin", "--json", stdin=f"{SECRET} \r\n")
    assert json.loads(created.stdout)["secret"] == f"{SECRET} "
    signature = sign(f"{SECRET} ", "own")
    assert db("validate", "own", signature).exit_code == 0


@pytest.mark.parametrize("stdin", ["", "\n", "two\nlines\n", "a\0b", "x" * 5000])
def test_no_usable_secret_on_standard_input(db: Akm, stdin: str) -> None:
    refused(db("keys", "create", "--secret-stdin", stdin=stdin), 2, "secret")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["keys", "create", "--kind", "both"], 2, ["kind", "signed", "bearer"]),
        (["keys", "create", "--min-scheme", "x"], 2, ["min_scheme", "timestamped"]),
        (["keys", "create", "--ip", "10.0.0.0/99"], 2, ["ip_allowlist"]),
        (["keys", "create", "--permission", "a b"], 2, ["permission"]),
        (["keys", "create", "--expires", "2001-01-01T00:00:00Z"], 2, ["expires_at", "future"]),
        (["keys", "import", "missing.jsonl"], 2, ["missing.jsonl", "No such file"]),
        (["keys", "create", "taken"], 1, ["taken"]),
        (["keys", "show", "unknown"], 1, ["no such key"]),
        (["keys", "update", "unknown", "--disable"], 1, ["no such key"]),
        (["keys", "rotate", "unknown"], 1, ["no such key"]),
        (["keys", "rotate", "taken", "--overlap", "200d"], 2, ["overlap_seconds"]),
        (["keys", "revoke", "unknown"], 1, ["no such key"]),
        (["keys", "delete", "unknown", "--yes"], 1, ["no such key"]),
        (["tokens", "revoke", "unknown"], 1, ["no such"]),
        (["tokens", "create", "--scope", "everything"], 2, ["scopes", "keys:read"]),
        (["keys", "list", "--state", "odd"], 2, ["state", "active"]),
        (["validate", "taken", "00", "--permissions", "a and"], 1, []),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_refusals_name_the_field_and_what_is_allowed(
    db: Akm, arguments: Sequence[str], code: int, words: Sequence[str]
) -> None:
    db("keys", "create", "taken")
    result = db(*arguments)
    if arguments[0] == "validate":
        assert result.exit_code == code
        assert result.stdout.startswith("refused: ")
    else:
        refused(result, code, *words)


def test_update_changes_what_is_named_and_empty_text_removes(db: Akm) -> None:
    db("keys", "create", "k", "--owner", "o", "--ip", "10.0.0.1", "--expires", "1d",
       "--permission", "p")  # fmt: skip
    assert db("keys", "update", "k", "--disable").exit_code == 0
    key = json.loads(db("keys", "show", "k", "--json").stdout)
    assert (key["state"], key["owner"], key["permissions"]) == ("disabled", "o", ["p"])
    result = db("keys", "update", "k", "--enable", "--owner", "", "--ip", "", "--no-expiry",
                "--permission", "", "--json")  # fmt: skip
    key = json.loads(result.stdout)
    assert key["state"] == "active"
    assert key["owner"] is key["expires_at"] is None
    assert key["ip_allowlist"] == key["permissions"] == []


def test_ids_made_of_dots_survive_in_a_path(db: Akm) -> None:
    for key_id in (".", "..", "a:b", "-x"):
        created = db("keys", "create", "--json", "--", key_id)
        assert created.exit_code == 0, created.output
        shown = db("keys", "show", "--json", "--", key_id)
        assert json.loads(shown.stdout)["key_id"] == key_id


def test_revoke_many_asks_shows_and_does(db: Akm) -> None:
    for name in ("a", "b"):
        db("keys", "create", name, "--owner", "acme")
    db("keys", "create", "c", "--owner", "other")
    refused(db("keys", "revoke", "--created-before", "soon"), 2, "--created-before", "before now")
    dry = db("keys", "revoke", "--owner", "acme", "--dry-run")
    assert dry.stdout == "a\nb\n"
    assert "2 keys would be" in dry.stderr
    asked = db("keys", "revoke", "--owner", "acme")
    assert asked.exit_code == 2
    assert "--yes" in asked.stderr
    done = db("keys", "revoke", "--owner", "acme", "--yes", "--reason", "leak", "--json")
    assert json.loads(done.stdout)["revoked"] == 2
    states = {
        key["key_id"]: key["state"] for key in json.loads(db("keys", "list", "--json").stdout)
    }
    assert states == {"a": "revoked", "b": "revoked", "c": "active"}
    ago = json.loads(db("keys", "revoke", "--created-before", "1h", "--dry-run", "--json").stdout)
    assert ago["matched"] == 0


def test_revocation_at_a_later_time(db: Akm) -> None:
    db("keys", "create", "k")
    assert "will be revoked" in db("keys", "revoke", "k", "--at", "12h").stdout
    key = json.loads(db("keys", "show", "k", "--json").stdout)
    assert key["state"] == "active"
    assert key["revoked_at"] is not None


def test_a_deleted_id_never_returns(db: Akm) -> None:
    db("keys", "create", "k")
    assert db("keys", "delete", "k", "--yes").exit_code == 0
    refused(db("keys", "create", "k"), 1, "taken")


def test_rotate_keeps_the_old_version_for_the_overlap(db: Akm) -> None:
    old = json.loads(db("keys", "create", "k", "--json").stdout)["secret"]
    new = json.loads(db("keys", "rotate", "k", "--overlap", "1h", "--json").stdout)["secret"]
    for secret in (old, new):
        assert db("validate", "k", sign(secret, "k")).exit_code == 0
    versions = json.loads(db("keys", "versions", "k", "--json").stdout)
    assert [version["version"] for version in versions] == [2, 1]
    assert "ends_at" in db("keys", "versions", "k").stdout


# Credentials


def test_validate_says_why_and_exits_accordingly(db: Akm) -> None:
    token = json.loads(db("keys", "create", "--kind", "bearer", "--json").stdout)["token"]
    valid = db("validate", "--token-stdin", stdin=token)
    assert valid.exit_code == 0
    assert valid.stdout.startswith("valid\n")
    assert token not in valid.output
    denied = db("validate", "--token-stdin", "--permissions", "x.y", stdin=token)
    assert denied.exit_code == 1
    assert denied.stdout.startswith("refused: forbidden")
    verdict = json.loads(db("validate", "nobody", "0" * 64, "--json").stdout)
    assert (verdict["valid"], verdict["reason"]) == (False, "not_found")


@pytest.mark.parametrize(
    ("options", "timestamp", "nonce"),
    [
        (["--timestamp", "1700000000"], 1_700_000_000, None),
        (["--timestamp", "1700000000", "--nonce", NONCE], 1_700_000_000, NONCE),
        (["--timestamp", "none"], None, None),
    ],
)
def test_sign_makes_the_signature_of_the_scheme(
    akm: Akm, options: list[str], timestamp: int | None, nonce: str | None
) -> None:
    result = akm("sign", "k", *options, "--json", stdin=f"{SECRET}\n")
    said = json.loads(result.stdout)
    assert said["signature"] == sign(SECRET, "k", timestamp, nonce)
    assert (said["timestamp"], said["nonce"]) == (timestamp, nonce)
    assert SECRET not in result.output


def test_sign_mints_a_nonce_and_takes_the_secret_from_the_environment(
    akm: Akm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AKM_SECRET", SECRET)
    one, two = (json.loads(akm("sign", "k", "--nonce", "auto", "--json").stdout) for _ in "12")
    assert one["nonce"] != two["nonce"]
    assert one["signature"] == sign(SECRET, "k", one["timestamp"], one["nonce"])


def test_the_curl_line_is_one_line_and_quotes_whatever_the_url_holds(akm: Akm) -> None:
    url = "https://host:8443/it's/$(id)/`id`"
    result = akm("sign", "k", "--url", url, stdin=SECRET)
    line = result.stdout.splitlines()[-1]
    words = shlex.split(line)
    assert words[0] == "curl"
    assert f"{url}/v1/validate" in words
    assert words[-1] == "Authorization: Bearer $AKM_TOKEN"
    assert json.loads(words[words.index("-d") + 1])["key"] == "k"


def test_sign_makes_the_headers_of_a_request(akm: Akm, tmp_path: Path) -> None:
    """They are those that the library makes of the same request, and the line sends them."""
    body = tmp_path / "order.json"
    body.write_bytes(b'{"item": 7}')
    url = "https://api.example.com/it's?q=$(id)"
    said = json.loads(akm(
        "sign", "k", "--request", url, "--method", "POST", "--body", str(body),
        "--timestamp", "1700000000", "--nonce", NONCE, "--json", stdin=f"{SECRET}\n",
    ).stdout)  # fmt: skip
    made = sign_request(
        SECRET, "k", "POST", url, b'{"item": 7}', created=1_700_000_000, nonce=NONCE
    )
    assert said["headers"] == made
    words = shlex.split(said["curl"])
    assert words[-1] == url
    assert {f"{name}: {value}" for name, value in made.items()} <= set(words)
    assert f"@{body}" in words
    assert words[words.index("-X") + 1] == "POST"


def test_validate_tells_the_limit_that_decided(db: Akm) -> None:
    """It takes the cost that it is given, and says what is left."""
    db("keys", "create", "k", "--secret-stdin", "--rate-limit", "burst=10/1h", stdin=SECRET)
    charged = db("validate", "k", sign(SECRET, "k"), "--cost", "4").stdout
    assert "rate_limit: burst: 6 of 10 left, full again in 1440 s\n" in charged
    refused = db("validate", "k", sign(SECRET, "k"), "--cost", "11")
    assert refused.exit_code == 1
    assert "rate_limited" in refused.stdout
    assert "burst: 10 of 10 left\n" in refused.stdout
    assert db("validate", "k", sign(SECRET, "k"), "--cost", "0").exit_code == 2
