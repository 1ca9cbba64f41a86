"""The audit log, the numbers and the probes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from starlette.responses import Response

from api_key_manager.server.errors import ProblemError
from api_key_manager.server.idempotency import reply
from api_key_manager.server.keys import instant, sent
from api_key_manager.server.schemas import AuditFilters
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

    async def list_audit(self, filters: Annotated[AuditFilters, Query()]) -> Response:
        """What happened, page by page."""
        wanted = sent(filters)
        wanted.pop("order", None)
        wanted["since"], wanted["until"] = instant(filters.since), instant(filters.until)
        wanted["ascending"] = filters.order == "asc"
        return reply(await self._manager.find_audit(**wanted))

    async def get_stats(self) -> Response:
        """Counters of this process."""
        uptime = round(time.monotonic() - self._since, 3)
        return reply({**self._manager.get_stats(), "uptime_seconds": uptime})

    async def get_metrics(self) -> Response:
        """The numbers of this node, for Prometheus."""
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
