"""The path of a validation: downhill once, without I/O where none is needed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from api_key_manager.core.charging import Charging, limited
from api_key_manager.core.credits import Credits
from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    ConflictError,
    Reason,
    StorageError,
)
from api_key_manager.core.lifecycle import settle
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.models import (
    KEY_REALM,
    MICROSECONDS,
    ApiKey,
    Change,
    Verdict,
)
from api_key_manager.core.moving import Moves
from api_key_manager.core.outages import Outages
from api_key_manager.core.policy import OpenKey, Rules, accept, judge
from api_key_manager.core.ports import (
    Claim,
    ClaimResult,
    KeyStore,
    NonceStore,
    RateLimiter,
)
from api_key_manager.core.presented import Presented
from api_key_manager.core.recorder import Recorder, detail_of
from api_key_manager.core.records import Found, Records, boot_clock
from api_key_manager.core.signing import parse_signature
from api_key_manager.core.tally import Tally

__all__ = ["Verifier"]

_log = logging.getLogger(__name__)
# An enum gives its members slowly.
_VALID = Reason.VALID
_QUEUE_PATIENCE = 0.1
_LONG_SECONDS = 1.0
_REFUSED_NONCE = {
    ClaimResult.REPLAYED: Reason.REPLAYED,
    ClaimResult.REFUSED: Reason.UNAVAILABLE,
}

Write = Callable[[Sequence[Change]], Awaitable[list[ApiKey]]]


class Verifier:
    """Judges credentials and records what became of them.

    Args:
        store, records, nonces, limiter, credits, recorder, tally, rules: see their modules.
        default_limits: of every key that has none of its own; admin tokens have no limits.
        write: makes a change and lets the caches know of it.
        write_through: whether each verdict is in the store before it is given.
        moves: is told of tokens whose digest is to be made anew.
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        records: Records,
        nonces: NonceStore,
        limiter: RateLimiter,
        credits: Credits,
        default_limits: tuple[RateLimit, ...],
        recorder: Recorder,
        tally: Tally,
        rules: Rules,
        write: Write,
        write_through: bool,
        moves: Moves,
    ) -> None:
        self._store = store
        self._records = records
        self._cache = records.cache
        self._cached = records.cache.get
        self._nonces = nonces
        self._limiter = limiter
        self._default_limits = default_limits
        self._charging = Charging(limiter, credits, default_limits)
        self._recorder = recorder
        self._tally = tally
        self._count = tally.add
        self._refuse_nonce = tally.refuse_nonce
        self._rules = rules
        self._write = write
        self._write_through = write_through
        self._moves = moves
        self._outages = Outages(_log)
        self.closed = False

    def verify_now(self, presented: Presented, now: float) -> Verdict | None:
        """The verdict, if no I/O is needed for it.

        ``None`` means that it needs I/O, and that nothing was claimed, counted or recorded.
        """
        if self._write_through or self._recorder.full or self.closed:
            return None
        if presented.malformed:
            verdict = _malformed(presented)
            self._count(presented, verdict)
            self._recorder.note(presented, verdict, now)
            return verdict
        key = self._known(presented, now)
        if key is None:
            return None
        verdict = judge(key, presented, now, self._rules)
        if verdict.reason is _VALID:
            charged = self._charging.charge_now(verdict, key.record, presented.cost, now)
            if charged is None:
                return None
            verdict = charged
            if key.stale and presented.token is not None:
                self._moves.note(key.record, verdict.version, presented.token)
        self._cache.hits += 1
        self._count(presented, verdict)
        self._recorder.note(presented, verdict, now, key.record.environment)
        return verdict

    def _known(self, presented: Presented, now: float) -> OpenKey | None:
        """The key, if nothing has to be read, written or claimed to judge this."""
        key = self._cached(presented.key_id)
        # Past an end that is not written down yet, the slow way writes it down first.
        if key is None or presented.nonce is not None or now >= key.next_end:
            return None
        if presented.within is not None and key.is_hidden(presented.within):
            return None  # the slow way asks the store, as for a key that does not exist
        return key

    def accept_now(
        self,
        key_id: str,
        signature: str,
        timestamp: int,
        cost: int,
        now: float,
        *,
        actor: str | None,
        request_id: str | None,
    ) -> tuple[OpenKey, Verdict] | None:
        """The key and the verdict of :meth:`verify_now` on a timestamped signature of a key of the
        default realm, with no nonce, address, permissions or tags, if that is ``valid``.

        Nearly all are such, and get it at half of the price: nothing is read that is not there.

        ``None`` means that :meth:`verify_now` has to be asked, and that nothing was claimed,
        counted or recorded.
        """
        recorder = self._recorder
        if self._write_through or recorder.full or self.closed or not recorder.all:
            return None
        key, given = self._cached(key_id), parse_signature(signature)
        if key is None or given is None or not key.plain or now >= key.next_end:
            return None
        record = key.record
        if record.kind != "signed" or record.realm != KEY_REALM:
            return None
        verdict = accept(key, given, timestamp, now, self._rules)
        if verdict is None:
            return None
        limits = record.rate_limits or self._default_limits
        if limits:
            decision = self._limiter.take_now(key_id, limits, cost)
            if decision is None or not decision.allowed:
                return None  # a refusal takes nothing, so it can be asked for again
            verdict = limited(verdict, decision)
        self._cache.hits += 1
        self._tally.accept("timestamped", record.environment, limited=bool(limits))
        recorder.note_valid(
            key_id, actor, None, request_id, detail_of("timestamped", verdict.version), now,
            record.environment,
        )  # fmt: skip
        return key, verdict

    def repeat_now(self, presented: Presented, verdict: Verdict, now: float) -> bool:
        """Whether an admin token that was accepted is so again, and is noted as used again.

        True only when nothing that the verdict rests on can have changed: the record is the very
        one that was judged, none of its ends has come, and it has no limits or quota to be charged.

        Args:
            presented: the token and its circumstances, the same as then.
            verdict: what :meth:`verify_now` said then.
            now: Unix seconds.
        """
        if self._write_through or self.closed or verdict.rate_limit or verdict.quota:
            return False
        key = self._cached(presented.key_id)
        if key is None or key.record is not verdict.key or now >= key.next_end:
            return False
        self._cache.hits += 1
        self._recorder.note_use(presented.key_id, now)
        return True

    async def verify(self, batch: Sequence[Presented], now: float) -> list[Verdict]:
        """The verdict of each credential, in order, with whatever I/O that takes.

        The store and the nonces are asked once for the whole batch, in no task of its own.
        """
        verdicts = await self._verify(batch, now)
        for presented, verdict in zip(batch, verdicts, strict=True):
            self._count(presented, verdict)
        return verdicts

    async def _verify(self, batch: Sequence[Presented], now: float) -> list[Verdict]:
        if self.closed:
            return [Verdict(Reason.UNAVAILABLE, p.key_id or None) for p in batch]
        if not self._write_through and not self._records.cache.leased:
            # Callers that never pause would keep the feed's follower from ever running.
            await asyncio.sleep(0)
        if not await self._recorder.reserve(len(batch), now, _QUEUE_PATIENCE):
            return [Verdict(Reason.UNAVAILABLE, p.key_id or None) for p in batch]
        try:
            if len(batch) == 1 and (key := self._known(batch[0], now)) is not None:
                verdicts = [await self._charge_only(batch[0], key, now)]
            else:
                verdicts, environments = await self._judge_all(batch, now)
                for presented, verdict in zip(batch, verdicts, strict=True):
                    self._recorder.note(presented, verdict, now, environments.get(presented.key_id))
        finally:
            self._recorder.release(len(batch))
        if self._write_through:
            verdicts = await self._written(verdicts, now)
        return verdicts

    async def _charge_only(self, presented: Presented, key: OpenKey, now: float) -> Verdict:
        """The verdict of one credential for which only charging takes I/O, at half of the price."""
        verdict = judge(key, presented, now, self._rules)
        if verdict.reason is _VALID:
            if key.stale and presented.token is not None:
                self._moves.note(key.record, verdict.version, presented.token)
            verdict = await self._charging.charge_one(verdict, key.record, presented, now)
        self._cache.hits += 1
        self._recorder.note(presented, verdict, now, key.record.environment)
        return verdict

    async def _judge_all(
        self, batch: Sequence[Presented], now: float
    ) -> tuple[list[Verdict], dict[str, str | None]]:
        """The verdicts, and in which environment the keys are that were found."""
        wanted = {p.key_id: p.within for p in batch if not p.malformed}
        started = boot_clock()
        keys, cold = await self._records.find(wanted)
        ended = [
            key
            for key in keys.values()
            if isinstance(key, OpenKey)
            and now >= key.next_end
            and not key.is_hidden(wanted[key.record.key_id])
        ]
        if ended:
            await self._settle(ended, now)
            # Writing took its time: what was read before may have changed meanwhile.
            keys, cold = await self._records.find(wanted)
        waited = boot_clock() - started
        if waited > _LONG_SECONDS:
            now += waited  # ends are judged by the time of the verdict
        verdicts = [
            _malformed(presented)
            if presented.malformed
            else self._judge(presented, keys, cold.get(presented.key_id), now)
            for presented in batch
        ]
        for presented in batch:
            if not presented.malformed:
                if presented.key_id in cold:
                    self._cache.misses += 1
                else:
                    self._cache.hits += 1
        if any(presented.nonce is not None for presented in batch):
            await self._claim(batch, verdicts, keys, now)
        await self._charging.charge(batch, verdicts, now)
        return verdicts, {
            key_id: key.record.environment
            for key_id, key in keys.items()
            if isinstance(key, OpenKey) and not key.is_hidden(wanted[key_id])
        }

    def _judge(
        self, presented: Presented, keys: dict[str, Found | None], since: int | None, now: float
    ) -> Verdict:
        """``since``: what :attr:`Records.changes` was before the record was read for this call."""
        found = keys[presented.key_id]
        if isinstance(found, StorageError):
            return Verdict(Reason.UNAVAILABLE, presented.key_id)
        if found is None:
            found = self._records.decoy("signed" if presented.token is None else "bearer")
        verdict = judge(found, presented, now, self._rules)
        if verdict.valid and found.stale and presented.token is not None:
            self._moves.note(found.record, verdict.version, presented.token)
        if since is None:
            return verdict
        # Only a caller who proved the secret gets a place in the cache: knowing ids is not
        # enough to push other keys out of it.
        if verdict.key is not None:
            self._records.keep(found, since)
        return verdict._replace(cached=False)

    async def _settle(self, ended: list[OpenKey], now: float) -> None:
        """Make what has ended end for good, before anything is said about it. Where that cannot be
        written, it is judged by the clock."""
        micros = int(now * MICROSECONDS)
        changes = [change for key in ended if (change := settle(key.record, micros)) is not None]
        try:
            await self._write(changes)
        except ConflictError:
            for change in changes:
                # Somebody else wrote it, or something newer: that is read in a moment.
                with contextlib.suppress(ConflictError):
                    await self._write([change])
        except APIKeyManagerException as error:
            _log.warning("the ends of %d keys could not be written: %s", len(ended), error)

    async def _claim(
        self,
        batch: Sequence[Presented],
        verdicts: list[Verdict],
        keys: dict[str, Found | None],
        now: float,
    ) -> None:
        """Take the nonces of what has passed everything else; put refusals into ``verdicts``."""
        claims = {
            i: self._claim_of(presented, keys[presented.key_id], verdict)
            for i, (presented, verdict) in enumerate(zip(batch, verdicts, strict=True))
            if presented.nonce is not None and verdict.valid
        }
        if not claims:
            return
        try:
            results = await self._nonces.claim(list(claims.values()), now, self._rules.skew)
        except StorageError as error:
            self._outages.failed("nonces cannot be claimed", error)
            results = [ClaimResult.REFUSED] * len(claims)
        else:
            self._outages.worked("nonces cannot be claimed")
        for i, result in zip(claims, results, strict=True):
            if result is not ClaimResult.TAKEN:
                reason = _REFUSED_NONCE[result]
                self._refuse_nonce(reason)
                verdicts[i] = verdicts[i]._replace(reason=reason)

    def _claim_of(self, presented: Presented, key: Found | None, verdict: Verdict) -> Claim:
        timestamp, rules = presented.timestamp or 0, self._rules
        made = next(
            v.created_at
            for v in (key.versions if isinstance(key, OpenKey) else ())
            if v.version == verdict.version
        )
        return Claim(
            presented.key_id,
            presented.nonce or "",
            timestamp,
            timestamp + rules.nonce_window + 2 * rules.skew,
            made / MICROSECONDS,
        )

    async def _written(self, verdicts: list[Verdict], now: float) -> list[Verdict]:
        try:
            await self._recorder.flush(now, uses=True)
        except StorageError as error:
            self._outages.failed("the audit log cannot be written", error)
            return [Verdict(Reason.UNAVAILABLE, verdict.key_id) for verdict in verdicts]
        self._outages.worked("the audit log cannot be written")
        return verdicts


def _malformed(presented: Presented) -> Verdict:
    return Verdict(Reason.MALFORMED, presented.key_id or None, cached=True)
