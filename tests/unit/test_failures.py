"""Failed authentication per address: failures are slowed, and nobody with a valid credential is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import KeyManager, Reason, Verdict
from api_key_manager.core.exceptions import OUTCOMES
from api_key_manager.core.failures import Failures
from api_key_manager.core.memory import MemoryStore
from api_key_manager.core.models import ADMIN_REALM, AuditQuery
from api_key_manager.core.presented import Presented, present
from api_key_manager.core.recorder import Recorder
from api_key_manager.core.tally import Tally

NOW = 1000.0
BAD = Verdict(Reason.BAD_SIGNATURE, "k")


class Clock:
    """Nanoseconds."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now


class Counted:
    """Failures, and what they told."""

    def __init__(
        self, per_minute: int, validations: Any = "all", all_per_minute: int = 1_000_000
    ) -> None:
        self.clock = Clock()
        self.tally = Tally()
        self.store = MemoryStore()
        self.recorder = Recorder(self.store, validations=validations)
        self._failures = Failures(
            self.recorder, self.tally, per_minute=per_minute, all_per_minute=all_per_minute,
            clock=self.clock,
        )  # fmt: skip

    def __call__(self, ip: str | None, verdict: Verdict = BAD, **more: Any) -> int:
        return self._failures.wait(Presented("k", ip=ip, **more), verdict, NOW)

    async def events(self) -> list[Any]:
        await self.recorder.flush(NOW)
        return (await self.store.find_audit(AuditQuery(ascending=True, limit=1000))).items


ADDRESSES = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", None]
SAME = {"2001:db8::2": "2001:db8::1"}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(ADDRESSES), st.booleans(), st.sampled_from([0, 0, 1, 7, 13, 61])
    ),
    max_size=200,
)  # fmt: skip


@given(steps=STEPS, per_minute=st.integers(1, 20))
def test_valid_always_passes_and_failures_obey_gcra(steps: Any, per_minute: int):
    """Whatever the order of good and bad from whatever addresses: a good one never waits, and the
    bad ones of an address are those that a bucket of `per_minute` lets through, which fills anew
    in a minute; the wait that is told is the time until the next one."""
    counted = Counted(per_minute)
    buckets: dict[Any, tuple[float, float]] = {}
    clock, expected = 0.0, 0
    for ip, good, seconds in steps:
        clock += seconds
        counted.clock.now += seconds * 10**9
        if good:
            assert counted(ip, Verdict(Reason.VALID, "k")) == 0
            continue
        host = SAME.get(ip, ip)
        level, at = buckets.get(host, (float(per_minute), clock))
        level = min(per_minute, level + (clock - at) * per_minute / 60)
        if level >= 1 - 1e-6:
            assert counted(ip) == 0
            level -= 1
        else:
            wait = counted(ip)
            assert wait > 0
            exact = (1 - level) * 60 / per_minute
            assert exact - 1e-3 <= wait <= exact + 1 + 1e-3
            expected += 1
        buckets[host] = (level, clock)
    assert counted.tally.slowed == expected


@pytest.mark.parametrize("reason", list(Reason))
def test_what_counts_is_what_is_answered_401(reason: Reason):
    """Each 401 alike, or the 429 would tell them apart; nothing of what is no 401."""
    counted = Counted(1)
    waits = [counted("192.0.2.1", Verdict(reason, "k")) for _ in range(3)]
    is_401 = reason in OUTCOMES and OUTCOMES[reason].status == 401
    assert waits == ([0, 60, 60] if is_401 else [0, 0, 0])


def test_reasons_share_one_count():
    """One address has one count, whatever it tried."""
    counted = Counted(2)
    reasons = [Reason.NOT_FOUND, Reason.REVOKED, Reason.MALFORMED, Reason.EXPIRED]
    assert [counted("192.0.2.1", Verdict(r, "k")) > 0 for r in reasons] == [
        False,
        False,
        True,
        True,
    ]


def test_zero_turns_it_off():
    """Then nothing waits, ever."""
    counted = Counted(0)
    assert {counted("192.0.2.1") for _ in range(1000)} == {0}


def test_nothing_shown_is_no_failure():
    """A request without a credential guesses nothing, and takes nothing from its address."""
    counted = Counted(1)
    verdict = Verdict(Reason.MALFORMED)
    for _ in range(5):
        nothing = present(ip="192.0.2.1", permissions="a", request_id="r", actor="x")
        assert nothing.malformed
        assert not nothing.shown
        assert counted._failures.wait(nothing, verdict, NOW) == 0
    for something in ({"token": ""}, {"key_id": ""}, {"request": {}}, {"signature": "x"}):
        assert present(**something).shown
    assert present(token="x", ip="999.9").shown
    assert counted("192.0.2.1") == 0
    assert counted("192.0.2.1") == 60


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Of more addresses than there are places for, some start anew; none is refused for that."""
    monkeypatch.setattr("api_key_manager.core.failures._MAX_ADDRESSES", 100)
    counted = Counted(1)
    for i in range(1000):
        assert counted(f"10.0.{i // 250}.{i % 250}") == 0
    assert len(counted._failures._limiter) == 100


async def test_audit_is_folded_and_names_no_key():
    """One event per address and second with an exact count, without a key's id."""
    counted = Counted(1)
    for ip in ["192.0.2.1"] * 6 + ["192.0.2.2"] * 3 + ["2001:db8::1", "2001:db8::2", "2001:db8::3"]:
        counted(ip, actor="authorize")
    events = await counted.events()
    assert {event.action for event in events} == {"address_slowed"}
    assert all(event.key_id is None and event.detail_json is None for event in events)
    assert Counter({event.ip: event.times for event in events}) == {
        "192.0.2.1": 5, "192.0.2.2": 2, "2001:db8::2": 2,
    }  # fmt: skip
    assert {(event.reason, event.actor) for event in events} == {("rate_limited", "authorize")}


@pytest.mark.parametrize(
    ("validations", "realm", "noted"),
    [("all", "keys", 1), ("failures", "keys", 1), ("none", "keys", 0), ("none", ADMIN_REALM, 1)],
)
async def test_audit_follows_the_setting(validations: str, realm: str, noted: int):
    """Where refusals are not logged, neither is this; those of admin tokens always are."""
    counted = Counted(1, validations)
    for _ in range(3):
        counted("192.0.2.1", realm=realm)
    assert len(await counted.events()) == noted


async def test_manager_counts():
    """A manager has such a count, and asks it nothing about a valid credential."""
    manager = KeyManager(failures_per_minute=2)
    key = await manager.create_key("k", kind="bearer")
    good = present(token=key["token"], ip="192.0.2.1")
    bad = present(token="x", ip="192.0.2.1")
    waits = [
        manager.wait_after(shown, await manager.verify_presented(shown))
        for shown in [bad, bad, good, bad, good]
    ]
    assert waits == [0, 0, 0, 30, 0]
    assert manager.tally.slowed == 1
    assert [e["count"] for e in manager.get_audit_log() if e["action"] == "address_slowed"] == [1]


class TestAllTogether:
    def test_flood_from_thousands_of_addresses(self):
        """Past the common count every failure waits, from whatever address; a valid one never."""
        counted = Counted(60, all_per_minute=100)
        good = Verdict(Reason.VALID, "k")
        waits = []
        for i in range(5000):
            waits.append(counted(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}"))
            assert counted("192.0.2.1", good) == 0
        assert waits[:100] == [0] * 100
        assert min(waits[100:]) == 1
        assert (counted.tally.slowed, counted.tally.slowed_together) == (0, 4900)

    def test_the_flood_leaves_no_trace_in_memory(self):
        """While all are slowed, no address takes a place that somebody slowed is in."""
        counted = Counted(1, all_per_minute=10)
        for i in range(1000):
            counted(f"10.0.{i >> 8}.{i & 255}")
        assert len(counted._failures._limiter) == 10

    @given(addresses=st.integers(1, 4), tries=st.integers(1, 60))
    def test_one_address_uses_up_its_own_count_only(self, addresses: int, tries: int):
        """What addresses are refused by their own counts takes nothing from the common one."""
        counted = Counted(2, all_per_minute=10)
        for _ in range(tries):
            for i in range(addresses):
                counted(f"192.0.2.{i}")
        assert counted.tally.slowed_together == 0
        left = 10 - min(tries, 2) * addresses
        waits = [counted(f"198.51.100.{i}") for i in range(left + 1)]
        assert [wait > 0 for wait in waits] == [False] * left + [True]

    def test_it_fills_anew(self):
        """After the time that was told, one more failure is answered as ever."""
        counted = Counted(60, all_per_minute=30)
        waits = [counted(f"192.0.2.{i}") for i in range(31)]
        assert waits[30] == 2
        counted.clock.now += waits[30] * 10**9
        assert counted("198.51.100.1") == 0
        assert counted("198.51.100.2") > 0

    @pytest.mark.parametrize(("one", "together"), [(0, 1), (1000, 0)])
    def test_zero(self, one: int, together: int):
        """No count for addresses: nobody is slowed. No common one: addresses alone count."""
        counted = Counted(one, all_per_minute=together)
        assert {counted("192.0.2.1") for _ in range(900)} == {0}

    async def test_audit(self):
        """One event per second with the exact count, and no address, which would be one of many."""
        counted = Counted(60, all_per_minute=1)
        for i in range(50):
            counted(f"192.0.2.{i}")
        (event,) = await counted.events()
        assert (event.action, event.ip, event.times) == ("failures_slowed", None, 49)


def test_admin_token_from_a_wrong_address_counts():
    """It is answered like a wrong one; a caller's key from there is not, and does not count."""
    denied = Verdict(Reason.IP_DENIED, "k")
    for realm, waits in ((ADMIN_REALM, [0, 60]), ("keys", [0, 0])):
        counted = Counted(1)
        assert [counted("192.0.2.1", denied, realm=realm) for _ in range(2)] == waits
