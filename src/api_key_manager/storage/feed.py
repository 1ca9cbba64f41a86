"""The change feed of a SQLite file, woken by ``PRAGMA data_version``."""

from __future__ import annotations

from api_key_manager.storage import scripts
from api_key_manager.storage.sqlite import SqliteDriver

__all__ = ["SqliteFeed"]


class SqliteFeed:
    """Announces what any connection to the file has changed.

    Args:
        driver: of the file.
    """

    def __init__(self, driver: SqliteDriver) -> None:
        self._driver = driver
        self._seen: int | None = None

    def changed(self) -> bool:
        """Whether the file was written since the last call. Costs 4 µs."""
        version = self._driver.data_version()
        changed, self._seen = version != self._seen, version
        return changed

    def read(self, after: int, limit: int) -> tuple[int, list[str] | None]:
        """The revision reached, and whose changes led there; see :mod:`~.scripts`."""
        return self._driver.read(scripts.feed(after, limit), snapshot=True)
