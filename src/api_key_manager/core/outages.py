"""What cannot be used right now: said once, not with every request."""

from __future__ import annotations

import logging

from api_key_manager.core.exceptions import StorageError

__all__ = ["Outages"]


class Outages:
    """Logs the first failure of each thing, and no further one until it has worked again.

    Args:
        log: where it is said.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._known: set[str] = set()

    def failed(self, what: str, error: StorageError) -> None:
        """``what``: the thing and its state, in words."""
        if what not in self._known:
            self._known.add(what)
            self._log.error("%s: %s", what, error)

    def worked(self, what: str) -> None:
        """The same thing works, or works again."""
        self._known.discard(what)
