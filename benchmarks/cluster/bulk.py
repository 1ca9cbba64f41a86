"""Many keys at once, by COPY, as the store itself would have written them.

Every record has its own token, digest and MAC, its row of the change feed and its audit event, and
all of a chunk commit together with the revision that they took: followers, `akm doctor` and the
audit log find what they would after as many creates. Processes make the rows for a revision that is
expected; if somebody else took one meanwhile, the chunk is made again.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from secrets import token_bytes
from typing import Any, NamedTuple

import asyncpg

from api_key_manager.audit.leaf import EventMacs
from api_key_manager.connections.tables import audit_events, changes, key_versions, keys
from api_key_manager.core.models import ApiKey, AuditEvent
from api_key_manager.core.records import seal_record
from api_key_manager.core.tokens import ALPHABET, checksum
from api_key_manager.encryption import (
    AUDIT_MAC,
    EnvelopeBox,
    Keyring,
    LocalKey,
    MasterKey,
    Providers,
    WrappedKey,
    open_keyring,
)
from api_key_manager.storage.rows import key_values, version_values
from scripts.cluster import Cluster

__all__ = ["Loaded", "load_keys"]

_CHUNK = 20_000
_PROCESSES = 3
_PREFIX = "akm"


class Loaded(NamedTuple):
    """What was written."""

    tokens: list[str]
    """Of keys by chance, in no order."""
    per_second: float


async def load_keys(cluster: Cluster, count: int, keep: int | None = None) -> Loaded:
    """Write bearer keys into the database of a cluster.

    Args:
        cluster: its nodes may serve meanwhile.
        count: how many.
        keep: how many tokens are returned; all when left out.
    """
    connection = await asyncpg.connect(cluster.postgres.url)
    try:
        rows = await connection.fetch("SELECT kind, number, wrapped, kek, seal FROM keyring")
        master = MasterKey(base64.b64decode(cluster.material.master_key), "the cluster's")
        wrapped = [WrappedKey(*row) for row in rows]
        ring = await open_keyring(Providers(LocalKey(master)), wrapped)
        build = partial(_build, ring, time.time_ns() // 1000)
        share = 1.0 if keep is None else min(1.0, keep / count)
        tokens: list[str] = []
        with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as pool:
            # The processes are there, and have imported what they need.
            ready = [asyncio.wrap_future(pool.submit(build, 1, 0, 0)) for _ in range(_PROCESSES)]
            await asyncio.gather(*ready)
            start = time.perf_counter()
            expected = await connection.fetchval("SELECT revision FROM deployment")
            written = await connection.fetchval("SELECT written FROM audit_head")
            sizes = [min(_CHUNK, count - at) for at in range(0, count, _CHUNK)]
            made: list[Any] = []
            for piece, size in enumerate(sizes):
                while len(made) < min(len(sizes), piece + 2 * _PROCESSES):
                    ahead = sum(sizes[piece : len(made)])
                    made.append(
                        pool.submit(build, sizes[len(made)], expected + ahead, written + ahead)
                    )
                chunk = await asyncio.wrap_future(made[piece])
                made[piece] = None
                async with connection.transaction():
                    before = await connection.fetchval(
                        "UPDATE deployment SET revision = revision + $1 RETURNING revision - $1",
                        size,
                    )
                    number = await connection.fetchval(
                        "UPDATE audit_head SET written = written + $1 RETURNING written - $1", size
                    )
                    if (before, number) != (chunk.revision, chunk.number):
                        again = pool.submit(build, size, before, number)
                        chunk = await asyncio.wrap_future(again)
                    for (table, columns), text in zip(_TABLES, chunk.texts, strict=True):
                        await connection.copy_to_table(
                            table, source=io.BytesIO(text), columns=columns
                        )
                expected, written = before + size, number + size
                tokens += chunk.tokens[: max(1, round(size * share))]
        took = time.perf_counter() - start
        # As autovacuum would before long: the planner knows the new size.
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    return Loaded(tokens, count / took)


_KEY_COLUMNS = [column.name for column in keys.columns]
_VERSION_COLUMNS = [column.name for column in key_versions.columns]
_EVENT_COLUMNS = [column.name for column in audit_events.columns if column.name != "id"]
_TABLES = [
    (keys.name, _KEY_COLUMNS),
    (key_versions.name, _VERSION_COLUMNS),
    (changes.name, [column.name for column in changes.columns]),
    (audit_events.name, _EVENT_COLUMNS),
]


class _Chunk(NamedTuple):
    revision: int
    """The one before its first."""
    number: int
    """Of the event before its first."""
    texts: list[bytes]
    """For COPY, in the order of the tables."""
    tokens: list[str]


def _build(ring: Keyring, now: int, size: int, revision: int, number: int) -> _Chunk:
    """The rows of new keys; runs in another process."""
    box = EnvelopeBox(ring)
    texts: list[list[str]] = [[], [], [], []]
    tokens = []
    events: list[tuple[AuditEvent, int]] = []
    secrets = _random(size, 30)
    # In the order of their ids, so that an index page is written once and not in every row.
    for at, key_id in enumerate(sorted(_random(size, 16)), revision + 1):
        text = f"{_PREFIX}_{key_id}_{secrets.pop()}"
        token = text + checksum(text)
        version = seal_record(box, key_id, 1, token, "bearer", now)
        record = ApiKey(key_id, "bearer", now, now, (version,), prefix=_PREFIX, revision=at)
        key = key_values(record) | {"mac": box.record_mac(record)}
        live = version_values(key_id, version)
        texts[0].append(_line(key[name] for name in _KEY_COLUMNS))
        texts[1].append(_line(live[name] for name in _VERSION_COLUMNS))
        texts[2].append(_line((at, key_id, now)))
        events.append((AuditEvent(now, "key_imported", key_id, "bench"), at))
        tokens.append(token)
    stamped = EventMacs(ring.get(AUDIT_MAC, 1)).stamp(number + 1, events)
    texts[3].extend(map(_line, stamped))
    return _Chunk(revision, number, ["".join(lines).encode() for lines in texts], tokens)


_LETTERS = bytes(ord(ALPHABET[byte % 62]) for byte in range(256))
_UNEVEN = bytes(range(248, 256))


def _random(count: int, length: int) -> list[str]:
    """So many random texts of base62, as :mod:`core.tokens` mints them, but all at once."""
    text = ""
    while len(text) < count * length:
        # Without the uppermost bytes every letter is as likely as the others.
        text += token_bytes(count * length).translate(_LETTERS, _UNEVEN).decode()
    return [text[at * length : (at + 1) * length] for at in range(count)]


_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _line(values: Iterable[Any]) -> str:
    """A row in PostgreSQL's text format of COPY."""
    return "\t".join(map(_text, values)) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return f"\\\\x{value.hex()}"
    return str(value).translate(_ESCAPED) if isinstance(value, str) else str(value)
