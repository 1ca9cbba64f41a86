"""Records, verdicts and events: what they cover, what they show, and when they end."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import ApiKey, AuditEvent, KeyVersion, Reason, Verdict
from api_key_manager.core.models import canonical_json, rfc3339
from api_key_manager.core.quotas import Quota

VERSION = KeyVersion(2, 10, ends_at=20, sealed=b"sealed-bytes", pepper=3)
RECORD = ApiKey(
    "client", "signed", 100, 200, (VERSION, KeyVersion(1, 5, digest=b"digest-bytes", pepper=1)),
    realm="default", prefix="akm", owner="o", environment="e", metadata_json='{"a":[1]}',
    permissions=("p",), ip_allowlist=("10.0.0.0/8",), min_scheme="static", disabled=False,
    expires_at=900, expired=False, revoked_at=800, revoked=False, revoke_reason="r",
    deleted_at=None, revision=7, mac=b"mac-bytes", quota=Quota(9, "daily"),
    last_used_at=300, static_used_at=400,
)  # fmt: skip
UNCOVERED = {"mac", "last_used_at", "static_used_at"}


def another(value: object) -> object:
    """Some other value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case bytes():
            return value + b"!"
        case str():
            return value + "!"
        case Quota():
            return value._replace(limit=value.limit + 1)
        case tuple():
            return (*value, "x")
        case None:
            return 1
    raise AssertionError(value)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ApiKey)])
def test_mac_covers_the_record(name: str):
    """Every column but the MAC itself and the last uses is covered; a new one must be as well."""
    value = getattr(RECORD, name)
    changed = VERSION if name == "versions" else another(value)
    edited = dataclasses.replace(RECORD, **{name: (changed,) if name == "versions" else changed})
    assert (edited.mac_input() == RECORD.mac_input()) is (name in UNCOVERED)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(KeyVersion)])
def test_mac_covers_each_version(name: str):
    """Every column of a live version is covered; an ended one is no longer part of the record."""
    value = getattr(VERSION, name)
    changed = b"x" if name == "digest" else another(value)
    version = dataclasses.replace(VERSION, **{name: changed})
    edited = dataclasses.replace(RECORD, versions=(version, *RECORD.versions[1:]))
    assert (edited.mac_input() == RECORD.mac_input()) is (name in ("ended", "mark"))


@pytest.mark.parametrize("name", Quota._fields)
def test_mac_covers_the_quota(name: str):
    """Each part of a quota is covered, and whether there is one."""
    quota = RECORD.quota
    assert quota is not None
    changed = quota._replace(**{name: another(getattr(quota, name))})
    for edited in (dataclasses.replace(RECORD, quota=q) for q in (changed, None)):
        assert edited.mac_input() != RECORD.mac_input()


def test_mac_of_a_record_without_what_came_later():
    """The covered bytes of a key without a quota are those of the first version, so that records
    that were written by it still fit."""
    plain = ApiKey("k", "signed", 1, 2, (), revision=3)
    assert plain.mac_input() == (
        b'["akm-record-1","k","default","signed","akm",null,null,"{}",[],[],[],"static",false,null,'
        b"false,null,false,null,1,2,null,3,[]]"
    )


def test_mac_tells_neighbours_apart():
    """What moves from one column to its neighbour changes the covered bytes."""
    a = dataclasses.replace(RECORD, owner="x", environment=None)
    b = dataclasses.replace(RECORD, owner=None, environment="x")
    assert a.mac_input() != b.mac_input()
    swapped = dataclasses.replace(RECORD, versions=RECORD.versions[::-1])
    assert swapped.mac_input() != RECORD.mac_input()


@given(st.integers(0, 253_402_300_799_999_999))
def test_rfc3339(instant: int):
    """Every microsecond from 1970 to 9999 is written with its offset and reads back exactly."""
    read = datetime.fromisoformat(rfc3339(instant))
    assert read.utcoffset() == timedelta(0)
    assert (read - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) == instant


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "active"),
        ({"expires_at": 1000}, "expired"),
        ({"expires_at": 1001}, "active"),
        ({"expires_at": 5000, "expired": True}, "expired"),
        ({"disabled": True, "expires_at": 1}, "disabled"),
        ({"revoked_at": 1000, "disabled": True}, "revoked"),
        ({"revoked_at": 1001}, "active"),
        ({"revoked_at": 5000, "revoked": True}, "revoked"),
        ({"deleted_at": 5, "revoked": True}, "deleted"),
    ],
)
def test_state(fields: dict, state: str):
    """The state at an instant; deleted, then revoked, then disabled, then expired."""
    record = ApiKey("k", "signed", 0, 0, (), **fields)
    assert record.state(1000) == state
    assert record.to_dict(1000)["state"] == state
    assert record.to_dict(1000)["active"] is (state == "active")


@pytest.mark.parametrize(
    ("fields", "ends", "expected"),
    [
        ({}, (None,), None),
        ({"expires_at": 50}, (None,), 50),
        ({"expires_at": 50, "expired": True}, (None,), None),
        ({"expires_at": 50, "revoked_at": 40}, (None, 45), 40),
        ({"revoked_at": 40, "revoked": True}, (None, 45), 45),
        ({"expires_at": 0}, (None,), 0),
    ],
)
def test_next_end(fields: dict, ends: tuple, expected: int | None):
    """The earliest end that is not yet written down."""
    versions = tuple(KeyVersion(9 - i, 0, ends_at=end) for i, end in enumerate(ends))
    assert ApiKey("k", "signed", 0, 0, versions, **fields).next_end == expected


def test_metadata_is_a_copy():
    """Changing what was given changes nothing."""
    RECORD.metadata["a"].append(2)
    Verdict(Reason.VALID, key=RECORD).metadata["a"].append(2)
    RECORD.to_dict(0)["metadata"]["b"] = 1
    assert RECORD.metadata == {"a": [1]}


@pytest.mark.parametrize(("kind", "field"), [("signed", "secret"), ("bearer", "token")])
def test_public_view(kind: str, field: str):
    """Users see the state and the dates of a key, its secret redacted, nothing of its insides."""
    view = dataclasses.replace(RECORD, kind=kind).to_dict(250)
    assert view[field] == "***REDACTED***"
    assert {"mac", "versions", "revision", "realm"}.isdisjoint(view)
    assert view["version"] == 2
    assert view["created_at"] == "1970-01-01T00:00:00.000100+00:00"
    assert view["last_used"] == "1970-01-01T00:00:00.000300+00:00"
    assert "bytes" not in repr(view)


def test_frozen():
    """A record handed out cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORD.disabled = True
    with pytest.raises(AttributeError):
        Verdict(Reason.REVOKED).reason = Reason.VALID


def test_verdict_truth():
    """Only `valid` is true."""
    assert {reason for reason in Reason if Verdict(reason)} == {Reason.VALID}
    assert Verdict(Reason.VALID).valid
    assert not Verdict(Reason.REPLAYED, key=RECORD).valid


def test_event_view():
    """An event as users see it: every documented field, and the exact count."""
    event = AuditEvent(
        1, "key_refused", "k", "a", "replayed", "ip", "r", '{"x":1}', 3, None, 7, 1, 8
    )
    assert event.to_dict() == {
        "timestamp": "1970-01-01T00:00:00.000001+00:00", "action": "key_refused", "key_id": "k",
        "actor": "a", "reason": "replayed", "ip": "ip", "request_id": "r", "detail": {"x": 1},
        "count": 3, "id": 7, "log": 1, "index": 8,
    }  # fmt: skip
    assert AuditEvent(1, "x").to_dict()["detail"] == {}


def test_canonical_json():
    """One text for one value, and none for what JSON cannot say."""
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'
    for bad in (float("nan"), float("inf"), object(), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            canonical_json({"x": bad})
