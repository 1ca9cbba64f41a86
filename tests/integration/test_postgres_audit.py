"""The audit log on PostgreSQL: in the order of commits, and never held up by what somebody
sends."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from api_key_manager.core import ValidationError
from api_key_manager.core.changing import Origin
from api_key_manager.core.models import AuditEvent, Use
from tests.integration.conftest import Api, serving, signed
from tests.integration.postgres_nodes import MASTER, Shared, eventually
from tests.services import Postgres

NUL, HALF, LONG = "a\0b", "a\ud800b", "x" * 100_000
HOSTILE = {"NUL": NUL, "half of a pair": HALF, "long": LONG}


@pytest.fixture
def shared(tmp_path: Path, postgres: Postgres) -> Iterator[Shared]:
    place = Shared(tmp_path, postgres)
    yield place
    place.drop()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def api(request, tmp_path: Path) -> AsyncIterator[Api]:
    """The same on each store."""
    if request.param == "postgresql":
        shared = request.getfixturevalue("shared")
        async with serving(DATABASE_URL=shared.url, AKM_MASTER_KEY=MASTER) as api:
            yield api
        return
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/data/akm.db"
    async with serving(DATABASE_URL=url) as api:
        yield api


async def test_ids_are_in_the_order_of_commits(shared):
    """A reader that follows the log by id while many write, in transactions of any length, on
    several nodes, misses no event and sees none twice."""
    async with shared.open() as one, shared.open() as two:
        stores, spread = [one.manager.store, two.manager.store], random.Random(7)
        done = asyncio.Event()
        seen: list[tuple[str, str]] = []

        async def follow() -> None:
            reader, after = await asyncpg.connect(shared.url), 0
            while True:
                last = done.is_set()
                rows = await reader.fetch(
                    "SELECT id, key_id, detail FROM audit_events"
                    " WHERE id > $1 AND action = 'key_validated' ORDER BY id LIMIT 20", after
                )  # fmt: skip
                seen.extend((row["key_id"], row["detail"]) for row in rows)
                after = rows[-1]["id"] if rows else after
                if last and not rows:
                    break
            await reader.close()

        async def write(lane: int) -> None:
            for n in range(25):
                batch = [
                    AuditEvent(n, "key_validated", f"k{lane}", detail_json=f"{lane}-{n}-{i}")
                    for i in range(spread.choice([1, 1, 2, 40]))
                ]
                written.extend(batch)
                used = {f"k{spread.randrange(4)}": Use(n) for _ in range(2)}
                await stores[lane % 2].record(batch, used)
                if n % 10 == 0:
                    await (one, two)[lane % 2].manager.create_key(f"key-{lane}-{n}")

        written: list[AuditEvent] = []
        reader = asyncio.create_task(follow())
        await asyncio.gather(*map(write, range(8)))
        done.set()
        await reader
        wanted = [(event.key_id, event.detail_json) for event in written]
        assert sorted(seen) == sorted(wanted)
        for lane in range(8):
            mine = f"k{lane}"
            assert [e for e in seen if e[0] == mine] == [e for e in wanted if e[0] == mine]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_text_is_refused_by_name(api, value):
    """Text that a column cannot hold is refused with a 4xx that names its field, wherever a request
    may carry it; the same on every store, and never as a store that is away."""
    key = await api.key(key_id="k")
    body = signed(key)
    for method, path, sent, field in (
        ("POST", "/v1/keys", {"owner": value}, "owner"),
        ("POST", "/v1/keys", {"environment": value}, "environment"),
        ("POST", "/v1/keys", {"key_id": value}, "key_id"),
        ("POST", "/v1/keys", {"prefix": value}, "prefix"),
        ("POST", "/v1/keys", {"permissions": [value]}, "permissions"),
        ("POST", "/v1/keys", {"ip_allowlist": [value]}, "ip_allowlist"),
        ("POST", "/v1/keys", {"rate_limits": [
            {"name": value, "limit": 1, "window_seconds": 1}]}, "rate_limits"),
        ("PATCH", "/v1/keys/k", {"owner": value}, "owner"),
        ("POST", "/v1/keys/k/revoke", {"reason": value}, "reason"),
        ("POST", "/v1/tokens", {"scopes": ["validate"], "name": value}, "name"),
        ("POST", "/v1/validate", {**body, "tags": [value]}, "tags"),
    ):  # fmt: skip
        try:
            answer = await api(method, path, sent)
        except UnicodeEncodeError:
            # httpx sends no half of a pair; others do, escaped.
            text = json.dumps(sent).encode()
            answer = await api(
                method, path, content=text, headers={"Content-Type": "application/json"}
            )
        assert 400 <= answer.status_code < 500, (path, sent, answer.text)
        assert field in answer.text or "not JSON" in answer.text, (path, answer.text)
    await intact(api)


async def intact(api: Api) -> None:
    """The log can be written and read."""
    manager = api.deployment.manager
    await manager.recorder.flush(manager.clock(), uses=True)
    assert manager.recorder.depth == 0
    assert (await api("GET", "/v1/audit")).status_code == 200
    assert api.deployment.problems() == []


@pytest.mark.parametrize("value", [NUL, HALF], ids=["NUL", "half of a pair"])
async def test_hostile_metadata(api, value):
    """Metadata with NUL comes back as it was given; half of a surrogate pair is no Unicode text and
    is refused."""
    manager = api.deployment.manager
    if value == HALF:
        with pytest.raises(ValidationError, match="metadata"):
            await manager.create_key("m", metadata={"text": value})
        with pytest.raises(ValidationError, match="metadata"):
            await manager.create_key("m", metadata={value: 1})
    else:
        await manager.create_key("m", metadata={"text": value, value: 1})
        assert (await manager.get_key("m"))["metadata"] == {"text": value, value: 1}
    await intact(api)


async def test_hostile_queries(api):
    """Filters and cursors with such text are refused, not looked up."""
    for cursor in (b"a\0b", b"\0", b"x y", b"99999999999999999999"):
        text = base64.urlsafe_b64encode(cursor).decode().rstrip("=")
        for path in ("/v1/keys", "/v1/audit"):
            answer = await api("GET", path, params={"cursor": text})
            allowed = path == "/v1/keys" and cursor.isdigit()
            assert answer.status_code == (200 if allowed else 422), (path, cursor, answer.text)
    for path in ("/v1/keys?owner=a%00b", "/v1/keys?environment=%00", "/v1/keys?prefix=%00",
                 "/v1/keys?kind=%00", "/v1/audit?key_id=%00", "/v1/audit?action=%00",
                 "/v1/keys/a%00b", "/v1/keys/a%00b/versions"):  # fmt: skip
        answer = await api("GET", path)
        assert 400 <= answer.status_code < 500, (path, answer.text)
    for body in ({"key": "a\0b", "signature": "0" * 64}, {"token": "akm_a\0b_c"},
                 {**signed({"key_id": "k", "secret": "s"}), "ip": "::1%\0"}):  # fmt: skip
        answer = await api("POST", "/v1/validate", body)
        assert (answer.status_code, answer.json()["reason"]) == (200, "malformed")
    await intact(api)


async def test_hostile_headers(api):
    """Whatever stands in headers that reach the log, the event is kept."""
    for header in ("User-Agent", "X-Request-Id", "X-Forwarded-For"):
        for value in (b"a\xff\x80b", b"x" * 4000, b"%00"):
            answer = await api("POST", "/v1/keys", {}, headers={header: value})
            assert answer.status_code == 201, (header, answer.text)
    await intact(api)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_origin(api, value):
    """A library user may name any actor and request id: what cannot be printed is kept escaped, and
    what is too long is cut. No event is lost, and none behind it waits."""
    manager = api.deployment.manager
    by = Origin(value, value, value)
    key = await manager.create_key("k", by=by)
    body = signed(key)
    verdict = await manager.verify(body["key"], body["signature"], body["timestamp"], by=by)
    assert verdict.valid
    assert not await manager.verify("k", "0" * 64, by=by)
    await manager.revoke_key("k", by=by)
    await intact(api)
    log = (await manager.find_audit(key_id="k"))["items"]
    assert sorted(event["action"] for event in log) == [
        "key_created", "key_refused", "key_revoked", "key_validated",
    ]  # fmt: skip
    expected = {NUL: "a\\x00b", HALF: "a\\ud800b", LONG: LONG[:128]}[value]
    assert {event["actor"] for event in log} == {expected}
    assert {event["request_id"] for event in log} == {expected[:64]}


async def test_a_library_users_text(api):
    """The same text given to the library is refused as over HTTP."""
    manager = api.deployment.manager
    await manager.create_key("k")
    for value in HOSTILE.values():
        for call in (
            manager.create_key(owner=value),
            manager.create_key(value),
            manager.create_key(prefix=value),
            manager.update_key("k", environment=value),
            manager.revoke_key("k", value),
            manager.find_keys(owner=value),
            manager.find_keys(cursor=value),
            manager.find_audit(action=value),
            manager.get_key(value),
        ):
            with pytest.raises(ValidationError):
                await call
    await intact(api)


async def test_secrets_of_any_text(api):
    """A secret may be any text, as it never stands in a text column."""
    key = await api.deployment.manager.create_key("k", "geheim\0\U0001f511")
    assert (await api("POST", "/v1/validate", signed(key))).json()["valid"]
    await eventually(lambda: api.deployment.problems() == [])
