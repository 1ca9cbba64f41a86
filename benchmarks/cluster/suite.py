"""The sections, and the cluster that they run on.

python -m benchmarks cluster [revocation] [limits] [scale] [nodes] [coldstart] [options]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from benchmarks.cluster import coldstart, limits, nodes, revocation, scale
from scripts.cluster import Cluster, ClusterError, Ports

__all__ = ["main"]


class Section(NamedTuple):
    """A module with `add_arguments` and `run`, and the cluster that it needs."""

    module: ModuleType
    workers: int = 2
    settings: Mapping[str, str] | None = None


SECTIONS = {
    "revocation": Section(revocation),
    "limits": Section(limits),
    "nodes": Section(nodes, workers=1),
    "coldstart": Section(coldstart),
    "scale": Section(scale, settings={"CACHE_MAX_ENTRIES": str(scale.CACHE)}),
}


def main(arguments: Sequence[str]) -> int:
    """Run the sections that are named, or all; 1 when a target was missed."""
    parser = argparse.ArgumentParser("make bench-cluster", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS))
    parser.add_argument(
        "--folder", type=Path, help="where PostgreSQL's data goes, as for 10 million keys"
    )
    for section in SECTIONS.values():
        section.module.add_arguments(parser)
    given = parser.parse_args(arguments)
    unknown = [name for name in given.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"{unknown[0]}: there are {', '.join(SECTIONS)}")
    # As Ctrl-C does: whatever was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    good = True
    for name in given.sections or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="akm-bench-", dir=given.folder) as folder:
            # So that PostgreSQL's own user gets through to its data; the secrets lie behind 0700.
            Path(folder).chmod(0o711)
            try:
                good = _run(SECTIONS[name], Path(folder), given) and good
            except ClusterError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
            finally:
                Cluster.empty(Path(folder))
    print("\nEvery target was met." if good else "\nA target was missed: see above.")
    return 0 if good else 1


def _run(section: Section, folder: Path, given: argparse.Namespace) -> bool:
    """One section on a cluster of its own, which is new and gone afterwards."""
    with Cluster(
        folder, Ports.free(3), workers=section.workers, settings=section.settings
    ) as cluster:
        good: bool = asyncio.run(section.module.run(cluster, given))
        return good
