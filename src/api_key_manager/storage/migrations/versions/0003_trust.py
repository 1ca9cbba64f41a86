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


def _audit_log() -> None:
    """The transparency log."""


def _encryption() -> None:
    """Which key wraps a key of the keyring, what shows that it belongs there, since when it is."""
    op.add_column(
        "deployment", sa.Column("least_pepper", sa.Integer, nullable=False, server_default="0")
    )
    op.add_column("keyring", sa.Column("kek", sa.String(128)))
    op.add_column("keyring", sa.Column("seal", sa.LargeBinary))
    op.add_column("keyring", sa.Column("since", sa.BigInteger, nullable=False, server_default="0"))


def _webhooks() -> None:
    """Subscriptions, what is to be sent, and what could not be."""
