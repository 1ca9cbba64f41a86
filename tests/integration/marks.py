"""Marked secrets, and the search for them in whatever is left of a run."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["find", "forms", "random_part"]


@lru_cache(maxsize=1000)
def forms(mark: str | bytes) -> dict[str, bytes]:
    """How it could stand in a file: as it is, in hex, percent-encoded, in base64 at each
    alignment."""
    raw = mark.encode() if isinstance(mark, str) else mark
    found = {"raw": raw, "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode()}
    found["percent"] = "".join(f"%{byte:02x}" for byte in raw).encode()
    found["PERCENT"] = found["percent"].upper()
    found["utf-16"] = b"".join(bytes([byte, 0]) for byte in raw)
    for shift in range(3):
        for name, encode in (("b64", base64.b64encode), ("url", base64.urlsafe_b64encode)):
            text = encode(bytes(shift) + raw).rstrip(b"=")
            # The ends depend on the neighbours.
            found[f"{name}{shift}"] = text[(0, 2, 3)[shift] : -1]
    return found


def find(marks: Mapping[str, str | bytes], data: bytes) -> list[str]:
    """Which marks are in there, and how."""
    return [
        f"{name} as {form}"
        for name, mark in marks.items()
        for form, looks in forms(mark).items()
        if looks in data
    ]


def random_part(secret: str) -> str:
    """Tokens and secrets of ours are told by their random part alone."""
    if secret.startswith("whsec_"):
        return secret.removeprefix("whsec_")
    return secret.rpartition("_")[2][:30] if secret.startswith("akm_") else secret
