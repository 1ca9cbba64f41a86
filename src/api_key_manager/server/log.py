"""The transparency log: its newest checkpoint, and proofs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from fastapi import Query
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from api_key_manager.core.exceptions import KeyNotFoundError, ValidationError
from api_key_manager.server.errors import ProblemError
from api_key_manager.server.idempotency import reply
from api_key_manager.server.principal import PRINCIPAL
from api_key_manager.server.schemas import ProofFilters
from api_key_manager.wiring.auditing import log_of

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment
    from api_key_manager.wiring.auditing import Log as Reader

__all__ = ["Log"]

_BOUNDS: Final = {
    "index": (0, 2**53 - 1), "id": (0, 2**53 - 1), "from": (1, 2**53 - 1),
    "log": (1, 2**31 - 1), "size": (1, 2**53 - 1),
}  # fmt: skip


class Log:
    """The handlers."""

    def __init__(self, deployment: Deployment) -> None:
        self._backend = deployment.backend

    def _reader(self) -> Reader:
        if self._backend.log is None:
            raise ProblemError(
                404, "not_found", "Keys in memory have no transparency log: use a database."
            )
        return log_of(self._backend)

    async def get_checkpoint(self) -> Response:
        """How large the log is, and its root, signed (C2SP tlog-checkpoint)."""
        reader = self._reader()
        state, note = await reader.newest()
        headers = {"X-Verifier-Key": str(reader.verifier(state.origin))}
        return PlainTextResponse(note, headers=headers)

    async def get_proof(
        self, request: Request, filters: Annotated[ProofFilters, Query()]
    ) -> Response:
        """That an event is in the log, or that an older checkpoint still holds."""
        reader, within = self._reader(), request.scope[PRINCIPAL].environment
        given = filters.model_dump(by_alias=True, exclude_none=True)
        for name, value in given.items():
            least, most = _BOUNDS[name]
            if not least <= value <= most:
                raise ValidationError(f"{name}: {least} to {most} are allowed")
        if len(given.keys() & {"index", "id", "from"}) != 1:
            raise ValidationError("index: give exactly one of index, id and from")
        if filters.from_ is not None:
            return reply(
                await reader.prove_growth(filters.from_, origin=filters.log, size=filters.size)
            )
        origin, index = filters.log, filters.index or 0
        if filters.id is not None:
            origin, index = await reader.index_of(filters.id)
        proved = await reader.prove(index, origin=origin, size=filters.size)
        if within is not None and proved.environment != within:
            # What is not theirs does not exist for them; a leaf without its bytes is nobody's.
            raise KeyNotFoundError("index: the log has no such leaf yet")
        return reply(proved.document)
