"""Two things at once: what one read must not outlive what the other wrote."""

from __future__ import annotations

import pytest

from api_key_manager.core import ConflictError, Reason, sign
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.core.presented import present
from tests.contract.views import listed


async def test_bulk_revocation_goes_on_past_a_key_that_is_deleted_meanwhile(manager, monkeypatch):
    """One key that is gone must not keep the rest alive."""
    for name in ("k0", "k1", "k2"):
        await manager.create_key(name, owner="acme")
    apply, deleted = manager.store.apply, []

    async def overtaken(changes, *more):
        if len(changes) == 3 and not deleted:
            deleted.append("k1")
            await manager.delete_key("k1")
            raise ConflictError("somebody was faster")
        return await apply(changes, *more)

    monkeypatch.setattr(manager.store, "apply", overtaken)
    done = await manager.revoke_keys(owner="acme")
    assert (done["matched"], done["revoked"]) == (3, 2)
    assert {key["state"] for key in await listed(manager, active_only=False)} == {"revoked"}


async def test_a_batch_looks_again_after_it_wrote_ends(manager, clock, monkeypatch):
    """A key that is revoked while the batch writes the ends of others is refused in it."""
    victim = (await manager.create_key("victim"))["secret"]
    ended = (await manager.create_key("ended", expires_at=clock.now + 10))["secret"]
    good = present("victim", sign(victim, "victim"))
    clock.now += 20
    apply = manager.store.apply

    async def slow(changes, *more):
        done = await apply(changes, *more)
        if changes[0].record.key_id == "ended":
            await manager.revoke_key("victim")
        return done

    monkeypatch.setattr(manager.store, "apply", slow)
    verdicts = await manager.verify_batch([good, present("ended", sign(ended, "ended"))])
    assert [verdict.reason for verdict in verdicts] == [Reason.REVOKED, Reason.EXPIRED]


async def test_a_batch_writes_all_its_ends_at_once(manager, clock, monkeypatch):
    """Many keys that have ended cost one transaction, not one each."""
    batch = []
    for number in range(20):
        key = await manager.create_key(f"k{number}", expires_at=clock.now + 10)
        batch.append(present(key["key_id"], sign(key["secret"], key["key_id"])))
    clock.now += 20
    apply, sizes = manager.store.apply, []

    async def counted(changes, *more):
        sizes.append(len(changes))
        return await apply(changes, *more)

    monkeypatch.setattr(manager.store, "apply", counted)
    verdicts = await manager.verify_batch(batch)
    assert {verdict.reason for verdict in verdicts} == {Reason.EXPIRED}
    assert sizes == [20]


@pytest.mark.parametrize("ahead", [600, 86_400])
async def test_a_clock_that_ran_ahead_revives_no_nonce(backend, clock, ahead):
    """What was forgotten while the clock was ahead is not taken for new when it is back."""

    def claim(nonce: str, at: float) -> Claim:
        return Claim("k", nonce, int(at), int(at) + 420, clock.now)

    nonces = backend.nonces()
    clock.now += 1
    one = claim("n" * 16, clock.now)
    assert await nonces.claim([one], clock.now, 60) == [ClaimResult.TAKEN]
    then = clock.now + ahead
    await nonces.claim([claim("m" * 16, then)], then, 60)
    if hasattr(nonces, "prune"):
        await nonces.prune(then)
    assert await nonces.claim([one], clock.now, 60) == [ClaimResult.REFUSED]
