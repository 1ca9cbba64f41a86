"""The schema: what migrations make, and what is no database of ours."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from api_key_manager import open_manager
from api_key_manager.connections import metadata
from api_key_manager.connections.tables import NO_VALIDATION
from api_key_manager.core import ConfigurationError, sign
from api_key_manager.storage import upgrade
from api_key_manager.storage.migrations import config
from api_key_manager.storage.schema import HEAD, KNOWN, current
from tests.integration.places import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_migrated_schema_is_the_tables(place):
    """Nothing is missing from, added to, or typed otherwise than in `connections.tables`."""
    assert upgrade(place.file)
    engine = create_engine(f"sqlite:///{place.file}", poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        indexes = {
            index["name"]
            for table in metadata.tables
            for index in engine.dialect.get_indexes(connection, table)
        }
    assert indexes == {index.name for t in metadata.tables.values() for index in t.indexes}


def test_migrated_constraints_are_the_tables(tmp_path):
    """Primary keys, NOT NULL, foreign keys and WITHOUT ROWID are what the tables say, too."""

    def shape(path: Path) -> dict[str, tuple[object, ...]]:
        with closing(sqlite3.connect(path)) as connection:
            return {
                name: (
                    connection.execute(f"PRAGMA table_info({name})").fetchall(),
                    connection.execute(f"PRAGMA foreign_key_list({name})").fetchall(),
                    connection.execute(
                        "SELECT wr FROM pragma_table_list WHERE name = ?", (name,)
                    ).fetchall(),
                    connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,))
                    .fetchone()[0]
                    .count("AUTOINCREMENT"),
                )
                for name in metadata.tables
            }

    upgrade(tmp_path / "migrated.db")
    engine = create_engine(f"sqlite:///{tmp_path}/declared.db", poolclass=NullPool)
    metadata.create_all(engine)
    assert shape(tmp_path / "migrated.db") == shape(tmp_path / "declared.db")


def test_known_versions_are_the_scripts():
    """`KNOWN`, which is read without Alembic, lists the scripts on disk, oldest first."""
    scripts = ScriptDirectory.from_config(config())
    walked = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(walked)) == KNOWN
    assert scripts.get_heads() == [HEAD]


def test_second_upgrade_does_nothing(place):
    """Upgrading what is new enough changes no byte and keeps the origin."""
    assert upgrade(place.file)
    before = place.file.read_bytes()
    assert not upgrade(place.file)
    assert place.file.read_bytes() == before


def test_new_file_is_private(place):
    """A new database and its folder can be read by their owner only."""
    upgrade(place.file)
    assert place.file.stat().st_mode & 0o777 == 0o600
    assert place.file.parent.stat().st_mode & 0o777 == 0o700


async def test_newer_database_is_refused(place):
    """A newer schema is named, with what to do, by library and command line; nothing changes."""
    upgrade(place.file)
    place.sql("UPDATE alembic_version SET version_num = '9999'")
    place.sql("UPDATE deployment SET least_schema = '9998'")
    before = place.file.read_bytes()
    with pytest.raises(ConfigurationError, match=r"newer version \(schema 9999, this one knows"):
        async with open_manager(place.settings()):
            pass
    for asked in (["db", "upgrade"], ["keys", "list"], ["doctor"]):
        done = place.akm(*asked)
        assert done.returncode == (1 if asked == ["doctor"] else 2)
        assert "made by a newer version (schema 9999" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert place.file.read_bytes() == before


async def test_newer_schema_that_lets_this_version_go_on(place):
    """While nodes are upgraded one by one, an old one starts and serves on the new schema, which it
    leaves as it is: what it does not know is nullable or has a default."""
    async with place.open() as deployment:
        key = await deployment.manager.create_key("k", environment="here")
    place.sql("ALTER TABLE keys ADD COLUMN made_up TEXT")
    place.sql("ALTER TABLE audit_events ADD COLUMN made_up TEXT DEFAULT 'x' NOT NULL")
    place.sql("UPDATE alembic_version SET version_num = '9999'")
    for least in KNOWN:
        place.sql(f"UPDATE deployment SET least_schema = '{least}'")
        assert current(place.file) == "9999"
        assert not upgrade(place.file)
        async with place.open(create=False) as deployment:
            manager = deployment.manager
            assert await manager.verify("k", sign(key["secret"], "k"))
            await manager.update_key("k", metadata={"least": least})
            await manager.create_key(f"k-{least}")
    assert place.sql("SELECT version_num FROM alembic_version") == [("9999",)]
    done = place.akm("db", "upgrade")
    assert done.returncode == 0
    assert "newer schema 9999" in done.stdout + done.stderr
    assert "schema 9999" in place.akm("doctor").stdout


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE deployment SET least_schema = ''",
        "UPDATE deployment SET least_schema = '00011'",
        "DELETE FROM deployment",
        "DROP TABLE deployment",
        "ALTER TABLE deployment DROP COLUMN least_schema",
    ],
)
def test_newer_schema_that_says_nothing_is_refused(place, damage):
    """Without a word that this version may go on, it does not."""
    upgrade(place.file)
    place.sql("UPDATE alembic_version SET version_num = '9999'")
    place.sql(damage)
    with pytest.raises(ConfigurationError, match="made by a newer version"):
        current(place.file)


def test_first_schema_is_migrated(place):
    """A database of schema 0001 keeps what it holds. Code of 0001 may not go on: it would write
    events that the log refuses."""
    place.file.parent.mkdir()
    engine = create_engine(f"sqlite:///{place.file}", poolclass=NullPool)
    with engine.begin() as connection:
        command.upgrade(config(connection), "0001")
    place.sql("INSERT INTO audit_events (at, action, count) VALUES (1, 'seen', 1)")
    place.sql("INSERT INTO audit_events (id, at, action, count) VALUES (7, 2, 'seen', 1)")
    assert upgrade(place.file)
    assert place.sql("SELECT at, action, count, environment FROM audit_events") == [
        (1, "seen", 1, None),
        (2, "seen", 1, None),
    ]
    assert place.sql("SELECT written, legacy_to FROM audit_head") == [(7, 7)]
    assert place.sql("SELECT least_schema FROM deployment") == [("0003",)]


def test_second_schema_gets_webhooks(place):
    """A database of schema 0002 has a cursor afterwards, and an index for what is to be sent."""
    place.file.parent.mkdir()
    engine = create_engine(f"sqlite:///{place.file}", poolclass=NullPool)
    with engine.begin() as connection:
        command.upgrade(config(connection), "0002")
    assert upgrade(place.file)
    assert place.sql("SELECT id, position FROM webhook_cursor") == [(1, 0)]
    wanted = f"SELECT id FROM audit_events WHERE id > 0 AND {NO_VALIDATION} ORDER BY id"
    assert "ix_audit_changes" in str(place.sql(f"EXPLAIN QUERY PLAN {wanted}"))


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")


def _foreign_with_alembic(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")


@pytest.mark.parametrize(
    "make",
    [
        _foreign,
        _foreign_with_alembic,
        lambda path: path.write_text("key_id,secret\n" * 300),
        lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(4000)),
        Path.mkdir,
    ],
    ids=["foreign", "foreign-alembic", "text", "damaged", "folder"],
)
async def test_what_is_no_database_of_ours_is_refused(place, make):
    """A file of something else stops the start with its path, and is left exactly as it was."""
    place.file.parent.mkdir()
    make(place.file)
    before = place.file.read_bytes() if place.file.is_file() else None
    with pytest.raises(ConfigurationError, match=str(place.file)):
        async with open_manager(place.settings()):
            pass
    assert before == (place.file.read_bytes() if place.file.is_file() else None)
    assert not place.key_file.exists()


async def test_half_made_file_is_finished(place):
    """An empty file, left by a start that was cut off, becomes a database."""
    place.file.parent.mkdir()
    place.file.touch()
    assert current(place.file) is None
    async with place.open() as deployment:
        await deployment.manager.create_key("k")


@pytest.mark.parametrize("round_", range(2))
async def test_several_make_the_same_new_database_at_once(place, round_):
    """Four first starts at once agree on schema, origin, keyring and master key; all work."""
    names = ["a", "b", "c", "d"]
    with ExitStack() as stack:
        children = [stack.enter_context(place.child("found", name)) for name in names]
        for child in children:
            assert child.hear() == "ready"
        for child in children:
            child.tell("go")
        tokens = [child.done()[0].split() for child in children]
    assert place.sql("SELECT count(*), count(DISTINCT origin), max(revision) FROM deployment") == [
        (1, 1, 8)
    ]
    assert place.sql("SELECT kind, number FROM keyring ORDER BY kind") == [
        ("audit-mac", 1), ("audit-sign", 1), ("data", 1), ("pepper", 1), ("record-mac", 1)
    ]  # fmt: skip
    assert place.sql("SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert [path.name for path in place.key_file.parent.iterdir()] == [place.key_file.name]
    async with place.open(create=False) as deployment:
        for name, (token, secret) in zip(names, tokens, strict=True):
            assert await deployment.manager.verify(token=token)
            assert await deployment.manager.verify(f"{name}-signed", sign(secret, f"{name}-signed"))
