"""What was published, as it was published: more than one test holds the project to it."""

from __future__ import annotations

__all__ = ["ENVIRONMENT"]

ENVIRONMENT = """\
# Validation
VALIDATION_WINDOW_MINUTES=360          # Default: 6 hours
CLOCK_SKEW_TOLERANCE_SECONDS=60        # Default: 60 seconds

# Application
DEBUG=false
LOG_LEVEL=INFO

# Vault (Optional)
VAULT_ENABLED=false
VAULT_ADDR=http://127.0.0.1:8200
VAULT_TOKEN=dev-token
VAULT_NAMESPACE=kv

# Caching
CACHE_TTL_SECONDS=300

# Rate Limiting
RATE_LIMIT_ENABLED=false
RATE_LIMIT_PER_MINUTE=100
"""
