"""What PostgreSQL says that it did: how often it looked at the keys, and how."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

__all__ = ["Reads", "most_connections", "reads"]

# A backend that turns idle tells its numbers at once, or within ten seconds.
_SETTLED_SECONDS = 11.0


class Reads(NamedTuple):
    """Of the table of keys, since the server was made."""

    look_ups: int
    """By the primary key."""
    scanned: int
    """Rows that were read in passes over the table, without an index."""
    at: float

    def since(self, before: Reads, quiet: Reads) -> Reads:
        """What was done since then, without what is done all the time.

        Args:
            before: the numbers at the start.
            quiet: the numbers some time before that, when nobody asked for anything.
        """
        ratio = (self.at - before.at) / (before.at - quiet.at)
        return Reads(
            self.look_ups - before.look_ups - round((before.look_ups - quiet.look_ups) * ratio),
            max(0, self.scanned - before.scanned - round((before.scanned - quiet.scanned) * ratio)),
            self.at - before.at,
        )


async def reads(connection: Any) -> Reads:
    """The numbers so far, once everybody has told his."""
    await asyncio.sleep(_SETTLED_SECONDS)
    row = await connection.fetchrow(
        "SELECT i.idx_scan, t.seq_tup_read FROM pg_stat_user_indexes i"
        " JOIN pg_stat_user_tables t USING (relid) JOIN pg_index x USING (indexrelid)"
        " WHERE t.relname = 'keys' AND x.indisprimary"
    )
    return Reads(row[0], row[1], time.monotonic())


async def most_connections(connection: Any) -> int:
    """The most connections at once until it is cancelled."""
    most = 0
    try:
        while True:
            most = max(most, await connection.fetchval(_CONNECTED))
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return most


_CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
