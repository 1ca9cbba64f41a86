"""What makes a restored database another one than it was: one script, before anybody opens it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam

from api_key_manager.connections import Many, Script, Statement
from api_key_manager.connections.tables import changes, deployment
from api_key_manager.core.models import AuditEvent
from api_key_manager.core.ports import RESTORED
from api_key_manager.core.sealed import LogBatch, LogState, Stamp
from api_key_manager.storage import log

__all__ = ["AHEAD", "begin_anew"]

AHEAD: Final = 1 << 32
"""How many revisions a restore leaves out: more than were lost, so that none comes again. A data
key is due to be replaced after far fewer, so the restored database seals under one of its own."""

_ANEW = Statement(
    deployment.update().values(revision=bindparam("b_revision"), nonce_birth=bindparam("b_birth"))
)
_FORGET_CHANGES = Statement(changes.delete())
_INSERT_CHANGE = Statement(changes.insert())


def begin_anew(
    state: LogState, batch: LogBatch, event: AuditEvent, stamp: Stamp, written: int,
    *, revision: int, birth: int,
) -> Script[None]:  # fmt: skip
    """Start the log of a restored database, and set it apart from what it was.

    Args:
        state, batch: of the new log, with its first leaf.
        event: that says so.
        stamp: makes its row.
        written: the last number of an event.
        revision: to go on from: behind whatever was ever seen of this database.
        birth: since when (µs) no nonce can have been lost.
        at: now (µs).
    """
    yield _ANEW(b_revision=revision, b_birth=birth)
    yield _FORGET_CHANGES()
    # Who follows the feed finds this in the place of what it has read.
    yield Many(_INSERT_CHANGE, [(revision, RESTORED, event.timestamp)])
    yield from log.begin(state, batch, event, stamp, written)
