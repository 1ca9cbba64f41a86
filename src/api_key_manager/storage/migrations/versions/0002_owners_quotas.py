"""Environments in the audit log, quotas, look-ups by owner, where nonces are, and the oldest code
that may run here.

Code of schema 0001 goes on while this one is in place: nothing that it knows is changed, and what
is added is nullable or has a default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, indexes and a table."""
    op.add_column(
        "deployment",
        sa.Column("least_schema", sa.String(16), nullable=False, server_default="0001"),
    )
    op.add_column("deployment", sa.Column("nonce_place", sa.String(64)))
    # Before the first key no nonce was taken, so none can have been lost.
    op.execute("UPDATE deployment SET nonce_birth = 0 WHERE revision = 0")
    op.add_column("keys", sa.Column("quota", sa.Text))
    op.add_column("audit_events", sa.Column("environment", sa.String(128)))
    _add_index("ix_keys_owner", "keys", ["realm", "owner", "key_id"], "owner IS NOT NULL")
    _add_index(
        "ix_keys_environment",
        "keys",
        ["realm", "environment", "key_id"],
        "environment IS NOT NULL",
    )
    _add_index(
        "ix_audit_environment",
        "audit_events",
        ["environment", "id"],
        "environment IS NOT NULL",
    )
    op.create_table(
        "quota_use",
        sa.Column("bucket", sa.String(130), primary_key=True),
        sa.Column("period_start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_quota_use_period", "quota_use", ["period_start"])


def _add_index(name: str, table: str, columns: list[str], where: str) -> None:
    """A partial one: a row without an owner or environment costs nothing more."""
    op.create_index(
        name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )
