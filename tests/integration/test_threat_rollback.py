"""An editor of the database who forges nothing: he puts back what was there before, or hides that
anything changed."""

from __future__ import annotations

import pytest

from api_key_manager.connections.tables import metadata
from api_key_manager.core import ConflictError, KeyExistsError, Reason, StorageError
from api_key_manager.core.models import Change
from api_key_manager.storage import scripts
from tests.integration.attackers import Copy, dump, errors, roll_back
from tests.integration.audit_logs import findings, sealed, verified
from tests.integration.places import Place, signed
from tests.integration.test_follower import BootClock, boot, held, warm

__all__ = ["boot"]

COLD = {"CACHE_TTL_SECONDS": 0}
REVOCATION = "SELECT max(revision) FROM changes WHERE key_id = 'gone'"


@pytest.fixture
def place(either_place: Place) -> Place:
    return either_place


async def test_row_put_back(place, caplog):
    """A revoked key whose row is again what it was before: refused as `unavailable`, by a node that
    has seen the change and by one that starts later. The log says so, and doctor."""
    async with place.open(**COLD) as node:
        manager = node.manager
        key = await manager.create_key("gone")
        copy = Copy(place)
        await manager.revoke_key("gone")
        assert (await manager.verify(**signed(manager, key))).reason is Reason.REVOKED
        copy.back("gone")
        place.sql("DELETE FROM changes WHERE key_id = 'gone'")
        assert (await manager.verify(**signed(manager, key))).reason is Reason.UNAVAILABLE
        assert "key gone was edited or damaged, or rolled back" in caplog.text
    async with place.open(create=False, **COLD) as later:
        verdict = await later.manager.verify(**signed(later.manager, key))
        assert verdict.reason is Reason.UNAVAILABLE
    (found,) = await errors(place)
    assert "rolled back to an older state, the log knows better: gone" in found


async def test_row_put_back_with_its_event_removed(place):
    """With the event of the revocation removed as well, the older row is believed; and the log
    convicts him: an event that it has a leaf of is gone."""
    async with place.open(background=False) as deployment:
        manager = deployment.manager
        key = await manager.create_key("gone")
        copy = Copy(place)
        await manager.revoke_key("gone")
        await sealed(deployment)
        copy.back("gone")
        place.sql("DELETE FROM audit_events WHERE action = 'key_revoked'")
        assert await manager.verify(**signed(manager, key))
    found = await verified(place)
    assert [each.leaf for each in found] == [2]
    done = place.akm("audit", "verify")
    assert done.returncode == 1


async def test_no_change_launders_it(place):
    """Nobody's change makes the rolled-back state the newest one: it can only be deleted. So doctor
    goes on finding it."""
    async with place.open(background=False) as deployment:
        manager = deployment.manager
        made = {name: await manager.create_key(name) for name in ("gone", "other")}
        copy = Copy(place)
        for name in made:
            await manager.revoke_key(name)
        copy.back()
        for change in (
            lambda: manager.update_key("gone", owner="me"),
            lambda: manager.rotate_key("gone"),
            lambda: manager.revoke_key("gone", at=manager.clock() + 1000),
        ):
            with pytest.raises(StorageError, match="it can only be deleted"):
                await change()
        (found,) = await errors(place)
        assert "2 keys were rolled back" in found
        # However the record was read.
        (record,) = await manager.store.driver.read(scripts.every, "", 1)
        with pytest.raises(ConflictError, match="was rolled back"):
            await manager.store.apply([Change(record, record.revision)], manager.box.record_mac)
        assert await manager.delete_key("gone")
        await manager.revoke_keys(created_before=manager.clock() + 1)
        assert await errors(place) == []
        for key in made.values():
            assert not await manager.verify(**signed(manager, key))


async def test_no_revision_at_all(tmp_path):
    """A row whose revision is no number is refused, and can be deleted as any that was edited."""
    place = Place(tmp_path)  # PostgreSQL takes no text there
    async with place.open(background=False) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k")
        place.sql("UPDATE keys SET revision = 'x'")
        assert (await manager.verify(**signed(manager, key))).reason is Reason.UNAVAILABLE
        assert await manager.delete_key("k")
        assert (await manager.verify(**signed(manager, key))).reason is Reason.NOT_FOUND


async def test_sweeper_goes_on(place):
    """One rolled-back record with an end does not keep the ends of others from being written."""
    async with place.open(background=False) as deployment:
        manager = deployment.manager
        end = manager.clock() + 1000
        await manager.create_key("gone", expires_at=end)
        copy = Copy(place)
        await manager.revoke_key("gone")
        await manager.create_key("other", expires_at=end)
        copy.back("gone")
        manager.clock = lambda: end + 1
        await manager.sweep()
        (other,) = place.sql("SELECT expired FROM keys WHERE key_id = 'other'")
        assert other[0]


async def test_removed_row_frees_no_id(place):
    """An id whose row was taken away is still taken, and doctor misses it."""
    async with place.open(background=False) as deployment:
        manager = deployment.manager
        await manager.create_key("taken")
        place.sql("DELETE FROM key_versions WHERE key_id = 'taken'")
        place.sql("DELETE FROM keys WHERE key_id = 'taken'")
        with pytest.raises(KeyExistsError):
            await manager.create_key("taken")
    (found,) = await errors(place)
    assert "1 keys were removed, the log knows better: taken" in found


HIDDEN = {
    "removed": ("DELETE FROM changes WHERE revision = {revision}",),
    "of another key": ("UPDATE changes SET key_id = 'other' WHERE revision = {revision}",),
    "removed, and the revision set back": (
        "DELETE FROM changes WHERE revision = {revision}",
        "UPDATE deployment SET revision = {revision} - 1",
    ),
}


@pytest.mark.parametrize("how", HIDDEN)
async def test_hidden_revocation(place, how, boot: BootClock):
    """A revocation whose row of the change feed is edited before a node has read it. Gone, it is
    missed at once; else a node that has the key in its cache goes on with it, no longer than
    `CACHE_TTL_SECONDS`, and a node that has not refuses it."""
    async with (
        place.open(CACHE_TTL_SECONDS=30, REVOCATION_BOUND_SECONDS=60) as node,
        place.open(background=False) as other,
    ):
        key = await other.manager.create_key("gone")
        await other.manager.create_key("other")
        follower = await held(node, boot)
        await warm(node, key)
        await other.manager.revoke_key("gone")
        ((revision,),) = place.sql(REVOCATION)
        for statement in HIDDEN[how]:
            place.sql(statement.format(revision=revision))
        await follower.catch_up()
        verdict = await node.manager.verify(**signed(node.manager, key))
        assert verdict.reason is (Reason.REVOKED if how == "removed" else Reason.VALID)
        async with place.open(create=False) as fresh:
            assert not await fresh.manager.verify(**signed(fresh.manager, key))
        boot.ahead += 30
        await follower.catch_up()
        assert (await node.manager.verify(**signed(node.manager, key))).reason is Reason.REVOKED


async def test_whole_database_put_back(place, tmp_path, caplog):
    """Every row is what it was before a revocation, the log's too: a node that starts then believes
    it. Only what is kept outside of the database shows it: a checkpoint in the sink."""
    sink = {"AUDIT_SINK": str(tmp_path / "checkpoints")}
    async with place.open(background=False, **sink) as deployment:
        manager = deployment.manager
        key = await manager.create_key("gone")
        await sealed(deployment)
        before = dump(place)
        await manager.revoke_key("gone")
        await sealed(deployment)
        assert deployment.sealer is not None
        assert deployment.sealer.courier is not None
        await deployment.sealer.courier.bring()
    roll_back(place, before)
    assert await verified(place) == []
    assert set(before) == {table.name for table in metadata.sorted_tables}
    async with place.open(create=False, background=False, **sink) as deployment:
        assert await deployment.manager.verify(**signed(deployment.manager, key))
        assert await findings(deployment)
    assert "a checkpoint outside of the database is of log 1 with 3 leaves" in caplog.text


async def test_running_node_notices(place, caplog):
    """A node that runs while the database is put back says so, and forgets all that it knew."""
    async with place.open() as node:
        manager = node.manager
        key = await manager.create_key("k")
        before = dump(place)
        await manager.create_key("later")
        follower = await held(node)
        await warm(node, key)
        roll_back(place, before)
        await follower.catch_up()
        assert "the store's revision went back" in caplog.text
        assert not (await manager.verify(**signed(manager, key))).cached


LOG = ("audit_batches", "audit_nodes", "audit_origins", "audit_events")


async def test_log_wiped(place, tmp_path):
    """The log removed as a whole, and other events put in as if they were from before there was
    one: a checkpoint that was kept elsewhere does not fit the new one."""
    kept = tmp_path / "kept"
    async with place.open(background=False) as deployment:
        for number in range(3):
            await deployment.manager.create_key(f"k{number}")
        await sealed(deployment)
        ((note,),) = place.sql("SELECT note FROM audit_batches ORDER BY first DESC LIMIT 1")
        kept.write_text(note)
    for table in LOG:
        place.sql(f"DELETE FROM {table}")
    place.sql("UPDATE audit_head SET written = 0, legacy_to = 1000000")
    for number in range(1, 6):
        place.sql(
            "INSERT INTO audit_events (id, at, action, count)"
            f" VALUES ({number}, {number}, 'key_created', 1)"
        )
    async with place.open(create=False, background=False) as deployment:
        await sealed(deployment)
    done = place.akm("audit", "verify", "--checkpoint", str(kept))
    assert done.returncode == 1, done.stdout
