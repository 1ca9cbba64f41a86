"""``akm`` in this process, on a database of its own: tokens, the audit log, the database itself."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.integration.commands import Akm, refused


def test_tokens_need_no_token_on_the_local_database(db: Akm) -> None:
    created = json.loads(
        db("tokens", "create", "--scope", "validate", "--name", "gate", "--json").stdout
    )
    assert created["token"].startswith("akm_admin_")
    assert created["scopes"] == ["validate"]
    assert "gate" in db("tokens", "list").stdout
    assert created["token"] not in db("tokens", "list").stdout
    assert db("tokens", "revoke", created["key_id"]).exit_code == 0
    states = {token["key_id"]: token["state"]
              for token in json.loads(db("tokens", "list", "--json").stdout)}  # fmt: skip
    assert states[created["key_id"]] == "revoked"


def test_audit_tells_the_story_with_its_actor(db: Akm) -> None:
    db("keys", "create", "k")
    db("keys", "revoke", "k", "--reason", "left")
    lines = db("audit", "tail", "--key-id", "k").stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["key_created", "key_revoked"]
    assert "actor=cli" in lines[0]
    assert "reason=left" in lines[1]
    events = [json.loads(line) for line in db("audit", "export").stdout.splitlines()]
    assert [event["timestamp"] for event in events] == sorted(
        event["timestamp"] for event in events
    )
    one = db("audit", "tail", "-n", "1", "--json").stdout.splitlines()
    assert [json.loads(line)["action"] for line in one] == ["key_revoked"]
    assert db("audit", "tail", "-n", "0").stdout == ""
    assert db("audit", "tail", "--action", "key_created").stdout.count("\n") == 1
    assert db("audit", "export", "--until", "1h").stdout == ""
    assert "key_created" in db("audit", "export", "--since", "1h").stdout


def test_an_export_to_a_file_is_private_and_overwrites_nothing(db: Akm, tmp_path: Path) -> None:
    db("keys", "create", "k")
    target = tmp_path / "log.jsonl"
    assert db("audit", "export", "--output", str(target)).exit_code == 0
    assert json.loads(target.read_text().splitlines()[-1])["action"] == "key_created"
    assert os.name != "posix" or target.stat().st_mode & 0o777 == 0o600
    refused(db("audit", "export", "--output", str(target)), 2, "not overwritten")


def test_backup_says_where_the_master_key_is(db: Akm, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    result = db("db", "backup", str(target))
    assert result.exit_code == 0
    assert "master key is not in it" in result.stderr
    named = re.search(r"The key is in (\S+):", result.stderr)
    assert named is not None
    assert Path(named[1]).is_file()
    refused(db("db", "backup", str(target)), 2, "exists")
    answer = json.loads(db("db", "backup", str(tmp_path / "two.db"), "--json").stdout)
    assert Path(answer["backup"]).is_file()
    assert answer["master_key"] == named[1]


def test_a_lost_master_key_stops_commands_but_not_a_backup(db: Akm, tmp_path: Path) -> None:
    db("keys", "create", "k")
    for path in (tmp_path / "config").rglob("*.key"):
        path.unlink()
    refused(db("keys", "list"), 2, "master key")
    copied = db("db", "backup", str(tmp_path / "copy.db"))
    assert copied.exit_code == 0
    assert "master key" in copied.stderr
    checked = db("doctor")
    assert checked.exit_code == 1
    assert "master key" in checked.stdout
