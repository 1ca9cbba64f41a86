"""Transparency logs to be tampered with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from api_key_manager.audit.verify import Finding
from api_key_manager.wiring import Deployment
from api_key_manager.wiring.auditing import log_of, notes_outside
from tests.integration.places import Place
from tests.integration.postgres_nodes import Shared

__all__ = ["filled", "findings", "sealed", "truncate", "verified"]

EVENTS = 700


async def sealed(deployment: Deployment) -> None:
    """Seal all that was written, as the task does it."""
    await deployment.manager.recorder.flush(deployment.manager.clock())
    assert deployment.sealer is not None
    while True:  # the task may be at it, too
        if await deployment.sealer.seal():
            break
        await asyncio.sleep(0.02)


@asynccontextmanager
async def filled(place: Place, **settings: Any) -> AsyncIterator[Deployment]:
    """A log of some hundred events in several batches."""
    async with place.open(background=False, **settings) as deployment:
        assert deployment.sealer is not None
        for number in range(8):
            await deployment.manager.create_key(f"k{number}")
            await sealed(deployment)
        refused = [{"key_id": f"none-{n}", "signature": "0" * 64} for n in range(EVENTS)]
        await deployment.manager.batch_validate(refused)
        await deployment.manager.revoke_key("k1")
        for number in range(8, 300):
            await deployment.manager.create_key(f"k{number}")
        await sealed(deployment)
        yield deployment


async def findings(deployment: Deployment, **options: Any) -> list[Finding]:
    notes = await notes_outside(deployment, [])
    return [found async for found in log_of(deployment.backend).verify(notes, **options)]


async def verified(place: Place, **settings: Any) -> list[Finding]:
    """What a process that was not there when it happened finds."""
    async with place.open(create=False, background=False, **settings) as deployment:
        return await findings(deployment)


def truncate(place: Place, state: Any) -> None:
    """Take the log back to an earlier state, without a trace in the database."""
    place.sql(f"DELETE FROM audit_events WHERE id > {state.row_id}")
    place.sql(f"DELETE FROM audit_batches WHERE first >= {state.size}")
    place.sql(f"DELETE FROM audit_nodes WHERE (position + 1) * 256 > {state.size}")
    place.sql(f"UPDATE audit_head SET written = {state.number}")
    place.sql(
        f"UPDATE audit_origins SET size = {state.size}, number = {state.number},"
        f" row_id = {state.row_id}, peaks = {blob(place, state.peaks)},"
        f" mac = {blob(place, state.mac)}"
    )


def blob(place: Place, value: bytes) -> str:
    text = f"'{value.hex()}'"
    return f"decode({text}, 'hex')" if isinstance(place, Shared) else f"x{text}"
