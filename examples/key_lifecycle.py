"""Create, validate, list and revoke a key in memory: ``python examples/key_lifecycle.py``."""

import asyncio

from api_key_manager import sign
from core import AsyncAPIKeyValidator, KeyManager
from core.exceptions import KeyRevokedError


async def manage_keys():
    # Initialize manager with validator
    validator = AsyncAPIKeyValidator()
    manager = KeyManager(validator)

    # Create a new key
    key = await manager.create_key(
        key_id="client-123",
        secret="super-secret-key",
        metadata={"client_name": "Acme Corp", "tier": "premium"},
    )
    print(f"Created key: {key['key_id']}")

    # Validate the key
    is_valid = await manager.validate_key(
        key_id="client-123",
        signature=sign("super-secret-key", "client-123"),
    )
    print(f"Key valid: {is_valid}")

    # List active keys
    active_keys = manager.list_keys(active_only=True)
    print(f"Active keys: {len(active_keys)}")

    # Revoke a key
    await manager.revoke_key("client-123")
    print("Key revoked")

    # From here on the same signature is refused
    try:
        await manager.validate_key("client-123", sign("super-secret-key", "client-123"))
    except KeyRevokedError as e:
        print(f"Refused: {e.reason}")

    # Get audit log
    audit_log = manager.get_audit_log()
    print(f"Operations logged: {len(audit_log)}")
    for entry in audit_log:
        print(f"{entry['timestamp']} - {entry['action']}: {entry['key_id']}")


asyncio.run(manage_keys())
