"""Which of several places holds the nonces of a deployment: one row says so, for all nodes.

Nonces live beside the keys or in a Redis. Should two places ever be believed at once, or one after
the other without a word, a request would be accepted once in each. So a node that claims elsewhere
than the row says moves it when it starts, and what is dated up to the move plus the skew is
refused from then on; a node whose place is not the row's refuses every nonce.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import bindparam, select

from api_key_manager.connections import Script, Statement
from api_key_manager.connections.tables import deployment
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import NONCE_LEASE_SECONDS, NonceStanding
from api_key_manager.storage.driver import Driver

__all__ = ["SqlNonceRegister", "bear_anew", "move", "standing"]

_log = logging.getLogger(__name__)
_AHEAD: Final = int(NONCE_LEASE_SECONDS * MICROSECONDS)

_COLUMNS = (deployment.c.nonce_place, deployment.c.nonce_birth, deployment.c.revision)
_STANDING = Statement(select(*_COLUMNS))
# Nothing changes, but the row is ours until commit: what the clock says then comes after all waits.
_HOLD = Statement(
    deployment.update().values(nonce_place=deployment.c.nonce_place).returning(*_COLUMNS)
)
_MOVE = Statement(
    deployment.update().values(nonce_place=bindparam("b_place"), nonce_birth=bindparam("b_birth"))
)


def standing() -> Script[NonceStanding]:
    """What the row says."""
    return NonceStanding(*(yield _STANDING())[0])


def move(
    expected: str | None, place: str | None, clock: Callable[[], float]
) -> Script[NonceStanding]:
    """Put another place in force if it is the turn of ``expected``; what the row says then.

    The new birth lies ahead by as long as a node may believe what it read before.
    """
    found = NonceStanding(*(yield _HOLD())[0])
    if found.place != expected:
        return found
    birth = found.birth
    if not _has_no_past(found):
        birth = max(birth, round(clock() * MICROSECONDS) + _AHEAD)
    yield _MOVE(b_place=place, b_birth=birth)
    return found._replace(place=place, birth=birth)


def _has_no_past(before: NonceStanding) -> bool:
    """Whether no nonce was taken yet, and none can be after the move. Without a key nobody has one
    taken, but a Redis may go on for the length of the lease, and the first key be made in that."""
    return before.place is None and before.revision == 0


def bear_anew(clock: Callable[[], float]) -> Script[int]:
    """Begin a new birth (µs) in the same place: claims up to now may be lost."""
    found = NonceStanding(*(yield _HOLD())[0])
    birth = max(found.birth, round(clock() * MICROSECONDS) + _AHEAD)
    yield _MOVE(b_place=found.place, b_birth=birth)
    return birth


class SqlNonceRegister:
    """The row in the database of the keys.

    Args:
        driver: where the scripts run.
        clock: Unix seconds.
    """

    def __init__(self, driver: Driver, clock: Callable[[], float] = time.time) -> None:
        self._driver = driver
        self._clock = clock

    async def standing(self) -> NonceStanding:
        """Where nonces are claimed now.

        Raises:
            StorageError: the database does not say.
        """
        return await self._driver.read(standing)

    async def move(self, expected: str | None, place: str | None) -> NonceStanding:
        """Put another place in force, unless somebody else was faster.

        Args:
            expected: the place that was read.
            place: the one that shall be; ``None`` for the tables beside the keys.

        Returns:
            What holds now, whoever decided it.

        Raises:
            StorageError: the database cannot do it.
        """
        now = await self._driver.write(move, expected, place, self._clock)
        if now.place == place and not _has_no_past(now._replace(place=expected)):
            _log.warning(
                "nonces are claimed in %s from now on, not in %s: requests with a nonce are"
                " unavailable if they are dated before %s, or up to"
                " CLOCK_SKEW_TOLERANCE_SECONDS after it; a node that claims elsewhere refuses all",
                _in_words(place), _in_words(expected, other=True), _instant(now.birth),
            )  # fmt: skip
        return now

    async def lost(self) -> None:
        """Begin anew: the database came back without its last transactions.

        Raises:
            StorageError: it cannot be written down.
        """
        birth = await self._driver.write(bear_anew, self._clock)
        _log.warning(
            "the database lost its last changes, and nonces may be among them: requests with a"
            " nonce are unavailable if they are dated before %s, or up to"
            " CLOCK_SKEW_TOLERANCE_SECONDS after it",
            _instant(birth),
        )


def _in_words(place: str | None, *, other: bool = False) -> str:
    if place is None:
        return "the database"
    return "another Redis, or one that lost them" if other else "Redis"


def _instant(birth: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(-(-birth // MICROSECONDS)))
