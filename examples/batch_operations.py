"""Check many signatures in one call: ``python examples/batch_operations.py``."""

import asyncio

from api_key_manager import sign
from core import AsyncAPIKeyValidator


async def batch_validate():
    validator = AsyncAPIKeyValidator()

    validations = [
        {"key": "key-1", "signature": sign("secret1", "key-1"), "secret": "secret1"},
        {"key": "key-2", "signature": sign("secret2", "key-2"), "secret": "secret2"},
        {"key": "key-3", "signature": "sig3", "secret": "secret3"},  # not a signature
    ]

    # One result per item, in order; a bad item is False and spoils no other
    results = await validator.batch_validate(validations)

    for i, result in enumerate(results):
        print(f"Key {i + 1}: {'Valid' if result else 'Invalid'}")


asyncio.run(batch_validate())
