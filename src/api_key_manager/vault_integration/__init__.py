"""Vault or OpenBao: secrets in its key-value store, and encryption by its transit engine."""

from api_key_manager.vault_integration.auth import AppRole, Kubernetes
from api_key_manager.vault_integration.vault_client import Secret, SecretVersion, VaultClient

__all__ = ["AppRole", "Kubernetes", "Secret", "SecretVersion", "VaultClient"]
