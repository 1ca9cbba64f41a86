"""Nonces beside the keys: claimed in the writer's transaction, on disk before they count."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import chain, repeat

from sqlalchemy import BindParameter, bindparam, select, tuple_

from api_key_manager.connections import Many, Script, Statement
from api_key_manager.connections.tables import deployment, nonce_counts, nonces
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.storage import nonce_places
from api_key_manager.storage.driver import Driver
from api_key_manager.storage.nonce_places import SqlNonceRegister
from api_key_manager.storage.timing import Observe, untold, writes

__all__ = ["SqlNonceStore"]

_log = logging.getLogger(__name__)
MAX_NONCES_PER_KEY = 100_000
_PRUNE_ROWS = 256

_KEY: BindParameter[str] = bindparam("b_key_id")
_HELD = Statement(select(nonce_counts.c.held).where(nonce_counts.c.key_id == _KEY))
_KNOWN = Statement(
    select(nonces.c.expires_at).where(
        nonces.c.key_id == _KEY, nonces.c.nonce == bindparam("b_nonce")
    )
)
_INSERT = Statement(nonces.insert())
_FIRST = Statement(nonce_counts.insert())
_COUNT = Statement(
    nonce_counts.update()
    .where(nonce_counts.c.key_id == _KEY)
    .values(held=nonce_counts.c.held + bindparam("b_change"))
)
_BEFORE: BindParameter[int] = bindparam("b_before")
_STANDING = Statement(
    select(deployment.c.nonces_pruned_to, deployment.c.nonce_birth, deployment.c.nonce_place)
)
_NOTE_PRUNED = Statement(
    deployment.update()
    .where(deployment.c.nonces_pruned_to < bindparam("b_now"))
    .values(nonces_pruned_to=bindparam("b_now"))
)
_ANY_ENDED = Statement(select(nonces.c.key_id).where(nonces.c.expires_at < _BEFORE).limit(1))
# What another process is about to remove is left to it, and each removes in one order: none waits.
_ENDED = (
    select(nonces.c.key_id, nonces.c.nonce)
    .where(nonces.c.expires_at < _BEFORE)
    .order_by(nonces.c.expires_at, nonces.c.key_id, nonces.c.nonce)
    .limit(_PRUNE_ROWS)
    .with_for_update(skip_locked=True)
    .cte("ended_nonces")
)
_REMOVE = Statement(
    nonces.delete()
    .where(tuple_(nonces.c.key_id, nonces.c.nonce).in_(select(_ENDED)))
    .returning(nonces.c.key_id)
)
_LOWER = Statement(
    nonce_counts.insert(),
    tail=" ON CONFLICT (key_id) DO UPDATE SET held = nonce_counts.held + excluded.held",
)
_SOME_KEYS = [f"b_key_{i}" for i in range(_PRUNE_ROWS)]
_DELETE_COUNTS = Statement(
    nonce_counts.delete().where(
        nonce_counts.c.key_id.in_([bindparam(name) for name in _SOME_KEYS]),
        nonce_counts.c.held <= 0,
    )
)


class SqlNonceStore:
    """Nonces in the database of the keys, shared by all that open it.

    Each claim reads in its own transaction whether nonces are claimed here, and since when none was
    lost. What is dated up to that birth plus the skew is refused, unless the key was made after
    that too, so that no claim of it can be older whichever node's clock it was made by.

    Args:
        driver: where the scripts run.
        max_per_key: how many live nonces one key may hold; past that, only this key is refused.
        observe: is told how long each operation took.
    """

    def __init__(
        self,
        driver: Driver,
        max_per_key: int = MAX_NONCES_PER_KEY,
        *,
        observe: Observe = untold,
    ) -> None:
        self._driver = driver
        self.observe = observe
        self._max_per_key = max_per_key
        self._elsewhere = False

    @property
    def problem(self) -> str | None:
        """Why claims are refused; ``None`` while they are not."""
        if not self._elsewhere:
            return None
        return (
            "requests with a nonce are unavailable: a node that started later claims nonces in"
            " Redis, and REDIS_URL is not set here"
        )

    async def prepare(self) -> None:
        """Take over from a Redis, if nonces were claimed there.

        Raises:
            StorageError: the database does not answer.
        """
        register = SqlNonceRegister(self._driver)
        found = await register.standing()
        if found.place is not None:
            found = await register.move(found.place, None)
        self._note(found.place)

    async def look(self) -> None:
        """See whether nonces are still claimed here.

        Raises:
            StorageError: the database does not answer.
        """
        self._note((await self._driver.read(nonce_places.standing)).place)

    @writes
    async def claim(self, claims: Sequence[Claim], now: float, skew: int) -> list[ClaimResult]:
        if not claims:
            return []
        place, results = await self._driver.write(_claim_all, claims, self._max_per_key, skew)
        self._note(place)
        return results

    async def birth(self) -> int:
        """Since when (µs) no claim can have been lost."""
        return (await self._driver.read(nonce_places.standing)).birth

    async def prune(self, now: float) -> int:
        """Forget some nonces that can no longer be presented; returns how many."""
        before = int(now)
        if not await self._driver.read(_any_ended, before):
            return 0
        # Known to all before anything is forgotten, and by itself: who changes a key waits for the
        # row that it stands in.
        await self._driver.write(_note_pruned, before)
        return await self._driver.write(_prune, before)

    def _note(self, place: str | None) -> None:
        was, self._elsewhere = self._elsewhere, place is not None
        if self._elsewhere and not was:
            _log.warning("%s", self.problem)
        elif was and not self._elsewhere:
            _log.info("nonces are claimed in the database again")


def _claim_all(
    claims: Sequence[Claim], most: int, skew: int
) -> Script[tuple[str | None, list[ClaimResult]]]:
    """The place in force, and the results."""
    pruned_to, born, place = (yield _STANDING())[0]
    if place is not None:
        return place, [ClaimResult.REFUSED] * len(claims)
    believed = born / MICROSECONDS + skew
    results = []
    for claim in claims:
        # A claim may have been lost with what came before. The key's age is by a node's clock.
        lost = claim.timestamp <= believed and claim.key_since < believed
        # Should the clock come back, what was forgotten must not be taken for new.
        forgotten = claim.expires_at < pruned_to
        refused = lost or forgotten
        results.append(ClaimResult.REFUSED if refused else (yield from _claim(claim, most)))
    return place, results


def _claim(claim: Claim, most: int) -> Script[ClaimResult]:
    known = yield _KNOWN(b_key_id=claim.key_id, b_nonce=claim.nonce)
    if known:
        return ClaimResult.REPLAYED
    held = yield _HELD(b_key_id=claim.key_id)
    if held and held[0][0] >= most:
        return ClaimResult.REFUSED
    yield _INSERT(key_id=claim.key_id, nonce=claim.nonce, expires_at=claim.expires_at)
    if held:
        yield _COUNT(b_key_id=claim.key_id, b_change=1)
    else:
        yield _FIRST(key_id=claim.key_id, held=1)
    return ClaimResult.TAKEN


def _any_ended(before: int) -> Script[bool]:
    return bool((yield _ANY_ENDED(b_before=before)))


def _note_pruned(now: int) -> Script[None]:
    yield _NOTE_PRUNED(b_now=now)


def _prune(before: int) -> Script[int]:
    removed = yield _REMOVE(b_before=before)
    if not removed:
        return 0
    # Only what this very statement removed: several processes prune at once.
    counts = sorted(Counter(key_id for (key_id,) in removed).items())
    yield Many(_LOWER, [(key_id, -count) for key_id, count in counts])
    padded = chain((key_id for key_id, _ in counts), repeat(counts[0][0]))
    yield _DELETE_COUNTS(**dict(zip(_SOME_KEYS, padded)))  # noqa: B905 - one is endless
    return len(removed)
