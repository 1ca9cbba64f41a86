"""Digests that wait to be moved to a newer pepper: what is noted, and what is written of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from api_key_manager.core.exceptions import ConflictError
from api_key_manager.core.models import ApiKey, Change
from api_key_manager.core.moving import Moves
from api_key_manager.core.records import seal_record
from api_key_manager.encryption import PEPPER, EnvelopeBox, Keyring, new_key

TOKEN = b"akm_k_secret"


@pytest.fixture
def ring() -> Keyring:
    return Keyring.fresh()


@pytest.fixture
def box(ring: Keyring) -> EnvelopeBox:
    return EnvelopeBox(ring)


def bearer(box: EnvelopeBox, key_id: str = "k", **fields: object) -> ApiKey:
    version = seal_record(box, key_id, 1, TOKEN.decode(), "bearer", 1)
    return sealed(box, ApiKey(key_id, "bearer", 1, 1, (version,), revision=7, **fields))  # type: ignore[arg-type]  # of the record


def sealed(box: EnvelopeBox, record: ApiKey) -> ApiKey:
    return replace(record, mac=box.record_mac(record))


def newer(ring: Keyring, box: EnvelopeBox) -> None:
    ring.add(PEPPER, 2, new_key())
    box.refresh()


class Store:
    def __init__(self, *records: ApiKey) -> None:
        self.records = {record.key_id: record for record in records}
        self.calls: list[list[str]] = []
        self.busy: set[str] = set()

    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        return [self.records.get(key_id) for key_id in key_ids]

    async def write(self, changes: Sequence[Change]) -> list[ApiKey]:
        ids = [change.record.key_id for change in changes]
        self.calls.append(ids)
        if self.busy & set(ids):
            raise ConflictError
        for change in changes:
            assert change.expected_revision == 7
            self.records[change.record.key_id] = change.record
        return []


async def test_only_what_is_old_is_noted(ring, box):
    """A digest under the newest pepper is not noted, one under an older is, once, and by number."""
    record, moves = bearer(box), Moves(box)
    moves.note(record, 1, TOKEN)
    assert moves.depth == 0
    newer(ring, box)
    moves.note(record, 2, TOKEN)
    assert moves.depth == 0
    moves.note(record, 1, TOKEN)
    moves.note(record, 1, TOKEN)
    assert moves.depth == 1
    assert TOKEN.decode() not in repr(vars(moves))
    store = Store(record)
    await moves.write(store.load, store.write, 5)
    moved = store.records["k"].versions[0]
    assert (moved.pepper, moved.digest) == box.digest(TOKEN)
    assert moves.depth == 0


async def test_what_was_noted_is_bounded(ring, box):
    """However many tokens are seen while nothing can be written, ten thousand wait."""
    moves, record = Moves(box), bearer(box)
    newer(ring, box)
    for number in range(10_500):
        moves.note(replace(record, key_id=f"k{number}"), 1, TOKEN)
    assert moves.depth == 10_000


async def test_what_must_not_be_moved(ring, box):
    """Revoked, edited, deleted and rotated keys are left as they are."""
    moves = Moves(box)
    records = [bearer(box, name) for name in ("revoked", "edited", "deleted", "rotated")]
    newer(ring, box)
    for record in records:
        moves.note(record, 1, TOKEN)
    revoked, edited, _, rotated = records
    now = (
        sealed(box, replace(revoked, revoked=True)),
        replace(edited, owner="somebody"),
        sealed(box, replace(rotated, versions=(replace(rotated.versions[0], version=2),))),
    )
    store = Store(*now)
    await moves.write(store.load, store.write, 5)
    assert store.calls == []
    assert set(store.records.values()) == set(now)


async def test_one_conflict_spoils_only_its_own(ring, box):
    """Of a batch the others are written one by one; the busy one waits for its next use."""
    moves = Moves(box)
    records = [bearer(box, f"k{number}") for number in range(5)]
    newer(ring, box)
    for record in records:
        moves.note(record, 1, TOKEN)
    store = Store(*records)
    store.busy = {"k3"}
    await moves.write(store.load, store.write, 5)
    assert {r.key_id: r.versions[0].pepper for r in store.records.values()} == {
        "k0": 2, "k1": 2, "k2": 2, "k3": 1, "k4": 2,
    }  # fmt: skip
    assert moves.depth == 0
