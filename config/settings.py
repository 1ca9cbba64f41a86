"""The published place of ``Settings``, for a clone."""

from __future__ import annotations

from api_key_manager.config.settings import Settings

__all__ = ["Settings"]
