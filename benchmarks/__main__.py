"""Run the benchmarks: all, or those named.

python -m benchmarks [inprocess] [peers] [startup] [http] [soak] [redis] [audit]
python -m benchmarks cluster [sections and options of its own]
"""

from __future__ import annotations

import asyncio
import logging
import platform
import ssl
import sys
import tempfile
from pathlib import Path

from benchmarks import audit, http, inprocess, peers, redis, soak, startup

SECTIONS = {
    "inprocess": inprocess.run,
    "startup": startup.run,
    "peers": peers.run,
    "http": http.run,
    "soak": soak.run,
    "redis": redis.run,
    "audit": audit.run,
}
# Needs nginx and wrk, or redis-server.
ON_DEMAND = {"http", "soak", "redis"}


def main() -> int:
    if sys.argv[1:2] == ["cluster"]:
        from benchmarks.cluster import suite

        return suite.main(sys.argv[2:])
    names = sys.argv[1:] or [name for name in SECTIONS if name not in ON_DEMAND]
    for name in names:
        if name not in SECTIONS:
            print(f"{name}: there are {', '.join(SECTIONS)}", file=sys.stderr)
            return 2
    logging.disable(logging.WARNING)
    print(f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {platform.machine()}")
    good = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            good = asyncio.run(SECTIONS[name](Path(folder))) and good
    print("\nEvery target was met." if good else "\nA target was missed: see above.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
