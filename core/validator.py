"""The published place of ``AsyncAPIKeyValidator``, for a clone."""

from __future__ import annotations

from api_key_manager.core.validator import AsyncAPIKeyValidator

__all__ = ["AsyncAPIKeyValidator"]
