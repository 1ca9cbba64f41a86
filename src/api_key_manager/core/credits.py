"""Credits of quotas, taken from a durable store in blocks, so that most requests need no I/O.

A block is taken from the store before any of it is used, so what a process holds counts as spent:
a crash loses at most one block per account and process, and never gives anything back. A block is
at most a hundredth of the limit, and once less than :data:`BLOCKS_LEFT` blocks are left nobody gets
one any more: each request then takes exactly its cost, so that all credits can be used. What lies
idle is returned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import GivenBack, QuotaStore, Spend, Spent
from api_key_manager.core.quotas import FOREVER, Period, Quota, QuotaState

__all__ = ["BLOCKS_LEFT", "IDLE_SECONDS", "MOST_IN_A_BLOCK", "Credits", "Take"]

_log = logging.getLogger(__name__)

MOST_IN_A_BLOCK: Final = 1000
BLOCKS_LEFT: Final = 10
IDLE_SECONDS: Final = 5.0
_SHARE: Final = 100


class Take(NamedTuple):
    """What a request takes from which account."""

    bucket: str
    quota: Quota
    cost: int


class Taken(NamedTuple):
    """What became of it."""

    allowed: bool
    state: QuotaState
    period_start: int


class _Account:
    """Credits of one account and period that are this process's."""

    __slots__ = ("left", "mark", "period", "used_at")

    def __init__(self, period: Period, now: float) -> None:
        self.period = period
        self.left = 0
        # What was spent by all when the last block was taken, that included.
        self.mark = 0
        self.used_at = now


class _Waiting(NamedTuple):
    take: Take
    period: Period
    now: float
    done: asyncio.Future[Taken]


class Credits:
    """Takes credits for one process. Used from one event loop, like the manager it belongs to.

    Args:
        store: where they are spent; ``None``: there is none, so nobody gets any.
        lease: whether blocks are taken. Who takes them returns them: see :meth:`give_back_idle`.
    """

    def __init__(self, store: QuotaStore | None, *, lease: bool) -> None:
        self._store = store
        self._lease = lease
        self._accounts: dict[str, _Account] = {}
        self._waiting: list[_Waiting] = []
        self._runner: asyncio.Task[None] | None = None

    def take_now(self, take: Take, now: float) -> Taken | None:
        """Take from what this process holds.

        Returns:
            ``None`` when that is not enough; then nothing was taken.
        """
        account = self._accounts.get(take.bucket)
        if account is None:
            return None
        start, end = account.period
        # A smaller limit than the one under which the block was taken may be spent already.
        if (
            not start <= now * MICROSECONDS < end
            or account.left < take.cost
            or account.mark > take.quota.limit
        ):
            return None
        account.left -= take.cost
        account.used_at = now
        left = take.quota.limit - account.mark + account.left
        return Taken(True, _state(take.quota, left, end), start)

    async def take(self, asked: Sequence[Take], now: float) -> list[Taken]:
        """The same for many, as if in order, with whatever I/O that takes.

        All who ask at the same time share a transaction, and a process takes one block at a time.

        Raises:
            StorageError: it cannot be told; then nothing was given to any.
        """
        loop = asyncio.get_running_loop()
        waiting = []
        for take in asked:
            try:
                period = take.quota.period(now)
            except (KeyError, ValueError, OverflowError):
                raise StorageError(f"the time zone {take.quota.zone} is not known here") from None
            waiting.append(_Waiting(take, period, now, loop.create_future()))
        self._waiting.extend(waiting)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            # All of them are waited for, so that no error is left unread.
            await asyncio.wait([each.done for each in waiting])
            return [each.done.result() for each in waiting]
        except BaseException:
            # Also who was cancelled: what it got goes back.
            for each in waiting:
                if not each.done.done():
                    each.done.cancel()
                    continue
                got = None if each.done.cancelled() or each.done.exception() else each.done.result()
                if got is not None and got.allowed:
                    self.put_back(each.take, got)
            raise

    async def trim(self, asked: Sequence[Take]) -> None:
        """Return what these accounts hold beyond a block, after something was put back."""
        returned = []
        for take in asked:
            account = self._accounts.get(take.bucket)
            if account is None:
                continue
            excess = account.left - self._block(take.quota)
            if excess > 0:
                account.left -= excess
                returned.append(GivenBack(take.bucket, account.period.start, excess))
            if not account.left:
                del self._accounts[take.bucket]
        await self._return(returned)

    def put_back(self, take: Take, taken: Taken) -> None:
        """Undo a take whose request was refused for something else."""
        account = self._accounts.get(take.bucket)
        if account is not None and account.period.start == taken.period_start:
            account.left += take.cost

    def held(self, bucket: str, period_start: int) -> int:
        """How much of an account is this process's and not used."""
        account = self._accounts.get(bucket)
        return account.left if account and account.period.start == period_start else 0

    async def spent(self, bucket: str, quota: Quota, now: float) -> int | None:
        """What was spent in the period that runs; ``None`` where nobody can say.

        Raises:
            StorageError: the store cannot be read.
        """
        if self._store is None:
            return None
        try:
            start = quota.period(now).start
        except (KeyError, ValueError, OverflowError):
            return None
        # Looked up before the store is asked: what is returned meanwhile must not count twice.
        held = self.held(bucket, start)
        (spent,) = await self._store.spent([(bucket, start)])
        return max(0, spent - held)

    async def give_back_idle(self, now: float, *, everything: bool = False) -> None:
        """Return what was not used for a while, or all there is.

        What cannot be returned stays spent, since nobody can say whether it was returned.
        """
        idle = [
            bucket
            for bucket, account in self._accounts.items()
            if everything or not 0 <= now - account.used_at < IDLE_SECONDS
        ]
        returned = []
        for bucket in idle:
            # Taken away first, so that nobody uses what is being returned.
            account = self._accounts.pop(bucket)
            if account.left:
                returned.append(GivenBack(bucket, account.period.start, account.left))
        await self._return(returned)

    async def _return(self, returned: Sequence[GivenBack]) -> None:
        if returned and self._store is not None:
            try:
                await self._store.give_back(returned)
            except StorageError as error:
                _log.warning("credits of %d quotas stay spent: %s", len(returned), error)

    def _block(self, quota: Quota) -> int:
        return min(MOST_IN_A_BLOCK, quota.limit // _SHARE) if self._lease else 0

    async def close(self, now: float) -> None:
        """Return everything; what is asked for from now on is taken as it is needed."""
        self._lease = False
        if self._runner is not None:
            await asyncio.wait([self._runner])
        await self.give_back_idle(now, everything=True)

    async def _run(self) -> None:
        """Serve who waits, wave by wave: those who come meanwhile share the next transaction."""
        while self._waiting:
            wave, self._waiting = self._waiting, []
            try:
                await self._serve(wave)
            except Exception as error:
                known = isinstance(error, StorageError)
                failure = error if known else StorageError("credits cannot be taken")
                if not known:
                    _log.exception("credits cannot be taken")
                for each in wave:
                    if not each.done.done():
                        each.done.set_exception(failure)

    async def _serve(self, wave: list[_Waiting]) -> None:
        """One account's requests go in order: one asks the store for all, the others follow."""
        refused: dict[tuple[str, int], int] = {}
        while wave:
            first: dict[str, _Waiting] = {}
            needed: dict[str, int] = {}
            later = []
            for each in wave:
                if each.done.done() or self._settle(each, refused):
                    continue
                bucket = each.take.bucket
                first.setdefault(bucket, each)
                if first[bucket].period == each.period:
                    needed[bucket] = needed.get(bucket, 0) + each.take.cost
                later.append(each)
            if not first:
                return
            if self._store is None:
                raise StorageError("there is no store for quotas")
            asked = [self._spend(each, needed[bucket]) for bucket, each in first.items()]
            spent = await self._store.spend(asked)
            for each, result in zip(first.values(), spent, strict=True):
                self._note(each, result, refused)
            wave = later

    def _settle(self, each: _Waiting, refused: dict[tuple[str, int], int]) -> bool:
        """Answer from what is here, if that is enough to know."""
        take, period = each.take, each.period
        taken = self.take_now(take, each.now)
        spent = refused.get((take.bucket, period.start))
        if taken is None:
            if spent is None or spent + take.cost <= take.quota.limit:
                return False
            left = take.quota.limit - spent + self.held(take.bucket, period.start)
            taken = Taken(False, _refusal(take, left, period, each.now), period.start)
        each.done.set_result(taken)
        return True

    def _spend(self, each: _Waiting, needed: int) -> Spend:
        take = each.take
        block = self._block(take.quota)
        return Spend(
            take.bucket, each.period.start, take.quota.limit, take.cost,
            max(take.cost, min(needed, take.quota.limit)), block if block > needed else 0,
            BLOCKS_LEFT,
        )  # fmt: skip

    def _note(self, each: _Waiting, result: Spent, refused: dict[tuple[str, int], int]) -> None:
        bucket, period = each.take.bucket, each.period
        if not result.taken:
            refused[bucket, period.start] = result.spent
            return
        account = self._accounts.get(bucket)
        if account is None or account.period != period:
            # Of a period that has ended nothing is worth returning.
            account = self._accounts[bucket] = _Account(period, each.now)
        account.left += result.taken
        account.mark = result.spent


def _state(quota: Quota, left: int, end: int) -> QuotaState:
    return QuotaState(quota.limit, max(0, left), None if end == FOREVER else end)


def _refusal(take: Take, left: int, period: Period, now: float) -> QuotaState:
    hopeless = period.end == FOREVER or take.cost > take.quota.limit
    wait = 0.0 if hopeless else max(0.0, period.end / MICROSECONDS - now)
    return _state(take.quota, left, period.end)._replace(retry_after=wait)
