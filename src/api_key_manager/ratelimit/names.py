"""Names of what is kept in Redis."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["check_prefix"]

_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def check_prefix(prefix: str) -> str:
    """What all names of one deployment begin with.

    Braces are not allowed in it: those mark what a cluster sorts names by.

    Raises:
        ValueError: it is none.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("prefix: 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return prefix
