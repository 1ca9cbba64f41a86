"""Settings in, a running manager out; everything that runs has its one owner here."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from api_key_manager.audit.retention import Retention
from api_key_manager.audit.sealer import Sealer
from api_key_manager.audit.sink import Courier, open_sink
from api_key_manager.cache import Follower, Window
from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError, StorageError
from api_key_manager.core.manager import KeyManager
from api_key_manager.core.ports import SecretBox
from api_key_manager.core.recorder import Recorder
from api_key_manager.core.records import RecordCache
from api_key_manager.core.validator import AsyncAPIKeyValidator
from api_key_manager.ratelimit.nonces import RedisNonceStore
from api_key_manager.storage import SqlNonceRegister, SqlNonceStore, SqlStore
from api_key_manager.storage.feed import prune as prune_feed
from api_key_manager.storage.idempotency import prune as prune_requests
from api_key_manager.storage.quotas import prune_quotas
from api_key_manager.vault_integration.secret_store import VaultSecrets
from api_key_manager.webhooks import Outbox, Sender, Webhooks
from api_key_manager.wiring.backend import Backend
from api_key_manager.wiring.backends import open_backend
from api_key_manager.wiring.exposition import Exposition
from api_key_manager.wiring.first_token import mint_first_token
from api_key_manager.wiring.limits import (
    default_limits,
    limits_are_shared,
    refuse_unshared_limits,
    warn_of_unshared_limits,
)
from api_key_manager.wiring.marking import mark_secrets
from api_key_manager.wiring.observing import Observing
from api_key_manager.wiring.places import key_path
from api_key_manager.wiring.redis import SharedByRedis, share_by_redis
from api_key_manager.wiring.supervisor import Supervisor, every
from api_key_manager.wiring.vault import keep_secrets
from api_key_manager.wiring.worker import Worker

__all__ = ["Deployment", "open_deployment", "open_manager"]

_log = logging.getLogger(__name__)
GITHUB_KEYS = "https://api.github.com/meta/public_keys/secret_scanning"
"""As GitHub documents it. No setting: who names the keys decides whose reports are believed."""
_SWEEP_SECONDS = 1.0
_PRUNE_SECONDS = 30.0
_MARK_SECONDS = 3600.0
_CREDITS_SECONDS = 1.0
_MOVE_SECONDS = 1.0
_RETAIN_SECONDS = 60.0
_FEED_KEPT_SECONDS = 3600
_PUBLISH_SECONDS = 1.0
_PROBE_SECONDS = 0.5
_VAULT_SECONDS = 5.0
_LOOK_SECONDS = 1.0


class Deployment:
    """A manager with its backends and whatever runs for it.

    Attributes:
        settings: what it was made from.
        manager: ready for use.
        backend: its stores.
        window: the last changes that it has read.
        shared: what it shares with other processes by Redis, if it does.
        idempotency: requests that may be sent again.
        database: where the data is, in words.
        master_key: where the master key is, in words.
        first_token: the admin token minted just now, once in a database's life.
        first_token_file: where that token was put, when no terminal could show it.
        github_keys: where GitHub publishes the keys that it signs reports of leaks with.
        webhooks, outbox: who is told of events, and what tells them; ``None`` in memory.
        observing: counts what happens.
        exposition: the metrics.
        sealer: keeps the transparency log, where there is one.
    """

    def __init__(
        self,
        settings: Settings,
        manager: KeyManager,
        backend: Backend,
        observing: Observing,
        window: Window,
        shared: SharedByRedis | None,
    ) -> None:
        self.settings = settings
        self.manager = manager
        self.backend = backend
        self.window = window
        self.shared = shared
        self.idempotency = backend.idempotency
        self.database = backend.name
        self.master_key = backend.master_key
        self.first_token: str | None = None
        self.first_token_file: Path | None = None
        self.follower: Follower | None = None
        self.supervisor = Supervisor()
        self._audit_problem: str | None = None
        self._sweeps = True
        self.vault: VaultSecrets | None = None
        self.sealer = _sealer(settings, manager, backend)
        self.github_keys = GITHUB_KEYS
        self.observing = observing
        self.outbox: Outbox | None = None
        self.webhooks: Webhooks | None = None
        if isinstance(backend.store, SqlStore) and backend.notary is not None:
            driver, box, clock = backend.store.driver, manager.box, manager.clock
            macs = backend.notary.macs
            sender = Sender(private=settings.WEBHOOK_ALLOW_PRIVATE)
            self.outbox = Outbox(driver, box, macs, sender, clock)
            self.webhooks = Webhooks(driver, box, macs.stamp, sender, self.outbox, clock)
        self.exposition = Exposition(
            manager, observing.meter, lambda: not self.problems(), observing.worker, shared,
            self.outbox,
        )  # fmt: skip

    def problems(self) -> list[str]:
        """Why this process should get no requests right now; empty when it should."""
        found = self.supervisor.problems()
        if self.follower is not None and self.follower.problem is not None:
            found.append(self.follower.problem)
        if self._audit_problem is not None:
            found.append(self._audit_problem)
        return found

    def degraded(self) -> list[str]:
        """What is away though requests are answered all the same, as the settings say, and what is
        wrong with the log."""
        found = self.sealer.problems() if self.sealer is not None else []
        if self.vault is not None and self.vault.problem is not None:
            found.append(self.vault.problem)
        if self.backend.keys is not None and self.backend.keys.lease_problem is not None:
            found.append(self.backend.keys.lease_problem)
        if self.shared is not None:
            return [*self.shared.problems(), *found]
        nonces = self.backend.nonces
        why = nonces.problem if isinstance(nonces, SqlNonceStore) else None
        return found if why is None else [why, *found]

    async def flush(self) -> None:
        """Write what waits for the audit log; when that fails, it waits on."""
        try:
            await self.manager.recorder.flush(self.manager.clock(), whole=False)
        except StorageError as error:
            if self._audit_problem is None:
                _log.error("the audit log cannot be written: %s", error)
            self._audit_problem = f"the audit log cannot be written: {error}"
        else:
            self._audit_problem = None

    async def keep_flushing(self) -> None:
        """The same again and again: every ``AUDIT_FLUSH_SECONDS``, or as soon as much waits."""
        while True:
            await self.flush()
            await self.manager.recorder.plenty(self.settings.AUDIT_FLUSH_SECONDS)

    async def look_at_nonces(self) -> None:
        """See whether this node still claims nonces where the others do."""
        nonces = self.backend.nonces if self.shared is None else self.shared.nonces
        # What cannot be told now is told to the next claim.
        with suppress(StorageError):
            if isinstance(nonces, SqlNonceStore | RedisNonceStore):
                await nonces.look()

    async def sweep(self) -> None:
        """Make ends that have passed permanent."""
        try:
            await self.manager.sweep()
        except StorageError as error:
            if self._sweeps:
                _log.warning("ends could not be written: %s", error)
            self._sweeps = False
        else:
            self._sweeps = True

    async def move_digests(self) -> None:
        """Bring digests of tokens that were seen under the newest pepper."""
        # What could not be written is noted again when the token is seen again.
        with suppress(StorageError):
            await self.manager.move_digests()

    async def drop_old_events(self) -> None:
        """Drop events that are older than ``AUDIT_RETENTION_DAYS``."""
        backend, days = self.backend, self.settings.AUDIT_RETENTION_DAYS
        if backend.log is None or backend.notary is None or not days:
            return
        try:
            await Retention(backend.log, backend.notary, self.manager.clock, days).drop()
        except StorageError as error:
            _log.warning("old events could not be dropped: %s", error)

    async def give_back_credits(self) -> None:
        """Return credits of quotas that lie idle here."""
        await self.manager.credits.give_back_idle(self.manager.clock())

    async def mint_first_token(self, *, on_terminal: bool) -> None:
        """Mint the admin token that a database gets once, unless one comes from the settings.

        Args:
            on_terminal: whether somebody will see it; else it goes into a file.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        if self.settings.AKM_ADMIN_TOKEN:
            return
        file = None
        origin = self.backend.origin
        if not on_terminal and origin is not None:
            file = key_path(self.settings, origin).parent / f"{origin}.admin-token"
        self.first_token = await mint_first_token(self.manager, file)
        self.first_token_file = file if self.first_token else None

    async def close(self) -> None:
        """Stop what runs, write what waits, let go of the store."""
        self.manager.close()
        await self.supervisor.stop()
        await self.manager.credits.close(self.manager.clock())
        try:
            await self.manager.recorder.flush(self.manager.clock(), uses=True)
        except StorageError as error:
            _log.error("%d audit events are lost: %s", self.manager.recorder.depth, error)
        if self.sealer is not None:
            await self.sealer.finish()
        if self.observing.publishes:
            await self.exposition.publish(ended=True)
        await self.observing.close()
        if self.shared is not None:
            await self.shared.close()
        if self.vault is not None:
            await self.vault.close()
        await self.backend.close()


@asynccontextmanager
async def open_manager(
    url_or_settings: str | Settings | None = None, **overrides: Any
) -> AsyncIterator[KeyManager]:
    """A manager on a database, with caching and batched audit writes.

    Args:
        url_or_settings: ``sqlite:///path/to/file.db``, ``memory://``, ``postgresql://…``, or
            settings; the environment and ``.env`` when left out.
        **overrides: settings by name, as ``TOKEN_PREFIX="acme"``.

    Raises:
        ConfigurationError: a setting, or the master key, is missing or wrong; or rate limits would
            be counted by several workers, each for itself.
        StorageError: the database cannot be opened.
    """
    if isinstance(url_or_settings, Settings):
        if overrides:
            raise ConfigurationError("pass settings or overrides, not both")
        settings = url_or_settings
    else:
        if url_or_settings is not None:
            overrides["DATABASE_URL"] = url_or_settings
        settings = Settings.load(**overrides)
    async with open_deployment(settings) as deployment:
        await refuse_unshared_limits(settings, settings.WORKERS, deployment.manager.store)
        yield deployment.manager


@asynccontextmanager
async def open_deployment(
    settings: Settings,
    *,
    create: bool = True,
    background: bool = True,
    worker: Worker | None = None,
    opentelemetry: bool = False,
) -> AsyncIterator[Deployment]:
    """Everything that a server or a command needs, running.

    Args:
        settings: checked settings.
        create: whether a database that does not exist is made.
        background: whether to follow changes and write in batches; without, every verdict is
            read from and written to the store at once.
        worker: which of several processes this is; ``None`` for the only one.
        opentelemetry: whether its variables in the environment are heeded; else nothing is sent.

    Raises:
        ConfigurationError: a setting or the master key is missing or wrong.
        StorageError: the database cannot be opened.
    """
    observing = Observing(worker, opentelemetry=opentelemetry)
    try:
        backend = await open_backend(settings, observing, create=create, background=background)
        vault = None
        try:
            vault = keep_secrets(settings, backend)
            deployment = _deployment(settings, backend, observing, background=background)
            deployment.vault = vault
        except BaseException:
            if vault is not None:
                await vault.close()
            await backend.close()
            raise
    except BaseException:
        await observing.close()
        raise
    try:
        if backend.keys is not None:
            # Also for one command: an import may outgrow a data key.
            deployment.supervisor.start("keyring", backend.keys.keep)
            if settings.KEK_PROVIDER == "vault-transit":
                lease = partial(backend.keys.keep_lease, settings.VAULT_LEASE_SECONDS)
                deployment.supervisor.start("lease", lease)
        if vault is not None:
            deployment.supervisor.start("vault", every(_VAULT_SECONDS, vault.renew))
        if deployment.sealer is not None:
            await deployment.sealer.prepare()
        if background:
            await _start(deployment)
        yield deployment
    finally:
        await deployment.close()


def _deployment(
    settings: Settings, backend: Backend, observing: Observing, *, background: bool
) -> Deployment:
    store, window = backend.store, Window()
    # Without a follower the cache has no lease: every record is read anew.
    cache = RecordCache(
        settings.CACHE_MAX_ENTRIES,
        settings.CACHE_TTL_SECONDS,
        owned=backend.origin is None,
        bound=settings.REVOCATION_BOUND_SECONDS,
    )
    shared = share_by_redis(settings, backend, window, cache)
    manager = KeyManager(
        AsyncAPIKeyValidator(
            validation_window_minutes=settings.VALIDATION_WINDOW_MINUTES,
            clock_skew_tolerance_seconds=settings.CLOCK_SKEW_TOLERANCE_SECONDS,
            cache_ttl_seconds=settings.CACHE_TTL_SECONDS,
            allow_static_signatures=settings.ALLOW_STATIC_SIGNATURES,
        ),
        store=store,
        box=backend.box,
        nonces=backend.nonces if shared is None else shared.nonces,
        limiter=None if shared is None else shared.limiter,
        quotas=backend.quotas,
        load=backend.load if shared is None else shared.records.load,
        prefix=settings.TOKEN_PREFIX,
        nonce_window_seconds=settings.NONCE_WINDOW_SECONDS,
        cache=cache,
        recorder=Recorder(store, validations=settings.AUDIT_VALIDATIONS),
        tally=observing.tracing.tally,
        background=background,
        default_limits=default_limits(settings),
        limits_shared=limits_are_shared(settings, settings.WORKERS),
        on_leak=settings.ON_LEAK,
        failures_per_minute=settings.FAILED_AUTH_PER_MINUTE,
        all_failures_per_minute=settings.FAILED_AUTH_TOTAL_PER_MINUTE,
    )
    return Deployment(settings, manager, backend, observing, window, shared)


def _sealer(settings: Settings, manager: KeyManager, backend: Backend) -> Sealer | None:
    if backend.log is None or backend.notary is None:
        return None
    courier = None
    if settings.AUDIT_SINK:
        read = backend.notary.read
        courier = Courier(open_sink(settings.AUDIT_SINK, read), backend.log.notes_after, read)
    return Sealer(backend.log, backend.notary, lambda: manager.clock(), courier)


async def _start(deployment: Deployment) -> None:
    manager, supervisor, settings = deployment.manager, deployment.supervisor, deployment.settings
    store, backend = manager.store, deployment.backend
    await warn_of_unshared_limits(settings, store)
    if backend.keys is not None:
        # What was opened when there was no newer pepper does not know that it is to move.
        backend.keys.renewed = manager.records.changed_all
        supervisor.start("digests", every(_MOVE_SECONDS, deployment.move_digests))
    if backend.feed is not None:
        deployment.follower = Follower(
            backend.feed,
            manager.records,
            bound=settings.REVOCATION_BOUND_SECONDS,
            max_stale=settings.max_stale_seconds,
            window=deployment.window,
            lost=partial(_start_over, deployment),
        )
        await deployment.follower.catch_up()
        deployment.follower.problem = backend.feed.problem
        supervisor.start("follower", deployment.follower.run)
    if isinstance(store, SqlStore):
        box = manager.box
        supervisor.start("marks", every(_MARK_SECONDS, lambda: _mark(store, box)))
        supervisor.start("pruner", every(_PRUNE_SECONDS, lambda: _prune(deployment, store)))
    if deployment.outbox is not None:
        supervisor.start("webhooks", deployment.outbox.run)
    for name, work in backend.tasks.items():
        supervisor.start(name, work)
    if deployment.shared is not None:
        await deployment.shared.prepare()
        supervisor.start("wake-ups", deployment.shared.listen)
        supervisor.start("redis", every(_PROBE_SECONDS, deployment.shared.probe))
    elif isinstance(backend.nonces, SqlNonceStore):
        await backend.nonces.prepare()
    supervisor.start("nonces", every(_LOOK_SECONDS, deployment.look_at_nonces))
    observing, publish = deployment.observing, deployment.exposition.publish
    observing.start(deployment.exposition)
    if observing.publishes:
        step = partial(publish, keys=observing.sends)
        supervisor.start("metrics", every(_PUBLISH_SECONDS, step))
    supervisor.start("audit", deployment.keep_flushing)
    if deployment.sealer is not None:
        supervisor.start("sealer", deployment.sealer.run)
        if settings.AUDIT_RETENTION_DAYS:
            supervisor.start("retention", every(_RETAIN_SECONDS, deployment.drop_old_events))
        if deployment.sealer.courier is not None:
            supervisor.start("checkpoints", deployment.sealer.courier.run)
    supervisor.start("credits", every(_CREDITS_SECONDS, deployment.give_back_credits))
    supervisor.start("sweeper", every(_SWEEP_SECONDS, deployment.sweep))


async def _start_over(deployment: Deployment) -> None:
    """The database lost its last changes, or was restored: so is much of what was learnt of it.

    Raises:
        StorageError: it cannot be asked.
    """
    backend, store = deployment.backend, deployment.manager.store
    if isinstance(store, SqlStore):
        await SqlNonceRegister(store.driver).lost()
    if backend.keys is not None:
        await backend.keys.start_over()


async def _mark(store: SqlStore, box: SecretBox) -> None:
    if done := await mark_secrets(store, box):
        _log.info("%d secrets can now be found when they leak", done)


async def _prune(deployment: Deployment, store: SqlStore) -> None:
    """Drop what no longer serves: used nonces that have ended, answers that are no longer
    replayed, old rows of the feed."""
    now = deployment.manager.clock()
    try:
        while await SqlNonceStore(store.driver).prune(now):
            pass
        while await store.driver.write(prune_quotas, now):
            pass
        while await store.driver.write(prune_requests, int(now * 1_000_000)):
            pass
        await store.driver.write(prune_feed, int((now - _FEED_KEPT_SECONDS) * 1_000_000))
        if deployment.outbox is not None:
            await deployment.outbox.prune()
    except StorageError as error:
        _log.warning("what has ended could not be removed: %s", error)
