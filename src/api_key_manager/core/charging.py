"""What an accepted credential takes from its key: credits of the quota, and from the rate limits.

Both or nothing: credits are set aside first, then the limits are asked, and what they refuse gets
its credits back. Where the credits do not suffice the limits are only looked at, so a refusal takes
nothing from either. When both would refuse, it is for the rate limit.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import lru_cache

from api_key_manager.core.credits import Credits, Take, Taken
from api_key_manager.core.exceptions import Reason, StorageError
from api_key_manager.core.limits import Decision, RateLimit, refuse
from api_key_manager.core.models import ADMIN_REALM, ApiKey, Verdict, canonical_json
from api_key_manager.core.outages import Outages
from api_key_manager.core.ports import Ask, RateLimiter, SharedLimit
from api_key_manager.core.presented import Presented
from api_key_manager.core.quotas import Quota

__all__ = ["Charging", "limited", "quota_bucket", "shared_limits"]

_log = logging.getLogger(__name__)
# An enum gives its members slowly.
_VALID = Reason.VALID


def quota_bucket(record: ApiKey, quota: Quota) -> str:
    """The name of the account that a key's credits are taken from.

    A key's own has the key's id in it, which never returns; a shared one has what the keys have in
    common. Another environment never has part in it.
    """
    if not quota.shared_by_owner or record.owner is None:
        return f"k:{record.key_id}"
    return "o:" + _digest(
        record.realm, record.environment, record.owner, quota.refill, quota.hour, quota.zone
    )


def shared_limits(record: ApiKey) -> tuple[SharedLimit, ...]:
    """A key's limits that its owner's other keys share, each with the name of its bucket.

    Keys share a limit that has the same name and numbers. The name of a bucket has an ``@`` in it,
    which no key's id has.
    """
    if not record.shared_limits:
        return ()
    of = record.realm, record.environment, record.owner or record.key_id
    return tuple(SharedLimit(f"@{_digest(*of, *limit)}", limit) for limit in record.shared_limits)


@lru_cache(maxsize=4096)
def _digest(*parts: str | int | None) -> str:
    """One name of a bounded length for what several keys have in common."""
    return hashlib.sha256(canonical_json(parts).encode("utf-8", "surrogatepass")).hexdigest()


def limited(verdict: Verdict, decision: Decision) -> Verdict:
    """A valid verdict after its key's limits were asked."""
    # Written out: _replace() takes twice as long.
    return Verdict(
        verdict.reason if decision.allowed else Reason.RATE_LIMITED, verdict.key_id, verdict.key,
        verdict.version, verdict.scheme, verdict.cached, verdict.body_verified, decision,
        verdict.quota,
    )  # fmt: skip


class Charging:
    """Charges what passed everything else.

    Args:
        limiter, credits: where it is counted.
        default_limits: of every key that has none of its own; admin tokens have no limits.
    """

    def __init__(
        self, limiter: RateLimiter, credits: Credits, default_limits: tuple[RateLimit, ...]
    ) -> None:
        self._limiter = limiter
        self._credits = credits
        self._default_limits = default_limits
        self._outages = Outages(_log)

    def limits_of(self, record: ApiKey) -> tuple[RateLimit, ...]:
        """The limits that hold for a key, but for shared ones."""
        if record.rate_limits or record.shared_limits or record.realm == ADMIN_REALM:
            return record.rate_limits
        return self._default_limits

    def charge_now(self, verdict: Verdict, record: ApiKey, cost: int, now: float) -> Verdict | None:
        """Charge a valid verdict on a key.

        Returns:
            ``None`` when that needs I/O; then nothing was taken.
        """
        limits, shared, quota = self.limits_of(record), shared_limits(record), record.quota
        if quota is None:
            if not (limits or shared):
                return verdict
            decision = self._limiter.take_now(record.key_id, limits, cost, shared)
            return None if decision is None else limited(verdict, decision)
        take = Take(quota_bucket(record, quota), quota, cost)
        taken = self._credits.take_now(take, now)
        if taken is None:
            return None
        verdict = verdict._replace(quota=taken.state)
        if not (limits or shared):
            return verdict
        decision = self._limiter.take_now(record.key_id, limits, cost, shared)
        if decision is None or not decision.allowed:
            self._credits.put_back(take, taken)
        return None if decision is None else _with_limits(verdict, decision, cost)

    async def charge_one(
        self, verdict: Verdict, record: ApiKey, presented: Presented, now: float
    ) -> Verdict:
        """The same with whatever I/O that takes."""
        if record.quota is not None:
            verdicts = [verdict]
            await self.charge([presented], verdicts, now)
            return verdicts[0]
        limits, shared = self.limits_of(record), shared_limits(record)
        if not (limits or shared):
            return verdict
        ask = Ask(record.key_id, limits, presented.cost, shared)
        decisions = await self._decide([ask])
        if decisions is None:
            return verdict._replace(reason=Reason.UNAVAILABLE)
        return limited(verdict, decisions[0])

    async def charge(self, batch: Sequence[Presented], verdicts: list[Verdict], now: float) -> None:
        """Charge what is valid of a batch; put refusals into ``verdicts``."""
        takes = {
            i: Take(quota_bucket(key, key.quota), key.quota, batch[i].cost)
            for i, verdict in enumerate(verdicts)
            if verdict.valid and (key := verdict.key) is not None and key.quota is not None
        }
        taken = await self._take_credits(takes, verdicts, now)
        try:
            await self._ask_limits(self._asked(batch, verdicts, taken), batch, verdicts)
        except BaseException:
            # Also of who was cancelled nothing is kept.
            for i, given in taken.items():
                if given.allowed:
                    self._credits.put_back(takes[i], given)
            raise
        short = []
        for i, given in taken.items():
            if not given.allowed:
                if verdicts[i].valid:
                    verdicts[i] = verdicts[i]._replace(reason=Reason.QUOTA_EXCEEDED)
            elif not verdicts[i].valid:
                self._credits.put_back(takes[i], given)
                short.append(takes[i])
        await self._credits.trim(short)

    def _asked(
        self, batch: Sequence[Presented], verdicts: list[Verdict], taken: dict[int, Taken]
    ) -> dict[int, Ask]:
        """What the limiter is asked: by who has too few credits, for nothing."""
        asked = {}
        for i, verdict in enumerate(verdicts):
            key = verdict.key
            if verdict.valid and key is not None:
                limits, shared = self.limits_of(key), shared_limits(key)
                if limits or shared:
                    cost = 0 if _is_short(taken.get(i)) else batch[i].cost
                    asked[i] = Ask(key.key_id, limits, cost, shared)
        return asked

    async def _take_credits(
        self, takes: dict[int, Take], verdicts: list[Verdict], now: float
    ) -> dict[int, Taken]:
        if not takes:
            return {}
        try:
            taken = await self._credits.take(list(takes.values()), now)
        except StorageError as error:
            self._outages.failed("quotas cannot be told", error)
            for i in takes:
                verdicts[i] = verdicts[i]._replace(reason=Reason.UNAVAILABLE)
            return {}
        self._outages.worked("quotas cannot be told")
        found = dict(zip(takes, taken, strict=True))
        for i, given in found.items():
            verdicts[i] = verdicts[i]._replace(quota=given.state)
        return found

    async def _ask_limits(
        self, asked: dict[int, Ask], batch: Sequence[Presented], verdicts: list[Verdict]
    ) -> None:
        if not asked:
            return
        decisions = await self._decide(list(asked.values()))
        if decisions is None:
            for i in asked:
                verdicts[i] = verdicts[i]._replace(reason=Reason.UNAVAILABLE)
            return
        for i, decision in zip(asked, decisions, strict=True):
            if asked[i].cost:
                verdicts[i] = _with_limits(verdicts[i], decision, batch[i].cost)
                continue
            # Asked for nothing, to see whether they would refuse too.
            refusal = refuse(decision, batch[i].cost)
            if refusal is not None:
                verdicts[i] = limited(verdicts[i], refusal)

    async def _decide(self, asked: list[Ask]) -> list[Decision] | None:
        """What the limiter says, ``None`` when it cannot be told."""
        try:
            decisions = await self._limiter.take(asked)
        except StorageError as error:
            self._outages.failed("rate limits cannot be told", error)
            return None
        self._outages.worked("rate limits cannot be told")
        return decisions


def _is_short(taken: Taken | None) -> bool:
    return taken is not None and not taken.allowed


def _with_limits(verdict: Verdict, decision: Decision, cost: int) -> Verdict:
    """The same after the limits were asked; what they refuse has taken no credits."""
    state = verdict.quota
    if state is not None and not decision.allowed:
        remaining = min(state.limit, state.remaining + cost)
        verdict = verdict._replace(quota=state._replace(remaining=remaining))
    return limited(verdict, decision)
