"""Numbers, probes, and problems."""

from __future__ import annotations

from pydantic import BaseModel, Field

from api_key_manager.server.schemas.kinds import Name, Query

__all__ = [
    "CacheStats",
    "EnvironmentCount",
    "Health",
    "NotReady",
    "Problem",
    "Ready",
    "Stats",
    "StatsFilters",
]


class StatsFilters(Query):
    """Which keys are counted."""

    environment: Name | None = Field(None, description="Count the keys of this one.")
    by_environment: bool = Field(
        False, description="Count the keys of each; looks at every key, so not too often."
    )


class CacheStats(BaseModel):
    """Counters of the record cache."""

    cache_size: int
    hits: int
    misses: int
    evictions: int
    max_entries: int


class EnvironmentCount(BaseModel):
    """How many keys of an environment are in each state."""

    environment: str | None = Field(description="Null: keys without one.")
    active: int
    disabled: int
    expired: int
    revoked: int


class Stats(BaseModel):
    """Counters of this process, whatever the environment, and of keys where asked for."""

    cache: CacheStats
    audit_queue: int
    uptime_seconds: float
    environments: list[EnvironmentCount] | None = Field(
        description="Null unless asked for; at most a thousand with a name, in its order."
    )


class Health(BaseModel):
    """Alive, or ready."""

    status: str


class Ready(Health):
    """It should get requests. ``degraded``: what is away all the same; absent when nothing is."""

    degraded: list[str] | None = None


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    reason: str = Field(description="A slug to decide by.")
    field: str | None = Field(None, description="What part of the request is meant.")
    request_id: str | None = None


class NotReady(Problem):
    """Why this node should get no requests right now."""

    problems: list[str]
