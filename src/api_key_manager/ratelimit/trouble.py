"""Whether something that others rely on is out of order: said once per change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Trouble"]

_log = logging.getLogger(__name__)
_REMEMBERED_SECONDS: Final = 10.0


class Trouble:
    """Told how each try went; logs when that changes.

    Args:
        meanwhile: what holds while it is out of order, for the log.
        clock: seconds that never go back.
    """

    def __init__(self, meanwhile: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self._meanwhile = meanwhile
        self._clock = clock
        self._why: str | None = None
        self._last = 0.0

    @property
    def problem(self) -> str | None:
        """Why the last try failed. After 10 seconds without any nobody knows, so ``None``: a node
        that gets no traffic because of a problem would keep it for ever."""
        if self._why is None or self._clock() - self._last > _REMEMBERED_SECONDS:
            return None
        return self._why

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self._last = self._clock()
        if self._why is None:
            _log.warning("%s: %s", self._meanwhile, error)
        self._why = str(error)

    def worked(self) -> None:
        if self._why is not None:
            self._why = None
            _log.info("no longer so: %s", self._meanwhile)
