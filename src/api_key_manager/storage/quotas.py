"""What was taken from quotas, beside the keys: in a transaction, on disk before it counts.

Each amount is taken by one statement that looks at what was taken before, so that no two processes
take the same credits, on any SQL database.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select, text

from api_key_manager.connections import Script, Statement, Step
from api_key_manager.connections.tables import quota_use
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import GivenBack, Spend, Spent
from api_key_manager.storage.driver import Driver
from api_key_manager.storage.timing import Observe, reads, untold, writes

__all__ = ["SqlQuotaStore", "prune_quotas"]

PERIODS_KEPT_SECONDS = 100 * 86_400
"""Three months: a clock that steps back finds what was spent."""

_PRUNE_ROWS = 1000

# No row comes back when more than `b_most` was taken before.
_TAKE = Statement(
    text(
        "INSERT INTO quota_use (bucket, period_start, spent)"
        " VALUES (:b_bucket, :b_start, :b_amount)"
        " ON CONFLICT (bucket, period_start) DO UPDATE"
        " SET spent = quota_use.spent + excluded.spent WHERE quota_use.spent <= :b_most"
        " RETURNING spent"
    )
)
_SPENT = Statement(
    select(quota_use.c.spent).where(
        quota_use.c.bucket == bindparam("b_bucket"),
        quota_use.c.period_start == bindparam("b_start"),
    )
)
_RETURN = Statement(
    quota_use.update()
    .where(
        quota_use.c.bucket == bindparam("b_bucket"),
        quota_use.c.period_start == bindparam("b_start"),
        quota_use.c.spent >= bindparam("b_amount"),
    )
    .values(spent=quota_use.c.spent - bindparam("b_amount"))
)
_ENDED = Statement(
    select(quota_use.c.bucket, quota_use.c.period_start)
    # A quota that is never refilled has the period 0.
    .where(quota_use.c.period_start > 0, quota_use.c.period_start < bindparam("b_before"))
    .limit(_PRUNE_ROWS)
)
_DELETE = Statement(
    quota_use.delete().where(
        quota_use.c.bucket == bindparam("b_bucket"),
        quota_use.c.period_start == bindparam("b_start"),
    )
)


class SqlQuotaStore:
    """Credits in the database of the keys, shared by all that open it.

    Args:
        driver: where the scripts run.
        observe: is told how long each operation took.
    """

    def __init__(self, driver: Driver, *, observe: Observe = untold) -> None:
        self._driver = driver
        self.observe = observe

    @writes
    async def spend(self, asked: Sequence[Spend]) -> list[Spent]:
        return await self._driver.write(_spend_all, asked)

    @writes
    async def give_back(self, returned: Sequence[GivenBack]) -> None:
        await self._driver.write(_give_back_all, returned)

    @reads
    async def spent(self, accounts: Sequence[tuple[str, int]]) -> list[int]:
        return await self._driver.read(_spent_of, accounts)


def _spend_all(asked: Sequence[Spend]) -> Script[list[Spent]]:
    # In one order everywhere: two that take from the same accounts must not wait for each other.
    found: dict[int, Spent] = {}
    for i in sorted(range(len(asked)), key=lambda i: asked[i][:2]):
        found[i] = yield from _spend(asked[i])
    return [found[i] for i in range(len(asked))]


def _spend(asked: Spend) -> Script[Spent]:
    if asked.cost > asked.limit:
        known = yield _SPENT(b_bucket=asked.bucket, b_start=asked.period_start)
        return Spent(0, known[0][0] if known else 0)
    if asked.block and asked.block * asked.blocks <= asked.limit:
        most = asked.limit - asked.block * asked.blocks
        rows = yield _take(asked, asked.block, most)
        if rows:
            return Spent(asked.block, rows[0][0])
    needed = min(asked.needed, asked.limit)
    rows = yield _take(asked, needed, asked.limit - needed)
    if rows:
        return Spent(needed, rows[0][0])
    # The statement that took nothing has locked the row all the same: nobody changes it now.
    spent: int = (yield _SPENT(b_bucket=asked.bucket, b_start=asked.period_start))[0][0]
    left = asked.limit - spent
    if left < asked.cost:
        return Spent(0, spent)
    rows = yield _take(asked, left, spent)
    return Spent(left, rows[0][0]) if rows else Spent(0, spent)


def _take(asked: Spend, amount: int, most: int) -> Step:
    return _TAKE(b_bucket=asked.bucket, b_start=asked.period_start, b_amount=amount, b_most=most)


def _give_back_all(returned: Sequence[GivenBack]) -> Script[None]:
    for bucket, start, amount in sorted(returned):
        yield _RETURN(b_bucket=bucket, b_start=start, b_amount=amount)


def _spent_of(accounts: Sequence[tuple[str, int]]) -> Script[list[int]]:
    found = []
    for bucket, start in accounts:
        rows = yield _SPENT(b_bucket=bucket, b_start=start)
        found.append(rows[0][0] if rows else 0)
    return found


def prune_quotas(now: float) -> Script[int]:
    """Forget what was spent in periods that are long over; returns how many accounts that was."""
    before = int((now - PERIODS_KEPT_SECONDS) * MICROSECONDS)
    ended = yield _ENDED(b_before=before)
    for bucket, start in ended:
        yield _DELETE(b_bucket=bucket, b_start=start)
    return len(ended)
