"""A SQLite file in a folder of its own, and other processes that work on it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

from api_key_manager.config import Settings
from api_key_manager.core import KeyManager, Verdict, sign
from api_key_manager.core.keeping import KeyLifeCycle
from api_key_manager.wiring import Deployment, Worker, open_deployment

__all__ = ["BOUND", "Child", "Place", "first_refusal", "signed", "until"]

# Seconds from a commit to the last answer that may not know of it, as the settings have it.
BOUND = 2.0

_CHILDREN = Path(__file__).with_name("children.py")
_OURS = ("AKM_", "DATABASE_URL", "ALLOW_", "AUDIT_", "AUTHORIZE_", "CACHE_", "REVOCATION_")


class Child:
    """Another process on the same file; it speaks in lines. Killed when the block ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line; an early end of the child fails the test with what it said."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the child ended: {self.process.communicate()[1][-2000:]}")
        return line.rstrip("\n")

    def rest(self) -> str:
        """Everything else that it says until it ends."""
        # Not by communicate(), which would lose what readline() has read ahead.
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        self.process.wait(60)
        return out

    def done(self) -> list[str]:
        """The same in lines, and it must end well."""
        lines = self.rest().splitlines()
        assert self.process.returncode == 0, self.process.communicate()[1][-2000:]
        return lines


class Place:
    """A database file and its master key, each in its own folder below ``folder``."""

    def __init__(self, folder: Path, name: str = "akm") -> None:
        self.folder = folder
        self.file = folder / "data" / f"{name}.db"
        self.key_file = folder / "keys" / f"{name}.key"

    def settings(self, **overrides: Any) -> Settings:
        mine = {"DATABASE_URL": f"sqlite:///{self.file}"}
        if "AKM_MASTER_KEY" not in overrides:
            mine["AKM_MASTER_KEY_FILE"] = str(self.key_file)
        return Settings.load(**{**mine, **overrides})

    def open(
        self,
        *,
        create: bool = True,
        background: bool = True,
        worker: Worker | None = None,
        **overrides: Any,
    ) -> AbstractAsyncContextManager[Deployment]:
        return open_deployment(
            self.settings(**overrides), create=create, background=background, worker=worker
        )

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What somebody with the file in an editor does: in its own connection, committed."""
        with closing(sqlite3.connect(self.file, timeout=30, isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: v for name, v in os.environ.items() if not name.startswith(_OURS)}
        mine = {
            "DATABASE_URL": f"sqlite:///{self.file}",
            "AKM_MASTER_KEY_FILE": str(self.key_file),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "PYTHONWARNINGS": "error",
        }
        return {**kept, **mine, **more}

    def child(self, task: str, *arguments: object, **env: str) -> Child:
        """Start a task of ``children.py``."""
        return Child(
            subprocess.Popen(
                [sys.executable, str(_CHILDREN), task, *map(str, arguments)],
                cwd=self.folder,
                env=self.environment(**env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def akm(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on this database."""
        return subprocess.run(
            [sys.executable, "-m", "api_key_manager", *arguments],
            cwd=self.folder,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def signed(
    manager: KeyLifeCycle, key: dict[str, Any], nonce: str | None = None, *, age: int = 0
) -> dict[str, Any]:
    """The arguments of a validation of a signed key, now."""
    at = int(manager.clock()) - age
    return {
        "key_id": key["key_id"],
        "signature": sign(key["secret"], key["key_id"], at, nonce),
        "timestamp": at,
        "nonce": nonce,
    }


async def first_refusal(manager: KeyManager, key: dict[str, Any], committed: float) -> Verdict:
    """Ask until the key is refused; no question from past the bound may be answered with a yes."""
    while True:
        # Before the question: a pause of the machine behind the answer is not the manager's.
        asked = time.monotonic()
        verdict = await manager.verify(**signed(manager, key))
        if not verdict:
            return verdict
        assert asked - committed <= BOUND
        await asyncio.sleep(0.005)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
