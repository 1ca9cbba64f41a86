"""Keys inside a Python app: ASGI and WSGI middleware, and a dependency for FastAPI.

>>> from api_key_manager.integrations import ApiKeyMiddleware, RateLimitMiddleware  # ASGI
>>> from api_key_manager.integrations.fastapi import require_key
>>> from api_key_manager.integrations.wsgi import ApiKeyMiddleware  # Flask, Django

FastAPI is imported with :mod:`api_key_manager.integrations.fastapi` only.
"""

from api_key_manager.integrations.asgi import ApiKeyMiddleware
from api_key_manager.integrations.guard import has_permissions
from api_key_manager.integrations.ratelimit import RateLimitMiddleware

__all__ = ["ApiKeyMiddleware", "RateLimitMiddleware", "has_permissions"]
