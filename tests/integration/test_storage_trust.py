"""A database whose editor cannot grant himself anything: edited rows are refused and reported."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.connections.tables import key_uses, key_versions, keys, metadata
from api_key_manager.core import KeyManager, Reason, StorageError, sign
from tests.integration.places import Place, signed

# The sweeper's hint only; how a leaked secret is found, which doctor looks at; and who may write
# last uses may lie about them. See connections.tables.
UNCOVERED = {
    "keys": {"next_end_at"},
    "key_versions": {"mark"},
    "key_uses": {column.name for column in key_uses.columns},
}
VANISHES = {("keys", "key_id"), ("keys", "deleted_at")}
YEAR = 365 * 86_400
EDITS = ["'x'", "x'00ff'", "7", "1e999", "NULL", "CAST(x'ff' AS TEXT)"]


def columns() -> list[tuple[str, str]]:
    return [
        (table.name, column.name)
        for table in (keys, key_versions)
        for column in table.columns
        if column.name not in UNCOVERED.get(table.name, ())
    ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Victims:
    """A signed key with three versions, one of them ended, and a bearer key; every field set."""

    def __init__(self, manager: KeyManager) -> None:
        self.manager = manager
        self.made: dict[str, dict[str, Any]] = {}

    async def make(self) -> None:
        manager, end = self.manager, self.manager.clock() + YEAR
        fields: dict[str, Any] = {
            "metadata": {"team": "a"}, "permissions": ["documents.read"], "owner": "o",
            "ip_allowlist": ["10.0.0.0/8"], "environment": "e", "expires_at": end,
        }  # fmt: skip
        await manager.create_key("s", min_scheme="timestamped", **fields)
        await manager.rotate_key("s")
        await manager.rotate_key("s", 3600)
        self.made["s"] = await manager.rotate_key("s", 3600)
        self.made["b"] = await manager.create_key("b", kind="bearer", **fields)
        for key_id in self.made:
            await manager.revoke_key(key_id, "later", end)
        self.made["other"] = await manager.create_key("other")

    async def ask(self, key_id: str, **more: Any) -> Reason:
        key, more = self.made[key_id], {"ip": "10.1.2.3", **more}
        if "token" in key:
            return (await self.manager.verify(token=key["token"], **more)).reason
        return (await self.manager.verify(**signed(self.manager, key), **more)).reason


@pytest.mark.parametrize("key_id", ["s", "b"])
@pytest.mark.parametrize(("table", "column"), columns())
async def test_edited_column(place, caplog, table, column, key_id):
    """Whatever is put into any column of a key or of a live version, the key is refused by a
    running manager and by the next one; the log says so; the right value makes it whole again."""
    allowed = {Reason.NOT_FOUND} if (table, column) in VANISHES else {Reason.UNAVAILABLE}
    where = "key_id = ?" if table == "keys" else "key_id = ? AND NOT ended"
    edits = 0

    def edit(value: str) -> bool:
        """Edit, unless the column refuses the value or has it already."""
        with closing(sqlite3.connect(place.file, timeout=30)) as connection, connection:
            same = f"{column} IS {value}"
            limit = f"rowid = (SELECT rowid FROM {table} WHERE {where} LIMIT 1)"
            done = connection.execute(
                f"UPDATE {table} SET {column} = {value} WHERE {limit} AND NOT {same}", (key_id,)
            )
            return bool(done.rowcount)

    async with place.open(CACHE_TTL_SECONDS=0) as running:
        victims = Victims(running.manager)
        await victims.make()
        assert await victims.ask(key_id) is Reason.VALID
        for value in EDITS:
            with closing(sqlite3.connect(place.file)) as connection:
                rows = {
                    t: connection.execute(f"SELECT rowid, * FROM {t}").fetchall()
                    for t in ("keys", "key_versions")
                }
            caplog.clear()
            try:
                if not edit(value):
                    continue
            except sqlite3.IntegrityError:
                continue
            edits += 1
            if "CAST" in value:  # text that is none: the driver refuses the row
                allowed |= {Reason.UNAVAILABLE}
            assert await victims.ask(key_id) in allowed, value
            if Reason.UNAVAILABLE in allowed and "CAST" not in value:
                assert [r for r in caplog.records if r.levelno == logging.ERROR], value
                assert f"key {key_id} was edited" in caplog.text
            if edits == 1:
                async with place.open(create=False) as restarted:
                    again = Victims(restarted.manager)
                    again.made = victims.made
                    assert await again.ask(key_id) in allowed, value
            with closing(sqlite3.connect(place.file, timeout=30)) as connection, connection:
                for name, whole in rows.items():
                    connection.execute(f"DELETE FROM {name}")
                    names = ["rowid", *(c.name for c in metadata.tables[name].columns)]
                    marks = ", ".join("?" * len(names))
                    connection.executemany(
                        f"INSERT INTO {name} ({', '.join(names)}) VALUES ({marks})", whole
                    )
            assert await victims.ask(key_id) is Reason.VALID
        assert edits >= 2


@pytest.mark.parametrize("column", [("keys", "next_end_at"), ("key_uses", "last_used_at")])
async def test_columns_that_carry_no_trust(place, column):
    """The two documented exceptions decide nothing: with them edited, every end still ends."""
    table, name = column
    async with place.open(CACHE_TTL_SECONDS=0) as deployment:
        manager = deployment.manager
        key = await manager.create_key("k", expires_at=manager.clock() + 1000)
        assert await manager.verify(**signed(manager, key))
        await manager.recorder.flush(manager.clock(), uses=True)
        for value in ("NULL", "9999999999999999", "0"):
            with contextlib.suppress(sqlite3.IntegrityError):
                place.sql(f"UPDATE {table} SET {name} = {value} WHERE key_id = 'k'")
            assert await manager.verify(**signed(manager, key))
            await manager.sweep()
        later = manager.clock() + 1001
        manager.clock = lambda: later
        assert (await manager.verify(**signed(manager, key))).reason is Reason.EXPIRED


GRANTS = {
    "unrevoke": ("gone", "UPDATE keys SET revoked = 0, revoked_at = NULL WHERE key_id = 'gone'"),
    "enable": ("off", "UPDATE keys SET disabled = 0 WHERE key_id = 'off'"),
    "allow": ("far", "UPDATE keys SET ip_allowlist = '[]' WHERE key_id = 'far'"),
    "permit": ("poor", "UPDATE keys SET permissions = '[\"*\"]' WHERE key_id = 'poor'"),
    "weaken": ("strict", "UPDATE keys SET min_scheme = 'static' WHERE key_id = 'strict'"),
    "unend": ("old", "UPDATE key_versions SET ended = 0, ends_at = NULL WHERE key_id = 'old'"),
    "undelete": ("erased", "UPDATE keys SET deleted_at = NULL WHERE key_id = 'erased'"),
    "swap-mac": (
        "poor",
        (
            "UPDATE keys SET permissions = '[\"*\"]',"
            " mac = (SELECT mac FROM keys WHERE key_id = 'rich') WHERE key_id = 'poor'"
        ),
    ),
    "become-admin": ("token", "UPDATE keys SET realm = 'admin' WHERE key_id = 'token'"),
}


async def ask_for_grants(manager: KeyManager, made: dict[str, Any], key_id: str) -> Reason:
    key = made[key_id]
    if key_id == "token":
        return (await manager.verify(token=key["token"], realm="admin")).reason
    arguments = signed(manager, key)
    if key_id == "strict":
        arguments = {"key_id": key_id, "signature": sign(key["secret"], key_id)}
    return (await manager.verify(**arguments, ip="192.0.2.1", permissions="documents.write")).reason


async def make_for_grants(manager: KeyManager) -> dict[str, Any]:
    rich = {"permissions": ["*"]}
    made = {name: await manager.create_key(name, **rich) for name in ("gone", "erased", "rich")}
    await manager.revoke_key("gone")
    await manager.delete_key("erased")
    made["off"] = await manager.create_key("off", disabled=True, **rich)
    made["far"] = await manager.create_key("far", ip_allowlist=["10.0.0.0/8"], **rich)
    made["poor"] = await manager.create_key("poor", permissions=["documents.read"])
    made["strict"] = await manager.create_key("strict", min_scheme="timestamped", **rich)
    made["old"] = await manager.create_key("old", **rich)
    await manager.rotate_key("old")
    made["token"] = await manager.create_key("token", kind="bearer", permissions=["admin"])
    return made


@pytest.mark.parametrize("grant", GRANTS)
async def test_nobody_grants_himself_anything(place, grant):
    """A grant written into the file is believed by no warm manager and by none after it."""
    key_id, edit = GRANTS[grant]
    async with place.open() as warm:
        made = await make_for_grants(warm.manager)
        before = await ask_for_grants(warm.manager, made, key_id)
        assert before not in (Reason.VALID, Reason.UNAVAILABLE)
        for name in set(made) - {"gone", "erased", "token"}:
            await ask_for_grants(warm.manager, made, name)
        place.sql(edit)
        seen = {await ask_for_grants(warm.manager, made, key_id)}
        warm.manager.cache.map.clear()
        seen.add(await ask_for_grants(warm.manager, made, key_id))
    async with place.open() as after:
        last = await ask_for_grants(after.manager, made, key_id)
    assert seen <= {before, Reason.UNAVAILABLE}
    assert last is Reason.UNAVAILABLE


@pytest.mark.parametrize("grant", ["enable", "allow", "permit", "weaken", "unend"])
@pytest.mark.parametrize("how", ["update", "rotate", "sweep", "revoke later", "revoke all"])
async def test_no_change_launders_an_edit(place, grant, how):
    """A change made by the owner, or by the sweeper, never seals what somebody else wrote."""
    key_id, edit = GRANTS[grant]
    async with place.open() as deployment:
        manager = deployment.manager
        made = await make_for_grants(manager)
        place.sql(edit)
        if how == "sweep":
            # A version that has ended, and the hint that has the sweeper write it down.
            place.sql(
                "INSERT INTO key_versions SELECT key_id, 9, created_at, 5, 0, sealed, digest,"
                " pepper, mark, leaked_at FROM key_versions WHERE key_id = ? LIMIT 1", key_id,
            )  # fmt: skip
            place.sql("UPDATE keys SET next_end_at = 5 WHERE key_id = ?", key_id)
            await manager.sweep()
        elif how == "revoke all":
            done = await manager.revoke_keys(created_before=manager.clock() + 1)
            assert done["matched"] == done["revoked"] + 1
            for other in set(made) - {key_id, "erased"}:
                assert await ask_for_grants(manager, made, other) is not Reason.VALID
        else:
            calls = {
                "update": lambda: manager.update_key(key_id, owner="me"),
                "rotate": lambda: manager.rotate_key(key_id, 3600),
                "revoke later": lambda: manager.revoke_key(key_id, at=manager.clock() + 1000),
            }
            with pytest.raises(StorageError, match=f"key {key_id} was edited"):
                await calls[how]()
        manager.cache.map.clear()
        assert await ask_for_grants(manager, made, key_id) is Reason.UNAVAILABLE
        with pytest.raises(StorageError, match=f"key {key_id} was edited"):
            await manager.get_key(key_id)
        # The way out.
        assert await manager.delete_key(key_id)
        assert await ask_for_grants(manager, made, key_id) is Reason.NOT_FOUND


async def test_rows_swapped_between_keys(place):
    """Two keys whose rows, or whose versions, trade places are both refused."""
    swaps = [
        "UPDATE keys SET key_id = CASE key_id WHEN 'a' THEN 'b' ELSE 'a' END",
        "UPDATE key_versions SET key_id = CASE key_id WHEN 'a' THEN 'b' ELSE 'a' END",
    ]
    async with place.open(CACHE_TTL_SECONDS=0) as deployment:
        manager = deployment.manager
        made = [await manager.create_key(name) for name in ("a", "b")]
        for swap in swaps:
            # By way of a third name, since ids are unique.
            table = swap.split()[1]
            for old, new in (("a", "tmp"), ("b", "a"), ("tmp", "b")):
                place.sql(f"UPDATE {table} SET key_id = ? WHERE key_id = ?", new, old)
            for key in made:
                reason = (await manager.verify(**signed(manager, key))).reason
                assert reason is Reason.UNAVAILABLE
            for old, new in (("a", "tmp"), ("b", "a"), ("tmp", "b")):
                place.sql(f"UPDATE {table} SET key_id = ? WHERE key_id = ?", new, old)
            for key in made:
                assert await manager.verify(**signed(manager, key))


async def test_missing_and_added_versions(place):
    """A key one of whose live versions was taken out, doubled or added is refused whole."""
    async with place.open(CACHE_TTL_SECONDS=0) as deployment:
        manager = deployment.manager
        first = await manager.create_key("k")
        second = await manager.rotate_key("k", 3600)
        other = await manager.create_key("other")
        assert await manager.verify(**signed(manager, first))
        place.sql("CREATE TABLE kept AS SELECT * FROM key_versions")
        for edit in (
            "DELETE FROM key_versions WHERE key_id = 'k' AND version = 1",
            "DELETE FROM key_versions WHERE key_id = 'k' AND version = 2",
            "DELETE FROM key_versions WHERE key_id = 'k'",
            (
                "INSERT INTO key_versions SELECT 'k', 3, created_at, NULL, 0, sealed, NULL, NULL,"
                " mark, NULL FROM key_versions WHERE key_id = 'other'"
            ),
            (
                "INSERT INTO key_versions SELECT 'k', 3, created_at, NULL, 0, sealed, NULL, NULL,"
                " mark, NULL FROM key_versions WHERE key_id = 'k' AND version = 1"
            ),
        ):
            place.sql(edit)
            for key in (first, second):
                reason = (await manager.verify(**signed(manager, key))).reason
                assert reason is Reason.UNAVAILABLE, edit
            assert await manager.verify(**signed(manager, other))
            place.sql("DELETE FROM key_versions")
            place.sql("INSERT INTO key_versions SELECT * FROM kept")


@pytest.mark.parametrize("shared", [False, True], ids=["own master keys", "one master key"])
async def test_row_of_another_database(tmp_path, shared):
    """A key made where somebody is in charge does not work where he is not, not even when both
    databases are opened by one master key."""
    mine, theirs = Place(tmp_path / "mine"), Place(tmp_path / "theirs")
    made = {}
    if shared:
        theirs.key_file = mine.key_file
    async with mine.open() as deployment:
        await deployment.manager.create_key("own")
    async with theirs.open() as deployment:
        made["s"] = await deployment.manager.create_key("s", permissions=["*"])
        made["b"] = await deployment.manager.create_key("b", kind="bearer")
    with closing(sqlite3.connect(mine.file)) as connection, connection:
        connection.execute("ATTACH ? AS theirs", (str(theirs.file),))
        for table in ("keys", "key_versions"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM theirs.{table}")
    async with mine.open() as deployment:
        manager = deployment.manager
        reasons = {
            (await manager.verify(**signed(manager, made["s"]))).reason,
            (await manager.verify(token=made["b"]["token"])).reason,
        }
        assert reasons <= {Reason.UNAVAILABLE, Reason.BAD_SIGNATURE}
        assert not shared or Reason.UNAVAILABLE in reasons


async def test_listings_do_not_show_an_edited_row_as_if_it_were_true(place, caplog):
    """A list leaves out what was edited, says so in the log, and shows the rest."""
    async with place.open() as deployment:
        manager = deployment.manager
        await manager.create_key("good")
        await manager.create_key("bad")
        place.sql("UPDATE keys SET owner = 'mallory' WHERE key_id = 'bad'")
        page = await manager.find_keys()
        assert [key["key_id"] for key in page["items"]] == ["good"]
        assert [key["key_id"] for key in manager.list_keys()] == ["good"]
        assert "key bad was edited" in caplog.text
