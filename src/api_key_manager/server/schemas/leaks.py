"""Reports of leaks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api_key_manager.server.schemas.kinds import Body

__all__ = [
    "LeakOutcome",
    "ReportLeak",
]


class ReportLeak(Body):
    """A secret or token, and where it was found."""

    token: str = Field(min_length=1, max_length=1024)
    url: str | None = Field(None, max_length=2048)
    source: str | None = Field(None, max_length=64)


class LeakOutcome(BaseModel):
    """Whose it is, and what was done; nulls when it is no live secret or token of ours."""

    model_config = ConfigDict(extra="forbid")

    matched: bool
    key_id: str | None
    realm: str | None = Field(description="`default`, or `admin` of an admin token.")
    version: int | None
    action: Literal["revoked", "version_ended", "flagged", "none"] | None = Field(
        description="`none`: all was done before."
    )
