"""SQL stores: one set of tables, statements and scripts, a driver per database.

That of PostgreSQL is imported by who uses it, since it takes long.
"""

from api_key_manager.storage.driver import Driver
from api_key_manager.storage.feed import SqliteFeed
from api_key_manager.storage.nonce_places import SqlNonceRegister
from api_key_manager.storage.nonces import SqlNonceStore
from api_key_manager.storage.schema import upgrade
from api_key_manager.storage.sqlite import SqliteDriver
from api_key_manager.storage.store import SqliteStore, SqlStore

__all__ = [
    "Driver",
    "SqlNonceRegister",
    "SqlNonceStore",
    "SqlStore",
    "SqliteDriver",
    "SqliteFeed",
    "SqliteStore",
    "upgrade",
]
