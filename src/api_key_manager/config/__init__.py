"""Configuration: read once, at the edge. Only ``wiring``, ``cli`` and ``server`` import it."""

from __future__ import annotations

from api_key_manager.config.settings import Settings

__all__ = ["Settings"]
