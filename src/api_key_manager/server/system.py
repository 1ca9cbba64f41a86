"""The audit log, the numbers and the probes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from api_key_manager.server.errors import ProblemError
from api_key_manager.server.idempotency import reply
from api_key_manager.server.keys import instant, sent
from api_key_manager.server.principal import PRINCIPAL, reach
from api_key_manager.server.schemas import AuditFilters, StatsFilters
from api_key_manager.telemetry.prometheus import CONTENT_TYPE

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment

__all__ = ["System"]


class System:
    """The handlers."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._manager = deployment.manager
        self._since = time.monotonic()

    async def list_audit(
        self, request: Request, filters: Annotated[AuditFilters, Query()]
    ) -> Response:
        """What happened, page by page."""
        wanted = sent(filters)
        wanted.pop("order", None)
        wanted["since"], wanted["until"] = instant(filters.since), instant(filters.until)
        wanted["ascending"] = filters.order == "asc"
        return reply(await reach(self._manager, request).find_audit(**wanted))

    async def get_stats(
        self, request: Request, filters: Annotated[StatsFilters, Query()]
    ) -> Response:
        """Counters of this process and, when asked for, how many keys each environment has."""
        manager = reach(self._manager, request)
        counted = None
        if filters.by_environment or filters.environment is not None:
            counted = await manager.count_keys(filters.environment)
        uptime = round(time.monotonic() - self._since, 3)
        return reply({**manager.get_stats(), "uptime_seconds": uptime, "environments": counted})

    async def get_metrics(self, request: Request) -> Response:
        """The numbers of this node, for Prometheus; not for a token of one environment."""
        if request.scope[PRINCIPAL].environment is not None:
            raise ProblemError(
                403, "forbidden", "This token is confined to an environment, the metrics are not."
            )
        return Response(await self._deployment.exposition.text(), media_type=CONTENT_TYPE)

    async def health(self) -> Response:
        """Whether the process answers. Says nothing about the store."""
        return reply({"status": "ok"})

    async def ready(self) -> Response:
        """Whether requests can be served, and if not, why."""
        problems = self._deployment.problems()
        if problems:
            raise ProblemError(
                503, "not_ready", "This node is not ready.", extra={"problems": problems}
            )
        degraded = self._deployment.degraded()
        return reply({"status": "ready", **({"degraded": degraded} if degraded else {})})
