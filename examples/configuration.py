"""Read the settings, then use them: ``python examples/configuration.py``.

The environment and ``.env`` change them: ``VALIDATION_WINDOW_MINUTES=30 python ...``.
"""

from config import Settings
from core import AsyncAPIKeyValidator

# Access settings
print(f"Validation window: {Settings.VALIDATION_WINDOW_MINUTES} minutes")
print(f"Vault enabled: {Settings.VAULT_ENABLED}")

# The library reads no environment by itself: hand it what it shall use.
validator = AsyncAPIKeyValidator(
    validation_window_minutes=Settings.VALIDATION_WINDOW_MINUTES,
    clock_skew_tolerance_seconds=Settings.CLOCK_SKEW_TOLERANCE_SECONDS,
    cache_ttl_seconds=Settings.CACHE_TTL_SECONDS,
    allow_static_signatures=Settings.ALLOW_STATIC_SIGNATURES,
)
print(f"Validator cache: {validator.get_cache_stats()}")
