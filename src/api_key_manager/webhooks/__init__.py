"""Outgoing webhooks: what is sent to whom, how it is signed, and where it may go."""

from api_key_manager.webhooks.outbox import Outbox
from api_key_manager.webhooks.sending import Sender
from api_key_manager.webhooks.service import Webhooks

__all__ = ["Outbox", "Sender", "Webhooks"]
