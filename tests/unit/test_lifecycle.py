"""How a key changes, step by step: the rules that no sequence of steps may break."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import (
    ApiKey,
    ConflictError,
    KeyExpiredError,
    KeyNotFoundError,
    KeyRevokedError,
    KeyVersion,
    ValidationError,
    lifecycle,
)

SECOND = 1_000_000
NOW = 1000 * SECOND


def version(number: int, ends_at: int | None = None) -> KeyVersion:
    return KeyVersion(number, 0, ends_at, sealed=b"sealed", digest=b"digest", pepper=1)


def key(*versions: KeyVersion, **fields) -> ApiKey:
    return ApiKey("k", "signed", 0, 0, versions or (version(1),), revision=7, **fields)


def ends(record: ApiKey) -> dict[int, tuple[int | None, bool]]:
    return {v.version: (v.ends_at, v.ended) for v in record.versions}


def test_rotate_with_an_overlap():
    """The old version ends exactly when said; the new one has no end."""
    rotated = lifecycle.rotate(key(), version(2), 60, NOW)
    assert ends(rotated) == {2: (None, False), 1: (NOW + 60 * SECOND, False)}
    assert [v.version for v in rotated.versions] == [2, 1]


def test_rotate_at_once_erases():
    """Without an overlap the old version is over, and its secret is gone from the record."""
    rotated = lifecycle.rotate(key(), version(2), 0, NOW)
    assert ends(rotated) == {2: (None, False), 1: (NOW, True)}
    old = rotated.versions[1]
    assert (old.sealed, old.digest, old.pepper) == (None, None, None)


def test_rotate_keeps_an_earlier_end():
    """A later rotation does not prolong what was to end earlier, but may shorten it."""
    record = key(version(2), version(1, NOW + 10 * SECOND))
    assert ends(lifecycle.rotate(record, version(3), 60, NOW))[1] == (NOW + 10 * SECOND, False)
    assert ends(lifecycle.rotate(record, version(3), 5, NOW))[1] == (NOW + 5 * SECOND, False)
    assert ends(lifecycle.rotate(record, version(3), 0, NOW))[1] == (NOW, True)


def test_rotate_changes_nothing_else():
    """Expiry, prefix, permissions and a scheduled revocation stay as they are."""
    record = key(expires_at=NOW + 5, prefix="acme", permissions=("p",), revoked_at=NOW + 9)
    rotated = lifecycle.rotate(record, version(2), 3600, NOW)
    assert replace(rotated, versions=record.versions, updated_at=0) == record
    assert rotated.updated_at == NOW


def test_rotate_an_ended_key():
    """A key that has ended cannot be rotated, by the clock or for good."""
    for fields in ({"revoked_at": NOW}, {"revoked": True, "revoked_at": NOW + 5}):
        with pytest.raises(KeyRevokedError):
            lifecycle.rotate(key(**fields), version(2), 0, NOW)
    for fields in ({"expires_at": NOW}, {"expired": True, "expires_at": NOW + 5}):
        with pytest.raises(KeyExpiredError):
            lifecycle.rotate(key(**fields), version(2), 0, NOW)


def test_live_versions_are_bounded():
    """Overlaps cannot pile up without end: eight versions may be alive."""
    record = key()
    for number in range(2, lifecycle.MAX_LIVE_VERSIONS + 1):
        record = lifecycle.rotate(record, version(number), 3600, NOW)
    with pytest.raises(ConflictError):
        lifecycle.rotate(record, version(99), 3600, NOW)
    assert ends(lifecycle.rotate(record, version(99), 0, NOW))[99] == (None, False)


def test_update():
    """Only what is named changes; a new expiry must lie ahead, and revives an expired key."""
    record = key(expired=True, expires_at=NOW - 5)
    assert lifecycle.update(record, {"owner": "o"}, NOW).expired
    revived = lifecycle.update(record, {"expires_at": NOW + 1}, NOW)
    assert revived.state(NOW) == "active"
    for past in (0, NOW):
        with pytest.raises(ValidationError, match="expires_at"):
            lifecycle.update(record, {"expires_at": past}, NOW)


def test_revoke():
    """At once for good, or at an instant to come; the reason stays."""
    revoked = lifecycle.revoke(key(), "leaked", NOW, NOW)
    assert (revoked.revoked, revoked.revoked_at, revoked.revoke_reason) == (True, NOW, "leaked")
    scheduled = lifecycle.revoke(key(), "moving", NOW + 10, NOW)
    assert (scheduled.revoked, scheduled.revoked_at) == (False, NOW + 10)


def test_revocation_only_comes_nearer():
    """A scheduled revocation is moved forward, never back; a done one stays as it is."""
    scheduled = lifecycle.revoke(key(), "first", NOW + 10, NOW)
    assert lifecycle.revoke(scheduled, None, NOW + 20, NOW).revoked_at == NOW + 10
    nearer = lifecycle.revoke(scheduled, None, NOW + 5, NOW)
    assert (nearer.revoked_at, nearer.revoke_reason) == (NOW + 5, "first")
    assert lifecycle.revoke(scheduled, None, NOW + 99, NOW + 10).revoked
    done = lifecycle.revoke(scheduled, None, NOW, NOW)
    assert done.revoked
    assert lifecycle.revoke(done, "again", NOW + 99, NOW) is done


def test_delete_leaves_a_tombstone_only():
    """Everything but id, kind, realm, prefix and dates is erased, the secrets above all."""
    record = key(
        version(2), version(1, NOW + 5), owner="o", environment="e", metadata_json='{"a":1}',
        permissions=("p",), ip_allowlist=("10.0.0.0/8",), min_scheme="timestamped",
        expires_at=NOW + 9, revoke_reason="r", last_used_at=3, prefix="acme",
    )  # fmt: skip
    deleted = lifecycle.delete(record, NOW)
    assert deleted.deleted_at == NOW
    assert deleted.next_end is not None or deleted.state(0) == "deleted"
    for v in deleted.versions:
        assert v.ended
        assert v.ends_at is not None
        assert v.ends_at <= NOW
        assert (v.sealed, v.digest, v.pepper) == (None, None, None)
    empty = ApiKey("k", "signed", 0, NOW, deleted.versions, prefix="acme", deleted_at=NOW)
    assert deleted == empty


def test_settle_writes_down_what_has_passed():
    """Ends that have passed become permanent, each with its event; others are left alone."""
    record = key(version(2), version(1, NOW - 1), expires_at=NOW, revoked_at=NOW + 1)
    change = lifecycle.settle(record, NOW)
    assert change is not None
    assert change.expected_revision == 7
    settled = change.record
    assert (settled.expired, settled.revoked) == (True, False)
    assert ends(settled) == {2: (None, False), 1: (NOW - 1, True)}
    assert settled.versions[1].sealed is None
    assert [event.action for event in change.events] == ["key_expired", "key_version_ended"]
    later = lifecycle.settle(replace(settled, versions=settled.versions[:1]), NOW + 1)
    assert later is not None
    assert later.record.revoked
    assert [event.action for event in later.events] == ["key_revoked"]


def test_nothing_to_settle():
    """Before an end, after it was written down, and for a deleted key there is nothing to do."""
    assert lifecycle.settle(key(), NOW) is None
    assert lifecycle.settle(key(expires_at=NOW + 1), NOW) is None
    assert lifecycle.settle(key(expires_at=NOW, expired=True), NOW) is None
    assert lifecycle.settle(lifecycle.delete(key(expires_at=NOW), NOW), NOW + 5) is None
    change = lifecycle.settle(key(expires_at=0), NOW)
    assert change is not None
    assert change.record.expired


def test_events_of_admin_tokens():
    """The same steps of an admin token have names of their own."""
    change = lifecycle.settle(key(expires_at=NOW, realm="admin"), NOW)
    assert change is not None
    assert change.events[0].action == "token_expired"


@pytest.mark.parametrize("fields", [{"realm": "admin"}, {"deleted_at": 5}])
def test_require_found(fields: dict):
    """A deleted key, or one of another realm, is not there."""
    assert lifecycle.require_found(key(), "default") == key()
    for record in (None, key(**fields)):
        with pytest.raises(KeyNotFoundError):
            lifecycle.require_found(record, "default")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("rotate"), st.integers(0, 100)),
        st.tuples(st.just("revoke"), st.integers(0, 100)),
        st.tuples(st.just("settle"), st.just(0)),
        st.tuples(st.just("disable"), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.integers(-30, 60)),
    ),
    max_size=25,
)


@given(steps, st.none() | st.integers(1, 100))
def test_what_has_ended_stays_ended(todo: list, expires_in: int | None):
    """Over any steps, on a clock that also jumps back: written ends hold, and the newest version
    has none."""
    expires_at = None if expires_in is None else NOW + expires_in * SECOND
    record, now, number = key(expires_at=expires_at), NOW, 1
    gone: set[int] = set()
    over = False
    for step, amount in todo:
        if step == "wait":
            now += amount * SECOND
        elif step == "disable":
            record = lifecycle.update(record, {"disabled": bool(amount)}, now)
        elif step == "revoke":
            record = lifecycle.revoke(record, None, now + amount * SECOND, now)
        elif step == "settle":
            change = lifecycle.settle(record, now)
            record = change.record if change else record
        else:
            try:
                record = lifecycle.rotate(record, version(number + 1), amount, now)
                number += 1
            except (ConflictError, KeyRevokedError, KeyExpiredError):
                continue
        # As the store does: versions that have ended leave the record.
        gone |= {v.version for v in record.versions if v.ended}
        record = replace(record, versions=tuple(v for v in record.versions if not v.ended))
        assert not gone & {v.version for v in record.versions}
        assert record.version == number
        assert record.versions[0].ends_at is None
        assert record.expires_at == expires_at
        assert not over or record.state(now) in ("revoked", "expired", "disabled")
        over = over or record.revoked or record.expired
