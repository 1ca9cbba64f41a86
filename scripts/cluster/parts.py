"""One program of the cluster: started, waited for, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from scripts.cluster.accounts import Account
from scripts.cluster.claims import marked, way_out
from scripts.cluster.errors import ClusterError

__all__ = ["Part", "free_port", "listens", "refuse_taken"]

_START_SECONDS = 60.0
_SHOWN_LINES = 8


class Part:
    """A program that serves until it is told to stop.

    Args:
        name: for people.
        command: the program and its arguments.
        log: what it prints goes here; its process id beside it.
        ready: whether it answers; asked until it does.
        environment: of the process; this one's when left out.
        stop_signal: what ends it in good order.
        patience: seconds that it has for that.
        user: who runs it, when that is somebody else.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], bool],
        *,
        environment: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        patience: float = 30.0,
        user: Account | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._ready = ready
        self._environment = environment
        self._stop_signal = stop_signal
        self._patience = patience
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            ClusterError: it was never started.
        """
        if self._process is None:
            raise ClusterError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, without waiting."""
        who = self._user
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output, marked(self.log) as mark:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=self.log.parent if who is None else "/",
                env=self._environment,
                user=None if who is None else who.uid,
                group=None if who is None else who.gid,
                extra_groups=None if who is None else [],
                # Ctrl-C is for this process, which stops all in order.
                start_new_session=True,
                pass_fds=[mark],
            )  # fmt: skip
            os.write(mark, str(self._process.pid).encode())

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            ClusterError: it ended, or took too long; the last lines of its log stand in it.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready():
            if not self.running:
                raise ClusterError(f"{self.name} ended at its start:\n{self.last_lines()}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} does not answer:\n{self.last_lines()}")
            time.sleep(0.05)

    def ask_to_stop(self) -> None:
        """Tell it to stop, without waiting."""
        if self.running:
            self.send(self._stop_signal)

    def stop(self) -> int | None:
        """Stop it in good order; whoever takes too long is killed. Returns its exit code."""
        if self._process is None:
            return None
        self.ask_to_stop()
        try:
            return self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int | None:
        """End it as a power cut would."""
        if self._process is None:
            return None
        self._process.kill()
        return self._process.wait()

    def send(self, what: signal.Signals) -> None:
        """Send it a signal, as SIGSTOP and SIGCONT to see a pause."""
        with suppress(ProcessLookupError):
            self._process.send_signal(what) if self._process else None

    def last_lines(self) -> str:
        """The end of its log."""
        with suppress(OSError):
            text = self.log.read_text(encoding="utf-8", errors="replace")
            return "\n".join(text.splitlines()[-_SHOWN_LINES:])
        return ""


def free_port() -> int:
    """A port of loopback that nobody has right now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def refuse_taken(ports: Mapping[str, int]) -> None:
    """Look before anything is written or started.

    Args:
        ports: of each part; the first is the one that the others follow.

    Raises:
        ClusterError: a port is in use.
    """
    for name, port in ports.items():
        if listens(port):
            raise ClusterError(
                f"port {port} for {name} is in use, perhaps by another cluster or server: stop it,"
                f" or {way_out(next(iter(ports.values())))}"
            )
