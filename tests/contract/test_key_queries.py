"""What every key store promises of looking: filters, order and cursors, both ways through time."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_key_manager.core import ApiKey, AuditEvent, KeyVersion
from api_key_manager.core.models import AuditQuery, Change, KeyQuery
from api_key_manager.core.ports import is_embedded

NOW = 1000
STATES = ["active", "disabled", "expired", "revoked"]
serial = itertools.count()


async def put(backend, *records: ApiKey) -> list[ApiKey]:
    return await backend.store.apply([Change(r, None) for r in records], backend.box.record_mac)


def key(key_id: str, **fields) -> ApiKey:
    kind = fields.pop("kind", "signed")
    at = fields.pop("created_at", 5)
    return ApiKey(key_id, kind, at, at, (KeyVersion(1, at, sealed=b"s"),), **fields)


async def walk(store, query) -> tuple[list, int]:
    """Every page to the end, through both faces of the store; the items and how many pages."""
    items, pages = [], 0
    while True:
        page = await store.find(query)
        assert not is_embedded(store) or store.find_now(query) == page
        assert len(page.items) <= query.limit
        items += page.items
        pages += 1
        if page.next_cursor is None:
            return items, pages
        assert len(page.items) == query.limit
        query = replace(query, after=page.next_cursor)


async def test_order_and_pages(backend):
    """Ids in code point order, each once, at any depth, whatever the page size."""
    ids = ["a", "A", "Z", "aa", "a.b", "a:b", "a-b", "a_b", "0", "10", "9", *map(str, range(100))]
    ids = sorted(set(ids))
    shuffled = ids[:]
    random.Random(1).shuffle(shuffled)
    await put(backend, *map(key, shuffled))
    for limit in (1, 7, len(ids) - 1, len(ids), 1000):
        items, pages = await walk(backend.store, KeyQuery(limit=limit, now=NOW))
        assert [record.key_id for record in items] == ids
        assert pages == max(1, -(-len(ids) // limit))


async def test_pages_while_keys_come_and_go(backend):
    """A cursor goes on after its key also when that key is gone, and misses none that stayed."""
    await put(backend, *(key(f"k{i:02d}") for i in range(10)))
    page = await backend.store.find(KeyQuery(limit=5))
    assert page.next_cursor == "k04"
    gone = replace(page.items[4], deleted_at=9)
    await backend.store.apply([Change(gone, gone.revision)], backend.box.record_mac)
    await put(backend, key("k00a"), key("k06a"))
    rest = await backend.store.find(KeyQuery(limit=100, after=page.next_cursor))
    found = [record.key_id for record in rest.items]
    assert found == ["k05", "k06", "k06a", "k07", "k08", "k09"]


async def test_deleted_never_show(backend):
    """A tombstone is in no list, in no state and in no other realm."""
    await put(backend, key("gone", deleted_at=6, revoked=True, revoked_at=5), key("here"))
    for state in (None, *STATES):
        items, _ = await walk(backend.store, KeyQuery(state=state, now=NOW))
        assert "gone" not in {record.key_id for record in items}


ends = st.none() | st.sampled_from([NOW - 1, NOW, NOW + 1])
fields = st.fixed_dictionaries(
    {
        "disabled": st.booleans(), "expires_at": ends, "expired": st.booleans(),
        "revoked_at": ends, "revoked": st.booleans(), "owner": st.sampled_from([None, "o", "p"]),
        "environment": st.sampled_from([None, "e"]), "kind": st.sampled_from(["signed", "bearer"]),
        "prefix": st.sampled_from(["akm", "acme"]), "created_at": st.integers(0, 3),
        "realm": st.sampled_from(["default", "admin"]),
    }
)  # fmt: skip
queries = st.fixed_dictionaries(
    {"realm": st.sampled_from(["default", "admin"])},
    optional={
        "state": st.sampled_from(STATES), "kind": st.sampled_from(["signed", "bearer"]),
        "owner": st.sampled_from(["o", "p", "q"]), "environment": st.just("e"),
        "prefix": st.sampled_from(["akm", "acme"]), "created_before": st.integers(0, 4),
    },
)  # fmt: skip


@given(st.lists(fields, min_size=1, max_size=12), st.lists(queries, max_size=6))
@settings(max_examples=50)
async def test_filters(backend, keys: list[dict], wanted: list[dict]):
    """Every combination of filters finds what a look at each record finds."""
    batch = f"{next(serial):05d}"
    records = await put(backend, *(key(f"{batch}-{i:02d}", **f) for i, f in enumerate(keys)))
    for one in wanted:
        expected = [
            record.key_id
            for record in records
            if record.realm == one["realm"]
            and one.get("state") in (None, record.state(NOW))
            and one.get("created_before", 99) > record.created_at
            and all(
                getattr(record, name) == one[name]
                for name in ("kind", "owner", "environment", "prefix")
                if name in one
            )
        ]
        items, _ = await walk(backend.store, KeyQuery(**one, now=NOW, after=f"{batch}-", limit=5))
        assert [r.key_id for r in items if r.key_id.startswith(batch)] == expected


def event(i: int, **more) -> AuditEvent:
    more = {"key_id": f"k{i % 3}", **more}
    return AuditEvent(100 + i, "even" if i % 2 == 0 else "odd", **more)


async def walk_audit(store, query: AuditQuery) -> list[AuditEvent]:
    items = []
    while True:
        page = await store.find_audit(query)
        assert not is_embedded(store) or store.find_audit_now(query) == page
        items += page.items
        if page.next_cursor is None:
            ids = [event.row_id for event in items]
            assert ids == sorted(set(ids), reverse=not query.ascending)
            return [event._replace(row_id=None) for event in items]
        assert len(page.items) == query.limit
        query = replace(query, after=int(page.next_cursor))


@pytest.mark.parametrize("limit", [1, 7, 30, 1000])
async def test_audit_both_ways(backend, limit: int):
    """Every event once, in the order of writing, newest first or oldest first."""
    events = [event(i) for i in range(30)]
    await backend.store.record(events[:10], {})
    if is_embedded(backend.store):
        backend.store.record_now(events[10:], {})
    else:
        await backend.store.record(events[10:], {})
    query = AuditQuery(limit=limit)
    assert await walk_audit(backend.store, replace(query, ascending=True)) == events
    assert await walk_audit(backend.store, query) == events[::-1]


async def test_audit_filters(backend):
    """By key, by action and by time; `since` is included, `until` is not."""
    events = [event(i) for i in range(20)]
    await backend.store.record(events, {})
    for ascending in (True, False):
        for key_id in (None, "k1", "nobody"):
            for action in (None, "odd"):
                for since, until in ((None, None), (105, None), (None, 110), (105, 110)):
                    query = AuditQuery(key_id, action, since, until, ascending=ascending, limit=3)
                    expected = [
                        e for e in (events if ascending else events[::-1])
                        if key_id in (None, e.key_id) and action in (None, e.action)
                        and (since or 0) <= e.timestamp < (until or 999)
                    ]  # fmt: skip
                    assert await walk_audit(backend.store, query) == expected


async def test_audit_pages_hold_while_events_come(backend):
    """New events change nothing on the pages that follow a cursor."""
    await backend.store.record([event(i) for i in range(10)], {})
    page = await backend.store.find_audit(AuditQuery(limit=4))
    await backend.store.record([event(i) for i in range(10, 20)], {})
    rest = await backend.store.find_audit(AuditQuery(limit=100, after=int(page.next_cursor)))
    assert [e.timestamp for e in page.items + rest.items] == list(range(109, 99, -1))


characters = st.characters(codec="utf-8", exclude_characters="\x00")


def texts(longest: int) -> st.SearchStrategy[str | None]:
    """What a column holds; callers' texts are cut and escaped before they get there."""
    return st.none() | st.text(characters, max_size=longest)


audit_events = st.builds(
    AuditEvent, st.integers(0, 253_402_300_799_999_999), st.text("abc_", min_size=1, max_size=64),
    texts(128), texts(128), texts(256), texts(45), texts(64),
    st.none() | st.sampled_from(['{"a":[1,null,"é"]}', "{}"]), st.integers(1, 2**40), texts(128),
    st.none(), st.none(), st.none(),
)  # fmt: skip


@given(st.lists(audit_events, max_size=5))
@settings(max_examples=40)
async def test_events_come_back_whole(backend, events: list[AuditEvent]):
    """Every field of an event comes back as it was, folded counts included."""
    await backend.store.record(events, {})
    page = await backend.store.find_audit(AuditQuery(limit=max(len(events), 1)))
    newest = [e._replace(row_id=None).to_dict() for e in page.items[: len(events)]]
    assert newest == [e.to_dict() for e in reversed(events)]


async def test_changes_and_their_events(backend):
    """The events of a change stand in the log in its order, among those of validations."""
    await backend.store.record([event(0)], {})
    await backend.store.apply(
        [Change(key("a"), None, [event(1), event(2)]), Change(key("b"), None, [event(3)])],
        backend.box.record_mac,
    )
    await backend.store.record([event(4)], {})
    found = await walk_audit(backend.store, AuditQuery(ascending=True))
    assert [e.timestamp for e in found] == [100, 101, 102, 103, 104]


async def test_count(backend):
    """Each living key of the realm is counted once, in the state that it shows."""
    await put(
        backend,
        key("active"), key("later", expires_at=NOW + 1), key("to-be-revoked", revoked_at=NOW + 1),
        key("disabled", disabled=True), key("over", expires_at=NOW), key("done", expired=True),
        key("revoked", revoked=True), key("ended", revoked_at=NOW, disabled=True, expired=True),
        key("off and over", disabled=True, expired=True),
        key("admin", realm="admin"), key("gone", deleted_at=5),
    )  # fmt: skip
    counted = await backend.store.count("default", NOW)
    assert counted == {"active": 3, "disabled": 2, "expired": 2, "revoked": 2}
    assert await backend.store.count("admin", NOW) == {"active": 1}
    assert await backend.store.count("nobody", NOW) == {}
