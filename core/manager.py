"""The published place of ``KeyManager``, for a clone."""

from __future__ import annotations

from api_key_manager.core.manager import KeyManager

__all__ = ["KeyManager"]
