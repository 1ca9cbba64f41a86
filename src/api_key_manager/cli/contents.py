"""What ``akm keys scan`` looks through: files, folders, standard input, and what git holds."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Final, NamedTuple

from api_key_manager.cli.errors import MISUSE, Failure

__all__ = ["Content", "files", "history", "introduced", "readable", "staged", "standard_input"]

_SUBMODULE: Final = b"160000"
# Nothing of the repository's own configuration is to run, and nothing is fetched.
_SAFE: Final = (
    "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "log.showSignature=false",
)  # fmt: skip
_ENVIRONMENT: Final = {
    # An older git knows of the latter only.
    "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none",
    "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
}  # fmt: skip
_PIECE: Final = 1 << 20


class Content(NamedTuple):
    """Something to look through.

    ``read`` gives the next bytes; ``problem`` says instead why that is not possible; ``blob`` is
    git's name for it.
    """

    name: str
    read: Callable[[int], bytes] = lambda size: b""
    problem: str | None = None
    blob: str | None = None


def readable(name: str | bytes) -> str:
    """A file's name as text, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def standard_input() -> Iterator[Content]:
    """All of it."""
    yield Content("-", sys.stdin.buffer.read)


def files(path: str) -> Iterator[Content]:
    """A file, or every regular file below a folder but for git's own. A link is followed only
    where it was named; what is no file (a socket, a pipe) is passed over below a folder."""
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - names may be any bytes
    except (OSError, ValueError) as error:
        yield Content(readable(path), problem=_why(error))
        return
    if is_folder:
        yield from _below(path)
    else:
        yield from _opened(path, os.O_RDONLY)


def _below(folder: str) -> Iterator[Content]:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield Content(readable(here), problem=_why(error))
            continue
        folders = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != ".git":
                    folders.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                # Put in its place meanwhile, a link would lead out, and a pipe would block.
                flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
                yield from _opened(entry.path, os.O_RDONLY | flags)
        waiting.extend(reversed(folders))


def _opened(path: str, flags: int) -> Iterator[Content]:
    name = readable(path)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        yield Content(name, problem=_why(error))
        return
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        yield Content(name, lambda size: stream.read(size) or b"")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it cannot be opened"


def history(repository: str) -> Iterator[Content]:
    """Everything that any branch, tag, stash or reflog of a repository leads to, each once."""
    with _git(repository, "rev-list", "--objects", "--all", "--reflog") as listed:
        yield from _objects(repository, listed)


def staged(repository: str) -> Iterator[Content]:
    """What the next commit of a repository would add or change, whole files."""
    raw = _said(
        repository, "diff", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev",
        "--no-ext-diff", "--no-textconv", "--ignore-submodules", "--diff-filter=ACMT",
    )  # fmt: skip
    fields = raw.split(b"\0")
    with tempfile.TemporaryFile() as listed:
        for head, name in zip(fields[::2], fields[1::2], strict=False):
            mode, blob = head.split()[1], head.split()[3]
            if mode != _SUBMODULE:
                listed.write(blob + b" " + name.replace(b"\n", b"?") + b"\n")
        listed.seek(0)
        yield from _objects(repository, listed)


@lru_cache(maxsize=1)  # of one object there may be many hits, one after the other
def introduced(repository: str, blob: str) -> str | None:
    """The oldest commit that has an object, if one is found."""
    try:
        told = _said(
            repository, "log", "--all", "--reflog", "--topo-order", "--format=%H", "--no-textconv",
            f"--find-object={blob}",
        )  # fmt: skip
    except Failure:
        return None
    commits = told.split()
    return commits[-1].decode("ascii") if commits else None


def _objects(repository: str, listed: IO[bytes]) -> Iterator[Content]:
    """Objects by the lines of a list: an id and, behind a blank, a name."""
    form = "--batch=%(objectname) %(objecttype) %(objectsize) %(rest)"
    with _git(repository, "cat-file", form, stdin=listed) as given:
        while head := given.readline():
            blob, kind, *more = head.rstrip(b"\n").split(b" ", 3)
            name = readable(more[1]) if len(more) > 1 and more[1] else kind.decode("ascii")
            if kind == b"missing":
                yield Content(blob.decode("ascii"), problem="this object is not in the repository")
                continue
            piece = _Piece(given, int(more[0]))
            yield Content(name, piece.read, blob=blob.decode("ascii"))
            piece.finish()
            given.readline()


class _Piece:
    """So many of the next bytes of a stream."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left))
        self._left = self._left - len(data) if data else 0
        return data

    def finish(self) -> None:
        while self._left:
            self.read(_PIECE)


def _command(repository: str, *words: str) -> list[str]:
    program = shutil.which("git")
    if program is None:
        raise Failure("git is not on PATH, and --history and --staged need it", MISUSE)
    return [program, *_SAFE, "-C", repository, *words]


def _said(repository: str, *words: str) -> bytes:
    with _git(repository, *words) as output:
        return output.read()


@contextmanager
def _git(repository: str, *words: str, stdin: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """What git prints; it is ended when nobody wants to read on.

    Raises:
        Failure: it failed, with its own last line.
    """
    command = _command(repository, *words)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - a program from PATH, and no shell
            command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, **_ENVIRONMENT},
        )  # fmt: skip
        stream = process.stdout
        assert stream is not None  # noqa: S101 - for the type checker
        finished = False
        try:
            yield stream
            finished = True
        finally:
            if not finished:
                process.kill()
            stream.close()
            code = process.wait()
        if code:
            errors.seek(0)
            lines = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
            told = lines[-1] if lines else f"exit code {code}"
            raise Failure(f"git in {readable(repository)}: {told}", MISUSE)
