"""Where the programs are, and which Debian packages bring those that are missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from scripts.cluster.errors import MissingProgramError

__all__ = ["find", "postgres_folder", "require"]

_PACKAGES = {"initdb": "postgresql", "redis-server": "redis-server", "nginx": "nginx"}
# Debian keeps some where only root's PATH looks.
_SYSTEM = "/usr/sbin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin"


def find(name: str) -> str | None:
    """The path of a program, ``None`` when there is none."""
    if name == "initdb":
        folder = postgres_folder()
        return str(folder / name) if folder else None
    return shutil.which(name) or shutil.which(name, path=_SYSTEM)


def postgres_folder(version: str | None = None) -> Path | None:
    """Where PostgreSQL's server programs are.

    Args:
        version: the major version that made the data, which no other one reads; else the newest.
    """
    debian = [f.parent for f in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    known = {f.parent.name: f for f in debian}
    if version is not None and version in known:
        return known[version]
    if known:
        return known[max(known, key=lambda name: [int(n) for n in name.split(".") if n.isdigit()])]
    path = shutil.which("initdb") or shutil.which("initdb", path=_SYSTEM)
    return Path(path).resolve().parent if path else None


def require(names: Iterable[str] = tuple(_PACKAGES)) -> None:
    """Make sure that all are there.

    Raises:
        MissingProgramError: one line that names all that are missing, and their packages.
    """
    missing = [name for name in names if find(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(_PACKAGES[name] for name in missing))
        raise MissingProgramError(
            f"{', '.join(missing)} not found: install {packages}"
            f" (Debian, Ubuntu: apt-get install {packages})"
        )
