"""The audit log."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api_key_manager.server.schemas.kinds import At, Count, Id, Paged, Query

__all__ = [
    "AuditFilters",
    "AuditPage",
    "Event",
    "Proof",
    "ProofFilters",
]


class AuditFilters(Paged):
    """Which events."""

    key_id: Id | None = None
    action: str | None = None
    since: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")
    until: str | None = Field(None, description="RFC 3339 text, or Unix seconds.")
    order: Literal["asc", "desc"] = "desc"


class ProofFilters(Query):
    """What is to be proved: `index` or `id`, or `from`."""

    index: Count | None = Field(None, description="Of a leaf.")
    id: Count | None = Field(None, description="Of an event, instead of its index.")
    from_: Count | None = Field(
        None,
        alias="from",
        description="The size of an older checkpoint, to prove that it holds.",
    )
    log: Count | None = Field(None, description="Another log than the one that goes on.")
    size: Count | None = Field(None, description="Of the checkpoint to prove it against.")


class Event(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(extra="forbid")

    timestamp: At
    action: str
    key_id: str | None
    actor: str | None
    reason: str | None
    ip: str | None
    request_id: str | None
    detail: dict[str, Any]
    count: int
    id: int | None = Field(description="In this database.")
    log: int | None = Field(
        description="Which transparency log holds it; null until it is sealed, within a second."
    )
    index: int | None = Field(description="Of its leaf there: what a proof is asked for by.")


class Proof(BaseModel):
    """That an event is in the log, or that one checkpoint's log is the start of another's.

    All of `leaf`, `leaf_hash` and `index`, or `old_checkpoint` and `from`, by what was asked for.
    """

    log: str = Field(description="The name of the log: the first line of its checkpoints.")
    verifier_key: str = Field(description="What checkpoints are verified by (C2SP signed note).")
    checkpoint: str = Field(description="The signed note.")
    size: int = Field(description="How many leaves the checkpoint's log has.")
    hashes: list[str] = Field(description="The proof (RFC 9162), base64.")
    index: int | None = None
    leaf: str | None = Field(
        None, description="Its exact bytes as text; null once retention has dropped them."
    )
    leaf_hash: str | None = Field(None, description="Base64.")
    old_checkpoint: str | None = None
    from_: int | None = Field(None, alias="from", description="Leaves of the old checkpoint.")


class AuditPage(BaseModel):
    """Some events, newest first unless asked otherwise."""

    items: list[Event]
    next_cursor: str | None
