"""SQL stores: one set of tables, statements and scripts, a driver per database."""

from api_key_manager.storage.nonces import SqlNonceStore
from api_key_manager.storage.schema import upgrade
from api_key_manager.storage.sqlite import SqliteDriver
from api_key_manager.storage.store import SqlStore

__all__ = ["SqlNonceStore", "SqlStore", "SqliteDriver", "upgrade"]
