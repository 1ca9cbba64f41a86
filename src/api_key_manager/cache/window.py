"""What changed lately, and with it whether something read a while ago is still true."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from api_key_manager.core.ports import Changed, Reading

__all__ = ["Window"]

_KEPT: Final = 10_000


class Window:
    """The last changes of the feed, without a gap, up to the newest that was read.

    A record may be shared between processes together with the newest change that its reader knew
    *before* it read the record (*as of*). It is current for whoever finds that very change in its
    own window and no later one of the same key. A reader that was slow, or a store that lost
    commits and gave their revisions to others, is found by this.

    Attributes:
        newest: the last change that was read; its revision is 0 before the first change of all.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._changes: deque[Changed] = deque(maxlen=kept)
        self._last: dict[str, int] = {}
        self.newest: Changed | None = None

    def start(self, reading: Reading) -> None:
        """Begin anew with the last changes: what was known before may no longer be true."""
        self._changes.clear()
        self._last.clear()
        # With no row left, no later reading can be compared: it starts over, which is safe.
        self.newest = Changed(reading.revision, "", 0)
        self.add(reading.changes)

    def add(self, changes: Sequence[Changed]) -> None:
        """Go on with changes that follow on the newest."""
        for change in changes:
            if len(self._changes) == self._changes.maxlen:
                oldest = self._changes[0]
                if self._last.get(oldest.key_id) == oldest.revision:
                    del self._last[oldest.key_id]
            self._changes.append(change)
            self._last[change.key_id] = change.revision
            self.newest = change

    def holds(self, key_id: str, as_of: Changed) -> bool:
        """Whether a record of this key, read as of a change, is what the store holds now."""
        if self.newest is None:
            return False
        if as_of == self.newest:
            return True
        if not self._changes:
            return False
        at = as_of.revision - self._changes[0].revision
        if not 0 <= at < len(self._changes) or self._changes[at] != as_of:
            return False
        return self._last.get(key_id, 0) <= as_of.revision
