"""A deployment on PostgreSQL, which several nodes share."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from api_key_manager.cache import Gathering
from api_key_manager.config import Settings
from api_key_manager.core.exceptions import ConfigurationError, StorageError
from api_key_manager.storage import SqlNonceStore, SqlStore, scripts
from api_key_manager.storage.log import SqlLog
from api_key_manager.storage.postgres import PostgresDriver
from api_key_manager.storage.postgres_feed import PostgresFeed
from api_key_manager.storage.postgres_schema import current_of, name_of, upgrade_at
from api_key_manager.storage.quotas import SqlQuotaStore
from api_key_manager.storage.schema import HEAD, KNOWN
from api_key_manager.wiring.backend import Backend
from api_key_manager.wiring.keyring import open_box
from api_key_manager.wiring.observing import Observing
from api_key_manager.wiring.providers import find_providers
from api_key_manager.wiring.supervisor import every

__all__ = ["current_of", "name_of", "open_postgres"]

_log = logging.getLogger(__name__)
_POLL_SECONDS: Final = 0.5
_LISTEN_AGAIN_SECONDS: Final = 1.0


async def open_postgres(
    settings: Settings, observing: Observing, *, create: bool, background: bool
) -> Backend:
    """See :func:`~api_key_manager.wiring.backends.open_backend`."""
    url, seconds = settings.DATABASE_URL, settings.DATABASE_TIMEOUT_SECONDS
    name = name_of(url)
    if create:
        # Looked for first: a database must not be made ready for nobody.
        find_providers(settings, None, name, make=True)
        await upgrade_at(url)
    elif (schema := await current_of(url)) is None:
        raise ConfigurationError(f"{name} is empty: `akm serve` or `akm db upgrade` makes it ready")
    elif schema in KNOWN[:-1]:
        raise ConfigurationError(
            f"{name} has schema {schema}, this version needs {HEAD}: run `akm db upgrade`"
        )
    driver = await PostgresDriver.open(
        url, connections=settings.DATABASE_CONNECTIONS, seconds=seconds
    )
    following: PostgresDriver | None = None
    try:
        find = partial(find_providers, settings, None)
        keys = await open_box(driver, name, find, create=create)
        observe, stamp = observing.meter.operation, keys.notary.macs.stamp
        store = SqlStore(driver, observe=observe, stamp=stamp)
        nonces = SqlNonceStore(driver, observe=observe)
        quotas = SqlQuotaStore(driver, observe=observe)
        where = keys.providers.current.source
        backend = Backend(
            store, store, name, where, nonces, quotas, keys.box, keys.origin, keys=keys,
            log=SqlLog(driver, stamp), notary=keys.notary,
        )  # fmt: skip
        # By its name at each call: a store may be wrapped while it is in use.
        gathering = Gathering(lambda key_ids: store.load(key_ids))
        backend.load, backend.close_more = gathering.load, gathering.close
        if background:
            bound = settings.REVOCATION_BOUND_SECONDS
            following = await PostgresDriver.open(url, connections=1, seconds=bound / 2)
            feed = PostgresFeed(
                following,
                poll=min(_POLL_SECONDS, bound / 4),
                skew=settings.CLOCK_SKEW_TOLERANCE_SECONDS,
            )
            backend.feed, backend.knock = feed, feed.knock
            backend.close_more = partial(_close_all, gathering.close, following.close)
            listener = _Listener(following, feed.knock)
            backend.tasks = {"listener": every(_LISTEN_AGAIN_SECONDS, listener.listen)}
        return backend
    except BaseException:
        if following is not None:
            await following.close()
        await driver.close()
        raise


async def _close_all(*close: Callable[[], Awaitable[None]]) -> None:
    for each in close:
        await each()


class _Listener:
    """Hears of changes at once. Only the delay grows while it does not: no reason to be unready."""

    def __init__(self, driver: PostgresDriver, knock: Callable[[], None]) -> None:
        self._driver = driver
        self._knock = knock
        self._deaf = False

    async def listen(self) -> None:
        """Listen until the connection is lost."""
        try:
            await self._driver.listen(scripts.WAKE_CHANNEL, self._heard)
        except StorageError as error:
            if not self._deaf:
                _log.warning("changes are found by polling only: %s", error)
            self._deaf = True

    def _heard(self) -> None:
        if self._deaf:
            _log.info("changes are announced again")
        self._deaf = False
        self._knock()
