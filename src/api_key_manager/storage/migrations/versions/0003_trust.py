"""What the audit log, key-encryption keys, webhooks and leaked keys need."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and tables, part by part."""
    _audit_log()
    _encryption()
    _webhooks()
    _leaks()


def _audit_log() -> None:
    """The transparency log."""


def _encryption() -> None:
    """Which key wraps the data keys."""


def _webhooks() -> None:
    """Subscriptions, what is to be sent, and what could not be."""


def _leaks() -> None:
    """How a leaked secret is found, and when it was."""
    op.add_column("key_versions", sa.Column("mark", sa.LargeBinary))
    op.add_column("key_versions", sa.Column("leaked_at", sa.BigInteger))
    op.create_index(
        "ix_key_versions_mark",
        "key_versions",
        ["mark"],
        sqlite_where=sa.text("mark IS NOT NULL"),
        postgresql_where=sa.text("mark IS NOT NULL"),
    )
