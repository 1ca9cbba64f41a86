"""The judge: each reason, their order, and the edges of every window."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import ApiKey, KeyVersion, Reason, sign
from api_key_manager.core.memory import MemoryBox
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.policy import Rules, accept, judge, window_reason
from api_key_manager.core.presented import present
from api_key_manager.core.records import open_record, seal_record
from api_key_manager.core.tokens import mint_token

NOW = 1_760_000_000
MICROS = NOW * MICROSECONDS
BOX = MemoryBox()
SECRET = "the-secret"
TOKEN = mint_token("akm", "client")
NONCE = "n" * 16
RULES = Rules()


def open_key(kind: str = "signed", decoy: bool = False, secret: str | None = None, **fields: Any):
    secret = secret or (SECRET if kind == "signed" else TOKEN)
    version = seal_record(BOX, "client", 1, secret, kind, 0)
    record = ApiKey("client", kind, 0, 0, (version,), **fields)
    key = open_record(replace(record, mac=BOX.record_mac(record)), BOX)
    key.decoy = decoy
    return key


@dataclass
class Case:
    """A request that is fine until something spoils it."""

    kind: str = "signed"
    key: dict[str, Any] = field(default_factory=dict)
    secret: str = SECRET
    timestamp: int | None = NOW
    nonce: str | None = None
    static: bool = False
    token: str = TOKEN
    around: dict[str, Any] = field(default_factory=dict)

    def judge(self, rules: Rules = RULES, now: float = NOW):
        if self.kind == "bearer":
            given = present(token=self.token, **self.around)
        else:
            signature = (
                sign(self.secret, "client")
                if self.static
                else sign(self.secret, "client", self.timestamp, self.nonce)
            )
            given = present("client", signature, self.timestamp, self.nonce, **self.around)
        assert not given.malformed
        return judge(open_key(self.kind, **self.key), given, now, rules)


# In the documented order; each spoils one thing.
SPOILERS = {
    Reason.NOT_FOUND: lambda case: case.key.update(decoy=True),
    Reason.BAD_SIGNATURE: lambda case: case.__dict__.update(
        secret="another", token=mint_token("akm", "client")
    ),
    Reason.REVOKED: lambda case: case.key.update(revoked_at=MICROS),
    Reason.DISABLED: lambda case: case.key.update(disabled=True),
    Reason.EXPIRED: lambda case: case.key.update(expires_at=MICROS),
    Reason.WEAK_SCHEME: lambda case: case.key.update(min_scheme="timestamped-nonce"),
    Reason.STALE_TIMESTAMP: lambda case: case.__dict__.update(timestamp=NOW - 360 * 60 - 61),
    Reason.FUTURE_TIMESTAMP: lambda case: case.__dict__.update(timestamp=NOW + 61),
    Reason.IP_DENIED: lambda case: case.key.update(ip_allowlist=("10.0.0.0/8",)),
    Reason.FORBIDDEN: lambda case: case.around.update(permissions="documents.read"),
}
ONLY_SIGNED = {Reason.WEAK_SCHEME, Reason.STALE_TIMESTAMP, Reason.FUTURE_TIMESTAMP}


@pytest.mark.parametrize("kind", ["signed", "bearer"])
def test_unspoilt_is_valid(kind: str):
    """With nothing wrong the verdict is valid, true, and shows the key."""
    verdict = Case(kind).judge()
    assert verdict.reason is Reason.VALID
    assert verdict
    assert verdict.key is not None
    assert (verdict.key_id, verdict.version) == ("client", 1)
    assert verdict.scheme == ("timestamped" if kind == "signed" else "bearer")


@pytest.mark.parametrize("kind", ["signed", "bearer"])
@pytest.mark.parametrize("reason", SPOILERS)
def test_each_reason(kind: str, reason: Reason):
    """Each defect alone is refused for its own reason; a bearer key has no timestamp to judge."""
    case = Case(kind)
    SPOILERS[reason](case)
    expected = Reason.VALID if kind == "bearer" and reason in ONLY_SIGNED else reason
    verdict = case.judge()
    assert verdict.reason is expected
    assert bool(verdict) is (expected is Reason.VALID)


PAIRS = [
    (kind, *pair)
    for kind in ("signed", "bearer")
    for pair in itertools.combinations(SPOILERS, 2)
    # No timestamp is both too old and too new, and bearer keys have none.
    if set(pair) != {Reason.STALE_TIMESTAMP, Reason.FUTURE_TIMESTAMP}
    and not (kind == "bearer" and ONLY_SIGNED & set(pair))
]


@pytest.mark.parametrize(("kind", "first", "second"), PAIRS)
def test_the_earlier_reason_wins(kind: str, first: Reason, second: Reason):
    """Of two defects the earlier one in the documented order is named."""
    case = Case(kind)
    SPOILERS[first](case)
    SPOILERS[second](case)
    assert case.judge().reason is first


@pytest.mark.parametrize("kind", ["signed", "bearer"])
@pytest.mark.parametrize("reason", SPOILERS)
def test_the_key_shows_after_the_proof_only(kind: str, reason: Reason):
    """Nothing of a key is shown to somebody who has not proved its secret."""
    case = Case(kind)
    SPOILERS[reason](case)
    verdict = case.judge()
    unproved = reason in (Reason.NOT_FOUND, Reason.BAD_SIGNATURE)
    assert (verdict.key is None) is unproved
    assert (verdict.metadata is None) is unproved


def test_another_realm_is_not_found():
    """A key of one realm does not exist in another, with a right signature too."""
    assert Case("bearer", around={"realm": "admin"}).judge().reason is Reason.NOT_FOUND
    assert Case("bearer", key={"realm": "admin"}).judge().reason is Reason.NOT_FOUND
    assert Case("bearer", key={"realm": "admin"}, around={"realm": "admin"}).judge()


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (-60, None),
        (-61, Reason.FUTURE_TIMESTAMP),
        (0, None),
        (21660, None),
        (21661, Reason.STALE_TIMESTAMP),
    ],
)
def test_window_edges(age: int, reason: Reason | None):
    """Accepted when -skew <= age <= window + skew, both ends included."""
    assert window_reason(NOW - age, NOW, 21600, 60) is reason
    assert Case(timestamp=NOW - age).judge().reason is (reason or Reason.VALID)


@given(st.integers(0, 10**10), st.floats(0, 1e10), st.integers(300, 10**7), st.integers(0, 10**4))
def test_window_is_the_formula(timestamp: int, now: float, window: int, skew: int):
    """The window for any values, with exactly one of three outcomes."""
    age = now - timestamp
    expected = (
        Reason.FUTURE_TIMESTAMP if age < -skew
        else None if age <= window + skew
        else Reason.STALE_TIMESTAMP
    )  # fmt: skip
    assert window_reason(timestamp, now, window, skew) is expected


def test_a_nonce_has_its_own_window():
    """With a nonce the shorter window counts, so that nonces need not be kept for long."""
    assert Case(timestamp=NOW - 360, nonce=NONCE).judge()
    assert Case(timestamp=NOW - 361, nonce=NONCE).judge().reason is Reason.STALE_TIMESTAMP
    assert Case(timestamp=NOW - 361).judge()
    assert Case(timestamp=NOW - 361, nonce=NONCE).judge(Rules(nonce_window=301))


STATIC, STAMPED, NONCED = {"static": True}, {}, {"nonce": NONCE}


@pytest.mark.parametrize(
    ("min_scheme", "how", "allow_static", "reason"),
    [
        ("static", STATIC, True, Reason.VALID),
        ("static", STATIC, False, Reason.WEAK_SCHEME),
        ("static", STAMPED, False, Reason.VALID),
        ("timestamped", STATIC, True, Reason.WEAK_SCHEME),
        ("timestamped", STAMPED, True, Reason.VALID),
        ("timestamped", NONCED, True, Reason.VALID),
        ("timestamped-nonce", STAMPED, True, Reason.WEAK_SCHEME),
        ("timestamped-nonce", NONCED, True, Reason.VALID),
        ("request", NONCED, True, Reason.WEAK_SCHEME),
        # A static signature is never taken with a nonce: it does not even match.
        ("static", {**STATIC, **NONCED}, True, Reason.BAD_SIGNATURE),
    ],
)
def test_schemes(min_scheme: str, how: dict[str, Any], allow_static: bool, reason: Reason):
    """Every scheme against every minimum and the deployment's switch."""
    case = Case(key={"min_scheme": min_scheme}, **how)
    assert case.judge(Rules(allow_static=allow_static)).reason is reason


def test_static_without_a_timestamp():
    """The published workflow's signature, with and without a timestamp beside it."""
    assert Case(static=True, timestamp=None).judge().scheme == "static"
    assert Case(static=True).judge().scheme == "static"
    stale = Case(static=True, timestamp=NOW - 21661).judge()
    assert stale.reason is Reason.STALE_TIMESTAMP


def test_ends_count_from_their_instant():
    """Expired and revoked at the instant itself, not a microsecond before."""
    for name, reason in (("expires_at", Reason.EXPIRED), ("revoked_at", Reason.REVOKED)):
        assert Case(key={name: MICROS}).judge(now=NOW - 0.001)
        assert Case(key={name: MICROS}).judge(now=NOW).reason is reason


def test_permanent_ends_ignore_the_clock():
    """Once written down, an end holds on a clock that stepped back."""
    for fields, reason in (
        ({"expired": True, "expires_at": MICROS}, Reason.EXPIRED),
        ({"revoked": True, "revoked_at": MICROS}, Reason.REVOKED),
    ):
        assert Case(key=fields).judge(now=NOW - 59).reason is reason


def test_versions():
    """Every version that has not ended works, each until exactly its end."""
    box, old, new = BOX, "old-secret", "new-secret"
    first = replace(seal_record(box, "client", 1, old, "signed", 0), ends_at=MICROS)
    second = seal_record(box, "client", 2, new, "signed", 0)
    record = ApiKey("client", "signed", 0, 0, (second, first))
    key = open_record(replace(record, mac=box.record_mac(record)), box)

    def verdict(secret: str, now: float, static: bool):
        stamp = None if static else NOW
        return judge(key, present("client", sign(secret, "client", stamp), stamp), now, Rules())

    for static in (False, True):
        assert verdict(old, NOW - 0.001, static).version == 1
        assert verdict(new, NOW - 0.001, static).version == 2
        assert verdict(old, NOW, static).reason is Reason.BAD_SIGNATURE
        assert verdict(new, NOW, static).version == 2


def test_bearer_versions_end_too():
    """The token of an ended version no longer works."""
    version = replace(seal_record(BOX, "client", 1, TOKEN, "bearer", 0), ends_at=MICROS)
    record = ApiKey("client", "bearer", 0, 0, (version,))
    key = open_record(replace(record, mac=BOX.record_mac(record)), BOX)
    given = present(token=TOKEN)
    assert judge(key, given, NOW - 0.001, Rules())
    assert judge(key, given, NOW, Rules()).reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(("stamp", "nonce"), [(None, None), (NOW, None), (NOW, NONCE)])
def test_every_byte_of_a_signature_counts(stamp: int | None, nonce: str | None):
    """A signature that differs in a single bit of any byte is refused, in every scheme."""
    key, good = open_key(), bytes.fromhex(sign(SECRET, "client", stamp, nonce))
    assert judge(key, present("client", good.hex(), stamp, nonce), NOW, RULES)
    for i in range(32):
        wrong = good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]
        verdict = judge(key, present("client", wrong.hex(), stamp, nonce), NOW, RULES)
        assert verdict.reason is Reason.BAD_SIGNATURE


def test_kinds_do_not_mix():
    """A signed key takes no token, and a bearer key no signature, whatever they hold."""
    given = present(token=TOKEN)
    assert judge(open_key("signed", secret=TOKEN), given, NOW, Rules()).reason is (
        Reason.BAD_SIGNATURE
    )
    # Even who knew the pepper could not pass a signature off as a bearer key's.
    number, digest = BOX.digest(b"client")
    record = ApiKey("client", "bearer", 0, 0, (KeyVersion(1, 0, digest=digest, pepper=number),))
    key = open_record(replace(record, mac=BOX.record_mac(record)), BOX)
    assert judge(key, present("client", digest.hex()), NOW, Rules()).reason is Reason.BAD_SIGNATURE


def test_token_prefix_must_be_the_stored_one():
    """A token is checked whole, its prefix included, even where the digest would fit."""
    assert Case("bearer", key={"prefix": "other"}).judge().reason is Reason.BAD_SIGNATURE


def test_allowlist_without_an_address():
    """An allowlist and no address given: refused."""
    listed = {"ip_allowlist": ("10.0.0.0/8",)}
    assert Case(key=listed).judge().reason is Reason.IP_DENIED
    assert Case(key=listed, around={"ip": "192.0.2.1"}).judge().reason is Reason.IP_DENIED
    assert Case(key=listed, around={"ip": "10.9.8.7"}).judge()
    assert Case(key=listed, around={"ip": "::ffff:10.9.8.7"}).judge()


def test_permissions():
    """An expression or a list, judged over the key's grants."""
    granted = {"permissions": ("documents.*",)}
    assert Case(key=granted, around={"permissions": "documents.read and not admin"}).judge()
    refused = Case(key=granted, around={"permissions": ["documents.read", "admin"]}).judge()
    assert refused.reason is Reason.FORBIDDEN


GOOD = {"key_id": "client", "signature": "a" * 64, "timestamp": NOW, "nonce": NONCE}


@pytest.mark.parametrize(
    "change",
    [
        {"key_id": None}, {"key_id": ""}, {"key_id": "a\n"}, {"key_id": "a" * 129},
        {"key_id": 5}, {"key_id": b"client"}, {"signature": None}, {"signature": "a" * 63},
        {"signature": b"a" * 64}, {"timestamp": True}, {"timestamp": 1.5}, {"timestamp": "5"},
        {"timestamp": -1}, {"timestamp": float("nan")}, {"timestamp": 10**30},
        {"timestamp": None}, {"nonce": ""}, {"nonce": "short"}, {"nonce": 5}, {"nonce": b"n" * 16},
        {"ip": ""}, {"ip": "x"}, {"ip": 5}, {"ip": "1.2.3.4" + " " * 50}, {"ip": "fe80::1%eth0"},
        {"permissions": "("}, {"permissions": 5}, {"permissions": ["a b"]}, {"token": TOKEN},
    ],
)  # fmt: skip
def test_malformed(change: dict[str, Any]):
    """Unusable values are told before anything is looked up."""
    assert not present(**GOOD).malformed
    assert present(**{**GOOD, **change}).malformed


@pytest.mark.parametrize(
    "more",
    [{"key_id": "client"}, {"signature": "a" * 64}, {"timestamp": NOW}, {"nonce": NONCE}],
)
def test_two_credentials_are_malformed(more: dict[str, Any]):
    """A token beside any part of a signature leaves open which one is meant."""
    assert not present(token=TOKEN).malformed
    assert present(token=TOKEN, **more).malformed


@pytest.mark.parametrize(
    ("given", "key_id"),
    [
        ({"key_id": "client", "signature": "abc123def456..."}, "client"),
        ({"key_id": "client", "signature": "0" * 64, "timestamp": -1}, "client"),
        ({"key_id": "client", "signature": "0" * 64, "permissions": "("}, "client"),
        ({"key_id": "no id", "signature": "0" * 64}, ""),
        ({"key_id": ["client"], "signature": "0" * 64}, ""),
        ({"token": "akm_x_y"}, ""),
        ({}, ""),
    ],
)
def test_what_cannot_be_read_keeps_who_was_meant_and_who_asked(given, key_id):
    """A malformed credential reaches the audit log with its id, address, caller and tags."""
    around = {"ip": "192.0.2.1", "request_id": "r", "actor": "gateway", "tags": ("a",)}
    presented = present(**given, **around)
    assert presented.malformed
    assert (presented.key_id, presented.signature, presented.token) == (key_id, None, None)
    assert {name: getattr(presented, name) for name in around} == around


def test_an_address_that_is_none_is_not_kept():
    """What stands in the log as an address is one."""
    assert present("client", "0" * 64, ip="127.0.0.1\nroot").ip is None


class TestAccept:
    """The short way says exactly what the judge says, wherever it says anything."""

    @given(
        fields=st.fixed_dictionaries(
            {},
            optional={
                "revoked": st.booleans(),
                "disabled": st.booleans(),
                "expired": st.booleans(),
                "revoked_at": st.sampled_from([None, MICROS - 1, MICROS + 1]),
                "expires_at": st.sampled_from([None, MICROS - 1, MICROS + 1]),
                "ip_allowlist": st.sampled_from([(), ("10.0.0.0/8",)]),
                "min_scheme": st.sampled_from(
                    ["static", "timestamped", "timestamped-nonce", "request"]
                ),
            },
        ),
        ends_at=st.sampled_from([None, MICROS, MICROS + 1]),
        age=st.sampled_from([-61, -60, 0, 21_660, 21_661, 10**9, -(10**9)]),
        good=st.sampled_from([True, True, True, False]),
        rules=st.sampled_from([Rules(), Rules(window=300, skew=0), Rules(allow_static=False)]),
    )
    def test_it_is_the_judge(self, fields, ends_at, age, good, rules):
        version = replace(seal_record(BOX, "client", 1, SECRET, "signed", 0), ends_at=ends_at)
        record = ApiKey("client", "signed", 0, 0, (version,), **fields)
        key = open_record(replace(record, mac=BOX.record_mac(record)), BOX)
        at = NOW - age
        given = present("client", sign(SECRET if good else "another", "client", at), at)
        told = judge(key, given, NOW, rules)
        plain = not (fields.keys() - {"min_scheme"}) or key.plain
        accepted = accept(key, given.signature or b"", at, NOW, rules) if key.plain else None
        assert accepted == (told if told.valid and key.plain else None)
        assert key.plain is plain
