"""The transparency log: whatever an editor of the database does to it is found, and where."""

from __future__ import annotations

import asyncio
import random

import pytest

from api_key_manager.core.models import AuditEvent
from api_key_manager.storage.events import record_events
from api_key_manager.wiring import auditing
from tests.integration.audit_logs import (
    blob,
    filled,
    findings,
    sealed,
    truncate,
    verified,
)
from tests.integration.places import Place
from tests.integration.postgres_nodes import Shared, eventually


@pytest.fixture
def place(either_place: Place) -> Place:
    return either_place


async def test_untouched_log_has_no_finding(place):
    """All that is written gets a leaf within one round, in order, and verifies."""
    async with filled(place) as deployment:
        assert await findings(deployment) == []
    ((events,),) = place.sql("SELECT count(*) FROM audit_events")
    assert place.sql("SELECT size FROM audit_origins") == [(events + 1,)]
    assert await verified(place) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", "at + 1"), ("action", "'key_updated'"), ("key_id", "'other'"), ("actor", "NULL"),
        ("reason", "'because'"), ("ip", "'::1'"), ("request_id", "'r'"), ("detail", "'{}'"),
        ("count", "count + 1"), ("environment", "'prod'"), ("revision", "revision + 7"),
        ("number", "number + 5"), ("mac", "NULL"),
    ],
)  # fmt: skip
async def test_edited_event_is_found(place, column, value):
    """A change of any column of any event is named by its index and id."""
    async with filled(place):
        pass
    ids = [row[0] for row in place.sql("SELECT id FROM audit_events WHERE revision IS NOT NULL")]
    for row_id in random.Random(column).sample(ids, 2):
        place.sql(f"UPDATE audit_events SET {column} = {value} WHERE id = {row_id}")
        (found,) = await verified(place)
        assert (found.row_id, found.message) == (row_id, "the event was edited")
        assert found.leaf is not None
        place.sql(f"DELETE FROM audit_events WHERE id = {row_id}")
        (found,) = await verified(place)
        assert (found.row_id, found.message) == (row_id, "the event was deleted")
        break


async def test_deleted_inserted_and_moved_events_are_found(place):
    """So are events that are gone, were put in, or changed places."""
    async with filled(place):
        pass
    draw = random.Random(3)
    ids = [row[0] for row in place.sql("SELECT id FROM audit_events")]
    gone, first, second = draw.sample(ids, 3)
    place.sql(f"DELETE FROM audit_events WHERE id = {gone}")
    assert {(f.row_id, f.message) for f in await verified(place)} == {
        (gone, "the event was deleted")
    }
    place.sql(
        "INSERT INTO audit_events (id, at, action, count)"
        f" VALUES ({gone}, 1, 'key_created', 1), (-5, 1, 'x', 1), (900000, 1, 'x', 1)"
    )
    named = {(f.row_id, f.message) for f in await verified(place)}
    assert named == {
        (gone, "the event was edited"),
        (-5, "the event is not in the log"),
        (900000, "the event was not written by this software"),
    }
    place.sql(f"DELETE FROM audit_events WHERE id IN ({gone}, -5, 900000)")
    for old, new in ((first, -1), (second, first), (-1, second)):
        place.sql(f"UPDATE audit_events SET id = {new} WHERE id = {old}")
    named = {f.row_id for f in await verified(place)}
    assert named == {gone, first, second}


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE audit_batches SET leaves = NULL WHERE first = {first}",
        "UPDATE audit_batches SET count = count + 1 WHERE first = {first}",
        "UPDATE audit_batches SET number = 1000000 WHERE first = {first}",
        "UPDATE audit_batches SET last_id = last_id + 1 WHERE first = {first}",
        "UPDATE audit_batches SET sealed_at = 1 WHERE first = {first}",
        "UPDATE audit_batches SET note = replace(note, 'a', 'b') WHERE first = {first}",
        "UPDATE audit_batches SET mac = hashes WHERE first = {first}",
        "UPDATE audit_batches SET hashes = mac WHERE first = {first}",
        "UPDATE audit_batches SET leaves = mac WHERE first = {first}",
        "DELETE FROM audit_batches WHERE first = {first}",
        "UPDATE audit_batches SET first = first + 1000000 WHERE first = {first}",
        "UPDATE audit_batches SET origin = 7 WHERE first = {first}",
    ],
)
async def test_edited_batch_is_found(place, edit):
    """A change to leaves, their hashes or their checkpoint is located in that batch."""
    async with filled(place):
        pass
    firsts = place.sql("SELECT first, count FROM audit_batches WHERE number IS NOT NULL")
    first, length = random.Random(edit).choice(firsts)
    place.sql(edit.format(first=first))
    found = await verified(place)
    assert found
    assert min(f.leaf for f in found if f.leaf is not None) in range(first, first + length + 1)


async def test_single_edited_leaf_is_located(place):
    """One changed byte among the leaves of a batch is named by its index."""
    if isinstance(place, Shared):
        pytest.skip("the bytes are changed by SQLite's functions")
    async with filled(place):
        pass
    ((first, leaves),) = place.sql("SELECT first, leaves FROM audit_batches WHERE count > 200")[:1]
    lines = leaves.split(b"\n")
    at = random.Random(4).randrange(len(lines))
    lines[at] = lines[at].replace(b'"kind":"event"', b'"kind":"evens"')
    place.sql("UPDATE audit_batches SET leaves = ? WHERE first = ?", b"\n".join(lines), first)
    assert first + at in {f.leaf for f in await verified(place)}


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE audit_nodes SET hash = (SELECT mac FROM audit_origins) WHERE position = {at}",
        "DELETE FROM audit_nodes WHERE position = {at}",
        "UPDATE audit_nodes SET position = 99 WHERE position = {at}",
    ],
)
async def test_edited_node_is_found(place, edit):
    """A change to a kept hash is located at the first leaf under it."""
    async with filled(place):
        pass
    assert place.sql("SELECT position FROM audit_nodes ORDER BY 1")
    place.sql(edit.format(at=0))
    assert {f.leaf for f in await verified(place)} <= {0, 99 * 256}


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE audit_origins SET size = size - 1",
        "UPDATE audit_origins SET number = number + 1",
        "UPDATE audit_origins SET row_id = 0",
        "UPDATE audit_origins SET kept_from = 1000",
        "UPDATE audit_origins SET name = 'x'",
        "UPDATE audit_origins SET peaks = mac",
        "DELETE FROM audit_origins",
    ],
)
async def test_edited_state_is_found_and_gone_on_from(place, edit):
    """A log whose own row was edited is reported, and a new one that cites it is started; what
    happens later is sealed there."""
    async with filled(place):
        pass
    place.sql(edit)
    async with place.open(create=False, background=False) as deployment:
        assert deployment.sealer is not None
        await sealed(deployment)
        await deployment.manager.create_key("later")
        await sealed(deployment)
        assert deployment.sealer.problems()
        found = await findings(deployment)
        assert any("started anew" in f.message for f in found)
        ((origin,),) = place.sql("SELECT max(origin) FROM audit_origins")
        assert origin == 2
        assert await findings(deployment, first_log=3) == []
        page = await deployment.manager.find_audit(limit=1)
        assert page["items"][0]["log"] == 2


async def test_forged_events_are_not_sealed(place):
    """A row that was put in, edited or deleted before it was sealed is never sealed as genuine.
    What comes after it is, and the log says what is missing."""
    async with filled(place) as deployment:
        await deployment.manager.create_key("a")
        await deployment.manager.create_key("b")
        await deployment.manager.create_key("c")
        ((first,),) = place.sql("SELECT max(id) - 2 FROM audit_events")
        place.sql(f"UPDATE audit_events SET actor = 'somebody' WHERE id = {first}")
        place.sql(f"DELETE FROM audit_events WHERE id = {first + 1}")
        place.sql("INSERT INTO audit_events (id, at, action, count) VALUES (5000, 1, 'x', 1)")
        await sealed(deployment)
        assert deployment.sealer is not None
        assert any(str(first) in words for words in deployment.sealer.problems())
        assert any("5000" in words for words in deployment.sealer.problems())
        assert deployment.degraded()
        place.sql("DELETE FROM audit_events WHERE id = 5000")
        page = await deployment.manager.find_audit(limit=1)
        assert page["items"][0]["key_id"] == "c"
        assert page["items"][0]["index"] is not None
        named = await findings(deployment)
        assert len(named) == 2
        assert any("deleted or edited before they were sealed" in f.message for f in named)
        assert any(f.row_id == first for f in named)


async def test_last_event_deleted_before_it_was_sealed(place):
    """Of the newest event, too, the number stays open, and is noted as missing."""
    async with filled(place) as deployment:
        await deployment.manager.create_key("a")
        place.sql("DELETE FROM audit_events WHERE key_id = 'a'")
        (found,) = await findings(deployment)
        assert "are gone, the last ones" in found.message
        await sealed(deployment)
        (found,) = await findings(deployment)
        assert "deleted or edited before" in found.message


async def test_truncation_shows_against_the_sink(place, tmp_path):
    """A log that was cut off together with its checkpoints and its state verifies by itself; the
    sink knows better, and so does a process that goes on from there."""
    sink = {"AUDIT_SINK": str(tmp_path / "checkpoints")}
    async with filled(place, **sink) as deployment:
        assert deployment.sealer is not None
        early = deployment.sealer.state
        await deployment.manager.create_key("later")
        await sealed(deployment)
        assert deployment.sealer.courier is not None
        await deployment.sealer.courier.bring()
        assert await findings(deployment) == []
    assert early is not None
    truncate(place, early)
    assert await verified(place) == []
    (found,) = await verified(place, **sink)
    assert (found.leaf, "the last 1 are lost" in found.message) == (early.size, True)
    async with place.open(create=False, background=False, **sink) as deployment:
        await sealed(deployment)
        assert deployment.sealer is not None
        assert "outside of the database" in deployment.sealer.problems()[0]
        await deployment.manager.create_key("anew")
        await sealed(deployment)
        await deployment.sealer.courier.bring()
        ((note,),) = place.sql("SELECT leaves FROM audit_batches WHERE origin = 2 AND first = 0")
        assert f"\\n{early.size + 1}\\n".encode() in note
        assert await findings(deployment, first_log=2) == []
        assert any("started anew" in f.message for f in await findings(deployment))


async def test_truncation_shows_to_a_process_that_saw_more(place):
    """Without a sink, a process that has sealed more than there is starts a new log, too."""
    async with filled(place) as deployment:
        assert deployment.sealer is not None
        early = deployment.sealer.state
        await deployment.manager.create_key("later")
        await sealed(deployment)
        truncate(place, early)
        await sealed(deployment)
        assert "has lost leaves" in deployment.sealer.problems()[0]
        assert await findings(deployment, first_log=2) == []


async def test_upgraded_database_is_sealed_once(place):
    """Events from before there were MACs are sealed after the upgrade, up to the last one; what is
    put in later among them is none of them."""
    async with place.open(background=False):
        pass
    place.sql("DELETE FROM audit_batches")
    place.sql("DELETE FROM audit_origins")
    for number in (1, 2, 3, 7, 8):
        place.sql(
            f"INSERT INTO audit_events (id, at, action, count) VALUES ({number}, {number}, 'x', 1)"
        )
    place.sql("UPDATE audit_head SET written = 8, legacy_to = 8")
    if isinstance(place, Shared):
        place.sql("SELECT setval(pg_get_serial_sequence('audit_events', 'id'), 8)")
    async with place.open(background=False) as deployment:
        # Millions of them must not hold up the start.
        assert place.sql("SELECT first, count FROM audit_batches") == [(0, 1)]
        await sealed(deployment)
        assert place.sql("SELECT first, count FROM audit_batches ORDER BY 1") == [
            (0, 1), (1, 3), (4, 2),
        ]  # fmt: skip
        await deployment.manager.create_key("k")
        await sealed(deployment)
        assert await findings(deployment) == []
        page = await deployment.manager.find_audit(limit=10)
        assert [item["index"] for item in page["items"]] == [6, 5, 4, 3, 2, 1]
        place.sql("INSERT INTO audit_events (id, at, action, count) VALUES (5, 5, 'x', 1)")
        (found,) = await findings(deployment)
        assert (found.row_id, found.message) == (5, "the event is not in the log")


async def test_running_server_seals_within_a_second(place):
    """What is written while everything runs is sealed by the task, and what is left at the end."""
    async with place.open() as deployment:
        await deployment.manager.create_key("k")

        async def is_sealed() -> bool:
            page = await deployment.manager.find_audit(limit=1)
            return page["items"][0]["index"] == 1

        await eventually(is_sealed, 2)
        await deployment.manager.create_key("last")
    assert place.sql("SELECT size FROM audit_origins") == [(3,)]
    assert await verified(place) == []


async def more(deployment) -> None:
    """Some hundred events more, sealed."""
    log, notary = deployment.backend.log, deployment.backend.notary
    events = [AuditEvent(number, "key_validated", "k1") for number in range(600)]
    await log.driver.write(record_events, events, {}, notary.macs.stamp)
    await sealed(deployment)


async def test_log_that_grows_while_it_is_checked(place, monkeypatch):
    """What is sealed meanwhile is no finding: a server goes on while its log is verified."""
    async with filled(place) as deployment:
        monkeypatch.setattr(auditing, "_BATCHES", 1)
        driver, rounds = deployment.backend.log.driver, 0
        read_aside = driver.read_aside

        async def slow_read(script, *args):
            nonlocal rounds
            found, rounds = await read_aside(script, *args), rounds + 1
            if rounds in (1, 6, 12, 20):
                await more(deployment)
            return found

        monkeypatch.setattr(driver, "read_aside", slow_read)
        assert await findings(deployment) == []
        assert rounds > 20


async def test_hash_put_in_beforehand_does_not_stop_the_log(place):
    """An editor who takes the place of a hash to come is found, and written over."""
    async with filled(place) as deployment:
        ((size,),) = place.sql("SELECT size FROM audit_origins")
        taken = blob(place, b"x" * 32)
        for position in (size >> 8, 1 << 40):
            place.sql(f"INSERT INTO audit_nodes VALUES (1, 8, {position}, {taken})")
        assert [found.leaf for found in await findings(deployment)] == [size >> 8 << 8, 1 << 48]
        await more(deployment)
        assert [found.leaf for found in await findings(deployment)] == [1 << 48]


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("audit_batches", "first count number last_id sealed_at hashes note mac leaves"),
        ("audit_origins", "name size number row_id legacy_to kept_from peaks mac"),
        ("audit_head", "written"),
        ("audit_events", "number revision mac detail count at"),
    ],
)
@pytest.mark.parametrize("value", ["'x'", "x'00ff'", "-7", "1.5", "9e99", "1000000000000"])
async def test_value_of_any_type_is_a_finding(tmp_path, table, columns, value):
    """SQLite keeps what no column of ours holds: it is found, and fails nothing that looks."""
    place = Place(tmp_path)
    async with place.open(background=False) as deployment:
        await deployment.manager.create_key("k")
        await sealed(deployment)
    for column in columns.split():
        where = {"audit_batches": "first = 1", "audit_events": "id = 1"}.get(table, "true")
        ((known,),) = place.sql(f"SELECT quote({column}) FROM {table} WHERE {where}")
        place.sql(f"UPDATE {table} SET {column} = {value} WHERE {where}")
        async with place.open(create=False, background=False) as deployment:
            assert await findings(deployment), column
            await deployment.sealer.look()
            if column == "number":
                await deployment.manager.find_audit(limit=10)
        back = where.replace("first = 1", "first <> 0")
        place.sql(f"UPDATE {table} SET {column} = {known} WHERE {back}")
    assert await verified(place) == []


async def test_batch_before_the_first_is_found(place):
    """A row that no leaf's index leads to is no place to hide anything."""
    async with filled(place):
        pass
    place.sql(
        "INSERT INTO audit_batches SELECT origin, -5, count, number, last_id, sealed_at, hashes,"
        " note, mac, leaves FROM audit_batches WHERE first = 1"
    )
    assert any("another leaf -5" in found.message for found in await verified(place))


async def test_two_who_seal_at_once(either_place):
    """In one process, too: neither takes what the other one adds for a loss."""
    async with either_place.open(background=False) as deployment:
        for _ in range(3):
            await deployment.manager.create_key()
            await asyncio.gather(*(deployment.sealer.seal() for _ in range(8)))
        assert deployment.sealer.problems() == []
        assert deployment.sealer.state.origin == 1
