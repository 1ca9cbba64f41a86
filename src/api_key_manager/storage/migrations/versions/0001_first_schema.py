"""The first schema: keys, versions, change feed, audit log, nonces, idempotency."""

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the one row of the deployment."""
    key_id = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
    deployment = op.create_table(
        "deployment",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("origin", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("nonce_birth", sa.BigInteger, nullable=False),
        sa.Column("nonces_pruned_to", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "keyring",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", key_id, primary_key=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("realm", sa.String(16), nullable=False),
        sa.Column("prefix", sa.String(48), nullable=False),
        sa.Column("owner", sa.String(128)),
        sa.Column("environment", sa.String(128)),
        sa.Column("metadata_json", sa.Text, nullable=False),
        sa.Column("permissions", sa.Text, nullable=False),
        sa.Column("ip_allowlist", sa.Text, nullable=False),
        sa.Column("rate_limits", sa.Text, nullable=False),
        sa.Column("min_scheme", sa.String(24), nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("expired", sa.Boolean, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("revoked", sa.Boolean, nullable=False),
        sa.Column("revoke_reason", sa.Text),
        sa.Column("deleted_at", sa.BigInteger),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
        sa.Column("next_end_at", sa.BigInteger),
    )
    op.create_index("ix_keys_realm", "keys", ["realm", "key_id"])
    for name, column, condition in (
        ("ix_keys_next_end", "next_end_at", "next_end_at IS NOT NULL"),
        ("ix_keys_limited", "key_id", "rate_limits <> '[]'"),
    ):
        where = sa.text(condition)
        op.create_index(name, "keys", [column], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "key_versions",
        sa.Column("key_id", key_id, sa.ForeignKey("keys.key_id"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ends_at", sa.BigInteger),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("sealed", sa.LargeBinary),
        sa.Column("digest", sa.LargeBinary),
        sa.Column("pepper", sa.Integer),
    )
    op.create_table(
        "key_uses",
        sa.Column("key_id", key_id, primary_key=True),
        sa.Column("last_used_at", sa.BigInteger, nullable=False),
        sa.Column("static_used_at", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", key_id, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("key_id", key_id),
        sa.Column("actor", sa.String(128)),
        sa.Column("reason", sa.String(256)),
        sa.Column("ip", sa.String(45)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("detail", sa.Text),
        sa.Column("count", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_key", "audit_events", ["key_id", "id"])
    op.create_table(
        "nonces",
        sa.Column("key_id", key_id, primary_key=True),
        sa.Column("nonce", sa.String(128), primary_key=True),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_nonces_expires", "nonces", ["expires_at"])
    op.create_table(
        "nonce_counts",
        sa.Column("key_id", key_id, primary_key=True),
        sa.Column("held", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency",
        sa.Column("scope", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_idempotency_expires", "idempotency", ["expires_at"])
    now = time.time_ns() // 1000
    op.bulk_insert(
        deployment,
        [
            {
                "id": 1,
                "origin": secrets.token_hex(16),
                "created_at": now,
                "revision": 0,
                "nonce_birth": now,
                "nonces_pruned_to": 0,
            }
        ],
    )
