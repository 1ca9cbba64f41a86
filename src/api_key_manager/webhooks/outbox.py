"""Makes deliveries of events and sends them, on whichever node gets to it first."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from hmac import compare_digest
from typing import Final

from api_key_manager.audit.leaf import EventMacs
from api_key_manager.core.exceptions import EncryptionError, StorageError
from api_key_manager.core.models import MICROSECONDS, AuditEvent, canonical_json
from api_key_manager.core.ports import SecretBox
from api_key_manager.storage import Driver
from api_key_manager.storage import webhooks as scripts
from api_key_manager.storage.webhooks import Delivery, Webhook
from api_key_manager.webhooks.events import wanted
from api_key_manager.webhooks.schedule import GONE, Outcome, after
from api_key_manager.webhooks.sealing import open_secrets
from api_key_manager.webhooks.sending import Sender
from api_key_manager.webhooks.signing import sign

__all__ = ["Outbox"]

_log = logging.getLogger(__name__)
_POLL_SECONDS: Final = 0.25
_WARN_SECONDS: Final = 60.0
_AT_ONCE: Final = 32
_AT_ONCE_EACH: Final = 4
_DAY: Final = 86_400
EXPIRING_SECONDS: Final = 7 * _DAY
_DONE_KEPT: Final = 3 * _DAY
_DEAD_KEPT: Final = 30 * _DAY


class Outbox:
    """Follows the audit log, and tries what is due.

    At least once: a delivery is claimed for :attr:`lease_seconds`, and goes to another try when
    nobody has said by then what became of it.

    Args:
        driver: of the database.
        box: opens the secrets.
        macs: vouch for events, and for what is sent of them.
        sender: sends.
        clock: Unix seconds.

    Attributes:
        counts: tries by outcome.
        lease_seconds: longer than any try takes.
    """

    def __init__(
        self, driver: Driver, box: SecretBox, macs: EventMacs, sender: Sender,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._driver = driver
        self._macs = macs
        self._box = box
        self._sender = sender
        self._clock = clock
        self.counts: Counter[str] = Counter()
        self.lease_seconds = 60.0
        self._trying: dict[asyncio.Task[None], str] = {}
        self._ended = asyncio.Event()
        self._works = True
        self._warn_due = 0.0

    @property
    def _now(self) -> int:
        return int(self._clock() * MICROSECONDS)

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            while True:
                self._ended.clear()
                more = await self.step()
                if not more:
                    try:
                        async with asyncio.timeout(_POLL_SECONDS):
                            await self._ended.wait()
                    except TimeoutError:
                        pass
        finally:
            tasks = list(self._trying)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self) -> bool:
        """Make and begin what is due; says whether there is more to make at once."""
        try:
            await self._warn()
            made = 0
            if await self._driver.read(scripts.is_behind):
                made = await self._driver.write(
                    scripts.dispatch, wanted, self._macs.fits, self.vouch, self._now
                )
            await self._begin()
        except StorageError as error:
            if self._works:
                _log.warning("webhooks wait: %s", error)
            self._works = False
            return False
        self._works = True
        return made > 0

    async def settle(self) -> None:
        """Wait for the tries under way."""
        await asyncio.gather(*self._trying)

    async def _warn(self) -> None:
        """Note keys that expire soon."""
        now = self._clock()
        if now < self._warn_due:
            return
        at, until = self._now, self._now + EXPIRING_SECONDS * MICROSECONDS
        if await self._driver.read_aside(scripts.is_any_expiring, at, until):
            while await self._driver.write(scripts.warn, at, until, self._macs.stamp):
                pass
        self._warn_due = now + _WARN_SECONDS

    async def _begin(self) -> None:
        """Try what is due. Of one receiver only so much at once, so that a slow one takes no more
        than its share."""
        now, free = self._now, _AT_ONCE - len(self._trying)
        if free <= 0:
            return
        busy = Counter(self._trying.values())
        due = {webhook.id: webhook for webhook in await self._driver.read(scripts.due, now)}
        limits: dict[str, int] = {}
        for webhook_id in sorted(due, key=lambda each: busy[each]):
            limit = min(_AT_ONCE_EACH - busy[webhook_id], free)
            if limit > 0:
                limits[webhook_id] = limit
                free -= limit
        if not limits:
            return
        until = now + round(self.lease_seconds * MICROSECONDS)
        for delivery in await self._driver.write(scripts.claim, limits, now, until):
            task = asyncio.create_task(self._try(due[delivery.webhook_id], delivery))
            self._trying[task] = delivery.webhook_id
            task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        del self._trying[task]
        self._ended.set()
        if not task.cancelled() and task.exception() is not None:
            # Its lease ends, and somebody tries again.
            _log.error("a webhook could not be tried: %s", type(task.exception()).__name__)

    async def _try(self, webhook: Webhook, delivery: Delivery) -> None:
        try:
            await self.deliver(webhook, delivery)
        except StorageError as error:
            _log.warning("what became of a webhook could not be written: %s", error)

    async def deliver(self, webhook: Webhook, delivery: Delivery) -> Delivery:
        """Try a delivery that was claimed, and write what became of it."""
        outcome = await self._post(webhook, delivery)
        self.counts[outcome.slug] += 1
        told = after(delivery, outcome, self._now)
        await self._driver.write(scripts.finish, [told])
        if outcome.slug == GONE:
            await self._disable(webhook)
        return told

    async def _post(self, webhook: Webhook, delivery: Delivery) -> Outcome:
        now = self._clock()
        try:
            shown = open_secrets(self._box, webhook, self._now)
        except EncryptionError:
            _log.error("the webhook %s was edited in the database: nothing is sent", webhook.id)
            return Outcome("unreadable")
        if not compare_digest(_bytes(delivery.mac), self.vouch(delivery)):
            _log.error("the delivery %s was edited in the database: it is not sent", delivery.id)
            return Outcome("unreadable")
        body = delivery.body.encode()
        headers = {
            "user-agent": "api-key-manager-pro",
            "content-type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": sign(shown, delivery.id, int(now), body),
        }
        return await self._sender.post(webhook.url, headers, body)

    def vouch(self, delivery: Delivery) -> bytes:
        """The MAC of what a delivery says to whom."""
        return self._macs.of(
            "akm-webhook-1", delivery.id, delivery.webhook_id, delivery.type, delivery.body
        )

    async def _disable(self, webhook: Webhook) -> None:
        """The receiver said that it is gone."""
        before = await self._driver.read(scripts.find, webhook.id)
        if before is None or before.disabled or before.url != webhook.url:
            return
        detail = canonical_json({"webhook_id": webhook.id, "fields": ["disabled"]})
        event = AuditEvent(
            self._now, "webhook_updated", None, "system", GONE, detail_json=detail,
            environment=before.environment,
        )  # fmt: skip
        now = before._replace(disabled=True, disabled_reason=GONE, updated_at=self._now)
        await self._driver.write(scripts.change, now, before, event, self._macs.stamp)

    async def prune(self) -> None:
        """Forget deliveries that ended long ago."""
        now = self._clock()
        done, dead = (int((now - kept) * MICROSECONDS) for kept in (_DONE_KEPT, _DEAD_KEPT))
        while await self._driver.write(scripts.prune, done, dead):
            pass

    async def depth(self) -> dict[str, int]:
        """How many deliveries wait, and how many are dead."""
        counted = await self._driver.read_aside(scripts.depth)
        return {"pending": 0, "dead": 0, **counted}


def _bytes(value: object) -> bytes:
    # An editor may have put a value of any type there.
    return value if isinstance(value, bytes) else b""
