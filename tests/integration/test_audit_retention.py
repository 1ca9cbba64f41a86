"""Old events are dropped, what proves the rest stays; and records are compared with the log."""

from __future__ import annotations

import time

import pytest

from api_key_manager.audit.retention import Retention
from api_key_manager.wiring.auditing import log_of
from tests.integration.audit_logs import filled, findings, sealed, verified
from tests.integration.places import Place


@pytest.fixture
def place(either_place: Place) -> Place:
    return either_place


def retention(deployment, days_ahead: float) -> Retention:
    backend = deployment.backend
    later = time.time() + days_ahead * 86_400
    return Retention(backend.log, backend.notary, lambda: later, 30)


async def test_old_events_are_dropped(place):
    """Rows and bytes of old events go, hashes stay: the log verifies, old checkpoints still hold,
    and what is left is proved as before."""
    async with filled(place) as deployment:
        log = log_of(deployment.backend)
        _, before = await log.newest()
        assert await retention(deployment, 29).drop() == 0
        assert await retention(deployment, 31).drop() > 300
        left = place.sql("SELECT action FROM audit_events")
        assert set(left) == {("log_pruned",)}
        await deployment.manager.create_key("later")
        await sealed(deployment)
        assert await findings(deployment) == []
        size = int(before.split("\n")[1])
        assert (await log.prove_growth(size))["old_checkpoint"] == before
        old = (await log.prove(5)).document
        assert old["leaf"] is None
        assert old["leaf_hash"]
        assert (await log.prove(0)).document["leaf"] is not None
        page = await deployment.manager.find_audit(limit=1)
        assert (await log.prove(page["items"][0]["index"])).document["leaf"] is not None
    assert await verified(place) == []


async def test_many_small_batches_go_at_once(place):
    """What is dropped is said in few events, also where each leaf has a batch of its own."""
    async with place.open(background=False) as deployment:
        for number in range(40):
            await deployment.manager.create_key(f"k{number}")
            await sealed(deployment)
        assert await retention(deployment, 31).drop() == 41
        assert place.sql("SELECT count(*) FROM audit_events") == [(1,)]
    assert await verified(place) == []


async def test_retention_cannot_be_feigned(place):
    """Who deletes more than retention did is found, also with the watermark moved."""
    async with filled(place):
        pass
    ((first,),) = place.sql("SELECT max(first) FROM audit_batches")
    place.sql("DELETE FROM audit_events WHERE id <= (SELECT max(last_id) FROM audit_batches)")
    place.sql("UPDATE audit_batches SET leaves = NULL WHERE number IS NOT NULL")
    found = await verified(place)
    assert any("retention did not drop them" in f.message for f in found)
    place.sql(f"UPDATE audit_origins SET kept_from = {first} + 100000")
    found = await verified(place)
    assert any("retention did not drop them" in f.message for f in found)
    assert any("was edited" in f.message for f in found)


async def test_dropped_event_that_is_put_back_is_found(place):
    """What retention dropped is not there again."""
    async with filled(place) as deployment:
        assert await retention(deployment, 31).drop()
    place.sql("INSERT INTO audit_events (id, at, action, count) VALUES (3, 1, 'key_created', 1)")
    (found,) = await verified(place)
    assert (found.row_id, "retention dropped" in found.message) == (3, True)


async def test_doctor_finds_rolled_back_and_removed_records(place):
    """A key whose row was put back to an earlier one, MAC and all, or removed, is named."""
    async with place.open(background=False) as deployment:
        for key_id in ("rolled", "removed", "fine"):
            await deployment.manager.create_key(key_id)
        place.sql("CREATE TABLE stolen AS SELECT * FROM keys")
        await deployment.manager.revoke_key("rolled")
    done = place.akm("doctor")
    assert "none is older than the log has it" in done.stdout, done.stdout
    assert done.returncode == 0
    place.sql("DELETE FROM key_versions WHERE key_id = 'removed'")
    place.sql("DELETE FROM keys WHERE key_id = 'removed'")
    place.sql(
        "UPDATE keys SET revoked = (SELECT revoked FROM stolen WHERE key_id = 'rolled'),"
        " revoked_at = NULL, updated_at = (SELECT updated_at FROM stolen WHERE key_id = 'rolled'),"
        " revision = (SELECT revision FROM stolen WHERE key_id = 'rolled'),"
        " mac = (SELECT mac FROM stolen WHERE key_id = 'rolled') WHERE key_id = 'rolled'"
    )
    done = place.akm("doctor")
    assert done.returncode == 1
    assert "1 keys were rolled back to an older state, the log knows better: rolled" in done.stdout
    assert "1 keys were removed, the log knows better: removed" in done.stdout


async def test_doctor_looks_at_the_log(place):
    """An edited state of the log is an error, and looking at it changes nothing."""
    async with filled(place):
        pass
    place.sql("UPDATE audit_origins SET size = size - 1")
    done = place.akm("doctor")
    assert done.returncode == 1
    assert "the log's state was edited" in done.stdout
    assert place.sql("SELECT count(*) FROM audit_origins") == [(1,)]
