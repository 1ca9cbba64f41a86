"""What PostgreSQL does for the queries that must stay quick however many keys there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.dialects.postgresql import asyncpg as dialects

from api_key_manager.connections import Script
from api_key_manager.core.models import AuditQuery, KeyQuery
from api_key_manager.core.ports import Changed
from api_key_manager.storage import events, feed, scripts
from tests.integration.postgres_nodes import Shared
from tests.services import Postgres

KEYS = 60_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Shared]:
    """A database with many keys."""
    place = Shared(tmp_path_factory.mktemp("many"), postgres)
    columns = ", ".join(
        f"'{value}'::text AS {name}"
        for name, value in (("kind", "signed"), ("realm", "api"), ("prefix", "akm"))
    )
    place.sql(
        "INSERT INTO keys (key_id, kind, created_at, updated_at, realm, prefix, owner, environment,"
        " metadata_json, permissions, ip_allowlist, rate_limits, min_scheme, disabled, expired,"
        " revoked, revision, mac)"
        " SELECT 'key-' || lpad(n::text, 8, '0'), kind, n, n, realm, prefix, 'owner-' || n % 50,"
        " 'env-' || n % 3, '{}', '[]', '[]', '[]', 'static', false, false, n % 5 = 0, n, ''"
        f" FROM generate_series(1, {KEYS}) n, (SELECT {columns}) constant"
    )
    place.sql(
        "INSERT INTO key_versions (key_id, version, created_at, ended)"
        " SELECT key_id, 1, created_at, false FROM keys"
    )
    place.sql("INSERT INTO key_uses SELECT key_id, 1, NULL FROM keys")
    place.sql("INSERT INTO changes SELECT revision, key_id, updated_at FROM keys")
    place.sql(
        "INSERT INTO audit_events (at, action, key_id, count)"
        " SELECT created_at, 'key_created', key_id, 1 FROM keys"
    )
    place.sql(f"UPDATE deployment SET revision = {KEYS}")
    for table in ("keys", "key_versions", "key_uses", "changes", "audit_events"):
        place.sql(f"ANALYZE {table}")
    yield place
    place.drop()


def plan(shared: Shared, script: Script[Any]) -> dict[str, Any]:
    """The plan of a script's first statement, run for real."""
    step: Any = next(script)
    sql, values = step.statement.bind(dialects.dialect(), step.values)  # type: ignore[no-untyped-call]  # SQLAlchemy's
    found = shared.sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *values)[0][0]
    root: dict[str, Any] = json.loads(found)[0]["Plan"]
    return root


def nodes(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield root
    for child in root.get("Plans", []):
        yield from nodes(child)


_SORTS = ("Sort", "Incremental Sort")


def looks_up(root: dict[str, Any], *, rows: int, sorts: bool = False) -> None:
    """Nothing but indexes are read, nothing is sorted unless what was found may be, and no more
    rows than needed are touched."""
    for node in nodes(root):
        assert node["Node Type"] not in ("Seq Scan", "Hash"), node
        assert sorts or node["Node Type"] not in _SORTS, node
        touched = node["Actual Rows"] * node["Actual Loops"]
        removed = node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
        assert touched + removed <= rows, node


def test_a_key_is_one_look_up(shared):
    """What a cold validation reads is found by indexes alone: one row of each table."""
    looks_up(plan(shared, scripts.load_many(["key-00030000"])), rows=2, sorts=True)
    wanted = [f"key-{n:08}" for n in range(1, KEYS, KEYS // 64)][:64]
    looks_up(plan(shared, scripts.load_many(wanted)), rows=200, sorts=True)


AT = {"first": None, "middle": f"key-{KEYS // 2:08}", "last": f"key-{KEYS - 150:08}"}


@pytest.mark.parametrize("after", AT.values(), ids=AT)
@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({}, 110), ({"kind": "signed"}, 110), ({"state": "active"}, 140), ({"prefix": "akm"}, 110),
        ({"environment": "env-1"}, 320), ({"created_before": KEYS}, 110),
    ],
    ids=lambda value: "-".join(value) or "all" if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_page_costs_the_same_at_any_depth(shared, filters, rows, after):
    """A page of keys is read along an index from where the one before ended, without a sort: what
    is touched depends on the page, not on how many keys come before it or are there."""
    query = KeyQuery(realm="api", now=10**15, after=after, limit=100, **filters)
    looks_up(plan(shared, scripts.find(query)), rows=rows)


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("key_id", [None, "key-00000500"])
def test_a_page_of_the_log(shared, key_id, ascending):
    """So is a page of the audit log, of all keys and of one."""
    for after in (None, KEYS // 2):
        query = AuditQuery(key_id=key_id, after=after, limit=100, ascending=ascending)
        looks_up(plan(shared, events.find_audit(query)), rows=101)


def test_what_is_read_all_the_time(shared):
    """The feed, and the sweeper's question what has ended, cost what they find."""
    for node in nodes(plan(shared, feed.read(None, 10))):
        assert node["Actual Rows"] * node["Actual Loops"] <= 10
    looks_up(plan(shared, scripts.ending(10**15, 100)), rows=1)
    script = feed.read(Changed(KEYS - 5, "", 0), 10_001)
    for node in nodes(plan(shared, script)):
        assert node["Actual Rows"] * node["Actual Loops"] <= 6
        if node["Node Type"] == "Seq Scan":
            assert node["Relation Name"] == "deployment"  # of one row
