"""FastAPI: a dependency that yields the verdict, with or without the middleware around the app."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException

from api_key_manager.core.exceptions import ConfigurationError, Reason
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.models import Verdict
from api_key_manager.integrations.answers import (
    Answer,
    RefusedError,
    refusal,
    too_large,
    unauthorized,
)
from api_key_manager.integrations.guard import MAX_BODY, Guard, has_permissions
from api_key_manager.integrations.scopes import JUDGE_KEY, SCOPE_KEY, call_of, judge

__all__ = ["KeyRefusedError", "problem_response", "require_key"]

# None of them refuses by itself: they are here to be seen in the OpenAPI document.
_bearer = HTTPBearer(
    scheme_name="ApiKeyBearer", description="The token of a bearer key.", auto_error=False
)
_header = APIKeyHeader(
    name="X-Api-Key", scheme_name="ApiKeyHeader", description="The token of a bearer key.",
    auto_error=False,
)  # fmt: skip
_signature = APIKeyHeader(
    name="Signature", scheme_name="ApiKeySignature",
    description="A signature by RFC 9421, with Signature-Input and Content-Digest.",
    auto_error=False,
)  # fmt: skip


class KeyRefusedError(HTTPException):
    """A key was refused. FastAPI answers it like any ``HTTPException``, with the problem document
    as ``detail``; with :func:`problem_response` as its handler, by the document alone.

    Args:
        answer: what the caller is told.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        kept = {
            name.decode(): value.decode()
            for name, value in answer.headers
            if name not in (b"content-type", b"content-length")
        }
        super().__init__(answer.status, json.loads(answer.body), kept)


async def problem_response(request: Request, error: Exception) -> Response:
    """The handler that answers a refused key as the middleware does::

    app.add_exception_handler(KeyRefusedError, problem_response)
    """
    if not isinstance(error, KeyRefusedError):
        raise error
    answer = error.answer
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)


def require_key(
    permissions: str | Sequence[str] | None = None,
    *,
    manager: KeyManager | Callable[[], KeyManager] | None = None,
    base_url: str | None = None,
    trusted_proxies: Sequence[str] = (),
    max_body: int = MAX_BODY,
) -> Callable[..., Awaitable[Verdict]]:
    """A dependency that yields the :class:`~api_key_manager.Verdict` on the caller's key.

    Where the middleware, or another such dependency, has judged this request already, only the
    permissions are looked at, since a signed request is accepted once. On a path that the
    middleware exempts, or let through without a key, there is no verdict: refused.

    Args:
        permissions: what the key must hold: an expression, or a list that is needed whole.
        manager: judges; or what returns it. ``app.state.manager`` when left out.
        base_url: as of the middleware.
        trusted_proxies: as of the middleware.
        max_body: as of the middleware.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """
    guard = Guard(
        permissions=permissions, base_url=base_url, trusted_proxies=trusted_proxies,
        max_body=max_body,
    )  # fmt: skip

    async def api_key(
        request: Request,
        response: Response,
        bearer: Annotated[Any, Security(_bearer)],
        header: Annotated[Any, Security(_header)],
        signature: Annotated[Any, Security(_signature)],
    ) -> Verdict:
        try:
            if JUDGE_KEY in request.scope and _judged_by(request, manager):
                return _among(request.scope[SCOPE_KEY], permissions)
            judging = _manager_of(request, manager)
            judged = await judge(guard, call_of(request.scope), _BodyOf(request), lambda: judging)
        except RefusedError as refused:
            raise KeyRefusedError(refused.answer) from None
        if judged.verdict is None:  # what this guard never does: it requires a key, everywhere
            raise KeyRefusedError(unauthorized())
        request.scope.update(judged.tell(request.scope))
        for name, value in judged.headers:
            response.headers.append(name.decode(), value.decode())
        return judged.verdict

    return api_key


def _among(verdict: Verdict | None, permissions: str | Sequence[str] | None) -> Verdict:
    if verdict is None:
        raise RefusedError(unauthorized())
    if permissions is not None and not has_permissions(verdict, permissions):
        raise RefusedError(refusal(verdict._replace(reason=Reason.FORBIDDEN)))
    return verdict


def _judged_by(request: Request, manager: KeyManager | Callable[[], KeyManager] | None) -> bool:
    """Whether the verdict at hand is one of the manager that is asked for."""
    judged = request.scope[JUDGE_KEY]
    return manager is None or judged is None or judged is _manager_of(request, manager)


def _manager_of(
    request: Request, manager: KeyManager | Callable[[], KeyManager] | None
) -> KeyManager:
    if manager is None:
        manager = getattr(request.app.state, "manager", None)
    found = manager() if callable(manager) else manager
    if not isinstance(found, KeyManager):
        raise ConfigurationError(
            "require_key: put a KeyManager into app.state.manager, or pass manager="
        )
    return found


class _BodyOf:
    """Reads the body so that the endpoint can read it too."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __call__(self, limit: int) -> bytes:
        request = self._request
        # Starlette keeps the body that it has read here; FastAPI reads it before dependencies run
        # when the endpoint takes one, and whoever reads the stream must put it here.
        if not hasattr(request, "_body"):
            chunks: list[bytes] = []
            size = 0
            try:
                async for chunk in request.stream():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > limit:
                        raise RefusedError(too_large(limit))
            except RuntimeError:
                raise ConfigurationError(
                    "require_key: the form of a signed request is gone before it can be compared"
                    " with what was signed: use the middleware for endpoints that take forms"
                ) from None
            request._body = b"".join(chunks)
        return await request.body()
