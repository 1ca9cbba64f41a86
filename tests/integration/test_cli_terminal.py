"""``akm`` on a terminal: tables, colour, questions, hidden input. Elsewhere there are none."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api_key_manager import sign
from tests.integration.commands import AKM, AkmProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX"),
]


def _with_database(home: Path, **more: str) -> AkmProcess:
    akm = AkmProcess(home, **more)
    akm("db", "upgrade")
    return akm


# What a log-in does: the terminal becomes the one on which Ctrl-C is typed. As a program of its
# own: a process with threads, in which a test may run, must not fork.
_LOGIN = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def _on_terminal(akm: AkmProcess, *arguments: str, typed: str = "") -> tuple[int, str]:
    """Run with a terminal on all three streams; type once it asks."""
    import pty

    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _LOGIN, *AKM[1:], *arguments], cwd=akm.home, env=akm.environment,
        stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
    )  # fmt: skip
    os.close(inside)
    screen = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.2)[0]:
            if typed and screen.rstrip().endswith((b"[y/N]", b"Secret:")):
                os.write(terminal, typed.encode())
                typed = ""
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not chunk:
            break
        screen += chunk
    else:
        process.kill()
    code = process.wait(30)
    os.close(terminal)
    return code, screen.decode(errors="replace")


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_tables_and_colour_only_on_a_terminal(
    tmp_path: Path, more: dict[str, str], coloured: bool
) -> None:
    akm = _with_database(tmp_path, TERM="xterm-256color", COLUMNS="100", **more)
    akm("keys", "create", "shown", "--owner", "[red]not markup")
    code, screen = _on_terminal(akm, "keys", "list")
    assert code == 0
    assert "┃" in screen or "│" in screen
    assert "[red]not markup" in screen
    assert ("\x1b[" in screen) is coloured
    code, screen = _on_terminal(akm, "keys", "create")
    assert code == 0, screen
    secret = re.search(r"akm_secret_[0-9A-Za-z]{36}", screen)
    assert secret is not None


def test_questions_are_asked_on_a_terminal(tmp_path: Path) -> None:
    akm = _with_database(tmp_path, TERM="dumb")
    akm("keys", "create", "k", "--owner", "o")
    code, screen = _on_terminal(akm, "keys", "delete", "k", typed="n\n")
    assert code == 1
    assert "Delete k for good? [y/N]" in screen
    assert "nothing was changed" in screen
    code, screen = _on_terminal(akm, "keys", "revoke", "--owner", "o", typed="y\n")
    assert code == 0
    assert "1 key revoked" in screen
    code, screen = _on_terminal(akm, "keys", "create", "typed", "--secret-stdin",
                                typed="hunter2hunter2\n")  # fmt: skip
    assert code == 0
    assert akm("validate", "typed", sign("hunter2hunter2", "typed")).stdout.startswith("valid")
    # Typed on a terminal it is not echoed; it is shown once, in the answer.
    assert screen.count("hunter2hunter2") == 1
    code, screen = _on_terminal(akm, "keys", "delete", "typed", typed="\x03")
    assert code == 130
    assert "Traceback" not in screen
