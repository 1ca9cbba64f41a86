"""Vault, as the settings name it."""

from __future__ import annotations

from collections.abc import Sequence

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import APIKeyManagerException, ConfigurationError, VaultError
from api_key_manager.vault_integration import AppRole, Kubernetes, VaultClient
from api_key_manager.vault_integration.secret_store import FOLDER, VaultSecrets
from api_key_manager.vault_integration.transit import TransitKey
from api_key_manager.wiring.backend import Backend

__all__ = ["keep_secrets", "open_vault", "transit_key", "vault_problems"]

# A request waits for these: two attempts, and no more.
_TIMEOUT = 2.0
_ATTEMPTS = 2


def open_vault(settings: Settings) -> VaultClient:
    """A client that logs in as the settings say.

    Raises:
        ConfigurationError: one of them cannot be used.
    """
    auth: AppRole | Kubernetes | None = None
    if settings.VAULT_ROLE_ID:
        auth = AppRole(settings.VAULT_ROLE_ID, settings.VAULT_SECRET_ID)
    elif settings.VAULT_KUBERNETES_ROLE:
        auth = Kubernetes(settings.VAULT_KUBERNETES_ROLE)
    try:
        return VaultClient(
            settings.VAULT_ADDR,
            settings.VAULT_TOKEN,
            auth=auth,
            mount=settings.VAULT_NAMESPACE,
            namespace=settings.VAULT_ENTERPRISE_NAMESPACE,
            ca_file=settings.VAULT_CACERT,
            timeout=_TIMEOUT,
            attempts=_ATTEMPTS,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"Vault: {error}") from None


def transit_key(settings: Settings) -> TransitKey:
    """The key-encryption key of ``KEK_PROVIDER=vault-transit``."""
    return TransitKey(open_vault(settings), settings.VAULT_TRANSIT_KEY)


def keep_secrets(settings: Settings, backend: Backend) -> VaultSecrets | None:
    """Put Vault in front of the box, for secrets that are, or were, kept there.

    Raises:
        ConfigurationError: keys in memory, which end before their secrets in Vault would.
    """
    if not settings.vault_credentials or not settings.VAULT_ENABLED:
        return None
    if backend.box is None:
        if settings.SECRET_STORE == "vault" or settings.KEK_PROVIDER == "vault-transit":
            raise ConfigurationError("DATABASE_URL=memory:// does not go with secrets in Vault")
        return None
    box = VaultSecrets(
        backend.box,
        open_vault(settings),
        settings.VAULT_LEASE_SECONDS,
        writes=settings.SECRET_STORE == "vault",
    )
    backend.box = box
    return box


async def vault_problems(settings: Settings) -> Sequence[str]:
    """What is wrong with Vault, for ``akm doctor``: none, if it does all that the settings ask."""
    client = open_vault(settings)
    found = []
    try:
        state = await client.run(client.health)
        if state not in ("active", "performance standby"):
            found.append(f"Vault at {settings.VAULT_ADDR} is {state}")
        if settings.KEK_PROVIDER == "vault-transit":
            key = TransitKey(client, settings.VAULT_TRANSIT_KEY)
            await key.unwrap(await key.wrap(b"doctor", b"doctor"), b"doctor")
        if settings.SECRET_STORE == "vault":
            await client.run(client.list, FOLDER)
    except VaultError as error:
        found.append(f"{error} ({error.reason})")
    except APIKeyManagerException as error:
        found.append(str(error))
    finally:
        client.close()
    return found
