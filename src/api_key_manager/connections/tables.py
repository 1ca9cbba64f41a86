"""The schema, once for every database.

Instants are integer microseconds, structured values are JSON text: the drivers under the hot
statements skip SQLAlchemy's type processors, so a column holds what Python is given.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "NO_VALIDATION",
    "audit_batches",
    "audit_events",
    "audit_head",
    "audit_nodes",
    "audit_origins",
    "changes",
    "deployment",
    "expiry_warnings",
    "idempotency",
    "key_uses",
    "key_versions",
    "keyring",
    "keys",
    "metadata",
    "nonce_counts",
    "nonces",
    "quota_use",
    "webhook_cursor",
    "webhook_deliveries",
    "webhooks",
]

metadata = MetaData()

# Ids are in the order of their bytes everywhere: PostgreSQL's own order depends on its locale.
_KEY_ID = String(128).with_variant(String(128, collation="C"), "postgresql")


def _index_where(name: str, columns: tuple[str, ...], condition: str) -> Index:
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


# One row. The revision is taken by UPDATE ... RETURNING and held to commit, so that changes
# become visible in its order, which a sequence does not promise.
deployment = Table(
    "deployment",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("origin", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    # What was claimed before this instant may be lost (a restored backup).
    Column("nonce_birth", BigInteger, nullable=False),
    # Unix seconds: nonces that ended before were forgotten.
    Column("nonces_pruned_to", BigInteger, nullable=False),
    # The oldest schema whose code may still run on this database.
    Column("least_schema", String(16), nullable=False, server_default="0001"),
    # Where nonces are claimed: NULL here, else the id in the marker of a Redis.
    Column("nonce_place", String(64)),
    # Older peppers were retired: no digest is made under one of them any more.
    Column("least_pepper", Integer, nullable=False, server_default="0"),
)

keyring = Table(
    "keyring",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Which key-encryption key wrapped it, and a MAC that shows that it belongs here; NULL in a
    # database of an older schema until it is opened for the first time.
    Column("kek", String(128)),
    Column("seal", LargeBinary),
    # The revision when it was minted.
    Column("since", BigInteger, nullable=False, server_default="0"),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", _KEY_ID, primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("realm", String(16), nullable=False),
    Column("prefix", String(48), nullable=False),
    Column("owner", String(128)),
    Column("environment", String(128)),
    Column("metadata_json", Text, nullable=False),
    Column("permissions", Text, nullable=False),
    Column("ip_allowlist", Text, nullable=False),
    Column("rate_limits", Text, nullable=False),
    Column("min_scheme", String(24), nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("expires_at", BigInteger),
    Column("expired", Boolean, nullable=False),
    Column("revoked_at", BigInteger),
    Column("revoked", Boolean, nullable=False),
    Column("revoke_reason", Text),
    Column("deleted_at", BigInteger),
    Column("revision", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    # Where the sweeper looks. Not covered by the MAC: the judge reads the ends themselves.
    Column("next_end_at", BigInteger),
    Column("quota", Text),
    Index("ix_keys_realm", "realm", "key_id"),
    # So that a page of one owner's or environment's keys costs the same at any depth.
    _index_where("ix_keys_owner", ("realm", "owner", "key_id"), "owner IS NOT NULL"),
    _index_where(
        "ix_keys_environment", ("realm", "environment", "key_id"), "environment IS NOT NULL"
    ),
    _index_where("ix_keys_next_end", ("next_end_at",), "next_end_at IS NOT NULL"),
    # Whether there are any, which several workers ask before they start.
    _index_where("ix_keys_limited", ("key_id",), "rate_limits <> '[]'"),
)

key_versions = Table(
    "key_versions",
    metadata,
    Column("key_id", _KEY_ID, ForeignKey("keys.key_id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("created_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger),
    Column("ended", Boolean, nullable=False),
    Column("sealed", LargeBinary),
    Column("digest", LargeBinary),
    Column("pepper", Integer),
    # How a leaked secret is found. Not covered by the record's MAC: what is found is compared with
    # the secret itself. NULL until it is made, for what an older schema left.
    Column("mark", LargeBinary),
    Column("leaked_at", BigInteger),
    _index_where("ix_key_versions_mark", ("mark",), "mark IS NOT NULL"),
)

# Apart from the keys: written often, in batches, and part of no revision.
key_uses = Table(
    "key_uses",
    metadata,
    Column("key_id", _KEY_ID, primary_key=True),
    Column("last_used_at", BigInteger, nullable=False),
    Column("static_used_at", BigInteger),
    sqlite_with_rowid=False,
)

changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("key_id", _KEY_ID, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
)

NO_VALIDATION: Final = (
    "action NOT IN ('key_validated', 'key_refused', 'login_refused', 'address_slowed')"
)
"""Of events that there may be many of. A query that repeats it can use the partial index."""

audit_events = Table(
    "audit_events",
    metadata,
    # SQLite counts in INTEGER PRIMARY KEY only.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("action", String(64), nullable=False),
    Column("key_id", _KEY_ID),
    Column("actor", String(128)),
    Column("reason", String(256)),
    Column("ip", String(45)),
    Column("request_id", String(64)),
    Column("detail", Text),
    Column("count", BigInteger, nullable=False),
    # Of the key, when it happened: for those who may look at one environment only.
    Column("environment", String(128)),
    # The key's, that this change made.
    Column("revision", BigInteger),
    # Without a gap, in the order of the ids, which have some. NULL, as the MAC, before schema 0003.
    Column("number", BigInteger),
    Column("mac", LargeBinary),
    Index("ix_audit_key", "key_id", "id"),
    # What every key was last changed to, for who compares the keys with the log.
    _index_where("ix_audit_revision", ("key_id", "revision"), "revision IS NOT NULL"),
    Index(
        "ix_audit_environment",
        "environment",
        "id",
        sqlite_where=text("environment IS NOT NULL"),
        postgresql_where=text("environment IS NOT NULL"),
    ),
    # What webhooks follow: however many validations lie between, it costs what there is to send.
    _index_where("ix_audit_changes", ("id",), NO_VALIDATION),
    sqlite_autoincrement=True,
)

# One row: the last number that an event got. Updated by who writes events and held to commit, so
# that ids and numbers of events are in the order in which they become visible.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("written", BigInteger, nullable=False),
    # The last event of before there were MACs.
    Column("legacy_to", BigInteger, nullable=False),
)

# How far each log has come, the newest one going on. Its MAC covers all of it.
audit_origins = Table(
    "audit_origins",
    metadata,
    Column("origin", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("size", BigInteger, nullable=False),
    # Of the last event that is sealed: its number and its id.
    Column("number", BigInteger, nullable=False),
    Column("row_id", BigInteger, nullable=False),
    Column("legacy_to", BigInteger, nullable=False),
    # The first leaf that still has its bytes.
    Column("kept_from", BigInteger, nullable=False),
    Column("peaks", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

# Leaves that were sealed at once, and the checkpoint behind them.
audit_batches = Table(
    "audit_batches",
    metadata,
    Column("origin", Integer, primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("count", Integer, nullable=False),
    # Of the event of the first leaf; the others' follow it. NULL when the leaf is of no event.
    Column("number", BigInteger),
    Column("last_id", BigInteger, nullable=False),
    Column("sealed_at", BigInteger, nullable=False),
    Column("hashes", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    # A line for each leaf. NULL once retention has dropped them.
    Column("leaves", LargeBinary),
    Index("ix_audit_batches_number", "number"),
)

# Hashes of complete subtrees of 256, 65,536, ... leaves.
audit_nodes = Table(
    "audit_nodes",
    metadata,
    Column("origin", Integer, primary_key=True, autoincrement=False),
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

nonces = Table(
    "nonces",
    metadata,
    Column("key_id", _KEY_ID, primary_key=True),
    Column("nonce", String(128), primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_nonces_expires", "expires_at"),
    sqlite_with_rowid=False,
)

# How many nonces a key holds: counting them at each claim would cost more the more there are.
nonce_counts = Table(
    "nonce_counts",
    metadata,
    Column("key_id", _KEY_ID, primary_key=True),
    Column("held", Integer, nullable=False),
    sqlite_with_rowid=False,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("answer", LargeBinary),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_idempotency_expires", "expires_at"),
)

# What was taken from quotas, blocks that a node holds included. A period that never ends is 0.
quota_use = Table(
    "quota_use",
    metadata,
    Column("bucket", String(130), primary_key=True),
    Column("period_start", BigInteger, primary_key=True, autoincrement=False),
    Column("spent", BigInteger, nullable=False),
    Index("ix_quota_use_period", "period_start"),
    sqlite_with_rowid=False,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("url", String(2048), nullable=False),
    Column("types", Text, nullable=False),
    # Only events of keys in this environment, where one is named.
    Column("environment", String(128)),
    Column("description", String(256)),
    # Envelopes bound to id, environment and URL: a row that was edited sends nothing.
    Column("sealed", LargeBinary, nullable=False),
    Column("previous_sealed", LargeBinary),
    Column("previous_until", BigInteger),
    Column("disabled", Boolean, nullable=False),
    Column("disabled_reason", String(32)),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    # The newest audit event when it was made or enabled: what came before is not sent.
    Column("since", BigInteger, nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    # Begins with the time, so that the newest come last.
    Column("id", _KEY_ID, primary_key=True),
    Column("webhook_id", String(32), nullable=False),
    # NULL for a test.
    Column("event_id", BigInteger),
    Column("type", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    # When it may be tried; of one that somebody is trying, when that somebody is given up.
    Column("next_at", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("status", Integer),
    Column("outcome", String(32)),
    Column("finished_at", BigInteger),
    # Over what it says to whom: it is sent with our signature.
    Column("mac", LargeBinary, nullable=False),
    UniqueConstraint("webhook_id", "event_id", name="uq_deliveries_event"),
    Index("ix_deliveries_webhook", "webhook_id", "id"),
    _index_where("ix_deliveries_due", ("webhook_id", "next_at"), "state = 'pending'"),
    _index_where("ix_deliveries_finished", ("finished_at",), "finished_at IS NOT NULL"),
)

# One row: up to which audit event deliveries were made.
webhook_cursor = Table(
    "webhook_cursor",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
)

# Which expiry of a key was announced.
expiry_warnings = Table(
    "expiry_warnings",
    metadata,
    Column("key_id", _KEY_ID, primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
)
