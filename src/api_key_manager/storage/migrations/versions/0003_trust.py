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
    few = "action NOT IN ('key_validated', 'key_refused', 'login_refused', 'address_slowed')"
    _index_where("ix_audit_changes", "audit_events", ["id"], few)
    text_id = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("types", sa.Text, nullable=False),
        sa.Column("environment", sa.String(128)),
        sa.Column("description", sa.String(256)),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("previous_sealed", sa.LargeBinary),
        sa.Column("previous_until", sa.BigInteger),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("disabled_reason", sa.String(32)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", text_id, primary_key=True),
        sa.Column("webhook_id", sa.String(32), nullable=False),
        sa.Column("event_id", sa.BigInteger),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("outcome", sa.String(32)),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("mac", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("webhook_id", "event_id", name="uq_deliveries_event"),
    )
    op.create_index("ix_deliveries_webhook", "webhook_deliveries", ["webhook_id", "id"])
    pending, finished = "state = 'pending'", "finished_at IS NOT NULL"
    _index_where("ix_deliveries_due", "webhook_deliveries", ["webhook_id", "next_at"], pending)
    _index_where("ix_deliveries_finished", "webhook_deliveries", ["finished_at"], finished)
    op.create_table(
        "webhook_cursor",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO webhook_cursor (id, position) VALUES (1, 0)")
    op.create_table(
        "expiry_warnings",
        sa.Column("key_id", text_id, primary_key=True),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )


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


def _index_where(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
