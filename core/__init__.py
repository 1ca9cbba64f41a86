"""The published names, for a clone: ``from core import KeyManager``. The package holds the code."""

from __future__ import annotations

from api_key_manager.core import AsyncAPIKeyValidator, KeyManager

__all__ = ["AsyncAPIKeyValidator", "KeyManager"]
