"""Rate limits as part of a key: on every backend, charged last, and only for what was proved."""

from __future__ import annotations

import json

import pytest

from api_key_manager.core import (
    ConflictError,
    KeyManager,
    RateLimitExceededError,
    Reason,
    StorageError,
    ValidationError,
    sign,
)
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit
from api_key_manager.core.models import ADMIN_REALM
from api_key_manager.core.presented import present
from tests.contract.views import logged

SECRET = "super-secret-key"
TWO = [{"name": "two", "limit": 2, "window_seconds": 10}]
BOTH = [
    {"name": "burst", "limit": 3, "window_seconds": 1},
    {"name": "hour", "limit": 5, "window_seconds": 3600},
]


@pytest.fixture
def manager(either_manager) -> KeyManager:
    return either_manager


@pytest.fixture
def signed(clock):
    """A fresh signature, with a nonce if one is named."""

    def make(nonce: str | None = None, secret: str = SECRET, key: str = "k") -> dict:
        at = clock.seconds
        return {
            "key_id": key, "signature": sign(secret, key, at, nonce), "timestamp": at,
            "nonce": nonce,
        }  # fmt: skip

    return make


async def reasons(manager, made, times: int = 1, **more) -> list[str]:
    return [str((await manager.verify(**made(), **more)).reason) for _ in range(times)]


async def test_a_key_carries_its_limits(manager):
    """Limits are shown as they were given, and changed like any field."""
    made = await manager.create_key("k", SECRET, rate_limits=BOTH)
    assert made["rate_limits"] == BOTH
    assert (await manager.get_key("k"))["rate_limits"] == BOTH
    assert (await manager.update_key("k", rate_limits=TWO))["rate_limits"] == TWO
    assert (await manager.update_key("k", owner="acme"))["rate_limits"] == TWO
    assert (await manager.update_key("k", rate_limits=None))["rate_limits"] == []
    assert (await manager.create_key("other"))["rate_limits"] == []


async def test_the_limit_holds_and_refills(manager, signed, clock):
    """Two at once, then one each five seconds."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    assert await reasons(manager, signed, 3) == ["valid", "valid", "rate_limited"]
    clock.advance(5)
    assert await reasons(manager, signed, 2) == ["valid", "rate_limited"]


async def test_the_verdict_tells_the_limits(manager, signed):
    """Accepted and refused alike say what is left; a refusal says how long to wait."""
    await manager.create_key("k", SECRET, {"tier": "gold"}, rate_limits=TWO)
    accepted = await manager.verify(**signed(), cost=2)
    assert accepted.rate_limit.allowed
    assert accepted.rate_limit.deciding == ("two", 2, 10, 0, 10.0)
    refused = await manager.verify(**signed())
    assert refused.rate_limit.deciding == ("two", 2, 10, 0, 10.0)
    assert refused.rate_limit.retry_after == 5.0
    assert (refused.metadata, refused.version) == ({"tier": "gold"}, 1)
    with pytest.raises(RateLimitExceededError, match="two") as caught:
        await manager.validate_key(**signed())
    assert (caught.value.reason, caught.value.retry_after) == ("rate_limited", 5.0)


async def test_no_limits_no_decision(manager, signed):
    """A key without limits has none to tell of, whatever the request costs."""
    await manager.create_key("k", SECRET)
    verdict = await manager.verify(**signed(), cost=1_000_000)
    assert verdict.valid
    assert verdict.rate_limit is None


async def test_a_cost_above_the_limit(manager, signed):
    """It can never pass: nobody is told to wait for it, and nothing is taken."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    verdict = await manager.verify(**signed(), cost=3)
    assert verdict.reason is Reason.RATE_LIMITED
    assert verdict.rate_limit.never
    error = verdict.error()
    assert error.retry_after is None
    assert "two" in str(error)
    assert await reasons(manager, signed, 2) == ["valid", "valid"]


@pytest.mark.parametrize("cost", [0, -1, 1_000_001, True, 1.0, "1"])
async def test_costs_that_are_none(manager, signed, cost):
    """A cost is a whole number from 1 to a million; anything else is malformed and takes
    nothing."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    assert await reasons(manager, signed, 1, cost=cost) == ["malformed"]
    assert await reasons(manager, signed, 2) == ["valid", "valid"]


async def test_one_limit_refuses_none_is_charged(manager, signed, clock):
    """What three a second refused is not taken from five an hour."""
    await manager.create_key("k", SECRET, rate_limits=BOTH)
    assert (await reasons(manager, signed, 50)).count("valid") == 3
    clock.advance(1)
    assert (await reasons(manager, signed, 50)).count("valid") == 2


async def test_garbage_takes_nothing(manager, signed):
    """An attacker without the secret cannot use up a victim's limit."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    forged = signed(secret="guess")
    assert {str((await manager.verify(**forged)).reason) for _ in range(20)} == {"bad_signature"}
    assert await reasons(manager, signed, 2) == ["valid", "valid"]


async def test_garbage_takes_no_room(manager_of, signed, clock):
    """An attacker with a thousand ids, known or not, gets no place in the table of limits."""
    limiter = MemoryLimiter(clock=lambda: round(clock() * 1e9))
    default = [RateLimit("default", 10, 60)]
    manager = manager_of(options={"limiter": limiter, "default_limits": default})
    await manager.create_key("k", SECRET, rate_limits=TWO)
    forged = [present(**signed(secret="guess", key=f"id-{i}")) for i in range(1000)]
    await manager.verify_batch([*forged, present(**signed(secret="guess"))])
    assert len(limiter) == 0
    assert await reasons(manager, signed) == ["valid"]
    assert len(limiter) == 1


@pytest.mark.parametrize(
    ("more", "fields", "reason"),
    [
        ({"permissions": "admin"}, {}, "forbidden"),
        ({"ip": "192.0.2.9"}, {"ip_allowlist": ["10.0.0.0/8"]}, "ip_denied"),
        ({}, {"min_scheme": "request"}, "weak_scheme"),
        ({}, {"disabled": True}, "disabled"),
    ],
)
async def test_what_is_refused_for_another_reason_takes_nothing(
    manager, signed, more, fields, reason
):
    """Limits are the last to be asked."""
    await manager.create_key("k", SECRET, rate_limits=TWO, **fields)
    assert await reasons(manager, signed, 5, **more) == [reason] * 5
    await manager.update_key("k", ip_allowlist=[], min_scheme=None, disabled=False)
    assert await reasons(manager, signed, 2) == ["valid", "valid"]


async def test_a_replayed_nonce_takes_nothing(manager, signed):
    """Who listens in and sends again what was accepted uses up nothing."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    heard = signed("n" * 16)
    assert (await manager.verify(**heard)).valid
    for _ in range(20):
        assert (await manager.verify(**heard)).reason is Reason.REPLAYED
    assert (await manager.verify(**signed("m" * 16))).valid


async def test_a_limited_request_has_used_its_nonce(manager, signed, clock):
    """The nonce is claimed before the limit is asked: after waiting, sign anew."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    assert await reasons(manager, signed, 2) == ["valid", "valid"]
    refused = signed("n" * 16)
    assert (await manager.verify(**refused)).reason is Reason.RATE_LIMITED
    clock.advance(10)
    assert (await manager.verify(**refused)).reason is Reason.REPLAYED
    assert (await manager.verify(**signed("m" * 16))).valid


async def test_a_batch_takes_item_by_item(manager, signed):
    """In one batch the first ones pass, and what one key takes is not another's loss."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    await manager.create_key("other", SECRET, rate_limits=TWO)
    items = [*[signed()] * 4, signed(key="other"), {**signed(key="other"), "cost": 2}]
    found = [result["reason"] for result in await manager.batch_validate(items)]
    assert found == ["valid", "valid", "rate_limited", "rate_limited", "valid", "rate_limited"]


async def test_rotation_keeps_what_was_taken(manager, signed):
    """A limit is the key's, not its secret's: rotating is no way around it."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    assert await reasons(manager, signed, 2) == ["valid", "valid"]
    rotated = await manager.rotate_key("k", overlap_seconds=60)
    assert rotated["rate_limits"] == TWO
    fresh = signed(secret=rotated["secret"])
    assert (await manager.verify(**fresh)).reason is Reason.RATE_LIMITED
    assert await reasons(manager, signed) == ["rate_limited"]


async def test_a_changed_limit_holds_at_once(manager, signed):
    """A tighter limit is in force for the next request."""
    await manager.create_key("k", SECRET, rate_limits=BOTH)
    assert await reasons(manager, signed) == ["valid"]
    await manager.update_key("k", rate_limits=[{"limit": 1, "window_seconds": 60}])
    assert await reasons(manager, signed, 2) == ["valid", "rate_limited"]


async def test_default_limits(manager_of, signed):
    """A key without limits of its own gets the deployment's; one that has some gets only those."""
    options = {"default_limits": [RateLimit("default", 1, 60)]}
    manager = manager_of(options=options)
    await manager.create_key("k", SECRET)
    assert await reasons(manager, signed, 2) == ["valid", "rate_limited"]
    assert (await manager.get_key("k"))["rate_limits"] == []
    await manager.create_key("own", SECRET, rate_limits=TWO)
    assert await reasons(manager, lambda: signed(key="own"), 3) == ["valid"] * 2 + ["rate_limited"]


async def test_admin_tokens_have_no_default(manager_of):
    """The deployment's default locks no administrator out."""
    manager = manager_of(options={"default_limits": (RateLimit("default", 1, 60),)})
    token = (await manager.create_key(kind="bearer", realm=ADMIN_REALM))["token"]
    for _ in range(3):
        assert (await manager.verify(token=token, realm=ADMIN_REALM)).valid


async def test_no_repetition_around_a_limit(manager_of, clock):
    """A token that is accepted again unjudged, since it comes on the same connection, is one
    without limits."""
    manager = manager_of()
    for limits, expected in (([], True), (TWO, False)):
        made = await manager.create_key(kind="bearer", realm=ADMIN_REALM, rate_limits=limits)
        presented = present(token=made["token"], realm=ADMIN_REALM)
        verdict = await manager.verify_presented(presented)
        assert verdict.valid
        assert manager.repeat_now(presented, verdict, clock()) is expected


async def test_a_refusal_is_an_event_of_its_own(manager, signed):
    """Who is limited has proved who it is: each refusal is in the log, with the limit's name."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    await reasons(manager, signed, 5)
    refused = [e for e in await logged(manager) if e["action"] == "key_refused"]
    assert [(e["reason"], e["key_id"], e["count"]) for e in refused] == [
        ("rate_limited", "k", 1)
    ] * 3
    assert refused[0]["detail"] == {"limit": "two"}


async def test_a_refusal_is_no_use_of_the_key(manager, signed, clock):
    """`last_used` is when the key last opened something."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    await reasons(manager, signed, 2)
    before = (await manager.get_key("k"))["last_used"]
    clock.advance(1)
    await reasons(manager, signed)
    assert (await manager.get_key("k"))["last_used"] == before


class RemoteLimiter:
    """One that always needs I/O, and may be gone."""

    def __init__(self, within) -> None:
        self.within = within
        self.asked: list[list] = []
        self.gone = False

    def take_now(self, *_) -> None:
        pass

    async def take(self, asked):
        self.asked.append([ask.key for ask in asked])
        if self.gone:
            raise StorageError("no answer")
        return await self.within.take(asked)


@pytest.fixture
def remote(clock) -> RemoteLimiter:
    return RemoteLimiter(MemoryLimiter(clock=lambda: round(clock() * 1e9)))


async def test_a_limiter_that_needs_io(manager_of, signed, remote, clock):
    """It is asked once for a batch; `verify_now` notes nothing before that."""
    manager = manager_of(options={"limiter": remote})
    await manager.create_key("k", SECRET, rate_limits=BOTH)
    await manager.create_key("free", SECRET)
    batch = [present(**signed(key=key)) for key in ("k", "free", "k", "k")]
    # Now both are cached, so that nothing but the limiter needs I/O.
    await manager.verify_batch(batch[:2])
    assert remote.asked == [["k"]]
    depth = manager.recorder.depth
    assert manager.verify_now(batch[0], clock()) is None
    assert manager.recorder.depth == depth
    verdicts = await manager.verify_batch(batch)
    assert [str(v.reason) for v in verdicts] == ["valid", "valid", "valid", "rate_limited"]
    assert remote.asked[1:] == [["k", "k", "k"]]


async def test_a_limiter_that_is_gone(manager_of, signed, remote):
    """What cannot be told is unavailable, and a refusal; keys without limits do not notice."""
    manager = manager_of(options={"limiter": remote})
    await manager.create_key("k", SECRET, rate_limits=TWO)
    await manager.create_key("free", SECRET)
    remote.gone = True
    assert await reasons(manager, signed) == ["unavailable"]
    assert await reasons(manager, lambda: signed(key="free")) == ["valid"]


async def test_unshared_limits_are_refused(manager_of, signed):
    """Where each process would count for itself no key gets a limit; other changes go on."""
    manager = manager_of(options={"limits_shared": False})
    with pytest.raises(ConflictError, match=r"rate_limits: .*WORKERS=1"):
        await manager.create_key("k", SECRET, rate_limits=TWO)
    await manager.create_key("k", SECRET, rate_limits=[])
    with pytest.raises(ConflictError, match="rate_limits"):
        await manager.update_key("k", rate_limits=TWO)
    assert (await manager.update_key("k", rate_limits=None, owner="acme"))["owner"] == "acme"


async def test_an_edited_limit_is_not_believed(manager, backend, signed):
    """Who can write to the data cannot raise a limit, nor take one away."""
    await manager.create_key("k", SECRET, rate_limits=TWO)
    for limits in ((RateLimit("two", 1000, 10),), ()):
        backend.edit("k", rate_limits=limits)
        manager.records.changed(["k"])
        assert await reasons(manager, signed) == ["unavailable"]


@pytest.mark.parametrize(
    "text",
    ["", "[", "null", "7", '["two"]', '[["two",2]]', '[["two",2.0,10]]', '[["two",true,10]]',
     '[["two","2",10]]', '[[["two"],2,10]]', '{"two":1}'],
)  # fmt: skip
async def test_a_column_of_anything(manager, backend, signed, text):
    """Whatever an editor writes there, the key is unavailable and nothing breaks."""
    if not backend.persistent:
        pytest.skip("the memory store has no columns")
    await manager.create_key("k", SECRET, rate_limits=TWO)
    backend.edit("k", rate_limits=text)
    manager.records.changed(["k"])
    assert await reasons(manager, signed) == ["unavailable"]


BAD = [
    ({"limit": 1, "window_seconds": 1}, "rate_limits: a list"),
    ([1], r"rate_limits\[0\]: an object"),
    ([{"limit": 0, "window_seconds": 1}], r"rate_limits\[0\]\.limit: "),
    ([{"limit": True, "window_seconds": 1}], r"rate_limits\[0\]\.limit: "),
    ([{"limit": 1.0, "window_seconds": 1}], r"rate_limits\[0\]\.limit: "),
    ([{"limit": 10**9 + 1, "window_seconds": 1}], r"rate_limits\[0\]\.limit: "),
    ([{"window_seconds": 1}], r"rate_limits\[0\]\.limit: "),
    ([{"limit": 1, "window_seconds": 0}], r"rate_limits\[0\]\.window_seconds: "),
    ([{"limit": 1, "window_seconds": 31_536_001}], r"rate_limits\[0\]\.window_seconds: "),
    ([{"limit": 1, "window_seconds": 1, "name": "Burst"}], r"rate_limits\[0\]\.name: "),
    ([{"limit": 1, "window_seconds": 1, "name": 'a"b'}], r"rate_limits\[0\]\.name: "),
    ([{"limit": 1, "window_seconds": 1, "name": ""}], r"rate_limits\[0\]\.name: "),
    ([{"limit": 1, "window_seconds": 1, "name": "a" * 33}], r"rate_limits\[0\]\.name: "),
    ([{"limit": 1, "window_seconds": 1, "burst": 3}], r"rate_limits\[0\]: burst is not"),
    ([*TWO, *TWO], r"rate_limits\[1\]\.name: another"),
    ([{"limit": i + 1, "window_seconds": 1} for i in range(9)], "at most 8"),
]


@pytest.mark.parametrize(("limits", "message"), BAD)
async def test_limits_that_are_none(manager, limits, message):
    """The error names the item and its field; no key is made and none is changed."""
    with pytest.raises(ValidationError, match=message):
        await manager.create_key("k", SECRET, rate_limits=limits)
    await manager.create_key("k", SECRET, rate_limits=TWO)
    with pytest.raises(ValidationError, match=message):
        await manager.update_key("k", rate_limits=limits)
    assert (await manager.get_key("k"))["rate_limits"] == TWO


async def test_a_limit_without_a_name(manager):
    """It is called what it is, so that two different ones never clash."""
    limits = [{"limit": 10, "window_seconds": 1}, {"limit": 10, "window_seconds": 60}]
    made = await manager.create_key("k", SECRET, rate_limits=limits)
    assert [limit["name"] for limit in made["rate_limits"]] == ["10-per-1s", "10-per-60s"]
    # What is shown can be sent back.
    assert (await manager.update_key("k", rate_limits=made["rate_limits"])) is not None


async def test_the_largest_limits(manager, signed):
    """At every bound the arithmetic holds, and what is told fits JSON."""
    limits = [
        {"name": "a" * 32, "limit": 10**9, "window_seconds": 31_536_000},
        *({"limit": 10**9 - i, "window_seconds": 1 + i} for i in range(7)),
    ]
    await manager.create_key("k", SECRET, rate_limits=limits)
    verdict = await manager.verify(**signed(), cost=1_000_000)
    assert verdict.valid
    assert verdict.rate_limit.states[0].remaining == 10**9 - 10**6
    json.dumps([state._asdict() for state in verdict.rate_limit.states])
