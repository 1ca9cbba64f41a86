"""Admin tokens."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from api_key_manager.server.schemas.kinds import (
    Allowlist,
    AState,
    At,
    Body,
    Id,
    Instant,
    Name,
    Paged,
    Scope,
    Scopes,
    State,
    TokenSeconds,
)

__all__ = [
    "CreateToken",
    "CreatedToken",
    "Token",
    "TokenFilters",
    "TokenPage",
]


class CreateToken(Body):
    """An admin token to be minted."""

    scopes: Scopes = Field(description="`admin` opens everything.")
    name: Name | None = None
    environment: Name | None = Field(
        None, description="Confines it to the keys of one environment, for good."
    )
    expires_at: Instant | None = None
    expires_in: TokenSeconds | None = Field(
        None, description="In so many seconds, instead of `expires_at`."
    )
    ip_allowlist: Allowlist | None = Field(
        None, description="Where it may be used: addresses and CIDR networks."
    )


class TokenFilters(Paged):
    """Which tokens."""

    state: AState | None = Field(None, description="active, disabled, expired or revoked.")


class Token(BaseModel):
    """An admin token."""

    model_config = ConfigDict(extra="forbid")

    key_id: Id
    name: str | None
    version: int
    scopes: list[Scope]
    environment: str | None = Field(description="The only one that it reaches, if there is one.")
    ip_allowlist: list[str]
    active: bool
    state: State
    created_at: At
    updated_at: At
    expires_at: At | None
    revoked_at: At | None
    last_used: At | None


class CreatedToken(Token):
    """An admin token, shown this once."""

    token: str = Field(repr=False)


class TokenPage(BaseModel):
    """Some admin tokens, in the order of their ids."""

    items: list[Token]
    next_cursor: str | None
