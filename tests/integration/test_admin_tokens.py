"""Admin tokens that end, are bound to places, and are rotated; none grants beyond itself."""

from __future__ import annotations

import json
import time
from datetime import datetime
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core import AsyncAPIKeyValidator, KeyManager
from api_key_manager.core.admin import confine
from api_key_manager.core.exceptions import PermissionDeniedError
from api_key_manager.core.models import MICROSECONDS, ApiKey
from api_key_manager.wiring.token_care import tokens_to_look_at
from tests.integration.commands import Akm
from tests.integration.conftest import Api, serving

HOUR = 3600


def seconds(token: dict[str, Any]) -> float:
    return datetime.fromisoformat(token["expires_at"]).timestamp()


async def make(api: Api, by: str, **fields: Any) -> Any:
    return await api("POST", "/v1/tokens", {"scopes": ["admin"], **fields}, token=by)


async def test_expires_in(api: Api):
    """An end can be told from now on, by the server's clock."""
    made = await api.scoped("validate", expires_in=HOUR)
    assert abs(seconds(made) - time.time() - HOUR) < 60


@pytest.mark.parametrize("value", [0, -1, 315_360_001, 1.5, "1h", True])
async def test_bad_expires_in(api: Api, value: Any):
    """What is no span from a second to ten years is refused by its name."""
    answer = await make(api, api.token, expires_in=value)
    assert (answer.status_code, answer.json()["field"]) == (422, "expires_in")


async def test_one_end_only(api: Api):
    """Two ends are a mistake, not a choice for us to make."""
    answer = await make(api, api.token, expires_in=60, expires_at="2099-01-01T00:00:00Z")
    assert (answer.status_code, answer.json()["field"]) == (422, "expires_in")


async def test_minted_ends_with_its_maker(api: Api):
    """Whoever has a token that ends mints none that goes on: it gets the same end, or an earlier
    one; a later one is refused."""
    maker = await api.scoped("admin", expires_in=HOUR)
    by = maker["token"]
    assert (await make(api, by)).json()["expires_at"] == maker["expires_at"]
    assert seconds((await make(api, by, expires_in=60)).json()) < seconds(maker)
    for later in ({"expires_in": 2 * HOUR}, {"expires_at": seconds(maker) + 0.001}):
        answer = await make(api, by, **later)
        assert (answer.status_code, answer.json()["reason"]) == (403, "forbidden")
        assert answer.json()["field"] == "expires_at"


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (None, ["127.0.0.0/8", "2001:db8::/32"]),
        ([], ["127.0.0.0/8", "2001:db8::/32"]),
        (["127.0.0.1"], ["127.0.0.1/32"]),
        (["127.0.0.0/8", "2001:db8:1::/48"], ["127.0.0.0/8", "2001:db8:1::/48"]),
        (["::ffff:127.0.0.1"], ["127.0.0.1/32"]),
        (["0.0.0.0/0"], None),
        (["127.0.0.1", "10.0.0.1"], None),
        (["126.0.0.0/7"], None),
        (["::/0"], None),
        (["2001:db8::/31"], None),
    ],
)
async def test_minted_stays_in_its_makers_networks(api: Api, asked: Any, got: Any):
    """Whoever has a token for some networks mints none for others."""
    maker = await api.scoped("admin", ip_allowlist=["127.0.0.0/8", "2001:db8::/32"])
    answer = await make(api, maker["token"], ip_allowlist=asked)
    if got is None:
        assert (answer.status_code, answer.json()["field"]) == (403, "ip_allowlist")
    else:
        assert answer.json()["ip_allowlist"] == got


CIDRS = st.builds(
    lambda number, bits: f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    f"/{bits}",
    st.integers(0, 2**32 - 1), st.integers(0, 32),
)  # fmt: skip


@given(
    own=st.lists(CIDRS, max_size=3), asked=st.lists(CIDRS, max_size=3),
    own_end=st.none() | st.integers(1, 100), asked_end=st.none() | st.integers(1, 100),
    inherit=st.booleans(),
)  # fmt: skip
def test_nothing_is_granted_beyond(
    own: list[str], asked: list[str], own_end: Any, asked_end: Any, inherit: bool
):
    """Whatever is asked of whatever token: what comes out ends no later, and is usable nowhere
    else; or it is refused."""
    end = None if own_end is None else own_end * MICROSECONDS
    token = ApiKey("t", "bearer", 0, 0, (), ip_allowlist=tuple(own), expires_at=end)
    try:
        got_end, places = confine(token, asked_end, asked, inherit=inherit)
    except PermissionDeniedError:
        assert own or own_end is not None
        return
    if end is not None:
        assert got_end is not None
        assert got_end <= end
    if own:
        assert places
        around = [ip_network(cidr, strict=False) for cidr in own]
        for place in (ip_network(cidr, strict=False) for cidr in places):
            assert any(place.subnet_of(network) for network in around)


async def test_rotation(api: Api):
    """A rotated token has the same rights and bounds and another text; the old one works on for
    the overlap, or not at all. The log has it."""
    made = await api.scoped("keys:read", name="ci", expires_in=HOUR, ip_allowlist=["127.0.0.1"])
    path = f"/v1/tokens/{made['key_id']}/rotate"
    second = (await api("POST", path, {"overlap_seconds": 600})).json()
    for field in ("key_id", "name", "scopes", "expires_at", "ip_allowlist", "environment"):
        assert second[field] == made[field]
    assert (made["version"], second["version"]) == (1, 2)
    for token in (made["token"], second["token"]):
        assert (await api("GET", "/v1/keys", token=token)).status_code == 200
    third = (await api("POST", path)).json()
    statuses = [
        (await api("GET", "/v1/keys", token=token)).status_code
        for token in (made["token"], second["token"], third["token"])
    ]
    # Without an overlap nothing older works on: this is what one does about a leak.
    assert statuses == [401, 401, 200]
    listed = await api("GET", "/v1/tokens")
    assert all(shown["token"] not in listed.text for shown in (made, second, third))
    log = await api("GET", "/v1/audit?action=token_rotated")
    assert [event["detail"]["overlap_seconds"] for event in log.json()["items"]] == [0, 600]


async def test_rotation_is_done_once(api: Api):
    """A rotation that is sent again under its Idempotency-Key shows the same token."""
    made = await api.scoped("keys:read")
    path, headers = f"/v1/tokens/{made['key_id']}/rotate", {"Idempotency-Key": "rotate-1"}
    first = await api("POST", path, {}, headers=headers)
    again = await api("POST", path, {}, headers=headers)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_rotation_is_no_way_out(api: Api):
    """With a token that has bounds, one without them cannot be had by rotating it; a token can
    rotate itself, and what has its bounds."""
    for bounds in ({"expires_in": HOUR}, {"ip_allowlist": ["127.0.0.0/8"]}):
        bound = await api.scoped("admin", **bounds)
        free = await api.scoped("validate")
        answer = await api("POST", f"/v1/tokens/{free['key_id']}/rotate", token=bound["token"])
        assert (answer.status_code, answer.json()["reason"]) == (403, "forbidden")
        assert (await api("POST", "/v1/validate", {"token": "x"}, token=free["token"])).is_success
        child = (await make(api, bound["token"])).json()
        answer = await api("POST", f"/v1/tokens/{child['key_id']}/rotate", token=bound["token"])
        assert answer.status_code == 200
        answer = await api("POST", f"/v1/tokens/{bound['key_id']}/rotate", token=bound["token"])
        assert answer.status_code == 200
        assert (await api("GET", "/v1/keys", token=bound["token"])).status_code == 401


async def test_rotation_of_a_key(api: Api):
    """Rotating tokens does not reach callers' keys, nor the other way round."""
    key, token = await api.key(), await api.scoped("validate")
    assert (await api("POST", f"/v1/tokens/{key['key_id']}/rotate")).status_code == 404
    assert (await api("POST", f"/v1/keys/{token['key_id']}/rotate")).status_code == 404


async def test_wrong_address_is_slowed_like_a_wrong_token():
    """A stolen token that is shown from elsewhere is told nothing, by no status and no count."""
    async with serving(peer="203.0.113.9", FAILED_AUTH_PER_MINUTE=2) as api:
        made = await api.scoped("keys:read", ip_allowlist=["10.0.0.0/8"])
        for path in ("/v1/keys", "/v1/keys", "/nothing"):
            stolen = await api("GET", path, token=made["token"])
        assert (stolen.status_code, stolen.json()["reason"]) == (429, "rate_limited")
        assert (await api("GET", "/v1/keys")).status_code == 200


def test_commands(db: Akm):
    """What the API does, the command line does: bounds, rotation, listing."""
    made = json.loads(
        db("tokens", "create", "--scope", "validate", "--expires-in", "30d", "--cidr",
           "10.0.0.0/8", "--name", "ci", "--json").stdout
    )  # fmt: skip
    assert abs(seconds(made) - time.time() - 30 * 86_400) < 120
    assert made["ip_allowlist"] == ["10.0.0.0/8"]
    shown = db("tokens", "rotate", made["key_id"], "--overlap", "1h")
    assert shown.exit_code == 0
    assert "akm_admin_" in shown.stdout
    assert made["token"] not in shown.stdout
    rotated = json.loads(db("tokens", "rotate", made["key_id"], "--json").stdout)
    assert rotated["version"] == 3
    listed = db("tokens", "list").stdout
    assert "10.0.0.0/8" in listed
    assert rotated["token"] not in listed
    assert db("tokens", "rotate", "nobody").exit_code == 1


def test_doctor(db: Akm):
    """It names tokens without an end or near it; not the others."""

    def create(*options: str) -> str:
        done = db("tokens", "create", "--scope", "validate", "--json", *options)
        key_id: str = json.loads(done.stdout)["key_id"]
        return key_id

    def findings() -> str:
        return "\n".join(
            line for line in db("doctor").stdout.splitlines() if "admin tokens" in line
        )

    fine, ended = create("--expires-in", "120d"), create("--expires-in", "60d")
    db("tokens", "revoke", ended)
    assert findings() == ""
    endless, ending = create(), create("--expires-in", "10d")
    told = findings().splitlines()
    assert [endless in told[0], "never end" in told[0]] == [True, True]
    assert [ending in told[1], "end within 14 days" in told[1]] == [True, True]
    assert len(told) == 2
    assert fine not in "".join(told)


async def test_unused_for_long():
    """A token counts as unused from its last use on, or from the day on which it was made."""
    clock = {"now": 1_800_000_000.0}
    manager = KeyManager(AsyncAPIKeyValidator(clock=lambda: clock["now"]))
    used, unused = [
        await manager.create_key(
            kind="bearer", realm="admin", permissions=["validate"],
            expires_at=clock["now"] + 200 * 86_400,
        )
        for _ in range(2)
    ]  # fmt: skip
    clock["now"] += 89 * 86_400
    assert await tokens_to_look_at(manager) == []
    assert (await manager.verify(token=used["token"], realm="admin")).valid
    clock["now"] += 2 * 86_400
    (told,) = await tokens_to_look_at(manager)
    assert "were not used for 90 days" in told
    assert unused["key_id"] in told
    assert used["key_id"] not in told
