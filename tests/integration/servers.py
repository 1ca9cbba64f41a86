"""`akm serve` as a process."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["COMMAND", "TOKEN", "Server", "environment", "refused", "started"]

COMMAND = [sys.executable, "-m", "api_key_manager", "serve"]
TOKEN = "t" * 40


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "XDG_CONFIG_HOME": str(tmp_path / "config"), "PORT": "0", **settings}


class Server:
    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self._output = output
        self.text = ""

    def read_greeting(self) -> str:
        """What it prints; returns once the first block is there."""
        deadline = time.monotonic() + 20
        while "admin token" not in self.text or not self.text.endswith("\n"):
            assert time.monotonic() < deadline, self.text
            try:
                chunk = os.read(self._output, 65_536).decode().replace("\r\n", "\n")
            except OSError:  # what a closed terminal says
                chunk = ""
            assert chunk, f"it ended: {self.text}"
            self.text += chunk
        return self.text

    @property
    def url(self) -> str:
        found = re.search(r"docs +(\S+)/docs", self.text)
        assert found, self.text
        return found[1]

    def read_rest(self) -> str:
        """Whatever else it prints until it ends."""
        return b"".join(iter(lambda: os.read(self._output, 65_536), b"")).decode()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(20)


@contextmanager
def started(tmp_path: Path, *, terminal: bool = False, **settings: str) -> Iterator[Server]:
    reader, writer = pty.openpty() if terminal else os.pipe()
    with (tmp_path / "stderr").open("ab") as errors:
        process = subprocess.Popen(
            COMMAND, stdout=writer, stderr=errors, cwd=tmp_path,
            env=environment(tmp_path, **settings),
        )  # fmt: skip
    os.close(writer)
    server = Server(process, reader)
    try:
        server.read_greeting()
        yield server
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def refused(tmp_path: Path, **settings: str) -> str:
    """The one line with which a start is refused."""
    done = subprocess.run(
        COMMAND, cwd=tmp_path, env=environment(tmp_path, **settings), capture_output=True,
        text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
