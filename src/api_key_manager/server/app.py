"""The application: every route, the scope it needs, and what it answers, in one table."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from api_key_manager import __version__
from api_key_manager.core.exceptions import ConfigurationError, ValidationError
from api_key_manager.server import schemas
from api_key_manager.server.auth import Door
from api_key_manager.server.authorize import Authorize
from api_key_manager.server.docs import CONTENT_SECURITY_POLICY, render
from api_key_manager.server.errors import PROBLEM_TYPE, problem_of
from api_key_manager.server.examples import EXAMPLES
from api_key_manager.server.front import REQUEST_ID, Front
from api_key_manager.server.gateways import BELOW, PATH
from api_key_manager.server.hot import validate, validate_batch
from api_key_manager.server.idempotency import reply
from api_key_manager.server.keys import Keys
from api_key_manager.server.leaks import GITHUB, LeakEndpoints, describe_leaks
from api_key_manager.server.log import Log
from api_key_manager.server.oidc import Oidc
from api_key_manager.server.oidc_claims import Policy, read_grants
from api_key_manager.server.oidc_keys import IssuerKeys
from api_key_manager.server.openapi import complete
from api_key_manager.server.openapi_authorize import describe
from api_key_manager.server.routes import Routes
from api_key_manager.server.system import System
from api_key_manager.server.tokens import Tokens
from api_key_manager.server.webhooks import Hooks

if TYPE_CHECKING:
    from api_key_manager.config import Settings
    from api_key_manager.core.manager import KeyManager
    from api_key_manager.wiring import Deployment
    from api_key_manager.wiring.observing import Observing

__all__ = ["build_app"]

Endpoint = Callable[..., Awaitable[Response]]
Row = tuple[str, str, Endpoint, str, int, type[BaseModel] | None]

_METRICS: Final = """\
# HELP akm_validations_total Credentials judged.
# TYPE akm_validations_total counter
akm_validations_total{reason="valid",scheme="bearer"} 42.0
"""
READ: Final = "keys:read"
WRITE: Final = "keys:write"


class _App(FastAPI):
    """FastAPI behind the front, which answers the hot routes before FastAPI hears of them."""

    def __init__(
        self, manager: KeyManager, routes: Routes, door: Door, observing: Observing, *, debug: bool
    ) -> None:
        handlers: dict[Any, Any] = {
            HTTPException: _as_problem,
            RequestValidationError: _as_problem,
            Exception: _as_problem,
        }
        super().__init__(
            title="API Key Manager Pro",
            version=__version__,
            # Their pages load scripts from elsewhere; ours needs nobody.
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
            # The front has looked at the type already.
            strict_content_type=False,
            # Its own would tell messages of exceptions, which may quote a caller.
            telemetry={
                "tracing": False,
                "metrics": False,
                "logs": False,
                "operation_spans": False,
                "auto_configure": False,
            },
            exception_handlers=handlers,
        )
        self._routes_by_scope = routes
        self.front = Front(
            super().__call__, manager, routes, door, observing.meter,
            debug=debug, fast=not observing.tracing.on,
        )  # fmt: skip
        self._entry = observing.tracing.around(self.front, routes.template)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._entry(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = complete(super().openapi(), self._routes_by_scope.table)
            self.openapi_schema = describe_leaks(describe(document))
        return self.openapi_schema


def build_app(deployment: Deployment) -> FastAPI:
    """The server's application on an open deployment, which the caller closes."""
    settings, manager = deployment.settings, deployment.manager
    routes = Routes()
    door = Door(
        settings.AKM_ADMIN_TOKEN, settings.trusted_proxies, manager.wait_after,
        manager.refuse_login, _oidc(settings, manager),
    )  # fmt: skip
    app = _App(manager, routes, door, deployment.observing, debug=settings.DEBUG)
    keys, tokens, system = Keys(deployment), Tokens(deployment), System(deployment)
    log = Log(deployment)
    leaks = LeakEndpoints(deployment)
    rows: list[Row] = [
        ("POST", "/v1/keys", keys.create_key, WRITE, 201, schemas.CreatedKey),
        ("GET", "/v1/keys", keys.list_keys, READ, 200, schemas.KeyPage),
        ("POST", "/v1/keys/revoke", keys.revoke_keys, WRITE, 200, schemas.BulkRevocation),
        ("GET", "/v1/keys/{key_id}", keys.get_key, READ, 200, schemas.Key),
        ("PATCH", "/v1/keys/{key_id}", keys.update_key, WRITE, 200, schemas.Key),
        ("DELETE", "/v1/keys/{key_id}", keys.delete_key, WRITE, 204, None),
        ("POST", "/v1/keys/{key_id}/revoke", keys.revoke_key, WRITE, 200, schemas.Key),
        ("POST", "/v1/keys/{key_id}/rotate", keys.rotate_key, WRITE, 200, schemas.CreatedKey),
        ("GET", "/v1/keys/{key_id}/versions", keys.list_versions, READ, 200, schemas.VersionPage),
        ("POST", "/v1/leaks", leaks.report_leak, WRITE, 200, schemas.LeakOutcome),
        ("POST", "/v1/tokens", tokens.create_token, "admin", 201, schemas.CreatedToken),
        (
            "POST",
            "/v1/tokens/{key_id}/rotate",
            tokens.rotate_token,
            "admin",
            200,
            schemas.CreatedToken,
        ),
        ("GET", "/v1/tokens", tokens.list_tokens, "admin", 200, schemas.TokenPage),
        ("DELETE", "/v1/tokens/{key_id}", tokens.revoke_token, "admin", 204, None),
        ("GET", "/v1/audit", system.list_audit, "audit:read", 200, schemas.AuditPage),
        ("GET", "/v1/audit/proof", log.get_proof, "audit:read", 200, schemas.Proof),
        ("GET", "/v1/stats", system.get_stats, "metrics", 200, schemas.Stats),
    ]
    rows += webhook_rows(Hooks(deployment))
    for method, path, endpoint, scope, status, model in rows:
        _add(app, method, path, endpoint, status, model)
        routes.add(method, path, scope)
    _add_metrics(app, routes, system)
    _add_checkpoint(app, routes, log)
    routes.hot = {"/v1/validate": validate, "/v1/validate/batch": validate_batch}
    for path in routes.hot:
        routes.add("POST", path, "validate")
        # A series that begins at zero shows its first increase.
        _ = deployment.observing.meter.requests["POST", path, 200]
    routes.open[PATH] = routes.open[BELOW] = Authorize(settings, manager.wait_after)
    _add_public(app, routes, system)
    _add_github(app, routes, leaks)
    return app


def _oidc(settings: Settings, manager: KeyManager) -> Oidc | None:
    if not settings.OIDC_ISSUER:
        return None
    try:
        grants = read_grants(settings.OIDC_SCOPES)
    except ValidationError as error:
        raise ConfigurationError(f"OIDC_SCOPES: {error}") from None
    policy = Policy(
        settings.OIDC_ISSUER, settings.OIDC_AUDIENCE, settings.OIDC_CLAIM, grants,
        settings.CLOCK_SKEW_TOLERANCE_SECONDS,
    )  # fmt: skip
    return Oidc(policy, IssuerKeys(settings.OIDC_ISSUER), manager.clock)


def webhook_rows(hooks: Hooks) -> list[Row]:
    """The routes of webhooks."""
    one, shape = "/v1/webhooks/{webhook_id}", schemas.Webhook
    many, told = f"{one}/deliveries", schemas.WebhookDelivery
    return [
        ("POST", "/v1/webhooks", hooks.create_webhook, "admin", 201, schemas.CreatedWebhook),
        ("GET", "/v1/webhooks", hooks.list_webhooks, READ, 200, schemas.WebhookPage),
        ("GET", one, hooks.get_webhook, READ, 200, shape),
        ("PATCH", one, hooks.update_webhook, "admin", 200, shape),
        ("DELETE", one, hooks.delete_webhook, "admin", 204, None),
        ("POST", f"{one}/rotate-secret", hooks.rotate_webhook_secret, "admin", 200,
         schemas.CreatedWebhook),
        ("POST", f"{one}/test", hooks.send_test_webhook, "admin", 200, told),
        ("POST", f"{one}/replay", hooks.replay_dead_deliveries, "admin", 200, schemas.Replayed),
        ("GET", many, hooks.list_deliveries, READ, 200, schemas.WebhookDeliveryPage),
        ("POST", f"{many}/{{delivery_id}}/replay", hooks.replay_delivery, "admin", 200, told),
    ]  # fmt: skip


async def _as_problem(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    headers = {name.decode(): value.decode() for name, value in problem.headers}
    body = problem.body(request.scope.get(REQUEST_ID))
    return Response(body, problem.status, headers, PROBLEM_TYPE)


def _add(
    app: FastAPI,
    method: str,
    path: str,
    endpoint: Endpoint,
    status: int,
    model: type[BaseModel] | None,
    more: dict[int | str, dict[str, Any]] | None = None,
) -> None:
    """Add a route; ``more`` are answers by status that do not follow from what it takes."""
    name: str = endpoint.__name__
    told = inspect.getdoc(model) if model else "Done."
    answers: dict[int | str, dict[str, Any]] = {status: {"description": told, "model": model}}
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        status_code=status,
        response_model=None,
        responses={**answers, **(more or {})},
        operation_id=name,
        summary=name.replace("_", " ").capitalize(),
        tags=[path.split("/")[2] if path.startswith("/v1/") else "system"],
    )


def _add_metrics(app: FastAPI, routes: Routes, system: System) -> None:
    """The one answer that is no JSON."""
    app.add_api_route(
        "/metrics",
        system.get_metrics,
        methods=["GET"],
        response_class=PlainTextResponse,
        response_description="Prometheus text format.",
        responses={200: {"content": {"text/plain": {"example": _METRICS}}}},
        operation_id="get_metrics",
        summary="Get metrics",
        tags=["system"],
    )
    routes.add("GET", "/metrics", "metrics")


def _add_checkpoint(app: FastAPI, routes: Routes, log: Log) -> None:
    """A signed note, which is no JSON either."""
    example = EXAMPLES["Proof"]["checkpoint"]
    app.add_api_route(
        "/v1/audit/checkpoint",
        log.get_checkpoint,
        methods=["GET"],
        response_class=PlainTextResponse,
        response_description="A C2SP signed note, and in a header the key that verifies it.",
        responses={
            200: {
                "content": {"text/plain": {"example": example}},
                "headers": {
                    "X-Verifier-Key": {
                        "description": "The log's public key.", "schema": {"type": "string"},
                    }
                },
            }
        },
        operation_id="get_checkpoint",
        summary="Get checkpoint",
        tags=["audit"],
    )  # fmt: skip
    routes.add("GET", "/v1/audit/checkpoint", "audit:read")


def _add_github(app: FastAPI, routes: Routes, leaks: LeakEndpoints) -> None:
    """Open to all, since it looks at a signature of its own."""
    refusals: dict[int | str, dict[str, Any]] = {
        status: {} for status in (400, 403, 408, 413, 422, 503)
    }
    _add(app, "POST", GITHUB, leaks.report_github_leaks, 200, None, refusals)
    routes.add("POST", GITHUB, None)


def _add_public(app: FastAPI, routes: Routes, system: System) -> None:
    """What everybody may read."""
    page: list[str] = []

    async def docs() -> Response:
        """This page."""
        if not page:
            page.append(render(app.openapi()))
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return HTMLResponse(page[0], headers=headers)

    async def openapi() -> Response:
        """The OpenAPI document."""
        return reply(app.openapi())

    not_ready = {"description": "It cannot serve now, and why.", "model": schemas.NotReady}
    _add(app, "GET", "/healthz", system.health, 200, schemas.Health)
    _add(app, "GET", "/readyz", system.ready, 200, schemas.Ready, {503: not_ready})
    for path, endpoint in (("/healthz", system.health), ("/readyz", system.ready)):
        # Some load balancers ask without wanting to read.
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
        routes.add("HEAD", path, None)
        routes.add("GET", path, None)
    for path, endpoint in (("/docs", docs), ("/openapi.json", openapi)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
        routes.add("GET", path, None)
        routes.add("HEAD", path, None)
