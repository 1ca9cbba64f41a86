"""The published name, for a clone: ``from vault_integration import VaultClient``.

The package holds the code.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("api_key_manager") is None:
    # A clone with its requirements installed, as published, but not itself.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from api_key_manager.vault_integration import (
    AppRole,
    Kubernetes,
    Secret,
    SecretVersion,
    VaultClient,
)

__all__ = ["AppRole", "Kubernetes", "Secret", "SecretVersion", "VaultClient"]
