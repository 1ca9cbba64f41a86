"""What naive versions get wrong with what they are given: odd values, batches, secrets in view.

One regression test each, on every backend; see also ``test_naive_mistakes.py``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import pytest

from api_key_manager.core import APIKeyManagerException, Reason, ValidationError, sign
from tests.contract.views import listed, logged


@pytest.fixture
def manager(either_manager):
    return either_manager


async def test_caller_changes_the_dict_it_gave_or_got(manager):
    """Neither the metadata given, nor the key or event got, is a way into the store."""
    given: dict = {"tier": "free", "tags": ["a"]}
    made = await manager.create_key("k", "the-secret", given, permissions=["p"])
    given["tier"] = given["tags"] = "gold"
    (shown,) = await listed(manager)
    got = await manager.get_key("k")
    verdict = await manager.verify("k", sign("the-secret", "k"))
    for handed_out in (made, shown, got):
        handed_out["metadata"]["tags"].append("b")
        handed_out["permissions"].append("admin")
        handed_out["active"] = False
    verdict.metadata["tags"].append("b")
    verdict.permissions.append("admin")
    (await logged(manager))[0]["detail"]["kind"] = "forged"
    again = await manager.get_key("k")
    assert again["metadata"] == {"tier": "free", "tags": ["a"]}
    assert (again["permissions"], again["active"]) == (["p"], True)
    assert (await logged(manager))[0]["detail"]["kind"] == "signed"


SECRETS = ["super-secret-key", 'quotes " and \\ backslashes', "ünïcödé-secret"]


@pytest.mark.parametrize("secret", SECRETS)
async def test_metadata_holds_the_secret(manager, secret: str):
    """Metadata, which everybody may read, is refused when the secret stands in it."""
    for metadata in ({"note": f"it is {secret}!"}, {"a": [{"b": secret}]}, {secret: 1}):
        with pytest.raises(ValidationError, match="metadata"):
            await manager.create_key("k", secret, metadata)
    assert await listed(manager) == []


async def test_a_log_line_holds_the_secret(manager, clock, caplog, capfd):
    """No log line, audit event, error, listing, `repr` or output holds a secret, a token or a
    signature."""
    caplog.set_level(logging.DEBUG)
    made = await manager.create_key("k")
    bearer = await manager.create_key("app", kind="bearer")
    rotated = await manager.rotate_key("k", 60)
    stamp = clock.seconds
    signatures = [sign(made["secret"], "k", stamp), sign(rotated["secret"], "k"), "ab" * 32]
    shown: list[Any] = []
    for signature in signatures:
        shown.append(await manager.verify("k", signature, stamp))
        shown.append(await manager.verify("k", signature[:-1]))
    shown.append(await manager.verify(token=bearer["token"]))
    shown.append(await manager.verify(token=bearer["token"][:-1] + "_"))
    for call in (
        manager.create_key("k", made["secret"]),
        manager.validate_key("k", signatures[2]),
        manager.create_key("j", made["secret"], {"x": made["secret"]}),
        manager.rotate_key("app", secret=made["secret"]),
    ):
        with pytest.raises(APIKeyManagerException) as caught:
            await call
        shown += [caught.value, caught.value.__dict__]
    shown += [await logged(manager), await listed(manager, False), await manager.get_key("k")]
    shown += [manager.get_stats(), await manager.key_versions("k"), manager, manager.__dict__]
    shown += [await manager.find_keys(), await manager.store.load(["k", "app"])]
    seen = "\n".join(map(repr, shown)) + caplog.text + "".join(capfd.readouterr())
    parts = [made["secret"], rotated["secret"], bearer["token"], *signatures]
    for part in parts:
        assert part not in seen
        assert part[-36:-6] not in seen


async def test_a_batch_dies_of_one_bad_item(manager, clock):
    """A bad item is `malformed`, and its neighbours are judged."""
    secret = (await manager.create_key("k"))["secret"]
    good = {"key_id": "k", "signature": sign(secret, "k")}
    bad: list[Any] = [
        None, 5, "text", [], {}, {"key_id": "k"}, {"signature": "0" * 64}, {"key_id": 5}, {5: 5},
        {**good, "timestamp": "now"}, {**good, "nonce": 5}, {**good, "token": "x"},
        {**good, "permissions": 5}, {**good, "ip": []}, object(),
    ]  # fmt: skip
    results = await manager.batch_validate([item for b in bad for item in (b, good)])
    assert [r["reason"] for r in results] == ["malformed", "valid"] * len(bad)


async def test_a_batch_counts_a_cancelled_item_as_valid(manager_of, backend, clock):
    """A batch that is cancelled gives no results, and none of it was accepted."""

    class StuckStore:
        def __getattr__(self, name: str):
            return getattr(backend.store, name)

        async def load(self, key_ids):
            await asyncio.Event().wait()

    manager = manager_of(store=StuckStore())
    secret = (await manager.create_key("k"))["secret"]
    batch = asyncio.create_task(
        manager.batch_validate([{"key_id": "k", "signature": sign(secret, "k")}] * 3)
    )
    await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert [e["action"] for e in await logged(manager)] == ["key_created"]


async def test_a_batch_ignores_the_timestamp(manager, clock):
    """An item's timestamp counts as in a single validation."""
    secret = (await manager.create_key("k"))["secret"]
    stamp = clock.seconds
    items = [
        {"key_id": "k", "signature": sign(secret, "k", at), "timestamp": shown}
        for at, shown in [
            (stamp, stamp), (stamp, stamp + 1), (stamp, None), (stamp - 21661, stamp - 21661),
            (stamp + 61, stamp + 61),
        ]
    ]  # fmt: skip
    assert [r["reason"] for r in await manager.batch_validate(items)] == [
        "valid", "bad_signature", "bad_signature", "stale_timestamp", "future_timestamp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "stamp",
    [math.nan, math.inf, -math.inf, -1, 10**30, True, False, "1760000000", 1.5, b"1", [], {}],
    ids=str,
)
async def test_odd_timestamps(manager, clock, stamp: Any):
    """NaN, infinite, negative, huge, boolean or textual timestamps are malformed, all of them."""
    secret = (await manager.create_key("k"))["secret"]
    verdict = await manager.verify("k", sign(secret, "k"), stamp)
    assert verdict.reason is Reason.MALFORMED


@pytest.mark.parametrize("secret", ["", "\ud800", "x" * 1025, 5, b"bytes"], ids=ascii)
async def test_empty_and_odd_secrets(manager, secret: Any):
    """A secret that is empty, endless or no text makes no key."""
    with pytest.raises(ValidationError, match="secret"):
        await manager.create_key("k", secret)
    assert await listed(manager) == []


async def test_odd_signatures(manager, clock):
    """Non-ASCII, truncated and padded signatures are malformed; mixed case is the same number."""
    secret = (await manager.create_key("k"))["secret"]
    good = sign(secret, "k")
    odd = [
        "", good[:-1], good[:32], good + "0", good + " ", " " + good, good + "\n", "0x" + good,
        good[:-1] + "é", "é" * 64, "٠" * 64, good[:-1] + "\x00", good.encode(), None, 5,
        good[:-1] + "g", good * 1000,
    ]  # fmt: skip
    for signature in odd:
        assert (await manager.verify("k", signature)).reason is Reason.MALFORMED
    mixed = "".join(c.upper() if i % 2 else c for i, c in enumerate(good))
    for signature in (good.upper(), mixed):
        assert await manager.verify("k", signature)


@pytest.mark.parametrize(
    "key_id",
    ["", "a\nb", "k\n", "a\x00b", "\N{KEY}", "é", "a b", "../k", "a" * 129, "x" * 10_000_000, 5],
    ids=lambda key_id: ascii(key_id)[:20],
)
async def test_odd_ids(manager, key_id: Any):
    """Newlines, NUL, emoji or 10 MB of text are no id, and are never stored or logged."""
    with pytest.raises(ValidationError):
        await manager.create_key(key_id)
    assert (await manager.verify(key_id, "0" * 64)).reason is Reason.MALFORMED
    for call in (manager.get_key(key_id), manager.revoke_key(key_id), manager.rotate_key(key_id)):
        with pytest.raises(ValidationError):
            await call
    assert [e["key_id"] for e in await logged(manager)] == [None]
