"""What callers install: signed requests for httpx and requests, and a client of the server's API.

>>> from api_key_manager.client import HttpxSignature
>>> auth = HttpxSignature("client-123", "super-secret-key")  # httpx.get(url, auth=auth)
>>> auth
HttpxSignature('client-123')

requests is not among the package's dependencies: ``RequestsSignature`` needs it when it is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api_key_manager.client.errors import ApiError, NoAnswerError, UnauthorizedError
from api_key_manager.client.exchange import Retries
from api_key_manager.client.faces import AsyncClient, Client
from api_key_manager.client.httpx_auth import HttpxSignature
from api_key_manager.client.shapes import RemoteVerdict

if TYPE_CHECKING:
    from api_key_manager.client.requests_auth import RequestsSignature

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "HttpxSignature",
    "NoAnswerError",
    "RemoteVerdict",
    "RequestsSignature",
    "Retries",
    "UnauthorizedError",
]


def __getattr__(name: str) -> Any:
    if name == "RequestsSignature":
        from api_key_manager.client.requests_auth import RequestsSignature

        return RequestsSignature
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
