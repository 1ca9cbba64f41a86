"""Who runs PostgreSQL, which refuses to run as root, and where that account can keep data."""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from scripts.cluster.errors import ClusterError

__all__ = ["Account", "account", "elsewhere", "home"]

_ELSEWHERE = Path("/var/tmp")  # noqa: S108 - the folder in it is checked, see _own()


class Account(NamedTuple):
    """A user of the system."""

    name: str
    uid: int
    gid: int


def account() -> Account | None:
    """Root's stand-in, ``None`` for everybody else: they run it themselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, found.pw_uid, found.pw_gid)
    raise ClusterError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def home(wanted: Path, who: Account | None) -> Path:
    """A folder that the account owns and can reach: ``wanted``, unless one above is closed to it.

    Nobody's permissions are widened for it: a clone in a private home stays private, and the data
    lies in a folder of its own under /var/tmp, named after ``wanted``.
    """
    if who is None:
        wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        return wanted
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if not all(_may_pass(parent, who) for parent in wanted.absolute().parents):
        wanted = elsewhere(wanted)
    _own(wanted, who)
    return wanted


def elsewhere(wanted: Path) -> Path:
    """The folder that stands in for one that cannot be reached."""
    digest = hashlib.sha256(str(wanted.absolute()).encode()).hexdigest()[:16]
    return _ELSEWHERE / f"akm-cluster-{digest}"


def _may_pass(folder: Path, who: Account) -> bool:
    found = folder.stat()
    if found.st_uid == who.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == who.gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _own(folder: Path, who: Account) -> None:
    """Give it to the account, unless it is somebody else's: in /var/tmp everybody makes folders."""
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, who.uid, who.gid)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != who.uid:
            raise ClusterError(f"{folder} is not a folder of {who.name}: remove it") from None
