"""What every key store promises of changes: whole or not at all, in order, and given back whole."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_key_manager.core import (
    ApiKey,
    AuditEvent,
    ConflictError,
    KeyExistsError,
    KeyVersion,
    StorageError,
)
from api_key_manager.core.models import (
    MIN_SCHEMES,
    AuditQuery,
    Change,
    KeyQuery,
    Use,
    canonical_json,
)
from api_key_manager.core.ports import Receipt, is_embedded
from api_key_manager.storage import scripts

LAST = 253_402_300_799_999_999
serial = itertools.count()

instants = st.integers(0, LAST) | st.sampled_from([0, 1, LAST])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
versions = st.builds(
    KeyVersion, version=st.just(0), created_at=instants, ends_at=st.none() | instants,
    sealed=st.none() | st.binary(min_size=1), digest=st.none() | st.binary(min_size=1),
    pepper=st.none() | st.integers(0, 9),
)  # fmt: skip
records = st.builds(
    ApiKey, key_id=st.just(""), kind=st.sampled_from(["signed", "bearer"]), created_at=instants,
    updated_at=instants,
    versions=st.lists(versions, min_size=1, max_size=4).map(
        lambda some: tuple(replace(v, version=len(some) - i) for i, v in enumerate(some))
    ),
    realm=st.sampled_from(["default", "admin"]), prefix=st.sampled_from(["akm", "acme_live"]),
    owner=st.none() | texts, environment=st.none() | texts,
    metadata_json=st.dictionaries(texts, texts | st.integers() | st.none()).map(canonical_json),
    permissions=st.lists(st.sampled_from(["a", "b.*", "c:d"]), unique=True).map(tuple),
    ip_allowlist=st.lists(st.sampled_from(["10.0.0.0/8", "::/0"]), unique=True).map(tuple),
    min_scheme=st.sampled_from(MIN_SCHEMES),
    disabled=st.booleans(), expires_at=st.none() | instants, expired=st.booleans(),
    revoked_at=st.none() | instants, revoked=st.booleans(), revoke_reason=st.none() | texts,
)  # fmt: skip


def new_id() -> str:
    return f"key-{next(serial):06d}"


def simple(key_id: str, **fields) -> ApiKey:
    return ApiKey(key_id, "signed", 5, 5, (KeyVersion(1, 5, sealed=b"sealed"),), **fields)


def created(key_id: str, *events: AuditEvent, **fields) -> Change:
    return Change(simple(key_id, **fields), None, events)


async def log(store) -> list[str]:
    page = await store.find_audit(AuditQuery(ascending=True, limit=1000))
    return [event.action for event in page.items]


@given(records)
@settings(max_examples=60)
async def test_get_what_was_put(backend, record: ApiKey):
    """Every column comes back as it was, and the MAC covers what comes back."""
    record = replace(record, key_id=new_id())
    (applied,) = await backend.store.apply([Change(record, None)], backend.box.record_mac)
    (loaded,) = await backend.store.load([record.key_id])
    assert loaded == applied
    assert replace(loaded, revision=0, mac=b"") == record
    assert loaded.mac == backend.box.record_mac(loaded)
    page = await backend.store.find(KeyQuery(realm=record.realm, limit=1000))
    if len(page.items) < 1000:
        assert loaded in page.items


async def test_load(backend):
    """Records in the order asked for; `None` for an unknown or deleted id, doubles allowed."""
    a, b, c = new_id(), new_id(), new_id()
    await backend.store.apply([created(a), created(b)], backend.box.record_mac)
    await backend.store.apply([created(c, deleted_at=6)], backend.box.record_mac)
    found = await backend.store.load([b, c, "unknown", a, b])
    assert [r and r.key_id for r in found] == [b, None, None, a, b]
    assert await backend.store.load([]) == []


async def test_unknown_ids(backend):
    """No record stands in for an id that nobody has: before, between and behind all others."""
    known = [f"mid-{new_id()}-{i}" for i in (1, 3)]
    await backend.store.apply([created(key_id) for key_id in known], backend.box.record_mac)
    for key_id in ("!", "0", known[0][:-1] + "2", "~", "zzz", "", "x" * 128):
        assert await backend.store.load([key_id]) == [None]
    gone = replace((await backend.store.load(known[1:]))[0], versions=(), deleted_at=9)
    await backend.store.apply([Change(gone, gone.revision)], backend.box.record_mac)
    assert await backend.store.load(known[1:]) == [None]


async def test_an_unknown_id_costs_a_record(backend, monkeypatch):
    """As many rows are read and decoded for an id that nobody has as for a known one, so that the
    time of a refusal does not tell them apart."""
    if not backend.persistent:
        pytest.skip("the memory store has no rows")
    key_id = new_id()
    await backend.store.apply([created(key_id)], backend.box.record_mac)
    decoded, real = [], scripts.key_from
    monkeypatch.setattr(scripts, "key_from", lambda *row: decoded.append(row) or real(*row))
    for asked in (key_id, "nobody-has-this", "zzz"):
        decoded.clear()
        await backend.store.load([asked])
        assert len(decoded) == 1


async def test_revisions(backend):
    """Each change has a revision of its own, strictly increasing in the order of the changes."""
    ids = [new_id() for _ in range(5)]
    first = await backend.store.apply([created(i) for i in ids], backend.box.record_mac)
    again = []
    for record in first:
        change = Change(replace(record, disabled=True), record.revision)
        again += await backend.store.apply([change], backend.box.record_mac)
    revisions = [record.revision for record in first + again]
    assert revisions == sorted(set(revisions))
    assert [r.key_id for r in first] == ids
    assert {r.mac == backend.box.record_mac(r) for r in first + again} == {True}


@pytest.mark.parametrize("count", [1, 3, 300])
async def test_many_changes_at_once(backend, count: int):
    """New keys and changes of old ones go together: revisions without a gap in their order, each
    with its own values, versions and events."""
    store, seal = backend.store, backend.box.record_mac
    old, new = [new_id() for _ in range(count)], [new_id() for _ in range(count)]
    made = await store.apply([created(key_id) for key_id in old], seal)
    wanted, events = [], []
    for i, record in enumerate(made):
        rotated = (
            KeyVersion(2, 6, sealed=b"%d" % i),
            replace(record.versions[0], ended=True, sealed=None),
        )
        events += [AuditEvent(6, f"old-{new[0]}-{i}"), AuditEvent(6, f"new-{new[0]}-{i}")]
        changed = replace(record, owner=f"o{i}", updated_at=6, versions=rotated)
        wanted += [
            Change(changed, record.revision, [events[-2]]),
            created(new[i], events[-1], owner=f"n{i}"),
        ]
    done = await store.apply(wanted, seal)
    first = done[0].revision
    assert [r.revision for r in done] == list(range(first, first + 2 * count))
    assert [r.key_id for r in done] == [c.record.key_id for c in wanted]
    assert await store.load([r.key_id for r in done]) == done
    assert [r.owner for r in done[::2]] == [f"o{i}" for i in range(count)]
    assert [r.versions for r in done[::2]] == [
        (KeyVersion(2, 6, sealed=b"%d" % i),) for i in range(count)
    ]
    assert [v.version for v in await store.versions(old[-1])] == [2, 1]
    newest = await store.find_audit(AuditQuery(limit=2 * count))
    assert [event._replace(row_id=None) for event in newest.items] == events[::-1]


async def test_one_key_twice_at_once(backend):
    """The second change builds on the first, or is refused like any other that does not."""
    store, seal = backend.store, backend.box.record_mac
    key_id = new_id()
    with pytest.raises(KeyExistsError):
        await store.apply([created(key_id), created(key_id)], seal)
    with pytest.raises(ConflictError):
        await store.apply([created(key_id), Change(simple(key_id), 0)], seal)
    (before,) = await store.apply([created(new_id())], seal)
    again = Change(simple(key_id, owner="last"), before.revision + 1)
    done = await store.apply([created(key_id), again], seal)
    assert await store.load([key_id]) == done[1:]
    assert [v.version for v in await store.versions(key_id)] == [1]


async def test_reading_and_recording_bump_nothing(backend):
    """Only changes take a revision."""
    key_id = new_id()
    (before,) = await backend.store.apply([created(key_id)], backend.box.record_mac)
    await backend.store.record([AuditEvent(1, "seen")], {key_id: Use(7)})
    (loaded,) = await backend.store.load([key_id])
    assert (loaded.revision, loaded.mac) == (before.revision, before.mac)
    (after,) = await backend.store.apply([created(new_id())], backend.box.record_mac)
    assert after.revision == before.revision + 1


@pytest.mark.parametrize("deleted_at", [None, 6])
async def test_an_id_is_taken_for_ever(backend, deleted_at: int | None):
    """A taken id is refused, also when its key was deleted, and the old record stays."""
    key_id = new_id()
    first = created(key_id, AuditEvent(1, "first"), deleted_at=deleted_at)
    await backend.store.apply([first], backend.box.record_mac)
    before = await backend.store.load([key_id])
    with pytest.raises(KeyExistsError):
        await backend.store.apply(
            [created(key_id, AuditEvent(2, "second"), owner="thief")], backend.box.record_mac
        )
    assert await backend.store.load([key_id]) == before
    assert await log(backend.store) == ["first"]


@pytest.mark.parametrize("step", [-1, 1])
async def test_stale_revision(backend, step: int):
    """A change based on another revision than the stored one is refused."""
    key_id = new_id()
    (record,) = await backend.store.apply([created(key_id)], backend.box.record_mac)
    with pytest.raises(ConflictError):
        await backend.store.apply(
            [Change(replace(record, disabled=True), record.revision + step)],
            backend.box.record_mac,
        )
    with pytest.raises(ConflictError):
        await backend.store.apply(
            [Change(simple(new_id()), record.revision)], backend.box.record_mac
        )
    assert await backend.store.load([key_id]) == [record]


BAD = ["taken", "stale", "same new id twice", "same record twice", "no receipt", "seal fails"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["first", "last"])
async def test_all_or_none(backend, bad: str, where: str):
    """When one change of many cannot be made, none is: no record, no revision, no event."""
    store, seal = backend.store, backend.box.record_mac
    old_id, fresh = new_id(), [new_id() for _ in range(3)]
    (old,) = await store.apply([created(old_id)], seal)
    disable = Change(replace(old, disabled=True), old.revision, [AuditEvent(3, "no")])
    good = [disable, *(created(i, AuditEvent(3, "no")) for i in fresh)]
    wrong = {
        "taken": [created(old_id)],
        "stale": [Change(replace(old, owner="x"), old.revision - 1)],
        "same new id twice": [created(fresh[0])],
        "same record twice": [replace(disable, record=replace(old, owner="x"))],
        "no receipt": [],
        "seal fails": [],
    }[bad]

    def failing_seal(record: ApiKey) -> bytes:
        if record.key_id == (old_id if where == "first" else fresh[-1]):
            raise ValueError("cannot seal")
        return seal(record)

    changes = wrong + good if where == "first" else good + wrong
    receipt = (
        Receipt("scope", "not-begun", b"print", b"answer", 10**15) if bad == "no receipt" else None
    )
    with pytest.raises((KeyExistsError, ConflictError, ValueError, StorageError)):
        await store.apply(changes, failing_seal if bad == "seal fails" else seal, receipt)
    assert await store.load([old_id, *fresh]) == [old, None, None, None]
    assert await store.versions(fresh[0]) == []
    assert await log(store) == []
    (after,) = await store.apply([created(new_id())], seal)
    assert after.revision == old.revision + 1


async def test_two_writers_of_one_record(backend):
    """Of many changes based on the same revision exactly one is made."""
    key_id = new_id()
    (record,) = await backend.store.apply([created(key_id)], backend.box.record_mac)
    results = await asyncio.gather(
        *(
            backend.store.apply(
                [Change(replace(record, owner=f"o{i}"), record.revision)], backend.box.record_mac
            )
            for i in range(20)
        ),
        return_exceptions=True,
    )
    won = [r for r in results if not isinstance(r, BaseException)]
    assert len(won) == 1
    assert {type(r) for r in results if isinstance(r, BaseException)} == {ConflictError}
    assert await backend.store.load([key_id]) == won[0]


async def test_two_creators_of_one_id(backend):
    """Of many creations of one id exactly one is made."""
    key_id = new_id()
    results = await asyncio.gather(
        *(
            backend.store.apply([created(key_id, owner=f"o{i}")], backend.box.record_mac)
            for i in range(20)
        ),
        return_exceptions=True,
    )
    won = [r for r in results if not isinstance(r, BaseException)]
    assert len(won) == 1
    assert {type(r) for r in results if isinstance(r, BaseException)} == {KeyExistsError}
    assert await backend.store.load([key_id]) == won[0]


async def test_versions(backend):
    """Ended versions leave the record and stay in the history, without secrets, newest first."""
    store, seal, key_id = backend.store, backend.box.record_mac, new_id()
    (record,) = await store.apply([created(key_id)], seal)
    old = replace(record.versions[0], ends_at=9)
    new = KeyVersion(2, 8, sealed=b"new", pepper=None)
    (record,) = await store.apply(
        [Change(replace(record, versions=(new, old)), record.revision)], seal
    )
    assert record.versions == (new, old)
    assert (await store.load([key_id]))[0].versions == (new, old)
    ended = replace(old, ended=True, sealed=None)
    (record,) = await store.apply(
        [Change(replace(record, versions=(new, ended)), record.revision)], seal
    )
    assert record.versions == (new,)
    assert await store.load([key_id]) == [record]
    history = await store.versions(key_id)
    assert [(v.version, v.ends_at, v.ended) for v in history] == [(2, None, False), (1, 9, True)]
    assert {(v.sealed, v.digest) for v in history} == {(None, None)}
    assert await store.versions("unknown") == []


async def test_ending(backend):
    """Keys with an end that has come and is not written down; others, and tombstones, are not."""
    store, seal = backend.store, backend.box.record_mac
    ending = {
        new_id(): {"expires_at": 100}, new_id(): {"revoked_at": 100},
        new_id(): {"versions": (KeyVersion(2, 5), KeyVersion(1, 5, ends_at=100))},
        new_id(): {"expires_at": 500, "revoked_at": 99}, new_id(): {"expires_at": 0},
    }  # fmt: skip
    others = {
        new_id(): {}, new_id(): {"expires_at": 101}, new_id(): {"expires_at": 1, "expired": True},
        new_id(): {"revoked_at": 1, "revoked": True}, new_id(): {"expires_at": 1, "deleted_at": 2},
    }  # fmt: skip
    for key_id, fields in {**ending, **others}.items():
        await store.apply([Change(replace(simple(key_id), **fields), None)], seal)
    due = await store.ending(100, 100)
    assert {record.key_id for record in due} == ending.keys()
    assert due == await store.load([record.key_id for record in due])
    assert len(await store.ending(100, 2)) == 2
    for record in due:
        settled = replace(
            record, expired=True, revoked=True, versions=record.versions[:1],
        )  # fmt: skip
        await store.apply([Change(settled, record.revision)], seal)
    assert await store.ending(100, 100) == []


async def test_last_uses(backend):
    """Uses come back with the record; a signed use leaves the last static one standing."""
    store, key_id = backend.store, new_id()
    (record,) = await store.apply([created(key_id)], backend.box.record_mac)
    await store.record([], {key_id: Use(10, 10), "unknown": Use(11, None)})
    await store.record([], {key_id: Use(20, None)})
    (loaded,) = await store.load([key_id])
    assert (loaded.last_used_at, loaded.static_used_at) == (20, 10)
    assert replace(loaded, last_used_at=None, static_used_at=None) == record
    await store.apply([Change(replace(loaded, owner="o"), loaded.revision)], backend.box.record_mac)
    (changed,) = await store.load([key_id])
    assert (changed.last_used_at, changed.static_used_at, changed.owner) == (20, 10, "o")
    page = await store.find(KeyQuery(limit=1000))
    assert next(r for r in page.items if r.key_id == key_id).last_used_at == 20
    if is_embedded(store):
        store.record_now([], {key_id: Use(30, 30)})
    else:
        await store.record([], {key_id: Use(30, 30)})
    # Of several processes none takes back what another has seen.
    await store.record([], {key_id: Use(25, None)})
    (loaded,) = await store.load([key_id])
    assert (loaded.last_used_at, loaded.static_used_at) == (30, 30)
