"""Check signatures with a secret that you hold: ``python examples/basic_validation.py``."""

import asyncio
import time

from api_key_manager import sign
from core import AsyncAPIKeyValidator


async def validate_key():
    validator = AsyncAPIKeyValidator(
        validation_window_minutes=360,  # 6 hours
        clock_skew_tolerance_seconds=60,
    )

    # A signature over the key alone: it can be replayed for as long as the secret lives.
    try:
        is_valid = await validator.validate(
            key="my-api-key",
            signature=sign("my-secret-key", "my-api-key"),
            secret="my-secret-key",
        )
        print(f"Key valid: {is_valid}")
    except Exception as e:
        print(f"Validation error: {e}")

    # A signature over key and timestamp: it is worth nothing once the window has passed.
    now = int(time.time())
    try:
        is_valid = await validator.validate(
            key="my-api-key",
            signature=sign("my-secret-key", "my-api-key", now),
            secret="my-secret-key",
            timestamp=now,
        )
        print(f"Key valid with a timestamp: {is_valid}")
    except Exception as e:
        print(f"Validation error: {e}")

    # The same signature under another timestamp is refused, and the exception says why.
    try:
        await validator.validate(
            key="my-api-key",
            signature=sign("my-secret-key", "my-api-key", now),
            secret="my-secret-key",
            timestamp=now - 1,
        )
    except Exception as e:
        print(f"Validation error: {e}")


asyncio.run(validate_key())
