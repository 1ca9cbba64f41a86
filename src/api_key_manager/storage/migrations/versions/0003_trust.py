"""What the audit log, key-encryption keys, webhooks and leaked keys need."""

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and tables, part by part."""
    _audit_log()
    _encryption()
    _webhooks()


def _audit_log() -> None:
    """The transparency log."""


def _encryption() -> None:
    """Which key wraps the data keys."""


def _webhooks() -> None:
    """Subscriptions, what is to be sent, and what could not be."""
