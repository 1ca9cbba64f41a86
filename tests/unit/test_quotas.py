"""Quotas: when they are refilled, and how a process takes credits in blocks."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api_key_manager.core import KeyManager, ValidationError, sign
from api_key_manager.core.credits import IDLE_SECONDS, MOST_IN_A_BLOCK, Credits, Take
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.inputs import check_quota
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.memory import MemoryQuotaStore
from api_key_manager.core.quotas import FOREVER, Quota, is_zone

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu",
         "America/Sao_Paulo", "Africa/Cairo", "Pacific/Apia"]  # fmt: skip


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def period(quota: Quota, now: str) -> tuple[str, str]:
    start, end = quota.period(at(now))
    return tuple(
        datetime.fromtimestamp(instant / 1e6, UTC).strftime("%Y-%m-%dT%H:%M") + "Z"
        for instant in (start, end)
    )


@pytest.mark.parametrize(
    ("quota", "now", "expected"),
    [
        (Quota(1, "daily"), "2026-05-05T00:00Z", ("2026-05-05T00:00Z", "2026-05-06T00:00Z")),
        (Quota(1, "daily", 6), "2026-05-05T05:59Z", ("2026-05-04T06:00Z", "2026-05-05T06:00Z")),
        (
            Quota(1, "daily", 6, "Europe/Berlin"), "2026-05-05T12:00Z",
            ("2026-05-05T04:00Z", "2026-05-06T04:00Z"),
        ),
        (Quota(1, "monthly"), "2026-12-31T23:59Z", ("2026-12-01T00:00Z", "2027-01-01T00:00Z")),
        (
            Quota(1, "monthly", 6, "Europe/Berlin"), "2026-03-01T04:59Z",
            ("2026-02-01T05:00Z", "2026-03-01T05:00Z"),
        ),
        # The clocks go from 02:00 to 03:00: the hour that is skipped is the instant of the change.
        (
            Quota(1, "daily", 2, "Europe/Berlin"), "2026-03-29T01:00Z",
            ("2026-03-29T01:00Z", "2026-03-30T00:00Z"),
        ),
        # From 03:00 back to 02:00: of the hour that comes twice, the first one.
        (
            Quota(1, "daily", 2, "Europe/Berlin"), "2026-10-25T00:30Z",
            ("2026-10-25T00:00Z", "2026-10-26T01:00Z"),
        ),
        # Only half an hour is skipped; and where the change is at midnight.
        (
            Quota(1, "daily", 2, "Australia/Lord_Howe"), "2026-10-03T16:00Z",
            ("2026-10-03T15:30Z", "2026-10-04T15:00Z"),
        ),
        (
            Quota(1, "daily", 0, "Africa/Cairo"), "2026-04-23T23:00Z",
            ("2026-04-23T22:00Z", "2026-04-24T21:00Z"),
        ),
        # A whole day was skipped: its hour is the instant of the change.
        (
            Quota(1, "daily", 6, "Pacific/Apia"), "2011-12-30T12:00Z",
            ("2011-12-30T10:00Z", "2011-12-30T16:00Z"),
        ),
    ],
)  # fmt: skip
def test_periods(quota, now, expected):
    """Days and months begin at the hour of the zone, also where clocks are changed."""
    assert period(quota, now) == expected


def test_never():
    """What is never refilled has one period."""
    assert Quota(1, "never").period(0) == Quota(1, "never").period(4e9) == (0, FOREVER)


@given(
    st.sampled_from(ZONES), st.integers(0, 23), st.sampled_from(["daily", "monthly"]),
    st.floats(1_000_000, 4_000_000_000),
)  # fmt: skip
@example("Pacific/Apia", 6, "daily", 1_325_239_199.5)
def test_periods_cover_time_once(zone, hour, refill, now):
    """Every instant is in one period, which the next one joins; one begins every day or month."""
    quota = Quota(1, refill, hour, zone)
    start, end = quota.period(now)
    assert start <= now * 1e6 < end
    assert quota.period(start / 1e6) == quota.period((end - 1_000_000) / 1e6) == (start, end)
    assert quota.period(end / 1e6).start == end
    longest = timedelta(days=32) if refill == "monthly" else timedelta(hours=26)
    assert end - start <= longest.total_seconds() * 1e6


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "quota: an object with limit and refill is allowed"),
        ({"refill": "daily"}, "quota.limit: a whole number from 1 to 1000000000000000 is allowed"),
        ({"limit": 0, "refill": "daily"}, "quota.limit: a whole"),
        ({"limit": -1, "refill": "daily"}, "quota.limit: a whole"),
        ({"limit": 2**63, "refill": "daily"}, "quota.limit: a whole"),
        ({"limit": True, "refill": "daily"}, "quota.limit: a whole"),
        ({"limit": 1.0, "refill": "daily"}, "quota.limit: a whole"),
        ({"limit": 1}, "quota.refill: daily, monthly, never are allowed"),
        ({"limit": 1, "refill": "weekly"}, "quota.refill: daily"),
        ({"limit": 1, "refill": ["daily"]}, "quota.refill: daily"),
        ({"limit": 1, "refill": "daily", "hour": 24}, "quota.hour: a whole number from 0 to 23"),
        ({"limit": 1, "refill": "daily", "hour": -1}, "quota.hour"),
        ({"limit": 1, "refill": "daily", "hour": "6"}, "quota.hour"),
        ({"limit": 1, "refill": "daily", "zone": "Mars/Base"}, "quota.zone: a time zone such as"),
        ({"limit": 1, "refill": "daily", "zone": "../etc/passwd"}, "quota.zone"),
        ({"limit": 1, "refill": "daily", "zone": "localtime"}, "quota.zone"),
        ({"limit": 1, "refill": "daily", "zone": None}, "quota.zone"),
        ({"limit": 1, "refill": "never", "hour": 6}, "quota.hour: what is never refilled"),
        ({"limit": 1, "refill": "daily", "shared_by_owner": 1}, "quota.shared_by_owner: true"),
        ({"limit": 1, "refill": "daily", "spent": 0}, "quota: spent is not one of limit"),
    ],
)
def test_bad_quotas(value, message):
    """What is wrong is named, with what is allowed."""
    with pytest.raises(ValidationError) as caught:
        check_quota(value)
    assert str(caught.value).startswith(message)


def test_good_quotas():
    """What may be left out has its default."""
    assert check_quota(None) is None
    assert check_quota({"limit": 1, "refill": "never"}) == Quota(1, "never", 0, "UTC", False)
    full = {"limit": 10**15, "refill": "monthly", "hour": 23, "zone": "Europe/Berlin",
            "shared_by_owner": True}  # fmt: skip
    quota = check_quota(full)
    assert quota is not None
    assert quota.to_dict() == full
    assert check_quota(quota) == quota


def test_no_time_zones_here(monkeypatch):
    """UTC needs no data of the machine."""

    def unknown(name):
        raise KeyError(name)

    monkeypatch.setattr("api_key_manager.core.quotas.ZoneInfo", unknown)
    assert Quota(1, "daily").period(0) == (0, 86_400_000_000)
    with pytest.raises(KeyError):
        Quota(1, "daily", 0, "Europe/Berlin").period(0)


def test_zones():
    """The names of the IANA database, and not what a machine calls its own."""
    assert all(map(is_zone, ZONES))
    assert not any(map(is_zone, ["", "localtime", "posixrules", "europe/berlin", "/UTC"]))


class Store(MemoryQuotaStore):
    """Counts, and stops or fails when told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list = []
        self.fail = False
        self.gate: asyncio.Event | None = None

    async def spend(self, asked):
        self.asked.append(list(asked))
        if self.gate is not None:
            await self.gate.wait()
        if self.fail:
            raise StorageError("down")
        return await super().spend(asked)

    @property
    def total(self) -> int:
        return sum(sum(periods.values()) for periods in self._spent.values())


NEVER = Quota(1000, "never")


async def spend(credits: Credits, cost: int = 1, quota: Quota = NEVER, now: float = 1.0) -> bool:
    take = Take("k:a", quota, cost)
    taken = credits.take_now(take, now) or (await credits.take([take], now))[0]
    return taken.allowed


async def test_blocks():
    """A hundredth of the limit is taken at once, and used without the store."""
    store = Store()
    credits = Credits(store, lease=True)
    for _ in range(10):
        assert await spend(credits)
    assert len(store.asked) == 1
    assert store.total == 10
    assert await credits.spent("k:a", NEVER, 1) == 10
    assert await spend(credits)
    assert store.total == 20
    assert await credits.spent("k:a", NEVER, 1) == 11


async def test_a_block_is_bounded():
    """However large the quota, a crash loses little."""
    store = Store()
    assert await spend(Credits(store, lease=True), quota=Quota(10**15, "never"))
    assert store.total == MOST_IN_A_BLOCK


async def test_all_credits_can_be_used():
    """Several processes use up exactly the quota: near its end each takes what it uses."""
    store = Store()
    processes = [Credits(store, lease=True) for _ in range(3)]
    accepted = 0
    for credits in itertools.islice(itertools.cycle(processes), 1200):
        accepted += await spend(credits)
    assert accepted == store.total == 1000


async def test_what_lies_idle_is_returned():
    """After some seconds, and when the process stops, what was not used is there for others."""
    store = Store()
    credits, other = Credits(store, lease=True), Credits(store, lease=True)
    assert await spend(credits, now=1)
    await credits.give_back_idle(1 + IDLE_SECONDS - 1)
    assert store.total == 10
    await credits.give_back_idle(1 + IDLE_SECONDS)
    assert store.total == 1
    assert await spend(other, now=9)
    await other.close(9)
    assert store.total == 2


async def test_what_is_being_returned_is_used_by_nobody():
    """While the store is told, a request looks for credits elsewhere."""
    store = Store()
    credits = Credits(store, lease=True)
    assert await spend(credits)
    waits, give_back = asyncio.Event(), store.give_back

    async def slowly(returned):
        await waits.wait()
        await give_back(returned)

    store.give_back = slowly
    returning = asyncio.create_task(credits.give_back_idle(99))
    await asyncio.sleep(0)
    assert credits.take_now(Take("k:a", NEVER, 1), 99) is None
    assert await spend(credits, now=99)
    waits.set()
    await returning
    await credits.close(99)
    assert store.total == 2


async def test_period_ends():
    """A block is worth nothing once its period is over; the next one starts full."""
    store, day = Store(), Quota(100, "daily")
    credits = Credits(store, lease=True)
    assert await spend(credits, 100, day, now=86_399)
    assert not await spend(credits, 1, day, now=86_399.9)
    assert await spend(credits, 100, day, now=86_400)
    assert not await spend(credits, 1, day, now=86_400)
    # A clock that steps back revives nothing.
    assert not await spend(credits, 1, day, now=86_399)


async def test_smaller_limit_holds_at_once():
    """A block taken under a larger limit is not used by who may have less."""
    credits = Credits(Store(), lease=True)
    for _ in range(495):
        assert await spend(credits)
    assert not await spend(credits, 1, Quota(499, "never"))
    assert await spend(credits)


async def test_many_at_once_take_one_block():
    """A hundred requests for a cold account share one look at the store, and one block."""
    store = Store()
    credits = Credits(store, lease=True)
    quota = Quota(100_000, "never")
    results = await asyncio.gather(*(spend(credits, 1, quota) for _ in range(100)))
    assert all(results)
    assert len(store.asked) <= 2
    assert store.total == 1000


async def test_in_order():
    """Of requests at once each takes what is left, if it suffices."""
    credits = Credits(Store(), lease=True)
    takes = [Take("k:a", Quota(10, "never"), cost) for cost in (4, 11, 4, 4, 2, 1)]
    taken = await credits.take(takes, 1)
    assert [each.allowed for each in taken] == [True, False, True, False, True, False]
    assert [each.state.remaining for each in taken[3:]] == [0, 0, 0]


async def test_who_gives_up_takes_nothing():
    """A request that is cancelled while the store is asked leaves its credits to others."""
    store = Store()
    store.gate = asyncio.Event()
    credits = Credits(store, lease=False)
    waiting = asyncio.create_task(credits.take([Take("k:a", NEVER, 1000)], 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    store.gate.set()
    assert await spend(credits, 1000)


async def test_store_down():
    """When the store fails nobody gets anything, and it recovers by itself."""
    store = Store()
    credits = Credits(store, lease=True)
    store.fail = True
    with pytest.raises(StorageError):
        await spend(credits)
    store.fail = False
    assert await spend(credits)
    with pytest.raises(StorageError, match="no store"):
        await spend(Credits(None, lease=False))


async def test_without_blocks():
    """A process that nobody looks after takes exactly what it uses, and keeps no account."""
    store = Store()
    credits = Credits(store, lease=False)
    for n in range(1, 5):
        assert await spend(credits, 2)
        assert store.total == 2 * n
    await credits.trim([Take("k:a", NEVER, 2)])
    assert not credits._accounts


@given(
    st.integers(1, 400),
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 60), st.sampled_from("ssssbic")),
        max_size=60,
    ),
)
def test_never_more_than_the_limit(limit, steps):
    """Whatever processes do, never more is accepted than the limit; what is lost is at most a block
    per crash."""

    async def run() -> None:
        store, quota = MemoryQuotaStore(), Quota(limit, "never")
        processes = [Credits(store, lease=True) for _ in range(3)]
        accepted = crashes = 0
        for which, cost, what in steps:
            credits, take = processes[which], Take("k:a", quota, cost)
            if what == "c":
                processes[which] = Credits(store, lease=True)
                crashes += 1
            elif what == "i":
                await credits.give_back_idle(100)
            else:
                taken = credits.take_now(take, 1) or (await credits.take([take], 1))[0]
                if taken.allowed and what == "b":
                    credits.put_back(take, taken)
                    await credits.trim([take])
                elif taken.allowed:
                    accepted += cost
        for credits in processes:
            await credits.close(1)
        (spent,) = await store.spent([("k:a", 0)])
        assert accepted <= spent <= limit
        assert spent - accepted <= crashes * (limit // 100)

    asyncio.run(run())


async def test_who_is_cancelled_spends_nothing():
    """Credits that were set aside for a request come back when its caller goes away before the
    rate limits have answered."""

    class Silent(MemoryLimiter):
        def take_now(self, *asked):
            return None

        async def take(self, asked):
            await asyncio.Event().wait()

    manager = KeyManager(limiter=Silent())
    limits = [{"name": "hour", "limit": 5, "window_seconds": 3600}]
    quota = {"limit": 10, "refill": "daily"}
    await manager.create_key("k", "a-secret", quota=quota, rate_limits=limits)
    for _ in range(3):
        call = asyncio.create_task(manager.verify("k", sign("a-secret", "k")))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert (await manager.get_key("k"))["quota"]["spent"] == 0
