"""Databases as older versions of this software made them."""

from __future__ import annotations

import base64

from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from api_key_manager.connections.tables import keys
from api_key_manager.core.models import ApiKey
from api_key_manager.core.records import seal_record
from api_key_manager.encryption import (
    AUDIT_MAC,
    AUDIT_SIGN,
    DATA,
    PEPPER,
    RECORD_MAC,
    EnvelopeBox,
    Keyring,
    LocalKey,
    MasterKey,
    new_key,
)
from api_key_manager.storage.migrations import config
from api_key_manager.storage.rows import key_values, version_values
from tests.integration.places import Place

__all__ = ["second_schema"]


async def second_schema(place: Place, master_key: str) -> dict[tuple[str, int], bytes]:
    """One of schema 0002, with a signed key ``s`` (its secret is forty letters s) and a bearer key
    ``b``; the keys that were derived from its master key."""
    place.file.parent.mkdir()
    engine = create_engine(f"sqlite:///{place.file}", poolclass=NullPool)
    with engine.begin() as connection:
        command.upgrade(config(connection), "0002")
    master = MasterKey(base64.b64decode(master_key), "before")
    derived = {(kind, 1): master.derive(kind) for kind in (RECORD_MAC, AUDIT_MAC, AUDIT_SIGN)}
    random = {(kind, 1): new_key() for kind in (DATA, PEPPER)}
    for (kind, number), key in random.items():
        wrapped = await LocalKey(master).wrap(key, f"akm-wrap-1\n{kind}\n{number}".encode())
        place.sql("INSERT INTO keyring VALUES (?, ?, ?, 1)", kind, number, wrapped)
    box = EnvelopeBox(Keyring({**derived, **random}))
    for key_id, kind, secret in (("s", "signed", "s" * 40), ("b", "bearer", "akm_b_x")):
        version = seal_record(box, key_id, 1, secret, kind, 1)
        record = ApiKey(key_id, kind, 1, 1, (version,), revision=1)
        record = ApiKey(key_id, kind, 1, 1, (version,), revision=1, mac=box.record_mac(record))
        row = key_values(record)
        columns = [column.name for column in keys.columns if column.name in row]
        marks = ", ".join("?" * len(columns))
        place.sql(
            f"INSERT INTO keys ({', '.join(columns)}) VALUES ({marks})",
            *(row[name] for name in columns),
        )
        values = version_values(key_id, version)
        # As they were in that schema.
        names = [name for (_, name, *_) in place.sql("PRAGMA table_info(key_versions)")]
        place.sql(
            f"INSERT INTO key_versions ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            *(values[name] for name in names),
        )
    place.sql("UPDATE deployment SET revision = 1")
    return derived
