"""The published place of ``VaultClient``, for a clone."""

from __future__ import annotations

from api_key_manager.vault_integration.vault_client import Secret, SecretVersion, VaultClient

__all__ = ["Secret", "SecretVersion", "VaultClient"]
