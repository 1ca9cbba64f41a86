"""The published names, for a clone: ``from core import KeyManager``. The package holds the code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("api_key_manager") is None:
    # A clone with its requirements installed, as published, but not itself.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from api_key_manager.core import AsyncAPIKeyValidator, KeyManager

__all__ = ["AsyncAPIKeyValidator", "KeyManager"]
