"""Webhooks and their deliveries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from api_key_manager.server.schemas.kinds import (
    At,
    Body,
    Name,
    Paged,
    Seconds,
    WebhookTypes,
    WebhookUrl,
    Why,
    one_of,
)

__all__ = [
    "CreateWebhook",
    "CreatedWebhook",
    "DeliveryFilters",
    "Replayed",
    "RotateWebhookSecret",
    "UpdateWebhook",
    "Webhook",
    "WebhookDelivery",
    "WebhookDeliveryPage",
    "WebhookPage",
]


class CreateWebhook(Body):
    """A subscription to be made."""

    url: WebhookUrl
    types: WebhookTypes | None = Field(None, description="Which events; all when left out.")
    environment: Name | None = Field(None, description="Only events of keys that are in it.")
    description: Why | None = None
    disabled: bool = False


class UpdateWebhook(Body):
    """What is to be changed; what is left out stays."""

    url: WebhookUrl | None = None
    types: WebhookTypes | None = None
    description: Why | None = None
    disabled: bool = False


class RotateWebhookSecret(Body):
    """How long the old secret signs, too."""

    overlap_seconds: Seconds = 86_400


class DeliveryFilters(Paged):
    """Which deliveries."""

    state: Annotated[str, WithJsonSchema(one_of("pending", "done", "dead"))] | None = Field(
        None, description="pending, done or dead."
    )


class Webhook(BaseModel):
    """A subscription to events."""

    model_config = ConfigDict(extra="forbid")

    id: str
    url: str
    types: list[str]
    environment: str | None
    description: str | None
    disabled: bool
    disabled_reason: str | None = Field(description="`gone` when the receiver answered 410.")
    created_at: At
    updated_at: At
    previous_secret_until: At | None = Field(description="Until then the old secret signs, too.")


class CreatedWebhook(Webhook):
    """A subscription with its `secret`, shown this once."""

    secret: str = Field(repr=False)


class WebhookPage(BaseModel):
    """Every subscription, the oldest first."""

    items: list[Webhook]
    next_cursor: None


class WebhookDelivery(BaseModel):
    """One event to one receiver."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="As in the header `webhook-id`.")
    type: str
    state: Literal["pending", "done", "dead"]
    attempts: int
    outcome: str | None = Field(description="What the last try came to.")
    status: int | None = Field(description="Of the last answer.")
    created_at: At
    next_at: At | None = Field(description="When it is tried next.")
    finished_at: At | None


class WebhookDeliveryPage(BaseModel):
    """Some deliveries, the newest first."""

    items: list[WebhookDelivery]
    next_cursor: str | None


class Replayed(BaseModel):
    """How many deliveries are tried again."""

    replayed: int
