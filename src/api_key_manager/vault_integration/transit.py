"""The key-encryption key that never leaves Vault: wraps the keyring by the transit engine."""

from __future__ import annotations

from api_key_manager.core.exceptions import EncryptionError, VaultError
from api_key_manager.vault_integration.errors import REFUSED
from api_key_manager.vault_integration.vault_client import VaultClient

__all__ = ["TransitKey"]


class TransitKey:
    """A key of the transit engine; keys are bound to their place by associated data.

    Args:
        client: whose token may use the key.
        key: its name, of a type with associated data, as ``aes256-gcm96``.
    """

    def __init__(self, client: VaultClient, key: str) -> None:
        self._client, self._key = client, key
        self.name = f"vault-transit:{key}"
        self.source = f"transit/keys/{key} of Vault"

    def __repr__(self) -> str:
        return f"TransitKey({self.name!r})"

    async def wrap(self, key: bytes, bound: bytes) -> bytes:
        """Encrypt a key. Raises ``VaultError``."""
        return (await self._client.run(self._client.encrypt, self._key, key, bound)).encode()

    async def unwrap(self, wrapped: bytes, bound: bytes) -> bytes:
        """The key again.

        Raises:
            EncryptionError: another key wrapped it, or something was changed.
            VaultError: Vault cannot be asked.
        """
        try:
            text = wrapped.decode("ascii")
            return await self._client.run(self._client.decrypt, self._key, text, bound)
        except UnicodeDecodeError:
            pass
        except VaultError as error:
            if error.reason != REFUSED:
                raise
        raise EncryptionError(f"the key-encryption key {self.name} does not fit")

    async def close(self) -> None:
        """Let go of the connections."""
        self._client.close()
