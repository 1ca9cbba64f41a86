"""What users say of a key: brought into one form, or refused with the field's name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import ValidationError
from api_key_manager.core.admin import SCOPES, check_scopes, needs, refuse_more
from api_key_manager.core.exceptions import PermissionDeniedError
from api_key_manager.core.inputs import (
    MAX_METADATA,
    MAX_OVERLAP_SECONDS,
    check_instant,
    check_limit,
    check_metadata,
    check_overlap,
    check_secret,
    check_text,
    clean_fields,
)
from api_key_manager.core.lookups import audit_query, key_query, write_cursor

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), json_values, max_size=5))
def test_metadata_round_trip(value: dict):
    """Any JSON object is kept as it is, in one canonical text."""
    text = check_metadata(value)
    assert json.loads(text) == value
    assert text == check_metadata(json.loads(text))


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


class OddMapping(Mapping):
    """A mapping inside metadata that JSON cannot write."""

    def __getitem__(self, key):
        return 1

    def __iter__(self):
        return iter(["a"])

    def __len__(self):
        return 1


LOOP: dict = {}
LOOP["loop"] = LOOP


@pytest.mark.parametrize(
    "value",
    [
        [], "text", 5, {1: "a"}, {None: 1}, {"a": object()}, {"a": {1, 2}}, {"a": b"bytes"},
        {"a": math.nan}, {"a": [math.inf]}, {"a": -math.inf}, {"a": "\ud800"}, {"\ud800": 1},
        {"a": 10**5000}, {"a": OddMapping()}, LOOP, nested(17), {"a": "x" * MAX_METADATA},
        {"a": "é" * (MAX_METADATA // 2)}, {"a": datetime.now(UTC)},
    ],
)  # fmt: skip
def test_bad_metadata(value: object):
    """No object, no JSON, too deep, too big or endless: refused by name, whatever it is."""
    with pytest.raises(ValidationError, match="metadata"):
        check_metadata(value)


def test_metadata_bounds():
    """None is an empty object; 16 KiB and 16 levels are allowed."""
    assert check_metadata(None) == "{}"
    assert len(check_metadata({"a": "x" * (MAX_METADATA - 8)})) == MAX_METADATA
    check_metadata(nested(16))


@pytest.mark.parametrize(
    "value",
    [
        1_700_000_000, 1_700_000_000.0, "2023-11-14T22:13:20Z", "2023-11-14T22:13:20+00:00",
        "2023-11-14T23:13:20+01:00", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        datetime(2023, 11, 14, 17, 13, 20, tzinfo=timezone(timedelta(hours=-5))),
    ],
)  # fmt: skip
def test_one_instant(value: object):
    """Every allowed notation of one instant is the same microsecond."""
    assert check_instant("at", value) == 1_700_000_000_000_000


@pytest.mark.parametrize(
    "value",
    [
        "", "tomorrow", "2023-11-14", "2023-11-14T22:13:20", datetime(2023, 11, 14),
        True, -1, -0.5, math.nan, math.inf, 10**400, 253_402_300_800, "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:00", b"2023", [1], {},
    ],
)  # fmt: skip
def test_bad_instants(value: object):
    """Without an offset, out of range or of another type: refused by name."""
    with pytest.raises(ValidationError, match="expires_at"):
        check_instant("expires_at", value)


def test_instant_bounds():
    """The epoch and the year 9999, and nothing at all."""
    assert check_instant("at", None) is None
    assert check_instant("at", 0) == 0
    assert check_instant("at", 253_402_300_799) == 253_402_300_799_000_000


@pytest.mark.parametrize("value", ["", "a" * 129, "a\n", "a\x00", "\u202e", 5, b"a", ["a"]])
def test_bad_text(value: object):
    """Control characters would forge log lines; empty, long and other values are refused."""
    with pytest.raises(ValidationError, match="owner"):
        check_text("owner", value)


def test_text():
    """Any printable text is an owner."""
    assert check_text("owner", "Zoë's team ☂") == "Zoë's team ☂"
    assert check_text("owner", None) is None


@pytest.mark.parametrize("value", ["", "x" * 1025, "\ud800", None, 5, b"secret"])
def test_bad_secrets(value: object):
    """Empty, long or unwritable secrets are refused, and the message does not repeat them."""
    with pytest.raises(ValidationError, match="secret") as caught:
        check_secret(value)
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, MAX_OVERLAP_SECONDS + 1, True, 1.0, "5", None, math.inf])
def test_bad_overlaps(value: object):
    """Whole seconds from 0 to 90 days."""
    assert check_overlap(0) == 0
    assert check_overlap(MAX_OVERLAP_SECONDS) == MAX_OVERLAP_SECONDS
    with pytest.raises(ValidationError, match="overlap_seconds"):
        check_overlap(value)


@pytest.mark.parametrize("value", [0, -1, 1001, True, 5.0, "5", None])
def test_bad_limits(value: object):
    """A page holds 1 to 1000 items."""
    assert check_limit(1000, 1000) == 1000
    with pytest.raises(ValidationError, match="limit"):
        check_limit(value, 1000)


def test_fields_are_cleaned():
    """Each field in its stored form; None empties what can be empty."""
    assert clean_fields(
        {
            "metadata": {"a": 1}, "permissions": ["p", "p"], "ip_allowlist": ["10.0.0.1/8"],
            "expires_at": 5, "owner": "o", "environment": None, "min_scheme": "timestamped",
            "disabled": True,
        },
        "signed",
    ) == {
        "metadata_json": '{"a":1}', "permissions": ("p",), "ip_allowlist": ("10.0.0.0/8",),
        "expires_at": 5_000_000, "owner": "o", "environment": None, "min_scheme": "timestamped",
        "disabled": True,
    }  # fmt: skip
    emptied = clean_fields(
        {"permissions": None, "ip_allowlist": None, "expires_at": None}, "signed"
    )
    assert emptied == {"permissions": (), "ip_allowlist": (), "expires_at": None}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"disabled": None}, "signed"),
        ({"disabled": 1}, "signed"),
        ({"min_scheme": "none"}, "signed"),
        ({"min_scheme": ["static"]}, "signed"),
        ({"min_scheme": "timestamped"}, "bearer"),
        ({"revoked": False}, "signed"),
        ({"key_id": "x"}, "signed"),
        ({"realm": "admin"}, "signed"),
        ({"mac": b""}, "signed"),
        ({"permissions": "all"}, "signed"),
    ],
)
def test_bad_fields(fields: dict, kind: str):
    """Unknown fields, security columns above all, and wrong values are refused by name."""
    (name,) = fields
    with pytest.raises(ValidationError, match=f"^{name}"):
        clean_fields(fields, kind)


@given(st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True))
def test_cursor_round_trip(after: str):
    """A cursor that was given out reads back."""
    query = key_query({}, realm="default", cursor=write_cursor(after), limit=1, now=0)
    assert query.after == after


@pytest.mark.parametrize("after", ["", "a b", "\x00", "k\n", "a" * 129])
def test_cursor_of_no_key(after: str):
    """Only an id can stand in one: no other text reaches a database, of which some take no NUL."""
    with pytest.raises(ValidationError, match=r"^cursor: "):
        key_query({}, realm="default", cursor=write_cursor(after), limit=1, now=0)


@given(st.text(max_size=300) | st.integers() | st.binary())
def test_any_cursor_is_read_or_refused(cursor: object):
    """No cursor makes a query fail in another way."""
    for make in (
        lambda: key_query({}, realm="default", cursor=cursor, limit=1, now=0),
        lambda: audit_query({}, cursor=cursor, limit=1),
    ):
        try:
            make()
        except ValidationError as error:
            assert "cursor" in str(error)  # noqa: PT017


@pytest.mark.parametrize("index", ["-1", "1e3", "9" * 19, "abc", "٣", ""])
def test_audit_cursor_is_an_index(index: str):
    """Only a number that fits is an audit cursor."""
    cursor = write_cursor(index) if index.isascii() else index
    with pytest.raises(ValidationError, match="cursor"):
        audit_query({}, cursor=cursor, limit=1)
    assert audit_query({}, cursor=write_cursor("12"), limit=1).after == 12


@pytest.mark.parametrize(
    "filters",
    [{"state": "deleted"}, {"kind": "both"}, {"prefix": "A"}, {"owner": ""}, {"realm": "admin"},
     {"created_before": "soon"}, {"nonsense": 1}],
)  # fmt: skip
def test_bad_filters(filters: dict):
    """A filter that is not understood is refused, not ignored: it could widen a revocation."""
    (name,) = filters
    with pytest.raises(ValidationError, match=name):
        key_query(filters, realm="default", cursor=None, limit=1, now=0)
    with pytest.raises(ValidationError, match="nonsense"):
        audit_query({"nonsense": 1}, cursor=None, limit=1)


@pytest.mark.parametrize("scopes", [[], None, "admin", ["root"], ["admin", "Admin"], [["admin"]]])
def test_bad_scopes(scopes: object):
    """Only the documented scopes exist, and a token without any is refused."""
    with pytest.raises(ValidationError, match="scopes"):
        check_scopes(scopes)


def test_scopes():
    """A scope opens itself, `admin` opens all, and no token grants beyond itself."""
    assert check_scopes(["validate", "validate", "admin"]) == ("validate", "admin")
    for scope in SCOPES:
        assert needs(scope)((scope,))
        assert needs(scope)(("admin",))
        assert [s for s in SCOPES if needs(s)((scope,))] == (
            list(SCOPES) if scope == "admin" else [scope]
        )
    refuse_more(("admin",), SCOPES)
    refuse_more(("keys:read", "validate"), ("validate",))
    with pytest.raises(PermissionDeniedError, match="grant"):
        refuse_more(("keys:read",), ("keys:read", "keys:write"))


@pytest.mark.parametrize("field", ["owner", "environment"])
@pytest.mark.parametrize("value", [" ", " prod", "prod ", "\u2003prod"])
def test_names_that_look_alike(field: str, value: str):
    """What keys are grouped by has no blanks at its ends."""
    with pytest.raises(ValidationError, match=rf"^{field}: "):
        clean_fields({field: value}, "signed")
