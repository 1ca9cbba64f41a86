"""What the audit log, key-encryption keys, webhooks and leaked keys need.

Code of older schemas must not run on this one, since it would write events without a number and a
MAC, which the log refuses: stop older nodes before the first new one starts.
"""

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
    """The transparency log. Events that are there already keep no MAC, up to the id noted here."""
    op.execute("UPDATE deployment SET least_schema = '0003'")
    op.add_column("audit_events", sa.Column("revision", sa.BigInteger))
    op.add_column("audit_events", sa.Column("number", sa.BigInteger))
    op.add_column("audit_events", sa.Column("mac", sa.LargeBinary))
    where = sa.text("revision IS NOT NULL")
    op.create_index(
        "ix_audit_revision",
        "audit_events",
        ["key_id", "revision"],
        sqlite_where=where,
        postgresql_where=where,
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("written", sa.BigInteger, nullable=False),
        sa.Column("legacy_to", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO audit_head (id, written, legacy_to)"
        " SELECT 1, coalesce(max(id), 0), coalesce(max(id), 0) FROM audit_events"
    )
    op.create_table(
        "audit_origins",
        sa.Column("origin", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("row_id", sa.BigInteger, nullable=False),
        sa.Column("legacy_to", sa.BigInteger, nullable=False),
        sa.Column("kept_from", sa.BigInteger, nullable=False),
        sa.Column("peaks", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit_batches",
        sa.Column("origin", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("number", sa.BigInteger),
        sa.Column("last_id", sa.BigInteger, nullable=False),
        sa.Column("sealed_at", sa.BigInteger, nullable=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
        sa.Column("leaves", sa.LargeBinary),
    )
    op.create_index("ix_audit_batches_number", "audit_batches", ["number"])
    op.create_table(
        "audit_nodes",
        sa.Column("origin", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )


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
