"""Redis, or Valkey: one connection per process that all requests share, and its circuit breaker.

Calls made in one turn of the event loop leave in one write, up to 512 together, and further ones
may be under way behind them. That costs a fifth of what a pool of connections does; the
measurements stand in ``docs/decisions/0013-redis-client.md``.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import logging
from collections.abc import Callable, Sequence
from secrets import SystemRandom
from typing import Any, Final

import hiredis

from api_key_manager.connections.redis_errors import RedisReplyError
from api_key_manager.connections.redis_url import read_url
from api_key_manager.connections.redis_wire import Wire, Word, pack
from api_key_manager.core.exceptions import StorageError

__all__ = ["LuaScript", "Redis", "RedisReplyError", "Word"]

_log = logging.getLogger(__name__)
_MISSES: Final = 5
_FIRST_PAUSE: Final = 0.1
_LAST_PAUSE: Final = 2.0
_QUIET_SECONDS: Final = 10.0
_random = SystemRandom()


class LuaScript:
    """A script that runs in Redis, known there by its SHA-1 once it has run."""

    def __init__(self, text: str) -> None:
        self.text = text
        # The protocol's name for a script, not a protection.
        self.name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def load(cls, package: str, file: str) -> LuaScript:
        """A file beside the modules of a package."""
        return cls(importlib.resources.files(package).joinpath(file).read_text("utf-8"))


class Redis:
    """A connection to one server, made at the first call and again whenever it is lost.

    Used from one event loop. A call fails with ``StorageError`` and is never sent twice, since
    nobody knows whether one without an answer was done.

    After five failures in a row without an answer between them all calls fail at once
    (:attr:`problem` says why) until the server has answered a ``PING``; those are sent after 0.1 s
    and then ever more rarely, up to every 2 s, each pause shortened at random by up to half.

    Args:
        url: ``redis://user:password@host:port/db``, ``rediss://…`` with ``ssl_ca_certs``,
            ``ssl_cert_reqs``, ``ssl_certfile`` and ``ssl_keyfile``, or ``unix:///path?db=0``.
        timeout: seconds that a call may take. One that takes longer fails alone: those behind it on
            the same connection may still be answered, new ones go out on another.

    Raises:
        ConfigurationError: the URL is none, or a certificate cannot be read.
    """

    def __init__(self, url: str, *, timeout: float = 0.5) -> None:
        if not timeout > 0:
            raise ValueError("timeout: more than 0 seconds")
        self.address = read_url(url)
        self.problem: str | None = None
        """Why calls fail at once; ``None`` while they are sent."""
        self.calls = 0
        self.failures = 0
        """Calls that failed, refusals by Redis among them."""
        self.pipelines = 0
        self._timeout = timeout
        self._wire: Wire | None = None
        self._wires: set[Wire] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._misses = 0
        self._pause = _FIRST_PAUSE
        self._probe_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Redis({str(self.address)!r})"

    async def call(self, *command: Word) -> Any:
        """Run one command; text comes back as bytes.

        Raises:
            RedisReplyError: Redis answered with an error.
            StorageError: it did not answer, in time or at all.
        """
        self.calls += 1
        try:
            if self.problem is not None:
                raise StorageError(self.problem)
            wire = self._wire or self._open()
            return await wire.ask(pack(command))
        except StorageError:
            self.failures += 1
            raise

    async def run(self, script: LuaScript, keys: Sequence[Word], args: Sequence[Word]) -> Any:
        """Run a script. If the server does not know it yet, it is sent and run by a second call."""
        try:
            return await self.call("EVALSHA", script.name, len(keys), *keys, *args)
        except RedisReplyError as refusal:
            if refusal.code != "NOSCRIPT":
                raise
            return await self.call("EVAL", script.text, len(keys), *keys, *args)

    async def publish(self, channel: str, payload: Word) -> None:
        """Wake whoever subscribes. Those who are not connected at this moment miss it."""
        await self.call("PUBLISH", channel, payload)

    async def subscribe(self, channel: str, on_message: Callable[[bytes], None]) -> None:
        """Listen on a connection of its own, made again whenever it is lost, until cancelled.

        Args:
            channel: the name as published to.
            on_message: is given each payload, and an empty one whenever listening has begun
                (anew), since others may have been missed before. It must not raise.
        """
        pause, up = _FIRST_PAUSE, True
        while not self._closed:
            ear = _Ear(on_message, None if up else f"wake-ups from {self.address} are heard again")
            wire = ear.wire = Wire(ear, self.address.greeting, self._timeout, ear.hear)
            try:
                await wire.open(self.address.connect)
                if not wire.lost.done():
                    wire.tell(pack(("SUBSCRIBE", channel)))
                    await self._listen(wire, ear)
            finally:
                wire.drop("the subscription ended")
            if ear.subscribed:
                pause, up = _FIRST_PAUSE, True
            elif up:
                up = False
                _log.warning("wake-ups from %s are not heard: %s", self.address, ear.why)
            await asyncio.sleep(_jittered(pause))
            pause = min(2 * pause, _LAST_PAUSE)

    async def _listen(self, wire: Wire, ear: _Ear) -> None:
        """Until it is lost, also if nobody has told this side: whoever is quiet gets a ``PING``."""
        while True:
            heard = ear.heard
            await asyncio.wait([wire.lost], timeout=_QUIET_SECONDS)
            if wire.lost.done() or (heard == ear.heard and ear.pinged):
                return
            ear.pinged = heard == ear.heard
            if ear.pinged:
                wire.tell(pack(("PING",)))

    async def close(self) -> None:
        """Let go of everything; calls that wait fail, and so does every later one."""
        self._closed = True
        self.problem = "Redis: the connection was closed"
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for wire in list(self._wires):
            wire.drop("the connection was closed")
        # The transports tell their ends in the loop's next turn.
        await asyncio.sleep(0)

    # What a connection tells its owner.

    def answered(self) -> None:
        self._misses = 0

    def missed(self, why: str) -> None:
        self._misses += 1
        if self._misses >= _MISSES and self.problem is None:
            self.problem = f"Redis: {why}"
            _log.warning("%s is away, calls fail at once: %s", self.address, why)
            self._pause = _FIRST_PAUSE
            self._probe_later()

    def retired(self, wire: Wire) -> None:
        if self._wire is wire:
            self._wire = None
        if wire.lost.done():
            self._wires.discard(wire)

    def _open(self) -> Wire:
        wire = self._wire = Wire(self, self.address.greeting, self._timeout)
        self._wires.add(wire)
        self._start(wire.open(self.address.connect))
        return wire

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _probe_later(self) -> None:
        loop = asyncio.get_running_loop()
        delay, self._pause = _jittered(self._pause), min(2 * self._pause, _LAST_PAUSE)
        self._probe_timer = loop.call_later(delay, lambda: self._start(self._probe()))

    async def _probe(self) -> None:
        try:
            await (self._wire or self._open()).ask(pack(("PING",)))
        except RedisReplyError as refusal:
            # To be refused by right is an answer.
            if refusal.away:
                self._probe_later()
                return
        except StorageError:
            self._probe_later()
            return
        self._misses = 0
        self.problem = None
        _log.info("%s answers again", self.address)


class _Ear:
    """Owner of a connection that only listens."""

    def __init__(self, on_message: Callable[[bytes], None], news: str | None) -> None:
        self.pipelines = 0
        self.subscribed = False
        self.heard = 0
        self.pinged = False
        self.why = "the connection was lost"
        self.wire: Wire | None = None
        self._on_message = on_message
        self._news = news

    def hear(self, said: Any) -> None:
        self.heard += 1
        self.pinged = False
        match said:
            case [b"subscribe", *_]:
                self.subscribed = True
                if self._news:
                    _log.info("%s", self._news)
                self._on_message(b"")
            case [b"message", _, bytes(payload)]:
                self._on_message(payload)
            case hiredis.ReplyError() if self.wire is not None:
                self.wire.drop(str(RedisReplyError(said)).removeprefix("Redis "), broken=True)

    def answered(self) -> None: ...

    def missed(self, why: str) -> None:
        self.why = why

    def retired(self, wire: Wire) -> None: ...


def _jittered(seconds: float) -> float:
    return _random.uniform(seconds / 2, seconds)
