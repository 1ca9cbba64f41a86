"""What Redis says when it refuses, in words that hold nothing of what it was asked."""

from __future__ import annotations

import re
from typing import Final

from api_key_manager.core.exceptions import StorageError

__all__ = ["RedisReplyError"]

_MEANINGS: Final = {
    "LOADING": "it is still loading its data",
    "MASTERDOWN": "it has lost its primary",
    "CLUSTERDOWN": "its cluster is down",
    "READONLY": "it is a replica, which takes no writes",
    "OOM": "its memory is used up",
    "MISCONF": "it cannot save to its disk",
    "NOREPLICAS": "it has too few replicas to take writes",
    "NOPERM": "its user may not do this",
    "NOAUTH": "it wants a password",
    "WRONGPASS": "the user or the password is wrong",
    "MOVED": "it is part of a cluster, which is not supported",
    "CROSSSLOT": "it is part of a cluster, which is not supported",
    "BUSY": "a script of somebody's is holding it up",
}
_AWAY: Final = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "BUSY"})
# What went wrong in a script stands behind the script's own error, in some versions as a sentence.
_INNER: Final = re.compile(rf"\b({'|'.join(_MEANINGS)})\b")
_FORBIDDEN: Final = re.compile("ACL failure in script|user executing the script can't")


class RedisReplyError(StorageError):
    """Redis answered with an error.

    Its own text may repeat what it was asked, so only the ``code`` is told, such as ``READONLY``.
    """

    def __init__(self, error: Exception) -> None:
        text = str(error)
        code = text.split(" ", 1)[0][:32]
        if code == "ERR" and "script" in text:
            if inner := _INNER.search(text):
                code = inner[1]
            elif _FORBIDDEN.search(text):
                code = "NOPERM"
        self.code = code if re.fullmatch("[A-Z]+", code) else "ERR"
        meaning = _MEANINGS.get(self.code)
        super().__init__(f"Redis refuses with {self.code}{f': {meaning}' if meaning else ''}")

    @property
    def away(self) -> bool:
        """Whether the server as a whole cannot answer, not only this question."""
        return self.code in _AWAY
