"""The published name, for a clone: ``from config import Settings``. The package holds the code."""

from __future__ import annotations

from api_key_manager.config import Settings

__all__ = ["Settings"]
