"""How acceptance tests run other programs: with nothing of this process's settings around them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["clean_environment", "output", "run", "tool"]

NEEDED_IN_CI = {"curl", "node", "openssl"}
_KEPT = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")


def tool(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails where it must be there."""
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is not installed: what it would run is not tested"
        if name in NEEDED_IN_CI and os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """An environment whose home is ``home`` and in which this Python's programs come first."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    programs = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([programs, kept.get("PATH", os.defpath)])
    here = {"HOME": str(home), "USERPROFILE": str(home), "PYTHONUTF8": "1"}
    # Go looks for its compiled standard library at home.
    cache = os.environ.get("GOCACHE") or str(Path.home() / ".cache" / "go-build")
    return kept | here | {"GOCACHE": cache, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"} | more


def run(
    command: list[str], cwd: Path, text: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; ``cwd`` is its home too."""
    return subprocess.run(
        command, cwd=cwd, input=text, env=clean_environment(cwd, **env), capture_output=True,
        encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip


def output(command: list[str], cwd: Path, text: str | None = None, **env: str) -> str:
    """What a program printed; it must end well and complain of nothing."""
    done = run(command, cwd, text, **env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    return done.stdout
