"""Whose a folder is: one cluster's at a time, and not while parts of an earlier one still run.

Both rest on locks of the kernel (flock), which end with the processes that hold them, however these
end: nothing that a crash leaves behind is taken for a cluster that runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from scripts.cluster.errors import ClusterError

__all__ = ["Claim", "marked", "way_out"]

_LOCK = "lock"
# Parts that were just told to end get a moment; those that nobody told don't end.
_ENDING_SECONDS = 3.0
_HIGHEST_PORT = 64_000


class Claim:
    """The right to read, write and empty a cluster's folder, until it is released.

    It is this process's alone: what it starts does not inherit it.

    Args:
        folder: made when it is not there.
        port: the first one, which what is suggested instead differs from.

    Raises:
        ClusterError: another cluster has it, or parts of one that was killed still run.
        OSError: it cannot be made or written.
    """

    def __init__(self, folder: Path, port: int = 5000) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Never removed: whoever made it anew would hold another lock than whoever has it open.
        self._descriptor = _open(folder / _LOCK)
        try:
            if not _lock(self._descriptor):
                raise ClusterError(f"another cluster runs in {folder}: {way_out(port)}")
            _refuse_left(folder)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go of it; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def way_out(port: int) -> str:
    """What to type for a second cluster: its own ports alone would meet the first one's folder."""
    other = port + 1000 if port + 1000 <= _HIGHEST_PORT else 6000
    return (
        "choose another first port and folder, as in"
        f" make cluster ARGS='--port {other} --folder data/cluster-{other}'"
    )


@contextmanager
def marked(log: Path) -> Iterator[int]:
    """The mark of a part beside its log: locked as long as it runs, or anything that it started.

    Yields:
        A descriptor for the part to inherit; its process id is to be written there.
    """
    descriptor = _open(log.with_suffix(".pid"))
    try:
        # Shared: workers of an earlier start may still have it for a moment.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.ftruncate(descriptor, 0)
        yield descriptor
    finally:
        os.close(descriptor)


class _Left(NamedTuple):
    """A part of a cluster that was killed. Its number is that of its process group too."""

    name: str
    pid: str


def _refuse_left(folder: Path) -> None:
    deadline = time.monotonic() + _ENDING_SECONDS
    while left := _left(folder / "logs"):
        if time.monotonic() > deadline:
            names = ", ".join(f"{part.name} ({part.pid or 'just started'})" for part in left)
            # The groups: workers whose node was killed too would not hear of it otherwise.
            groups = " ".join(f"-{part.pid}" for part in left if part.pid)
            raise ClusterError(
                f"a cluster in {folder} was killed and left running: {names};"
                f" end them: kill -- {groups}"
            )
        time.sleep(0.05)


def _left(logs: Path) -> list[_Left]:
    found = []
    for file in sorted(logs.glob("*.pid")):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            if not _lock(descriptor):
                found.append(_Left(file.stem, file.read_text(encoding="ascii").strip()))
        finally:
            os.close(descriptor)
    return found


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _lock(descriptor: int) -> bool:
    """Whether nobody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
