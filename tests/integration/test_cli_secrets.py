"""``akm secrets`` in this process: what it says, what it asks, and what it refuses."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

import pytest

from tests.integration.commands import Akm, refused


def key_file(folder: Path) -> Path:
    (found,) = (folder / "config" / "api-key-manager-pro").glob("*.key")
    return found


def test_key_encryption_key(db: Akm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the key that the first start made to one of one's own, step by step."""
    db("keys", "create", "k")
    made, own = key_file(tmp_path), tmp_path / "own.key"
    own.touch(0o600)
    own.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    assert "0 keys were wrapped anew" in db("secrets", "rotate-kek").stdout
    monkeypatch.setenv("AKM_MASTER_KEY_FILE", str(own))
    refused(db("secrets", "rotate-kek"), 2, "AKM_PREVIOUS_MASTER_KEY_FILE", "rotate-kek")
    monkeypatch.setenv("AKM_PREVIOUS_MASTER_KEY_FILE", str(tmp_path / "nowhere"))
    refused(db("secrets", "rotate-kek"), 2, "AKM_PREVIOUS_MASTER_KEY_FILE", "is not there")
    monkeypatch.setenv("AKM_PREVIOUS_MASTER_KEY_FILE", str(made))
    assert "5 of 5 keys are still wrapped" in db("doctor").stdout
    done = json.loads(db("secrets", "rotate-kek", "--json").stdout)
    assert done["rewrapped"] == 5
    assert done["key_encryption_key"].startswith("local:")
    assert "can be removed now" in db("doctor").stdout
    monkeypatch.delenv("AKM_PREVIOUS_MASTER_KEY_FILE")
    made.unlink()
    assert db("keys", "list").exit_code == 0
    (event,) = [
        json.loads(line)
        for line in db("audit", "tail", "--action", "kek_rotated", "--json").stdout.splitlines()
    ]
    assert (event["actor"], event["detail"]["keys"]) == ("cli", 5)
    own_text = own.read_text()
    assert own_text not in json.dumps(event) + db("doctor").stdout


def test_pepper(db: Akm) -> None:
    """A rotation, a dry run that names keys and tokens, a question, and the end."""
    key = json.loads(db("keys", "create", "--kind", "bearer", "--json").stdout)["key_id"]
    token = json.loads(db("tokens", "create", "--scope", "admin", "--json").stdout)["key_id"]
    done = db("secrets", "rotate-pepper")
    assert done.stdout == ("pepper 2 is in use; 2 digests move to it as their tokens are used\n")
    assert "2 digests are still under pepper 1" in db("doctor").stdout
    refused(db("secrets", "rotate-pepper", "--dry-run"), 2, "--retire")
    refused(db("secrets", "rotate-pepper", "--retire", "2"), 2, "pepper 2 is in use")
    dry = db("secrets", "rotate-pepper", "--retire", "1", "--dry-run")
    assert dry.stdout == f"token {token}\nkey {key}\n"
    asked = db("secrets", "rotate-pepper", "--retire", "1")
    assert asked.exit_code == 2
    assert f"admin tokens: {token}" in asked.stderr
    assert "--yes is needed" in asked.stderr
    assert "2 digests are still under pepper 1" in db("doctor").stdout
    told = json.loads(db("secrets", "rotate-pepper", "--retire", "1", "--yes", "--json").stdout)
    assert (told["keys"], told["tokens"], told["retired"]) == ([key], [token], True)
    assert "all digests are under pepper 2" in db("doctor").stdout
    states = {k["key_id"]: k["state"] for k in json.loads(db("keys", "list", "--json").stdout)}
    assert states[key] == "revoked"
    again = db("secrets", "rotate-pepper", "--retire", "1", "--yes")
    assert again.stdout == "pepper 1 is retired; 0 keys were revoked\n"


@pytest.mark.parametrize("command", ["rotate-kek", "rotate-pepper"])
def test_local_only(akm: Akm, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address of a server, a database in memory, or none, it says what it needs."""
    refused(akm("secrets", command, "--url", "http://127.0.0.1:1"), 2, "database itself")
    refused(akm("secrets", command), 2, "there is no database at")
    monkeypatch.setenv("DATABASE_URL", "memory://")
    refused(akm("secrets", command), 2, "memory://")
    monkeypatch.setenv("AKM_URL", "http://127.0.0.1:1")
    refused(akm("secrets", command), 2, "AKM_URL")
