"""The backup and the restore, by command and by hand, as docs/operations.md describes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.acceptance.programs import run

SECRET = "super-secret-key"


def akm(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "api_key_manager", *arguments], folder, f"{SECRET}\n", **env)


def change(folder: Path) -> None:
    """A key that is revoked after the backup."""
    for arguments in (
        ("db", "upgrade"),
        ("keys", "create", "client-123", "--secret-stdin"),
        ("db", "backup", "backup.db"),
        ("keys", "revoke", "client-123"),
    ):
        done = akm(folder, *arguments)
        assert done.returncode == 0, done.stderr
    assert judged(folder) == "revoked"


def judged(folder: Path, **env: str) -> str:
    """What the database in ``folder`` says of the key's signature."""
    from api_key_manager import sign

    done = akm(folder, "validate", "client-123", sign(SECRET, "client-123"), "--json", **env)
    assert done.stdout, done.stderr
    reason: str = json.loads(done.stdout)["reason"]
    return reason


def test_restore(tmp_path: Path):
    """A backup and the master key bring everything back; what was revoked since is closed again,
    since the old database is there to be asked."""
    change(tmp_path)
    (tmp_path / "data").rename(tmp_path / "old")
    restore = ("db", "restore", "backup.db", "--against", f"sqlite:///{tmp_path}/old/akm.db")
    refused = akm(tmp_path, *restore, "--revoke-lost")
    assert refused.returncode == 1
    assert "client-123 (revoked)" in refused.stderr
    done = akm(tmp_path, *restore, "--revoke-lost", "--accept-lost-changes")
    assert done.returncode == 0, done.stderr
    doctor = akm(tmp_path, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert judged(tmp_path) == "revoked"


def test_restore_by_hand(tmp_path: Path):
    """A backup that is put in the place of the database opens, and what was revoked works again."""
    change(tmp_path)
    database = tmp_path / "data" / "akm.db"
    for name in ("akm.db", "akm.db-wal", "akm.db-shm"):
        database.with_name(name).unlink(missing_ok=True)
    backup = tmp_path / "backup.db"
    assert SECRET.encode() not in backup.read_bytes()
    backup.rename(database)
    doctor = akm(tmp_path, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert judged(tmp_path) == "valid", "the page says that it has to be revoked again"


def test_backup_without_its_master_key(tmp_path: Path):
    """A backup alone opens nothing, and the line says where the key was looked for."""
    assert akm(tmp_path, "db", "upgrade").returncode == 0
    assert akm(tmp_path, "db", "backup", "backup.db").returncode == 0
    home = tmp_path / "elsewhere"
    home.mkdir()
    refused = akm(tmp_path, "keys", "list", HOME=str(home), DATABASE_URL="sqlite:///backup.db")
    assert refused.returncode == 2
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert "the master key of" in line
    assert str(home) in line
