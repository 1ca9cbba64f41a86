"""How fast secrets and tokens are looked for: ``python benchmarks/scan.py``."""

from __future__ import annotations

import base64
import io
import os
import random
import sys
import time
from pathlib import Path

from api_key_manager.core.scanning import Scanner

SIZE = 30_000_000


def source() -> bytes:
    """Code of the standard library, over and over."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)
    return (text * (SIZE // len(text) + 1))[:SIZE]


def speed(data: bytes, prefixes: list[str] | None) -> float:
    """Megabytes a second of processor time, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for _ in Scanner(prefixes).scan(io.BytesIO(data).read):
            pass
        best = min(best, time.process_time() - began)
    return len(data) / best / 1e6


def main() -> None:
    noise = random.Random(1).randbytes(SIZE)
    contents = {
        "Python source": source(),
        "random bytes": noise,
        "base64url": base64.urlsafe_b64encode(noise),
    }
    for name, data in contents.items():
        one, every = speed(data, ["akm"]), speed(data, None)
        sys.stdout.write(f"| {name} | {one:.0f} | {every:.0f} |\n")


if __name__ == "__main__":
    main()
