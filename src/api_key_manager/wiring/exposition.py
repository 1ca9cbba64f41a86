"""What a deployment counts, brought together for who wants to see it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from api_key_manager import __version__
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.models import KEY_REALM, MICROSECONDS
from api_key_manager.core.records import boot_clock
from api_key_manager.telemetry.catalogue import METRICS, Readings, Series
from api_key_manager.telemetry.numbers import Durations, Remembered
from api_key_manager.telemetry.prometheus import expose, read_process
from api_key_manager.telemetry.workers import Board, label_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from api_key_manager.core.manager import KeyManager
    from api_key_manager.telemetry.numbers import Meter
    from api_key_manager.webhooks import Outbox
    from api_key_manager.wiring.redis import SharedByRedis
    from api_key_manager.wiring.worker import Worker

__all__ = ["Exposition"]

_KEYS_SECONDS = 10.0
_STATES = ("active", "disabled", "expired", "revoked")


class Exposition:
    """The metrics of one deployment.

    Args:
        manager, meter: what counts.
        ready: whether this process should get requests.
        worker: which of several processes this is.
        shared: what it shares with others by Redis, if it does.
        outbox: what sends webhooks, if there are any.

    Attributes:
        latest: what was read last; never changed afterwards, for other threads.
    """

    def __init__(
        self,
        manager: KeyManager,
        meter: Meter,
        ready: Callable[[], bool],
        worker: Worker | None,
        shared: SharedByRedis | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self._manager = manager
        self._meter = meter
        self._ready = ready
        self._shared = shared
        self._outbox = outbox
        self._waiting: Mapping[str, int] = {}
        self._counted = Remembered(self._count_keys, seconds=_KEYS_SECONDS, failures=StorageError)
        self._board = None if worker is None else Board(*worker, clock=boot_clock)
        # One exchange at a time: an older one must not be written over a newer one.
        self._exchanging = asyncio.Lock()
        self.latest: Readings = {}

    async def text(self) -> bytes:
        """What a scrape gets: the numbers of all workers."""
        return expose(await self._exchange(await self._counted.get()))

    async def publish(self, *, keys: bool = False, ended: bool = False) -> None:
        """Hand the own numbers to the other workers, and to :attr:`latest`.

        Args:
            keys: whether keys are counted too; other workers need no count but their own.
            ended: whether these are the last.
        """
        await self._exchange(await self._counted.get() if keys else None, ended=ended)

    async def _exchange(self, keys: Mapping[str, int] | None, *, ended: bool = False) -> Readings:
        async with self._exchanging:
            self.latest = own = self._read(keys)
            if self._board is None:
                alone = label_worker(own, 1)
                return {name: alone.get(name, own[name]) for name in METRICS if name in own}
            return await asyncio.to_thread(self._board.exchange, own, ended=ended)

    async def _count_keys(self) -> dict[str, int]:
        now = int(self._manager.clock() * MICROSECONDS)
        counted = await self._manager.store.count(KEY_REALM, now)
        if self._outbox is not None:
            self._waiting = await self._outbox.depth()
        return {**dict.fromkeys(_STATES, 0), **counted}

    def _read(self, keys: Mapping[str, int] | None) -> Readings:
        manager, meter = self._manager, self._meter
        tally, cache, recorder = manager.tally, manager.cache.stats(), manager.recorder
        by_reason: Series = {
            (reason, scheme or "none"): [count]
            for (reason, scheme), count in tally.validations().items()
        }
        read: dict[str, Series] = {
            "akm_build_info": {(__version__,): [1]},
            "akm_ready": {(): [int(self._ready())]},
            "akm_validations_total": by_reason,
            "akm_environment_validations_total": {
                where: [count] for where, count in tally.environments().items()
            },
            "akm_admin_token_refusals_total": _labelled(tally.refused_admin_tokens()),
            "akm_failures_slowed_total": {
                ("address",): [tally.slowed],
                ("all",): [tally.slowed_together],
            },
            "akm_nonces_refused_total": _labelled(tally.refused_nonces()),
            "akm_rate_limit_decisions_total": _labelled(tally.limit_decisions()),
            "akm_record_cache_hits_total": {(): [cache["hits"]]},
            "akm_record_cache_misses_total": {(): [cache["misses"]]},
            "akm_record_cache_evictions_total": {(): [cache["evictions"]]},
            "akm_record_cache_entries": {(): [cache["cache_size"]]},
            "akm_audit_queue_events": {(): [recorder.depth]},
            "akm_audit_queue_refusals_total": {(): [recorder.refused]},
            "akm_store_operation_duration_seconds": {
                where: taken.values for where, taken in meter.store.items()
            },
            **_of_requests(meter.requests),
            **read_process(),
        }
        if self._shared is not None:
            read.update(_of_redis(self._shared))
        if self._outbox is not None:
            read["akm_webhook_deliveries_total"] = _labelled(self._outbox.counts)
        if keys is not None:
            read["akm_keys"] = _labelled(keys)
            if self._outbox is not None:
                read["akm_webhook_queue_deliveries"] = _labelled(self._waiting)
        return read


def _of_redis(shared: SharedByRedis) -> dict[str, Series]:
    records, ways = shared.records, shared.connections
    asked = {
        "hit": records.hits, "miss": records.misses, "outdated": records.outdated,
        "bypassed": records.bypassed,
    }  # fmt: skip
    return {
        "akm_shared_records_total": _labelled(asked),
        "akm_redis_up": {(): [int(not any(way.problem for way in ways))]},
        "akm_redis_calls_total": {(): [sum(way.calls for way in ways)]},
        "akm_redis_failures_total": {(): [sum(way.failures for way in ways)]},
        "akm_rate_limit_undecided_total": {(): [shared.limiter.undecided]},
    }


def _labelled(counts: Mapping[str, int]) -> Series:
    return {(label,): [count] for label, count in counts.items()}


def _of_requests(requests: Mapping[tuple[str, str, int], Durations]) -> dict[str, Series]:
    answered: Series = {}
    taken: Series = {}
    for (method, route, status), durations in requests.items():
        answered[method, route, str(status)] = [durations.count]
        known, values = taken.get((method, route)), durations.values
        taken[method, route] = (
            values if known is None else [a + b for a, b in zip(known, values, strict=True)]
        )
    return {
        "akm_http_requests_total": answered,
        "akm_http_request_duration_seconds": taken,
    }
