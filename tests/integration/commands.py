"""``akm`` as the tests run it: in this process (the fixtures `akm` and `db`), or as its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from api_key_manager.cli.app import app

__all__ = ["AKM", "NONCE", "SECRET", "Akm", "AkmProcess", "refused", "run"]

# What the fixtures are: `run`, on a database of their own.
Akm = Callable[..., Result]

AKM = [sys.executable, "-m", "api_key_manager"]
SECRET = "s3cr3t-of-the-test"
NONCE = "abcdefghijklmnop"


def run(*arguments: str, stdin: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def refused(result: Result, code: int, *words: str) -> None:
    """Nothing on stdout, one line on stderr, and the exit code."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("akm: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


class AkmProcess:
    """Runs commands as processes, in an environment of their own."""

    def __init__(self, home: Path, **more: str) -> None:
        self.home = home
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "DATABASE_URL": f"sqlite:///{home}/data/akm.db",
            "SYSTEMROOT": os.environ.get("SYSTEMROOT", ""),
            **more,
        }

    def __call__(
        self, *arguments: str, code: int = 0, stdin: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*AKM, *arguments], env={**self.environment, **more}, cwd=self.home, input=stdin,
            capture_output=True, text=True, encoding="utf-8", timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "\x1b" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, **more: Any) -> Any:
        return json.loads(self(*arguments, "--json", **more).stdout)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*AKM, *arguments], env=self.environment, cwd=self.home, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip
