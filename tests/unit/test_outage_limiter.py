"""What becomes of rate limits while they cannot be told, by policy; and who is told of it."""

from __future__ import annotations

import logging

import pytest

from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.ports import Ask
from api_key_manager.ratelimit.outage import OutageLimiter
from api_key_manager.ratelimit.trouble import Trouble

TWO = (RateLimit("two", 2, 3600),)
ONE = [Ask("k", TWO)]


class Remote:
    def __init__(self) -> None:
        self.gone = False
        self.within = MemoryLimiter()

    def take_now(self, key, limits, cost):
        return None

    async def take(self, asked):
        if self.gone:
            raise StorageError("no answer")
        return await self.within.take(asked)


@pytest.fixture
def remote() -> Remote:
    return Remote()


async def passes(limiter, times: int) -> list[bool]:
    return [(await limiter.take(ONE))[0].allowed for _ in range(times)]


@pytest.mark.parametrize("policy", ["local", "deny", "allow"])
async def test_while_it_answers_it_decides(remote, policy):
    """The policy is for outages only."""
    limiter = OutageLimiter(remote, policy, MemoryLimiter())
    assert limiter.take_now("k", TWO, 1) is None
    assert await passes(limiter, 3) == [True, True, False]
    assert (limiter.problem, limiter.undecided) == (None, 0)


async def test_local(remote):
    """This process counts for itself, from full; afterwards the shared count holds again."""
    limiter = OutageLimiter(remote, "local", MemoryLimiter())
    assert await passes(limiter, 1) == [True]
    remote.gone = True
    assert await passes(limiter, 3) == [True, True, False]
    assert (limiter.problem, limiter.undecided) == ("no answer", 3)
    remote.gone = False
    assert await passes(limiter, 2) == [True, False]
    assert limiter.problem is None


async def test_deny(remote):
    """What cannot be told is an error, which the verifier makes `unavailable`."""
    limiter = OutageLimiter(remote, "deny", MemoryLimiter())
    remote.gone = True
    with pytest.raises(StorageError):
        await limiter.take(ONE)
    assert limiter.undecided == 1


async def test_allow(remote):
    """Everything passes, and the decision says that nothing was taken."""
    limiter = OutageLimiter(remote, "allow", MemoryLimiter())
    remote.gone = True
    for decision in await limiter.take([Ask("k", TWO, 5)] * 3):
        assert decision.allowed
        assert decision.deciding == ("two", 2, 3600, 2, 0.0)
        assert decision.left_of_only() == (2, 0)


async def test_said_once(remote, caplog):
    """A line when it begins and one when it ends, however many requests there are."""
    limiter = OutageLimiter(remote, "local", MemoryLimiter())
    with caplog.at_level(logging.INFO):
        for gone in (False, True, False, True):
            remote.gone = gone
            await passes(limiter, 20)
    assert [(r.levelname, "ON_LIMITER_OUTAGE=local" in r.message) for r in caplog.records] == [
        ("WARNING", True), ("INFO", True), ("WARNING", True),
    ]  # fmt: skip


def test_no_other_policy(remote):
    """A policy that is none is no policy by chance."""
    with pytest.raises(ValueError, match="local, deny, allow"):
        OutageLimiter(remote, "open", MemoryLimiter())


def test_a_problem_is_forgotten_without_traffic():
    """A node that gets no requests since it is not ready must get ready again."""
    now = [100.0]
    trouble = Trouble("nothing works", lambda: now[0])
    trouble.failed(StorageError("no answer"))
    now[0] += 9
    assert trouble.problem == "no answer"
    now[0] += 2
    assert trouble.problem is None
    trouble.failed(StorageError("no answer"))
    assert (trouble.problem, trouble.failures) == ("no answer", 2)
