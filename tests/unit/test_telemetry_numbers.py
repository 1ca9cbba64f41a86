"""The numbers behind the metrics: each thing counted once, and costly readings taken seldom."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import KeyManager, Reason, StorageError, Verdict, sign
from api_key_manager.core.limits import Decision
from api_key_manager.core.memory import MemoryNonceStore, MemoryStore
from api_key_manager.core.models import ADMIN_REALM
from api_key_manager.core.presented import Presented, present
from api_key_manager.core.recorder import Recorder
from api_key_manager.core.tally import Tally
from api_key_manager.telemetry.numbers import BOUNDS, Durations, Remembered


class TestTally:
    def test_apart(self):
        """By reason and scheme; of admin tokens the refused ones, and among themselves."""
        tally = Tally()
        for realm, reason, scheme in (
            ("default", Reason.VALID, "static"), ("default", Reason.VALID, "static"),
            ("default", Reason.VALID, "bearer"), ("default", Reason.REVOKED, "bearer"),
            ("default", Reason.NOT_FOUND, None), (ADMIN_REALM, Reason.VALID, "bearer"),
            (ADMIN_REALM, Reason.REVOKED, "bearer"),
        ):  # fmt: skip
            tally.add(Presented("k", realm=realm), Verdict(reason, "k", None, 1, scheme))
        assert tally.validations() == {
            ("valid", "static"): 2, ("valid", "bearer"): 1, ("revoked", "bearer"): 1,
            ("not_found", None): 1,
        }  # fmt: skip
        assert tally.refused_admin_tokens() == {"revoked": 1}

    def test_limits(self):
        """A verdict with a decision of the rate limiter counts under what was decided."""
        tally = Tally()
        assert tally.limit_decisions() == {"allowed": 0, "refused": 0}
        for allowed, reason in ((True, Reason.VALID), (True, Reason.VALID),
                                (False, Reason.RATE_LIMITED)):  # fmt: skip
            decision = Decision(allowed, (), (), 0)
            tally.add(Presented("k"), Verdict(reason, "k", rate_limit=decision))
        tally.add(Presented("k"), Verdict(Reason.VALID, "k"))
        assert tally.limit_decisions() == {"allowed": 2, "refused": 1}

    async def test_nonces(self):
        """Replayed ones, and those that nobody may claim, once each."""

        class Breaking(MemoryNonceStore):
            broken = False

            async def claim(self, claims, now, skew):
                if self.broken:
                    raise StorageError("gone")
                return await super().claim(claims, now, skew)

        nonces = Breaking(0)
        manager = KeyManager(nonces=nonces)
        secret = (await manager.create_key("k"))["secret"]
        now = int(manager.clock())

        async def claim(nonce: str, at: int) -> Reason:
            signature = sign(secret, "k", at, nonce)
            return (await manager.verify("k", signature, at, nonce)).reason

        assert await claim("n" * 16, now) is Reason.VALID
        assert await claim("n" * 16, now) is Reason.REPLAYED
        nonces.broken = True
        assert await claim("m" * 16, now) is Reason.UNAVAILABLE
        assert manager.tally.refused_nonces() == {"replayed": 1, "unavailable": 1}

    def test_a_copy(self):
        """Nobody changes the numbers through what they are given."""
        tally = Tally()
        tally.add(Presented("k"), Verdict(Reason.VALID, "k", None, 1, "static"))
        tally.validations().clear()
        assert tally.validations() == {("valid", "static"): 1}

    async def test_nothing_when_it_cannot(self, clock):
        """`verify_now` counts nothing when it gives no verdict: no verdict, no hit, no miss."""
        manager = KeyManager()
        manager.clock = clock
        secret = (await manager.create_key("k"))["secret"]
        cold = present("k", sign(secret, "k"))
        assert manager.verify_now(cold, clock()) is None
        assert await manager.verify("k", sign(secret, "k"))
        with_nonce = present("k", "0" * 64, clock.seconds, "n" * 16)
        assert manager.verify_now(with_nonce, clock()) is None
        assert manager.tally.validations() == {("valid", "static"): 1}
        assert (manager.cache.hits, manager.cache.misses) == (0, 1)
        assert manager.verify_now(cold, clock())
        assert (manager.cache.hits, manager.cache.misses) == (1, 1)
        assert manager.get_stats()["cache"]["hits"] == 1

    async def test_a_full_queue(self):
        """What is refused because the audit log cannot take it is counted as that."""

        class Broken(MemoryStore):
            async def record(self, events, used):
                raise StorageError("disk full")

        store = Broken()
        manager = KeyManager(store=store, recorder=Recorder(store, capacity=1), background=True)
        assert (await manager.verify("k", "0")).reason is Reason.MALFORMED
        assert (await manager.verify("k", "0" * 64)).reason is Reason.UNAVAILABLE
        assert manager.tally.validations() == {("malformed", None): 1, ("unavailable", None): 1}
        assert manager.recorder.refused == 1


@given(st.lists(st.floats(-1, 10)))
def test_durations(taken: list[float]):
    """Each one is in exactly one bucket, the first whose bound it does not exceed."""
    durations = Durations()
    for seconds in taken:
        durations.observe(seconds)
    assert durations.count == len(taken)
    assert durations.seconds == pytest.approx(sum(taken))
    assert durations.values == [*durations.counts, durations.seconds]
    below = 0
    for bound, count in zip(BOUNDS, durations.counts, strict=False):
        below += count
        assert below == sum(seconds <= bound for seconds in taken)


class Costly:
    """Counts how often it is asked, and takes its time."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.asked = 0
        self.takes = 0.0
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        self.clock.advance(self.takes)
        if self.error is not None:
            raise self.error
        return self.asked


class TestRemembered:
    async def test_seldom(self, clock):
        """Within its time the value is remembered; after it, read again."""
        read = Costly(clock)
        value = Remembered(read, seconds=10, failures=StorageError, clock=clock)
        assert [await value.get() for _ in range(3)] == [1, 1, 1]
        clock.advance(9.9)
        assert await value.get() == 1
        clock.advance(0.1)
        assert await value.get() == 2

    async def test_slow_reading(self, clock):
        """A reading of two seconds is taken every hundred at most."""
        read = Costly(clock)
        read.takes = 2
        value = Remembered(read, seconds=10, failures=StorageError, clock=clock)
        assert await value.get() == 1
        clock.advance(99)
        assert await value.get() == 1
        clock.advance(1)
        assert await value.get() == 2

    async def test_one_at_a_time(self, clock):
        """Who comes while it is read gets the old value, and starts no second reading."""
        read = Costly(clock)
        value = Remembered(read, seconds=10, failures=StorageError, clock=clock)
        await value.get()
        clock.advance(10)
        assert await asyncio.gather(*(value.get() for _ in range(5))) == [2, 1, 1, 1, 1]
        assert read.asked == 2

    async def test_failure(self, clock):
        """There is no value while it cannot be read, rather than one that is no longer true."""
        read = Costly(clock)
        value = Remembered(read, seconds=10, failures=StorageError, clock=clock)
        assert await value.get() == 1
        read.error = StorageError("gone")
        clock.advance(10)
        assert await value.get() is None
        assert await value.get() is None
        assert read.asked == 2
        read.error = None
        clock.advance(10)
        assert await value.get() == 3
        read.error = ZeroDivisionError()
        clock.advance(10)
        with pytest.raises(ZeroDivisionError):
            await value.get()
