"""Backups of either kind of database, restored into either kind."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.audit.checkpoint import read_text
from api_key_manager.core import ConfigurationError, Reason, StorageError
from api_key_manager.core.ports import Changed
from api_key_manager.encryption import DATA
from api_key_manager.storage import SqliteDriver, feed
from api_key_manager.storage.copies import TABLES
from api_key_manager.wiring import Restore, Restored, backup, restore
from tests.integration.audit_logs import findings, sealed
from tests.integration.old_schemas import second_schema
from tests.integration.places import Place, signed
from tests.integration.postgres_nodes import MASTER, Shared, eventually, warm
from tests.services import Postgres

KINDS = ("sqlite", "postgresql")
NONCE = "abcdefghijklmnop"
# More by hand: AKM_TEST_KILLS=100.
KILLS = int(os.environ.get("AKM_TEST_KILLS", "6"))

Make = Callable[[str], Place]


class One(Place):
    """A SQLite file, under the master key of all places here."""

    def settings(self, **overrides: Any) -> Any:
        return super().settings(**{"AKM_MASTER_KEY": MASTER, **overrides})

    def environment(self, **more: str) -> dict[str, str]:
        mine = {**super().environment(), "AKM_MASTER_KEY": MASTER}
        del mine["AKM_MASTER_KEY_FILE"]
        return {**mine, **more}


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes places of a kind; those of PostgreSQL have no tables yet."""
    made: list[Shared] = []

    def one(kind: str) -> Place:
        folder = tmp_path / secrets.token_hex(4)
        folder.mkdir()
        if kind == "sqlite":
            return One(folder)
        server: Postgres = request.getfixturevalue("postgres")
        made.append(Shared(folder, server, template="template1"))
        return made[-1]

    yield one
    for place in made:
        place.drop()


def url(place: Place) -> str:
    return place.url if isinstance(place, Shared) else f"sqlite:///{place.file}"


async def restored(
    place: Place, source: Path, *, accept: bool = True, sink: Path | None = None, **wanted: Any
) -> Restored:
    settings = place.settings(**({} if sink is None else {"AUDIT_SINK": str(sink)}))
    return await restore(settings, Restore(source, lambda lost: accept, **wanted))


async def backed_up(place: Place, **settings: Any) -> Path:
    target = place.folder / f"{secrets.token_hex(4)}.db"
    await backup(place.settings(**settings), target)
    return target


def rows(place: Place) -> dict[str, list[tuple[Any, ...]]]:
    """All that is copied, but for what a restore changes."""
    found = {}
    for table in TABLES:
        if table.name not in ("deployment", "audit_head", "audit_origins", "audit_batches"):
            names = ", ".join(f'"{column.name}"' for column in table.columns)
            order = ", ".join(f'"{column.name}"' for column in table.primary_key)
            found[table.name] = [
                tuple(int(value) if isinstance(value, bool) else value for value in row)
                for row in place.sql(f"SELECT {names} FROM {table.name} ORDER BY {order}")
            ]
    return found


class Filled:
    """Keys of every kind, and what was done with them."""

    async def fill(self, place: Place, **settings: Any) -> None:
        async with place.open(background=False, **settings) as deployment:
            manager = self.manager = deployment.manager
            self.live = await manager.create_key("live", owner="acme", permissions=["a.b"])
            self.bearer = await manager.create_key("bearer", kind="bearer")
            await manager.create_key("root", kind="bearer", realm="admin", permissions=["admin"])
            await manager.create_key("rotated")
            self.rotated = await manager.rotate_key("rotated")
            self.revoked = await manager.create_key("revoked")
            await manager.revoke_key("revoked")
            await manager.create_key("deleted")
            await manager.delete_key("deleted")
            self.used = signed(manager, self.live, NONCE)
            assert await manager.verify(**self.used)
            await deployment.idempotency.begin("scope", "once", b"print", 1)
            await sealed(deployment)


async def judged(place: Place, key: dict[str, Any]) -> Reason:
    async with place.open(create=False, background=False) as deployment:
        return (await deployment.manager.verify(**signed(deployment.manager, key))).reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("into", KINDS)
async def test_everything_comes_back(make, kind, into):
    """Of either kind into either kind: every row is what it was, keys work as they did, what was
    revoked stays so; but a nonce of before is not accepted again, no answer is repeated, and the
    log goes on under a new name that cites the last checkpoint."""
    there, place, filled = make(kind), make(into), Filled()
    await filled.fill(there)
    source = await backed_up(there)
    before = rows(there)
    ((origin, revision),) = there.sql("SELECT origin, revision FROM deployment")
    ((last,),) = there.sql("SELECT max(id) FROM audit_events")
    done = await restored(place, source)
    after = rows(place)
    assert len(after["audit_events"]) == len(before["audit_events"]) + 1
    assert [event[:-1] for event in after["audit_events"][:-1]] == [
        event[:-1] for event in before["audit_events"]
    ]
    assert after["audit_events"][-1][0] > last
    assert after["audit_events"][-1][2] == "database_restored"
    for name in before.keys() - {"audit_events"}:
        assert after[name] == before[name], name
    assert place.sql("SELECT origin FROM deployment") == [(origin,)]
    assert place.sql("SELECT revision FROM deployment")[0][0] > revision + 2**31
    for gone in ("nonces", "nonce_counts", "idempotency"):
        assert place.sql(f"SELECT count(*) FROM {gone}") == [(0,)]
    async with place.open(create=False) as deployment:
        manager = deployment.manager
        for key, reason in (
            (filled.live, Reason.VALID), (filled.rotated, Reason.VALID),
            (filled.revoked, Reason.REVOKED),
        ):  # fmt: skip
            assert (await manager.verify(**signed(manager, key))).reason is reason
        assert await manager.verify(token=filled.bearer["token"])
        assert (await manager.verify(**filled.used)).reason is Reason.UNAVAILABLE
        fresh = await manager.create_key()
        assert await manager.verify(**signed(manager, fresh))
        number = int(done.log.rpartition("/")[2])
        await manager.recorder.flush(manager.clock())
        await eventually(deployment.sealer.seal)
        assert deployment.sealer.state.origin == number
        assert await findings(deployment, first_log=number) == []
        (told,) = await findings(deployment)
        assert told.noted
        assert f"{origin}/1 with" in told.message


async def test_there_and_back_again(make):
    """A restored database is backed up and restored like any other, and its logs tell it all."""
    place, filled = make("sqlite"), Filled()
    await filled.fill(place)
    first = await restored(middle := make("postgresql"), await backed_up(place))
    second = await restored(end := make("sqlite"), await backed_up(middle))
    assert [words for words in second.noted if "started anew" in words]
    assert second.log != first.log
    assert await judged(end, filled.live) is Reason.VALID
    async with end.open(create=False, background=False) as deployment:
        assert all(finding.noted for finding in await findings(deployment))


async def test_names_of_logs_do_not_come_again(make):
    """One backup restored twice gives two logs of different names: never are there two checkpoints
    of one log that contradict each other."""
    place = make("sqlite")
    await Filled().fill(place)
    source = await backed_up(place)
    names = {(await restored(make("sqlite"), source)).log for _ in range(3)}
    assert len(names) == 3


class TestWhatIsLost:
    """A key that was closed after the backup never comes back without a word."""

    async def closed_later(self, place: Place, **settings: Any) -> tuple[Path, dict[str, Any]]:
        """A backup, and a database in which more has happened since."""
        filled = Filled()
        await filled.fill(place, **settings)
        source = await backed_up(place, **settings)
        async with place.open(create=False, background=False, **settings) as deployment:
            manager = deployment.manager
            await manager.revoke_key("live", "stolen")
            await manager.rotate_key("rotated")
            await manager.delete_key("bearer")
            await manager.revoke_key("root", realm="admin")
            await manager.create_key("later")
            await sealed(deployment)
            if deployment.sealer.courier is not None:
                await deployment.sealer.courier.bring()
        return source, filled.live

    CLOSED = (
        ("bearer", "deleted"), ("live", "revoked"), ("root", "revoked"), ("rotated", "rotated"),
    )  # fmt: skip

    @pytest.mark.parametrize("kind", KINDS)
    async def test_the_old_database_knows(self, make, kind):
        """It names every key; without consent nothing is restored; asked to, it closes them."""
        old, place = make(kind), make("sqlite")
        source, live = await self.closed_later(old)
        done = await restored(place, source, accept=False, against=url(old))
        assert done.database is None
        assert not place.file.exists()
        assert not list(place.file.parent.iterdir())
        assert [(c.key_id, c.how) for c in done.lost.closed] == list(self.CLOSED)
        assert done.lost.others == 1
        assert done.lost.nothing is None
        done = await restored(place, source, against=url(old), close_lost=True)
        assert done.closed == [key_id for key_id, _ in self.CLOSED]
        assert await judged(place, live) is Reason.REVOKED
        async with place.open(create=False, background=False) as deployment:
            number = int(done.log.rpartition("/")[2])
            assert await findings(deployment, first_log=number) == []
            states = {k["key_id"]: k["active"] for k in deployment.manager.list_keys(False)}
        assert states == {"live": False, "rotated": False, "revoked": False}

    async def test_an_export_knows(self, make, tmp_path):
        """So does an export of the log."""
        old, place = make("sqlite"), make("sqlite")
        source, live = await self.closed_later(old)
        export = tmp_path / "audit.jsonl"
        assert old.akm("audit", "export", "--output", str(export)).returncode == 0
        done = await restored(place, source, accept=False, audit=export)
        assert [(c.key_id, c.how) for c in done.lost.closed] == list(self.CLOSED)
        done = await restored(place, source, audit=export)
        assert await judged(place, live) is Reason.VALID
        told = json.loads(
            place.sql("SELECT detail FROM audit_events WHERE action = 'database_restored'")[0][0]
        )
        assert set(told["closed_since"]) == {key_id for key_id, _ in self.CLOSED}
        export.write_text("no event\n")
        with pytest.raises(ConfigurationError, match="line 1"):
            await restored(make("sqlite"), source, audit=export)

    async def test_the_sink_knows(self, make, tmp_path):
        """The sink shows how far the log had come: the new log cites that, its first process finds
        nothing wrong, and everything fits the sink from there on."""
        old, place, sink = make("sqlite"), make("sqlite"), tmp_path / "sink"
        source, _ = await self.closed_later(old, AUDIT_SINK=str(sink))
        done = await restored(place, source, accept=False, sink=sink)
        assert done.lost.newest[0] > done.lost.backup
        assert done.lost.nothing is None
        done = await restored(place, source, sink=sink)
        for _ in range(2):
            opened = place.open(create=False, background=False, AUDIT_SINK=str(sink))
            async with opened as deployment:
                await deployment.manager.create_key()
                await sealed(deployment)
                await deployment.sealer.courier.bring()
                assert done.log in sink.read_text()
                assert deployment.sealer.state.name == done.log
                assert deployment.sealer.trouble == []
                number = int(done.log.rpartition("/")[2])
                assert await findings(deployment, first_log=number) == []
                note = deployment.sealer._notary.previous(
                    await deployment.backend.log.batch_of(number, 0)
                )
                assert read_text(note) == read_text(done.lost.newest[1])

    async def test_a_checkpoint_knows(self, make, tmp_path):
        """So does one that somebody kept in a file."""
        old, place, sink = make("sqlite"), make("sqlite"), tmp_path / "sink"
        source, _ = await self.closed_later(old, AUDIT_SINK=str(sink))
        done = await restored(place, source, accept=False, checkpoints=[sink])
        assert done.lost.newest[0] > done.lost.backup

    async def test_nothing(self, make, tmp_path):
        """A backup of the newest state is known for one by the sink, and by the old database."""
        old, sink, asked = make("sqlite"), tmp_path / "sink", []
        await Filled().fill(old, AUDIT_SINK=str(sink))
        source = await backed_up(old)
        for known in ({"sink": sink}, {"against": url(old)}):
            lost = (await restored(make("sqlite"), source, **known)).lost
            assert lost.nothing is not None
        await restore(
            make("sqlite").settings(), Restore(source, lambda lost: bool(asked.append(lost)))
        )
        assert [lost.nothing for lost in asked] == [None]

    async def test_scheduled_and_disabled(self, make):
        """A revocation to come is planned again, and what was disabled is."""
        old, place = make("sqlite"), make("sqlite")
        async with old.open(background=False) as deployment:
            await deployment.manager.create_key("soon")
            await deployment.manager.create_key("off")
        source = await backed_up(old)
        async with old.open(background=False) as deployment:
            at = int(time.time()) + 3600
            await deployment.manager.revoke_key("soon", at=at)
            await deployment.manager.update_key("off", disabled=True)
        done = await restored(place, source, against=url(old), close_lost=True)
        assert [(c.key_id, c.how) for c in done.lost.closed] == [
            ("off", "disabled"), ("soon", "scheduled"),
        ]  # fmt: skip
        assert place.sql("SELECT disabled FROM keys WHERE key_id = 'off'") == [(1,)]
        assert place.sql("SELECT revoked, revoked_at FROM keys WHERE key_id = 'soon'") == [
            (0, at * 1_000_000)
        ]

    async def test_another_database(self, make):
        """Another database, or a file that is none, tells nothing."""
        old, other, place = make("sqlite"), make("sqlite"), make("sqlite")
        await Filled().fill(old)
        await Filled().fill(other)
        source = await backed_up(old)
        for against in (url(other), f"sqlite:///{old.folder}/nothing.db"):
            with pytest.raises(ConfigurationError):
                await restored(place, source, against=against)


class TestRefused:
    async def test_wrong_master_key(self, make):
        """Under another master key nothing is restored, and nothing left."""
        old, place = make("sqlite"), make("sqlite")
        await Filled().fill(old)
        source = await backed_up(old)
        wrong = place.settings(AKM_MASTER_KEY=base64.b64encode(bytes(32)).decode())
        with pytest.raises(ConfigurationError, match="wrapped under"):
            await restore(wrong, Restore(source, lambda lost: True))
        assert not list(place.file.parent.iterdir())

    @pytest.mark.parametrize(
        ("edit", "words"),
        {
            "permission": ("UPDATE keys SET permissions = '[\"*\"]' WHERE key_id = 'live'", "live"),
            "revived": ("UPDATE keys SET revoked = 0, revoked_at = NULL", "revoked"),
            "removed": ("DELETE FROM keys WHERE key_id = 'revoked'", "revoked was removed"),
            "event": ("DELETE FROM audit_events WHERE id = 5", "event was deleted"),
            "word": ("UPDATE audit_events SET actor = 'nobody' WHERE id = 5", "event was edited"),
            "leaves": ("DELETE FROM audit_batches WHERE first = 1", "leaves 1 to"),
            "end": ("UPDATE audit_head SET written = 3", "turned back"),
            "keyring": (
                "UPDATE keyring SET wrapped = zeroblob(60) WHERE kind = 'data'",
                "does not open",
            ),
            "deployment": ("UPDATE deployment SET revision = 'x'", "`deployment`"),
        }.values(),
    )
    async def test_edited_backup(self, make, edit, words):
        """Whatever was edited in a backup is found and said, and nothing restored."""
        old, place = make("sqlite"), make("sqlite")
        await Filled().fill(old)
        source = await backed_up(old)
        with closing(sqlite3.connect(source)) as connection, connection:
            connection.execute(edit)
        with pytest.raises((StorageError, ConfigurationError), match=words):
            await restored(place, source)
        assert not list(place.file.parent.iterdir())

    async def test_what_else_is_in_the_file(self, make):
        """Triggers, views and tables of somebody else's stay behind."""
        old, place = make("sqlite"), make("sqlite")
        await Filled().fill(old)
        source = await backed_up(old)
        with closing(sqlite3.connect(source)) as connection, connection:
            connection.execute("CREATE TABLE mine (x)")
            connection.execute("CREATE VIEW see AS SELECT 1")
            connection.execute("CREATE TRIGGER t AFTER INSERT ON keys BEGIN DELETE FROM keys; END")
        await restored(place, source)
        names = {name for (name,) in place.sql("SELECT name FROM sqlite_master")}
        assert not {"mine", "see", "t", "akm_backup"} & names

    async def test_cut_off(self, make):
        """A backup that ends anywhere too early is refused, as is a file of something else."""
        old, place, spread = make("sqlite"), make("sqlite"), random.Random(5)
        await Filled().fill(old)
        source = await backed_up(old)
        whole = source.read_bytes()
        for size in [0, 100, *(spread.randrange(len(whole)) for _ in range(6)), len(whole) - 1]:
            source.write_bytes(whole[:size])
            with pytest.raises((StorageError, ConfigurationError)):
                await restored(place, source)
            assert not place.file.exists()
        source.write_text("something else" * 1000)
        with pytest.raises(ConfigurationError):
            await restored(place, source)
        with pytest.raises(ConfigurationError, match="there is no file"):
            await restored(place, source.with_name("none.db"))

    async def test_a_database_in_use_is_no_backup(self, make):
        """What is still in its write-ahead log would be missing."""
        old = make("sqlite")
        async with old.open():
            with pytest.raises(ConfigurationError, match="in use"):
                await restored(make("sqlite"), old.file)

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_store_that_is_not_empty(self, make, kind):
        """It is named, and stays what it was."""
        old, place = make("sqlite"), make(kind)
        await Filled().fill(old)
        source = await backed_up(old)
        async with place.open(background=False):
            pass
        before = rows(place)
        with pytest.raises(ConfigurationError, match=r"akm\.db is there|akm_\d+ is not empty"):
            await restored(place, source)
        assert rows(place) == before

    @pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
    async def test_what_an_old_database_left(self, make, end):
        """An old write-ahead log is never taken for one of the restored file."""
        old, place = make("sqlite"), make("sqlite")
        await Filled().fill(old)
        source = await backed_up(old)
        place.file.parent.mkdir()
        place.file.with_name(place.file.name + end).write_bytes(b"")
        with pytest.raises(ConfigurationError, match=f"db{end} is there"):
            await restored(place, source)

    async def test_a_newer_schema(self, make):
        """A backup of a newer version is left to that one."""
        old = make("sqlite")
        await Filled().fill(old)
        source = await backed_up(old)
        with closing(sqlite3.connect(source)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(ConfigurationError, match="newer version"):
            await restored(make("sqlite"), source)


async def test_an_empty_database_of_ours_is_empty(make):
    """A PostgreSQL database that has the tables, and nothing in them, is restored into."""
    old, place, filled = make("sqlite"), make("postgresql"), Filled()
    await filled.fill(old)
    from api_key_manager.storage.postgres_schema import upgrade_at

    await upgrade_at(place.url)
    await restored(place, await backed_up(old))
    assert await judged(place, filled.live) is Reason.VALID


@pytest.mark.parametrize("into", KINDS)
async def test_an_old_backup(make, into):
    """A database of an older schema is brought up to date on the way; it stays as it was itself."""
    old, place = make("sqlite"), make(into)
    await second_schema(old, MASTER)
    old.sql("INSERT INTO audit_events (id, at, action, count) VALUES (7, 2, 'seen', 1)")
    before = old.file.read_bytes()
    done = await restored(place, old.file)
    assert done.made_at is None
    assert await judged(place, {"key_id": "s", "secret": "s" * 40}) is Reason.VALID
    assert old.file.read_bytes() == before
    async with place.open(create=False, background=False) as deployment:
        assert await findings(deployment, first_log=int(done.log.rpartition("/")[2])) == []


async def test_a_database_that_was_moved_away(make):
    """A whole SQLite file is as good as a backup: so it gets to PostgreSQL."""
    old, place, filled = make("sqlite"), make("postgresql"), Filled()
    await filled.fill(old)
    done = await restored(place, old.file)
    assert done.made_at is None
    assert await judged(place, filled.live) is Reason.VALID


async def test_a_running_node_notices(make):
    """A node that runs on while its database is replaced by a backup drops what it has cached, and
    the keys that the backup does not know: what it would seal under them nobody could open."""
    place, filled = make("postgresql"), Filled()
    await filled.fill(place)
    source = await backed_up(place)
    async with place.open(create=False) as node:
        await node.backend.keys.mint(DATA)
        await node.manager.update_key("live", permissions=["more"])
        later = await node.manager.create_key("later")
        await warm(node, filled.live, later)
        place.sql("DROP SCHEMA public CASCADE")
        place.sql("CREATE SCHEMA public")
        await restored(place, source)

        async def knows() -> bool:
            verdict = await node.manager.verify(**signed(node.manager, later))
            return verdict.reason is Reason.NOT_FOUND

        await eventually(knows)
        await eventually(lambda: node.backend.keys.keyring.numbers(DATA) == [1])
        assert (await node.manager.get_key("live"))["permissions"] == ["a.b"]
        fresh = await node.manager.create_key("fresh")
    assert await judged(place, fresh) is Reason.VALID


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_at_any_point(make, kind):
    """`kill -9` of a restore leaves an empty store or a whole one, and the next one works."""
    old, filled, spread = make("sqlite"), Filled(), random.Random(3)
    await filled.fill(old)
    async with old.open(background=False) as deployment:
        await asyncio.gather(*(deployment.manager.create_key(f"k{n}") for n in range(300)))
    source, cut_off, longest = await backed_up(old), 0, 3.0
    for _ in range(KILLS):
        place = make(kind)
        begun = time.monotonic()
        child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs here
            [sys.executable, "-m", "api_key_manager", "db", "restore", str(source),
             "--accept-lost-changes"],
            cwd=place.folder, env=place.environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            child.wait(spread.uniform(0.5, 1) * longest)
            longest = (time.monotonic() - begun) * 1.1
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        with suppress(ConfigurationError):
            await restored(place, source)
            cut_off += 1
        assert place.sql("SELECT count(*) FROM keys") == [(306,)]
        assert await judged(place, filled.live) is Reason.VALID
    assert cut_off


async def test_a_follower_notices_whatever_it_has_read(make):
    """What a restore leaves in the feed is told from any change, also by one who has read further,
    or nothing yet; and only once."""
    place = make("sqlite")
    for changes in (0, 3):
        async with place.open(background=False) as deployment:
            for _ in range(changes):
                await deployment.manager.create_key()
            driver = deployment.manager.store.driver
            last = (await driver.read(feed.read, None, 10)).changes
            after = last[-1] if last else Changed(0, "", 0)
            place.sql("UPDATE deployment SET revision = revision + 1000")
            place.sql("DELETE FROM changes")
            place.sql("INSERT INTO changes SELECT revision, '', 5 FROM deployment")
            reading = await driver.read(feed.read, after, 10)
            assert reading.lost
            assert not reading.complete
            (anew,) = (await driver.read(feed.read, None, 10)).changes
            assert anew.key_id == ""
            await deployment.manager.create_key()
            reading = await driver.read(feed.read, anew, 10)
            assert reading.complete
            assert not reading.lost
            assert len(reading.changes) == 1


class TestCommand:
    """``akm db backup`` and ``akm db restore`` as they are typed."""

    def typed(self, place: Place, *words: str, code: int = 0, **env: str) -> str:
        done = place.akm("db", *words, **env)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    @pytest.mark.parametrize("kind", KINDS)
    async def test_there_and_back(self, make, kind):
        """It backs up either kind, asks for consent, and says what works again."""
        old, place = make(kind), make("sqlite")
        source, _ = await TestWhatIsLost().closed_later(old)
        source = old.folder / "typed.db"
        assert str(source) in self.typed(old, "backup", str(source))
        assert source.stat().st_mode & 0o777 == 0o600
        async with old.open(create=False, background=False) as deployment:
            await deployment.manager.revoke_key("later")
        told = self.typed(place, "restore", str(source), code=1)
        assert "is not known: --against" in told
        assert "--accept-lost-changes" in told
        assert not place.file.exists()
        told = self.typed(place, "restore", str(source), "--against", url(old), "--dry-run")
        assert "later (revoked)" in told
        assert not place.file.exists()
        accepted = (str(source), "--against", url(old), "--accept-lost-changes")
        document = place.akm("db", "restore", *accepted, "--json")
        assert document.returncode == 0, document.stderr
        answer = json.loads(document.stdout)
        assert answer["restored"] == str(place.file)
        assert answer["revived"] == [{"key_id": "later", "how": "revoked"}]
        assert answer["closed"] == []
        number = answer["log"].rpartition("/")[2]
        assert place.akm("audit", "verify", "--log", number).returncode == 0
        assert place.akm("doctor").returncode == 0
        assert "is there" in self.typed(place, "restore", str(source), code=2)

    async def test_closed_again(self, make):
        """With --revoke-lost it closes what was closed, and says so."""
        old, place = make("sqlite"), make("sqlite")
        source, live = await TestWhatIsLost().closed_later(old)
        told = self.typed(
            place, "restore", str(source), "--against", url(old), "--revoke-lost",
            "--accept-lost-changes",
        )  # fmt: skip
        assert "closed again: bearer, live, root, rotated" in told
        assert "work again" not in told
        assert await judged(place, live) is Reason.REVOKED

    async def test_without_a_question(self, make, tmp_path):
        """A backup that ends with the sink's newest checkpoint needs no consent."""
        old, place, sink = make("sqlite"), make("sqlite"), tmp_path / "sink"
        await Filled().fill(old, AUDIT_SINK=str(sink))
        source = await backed_up(old)
        told = self.typed(place, "restore", str(source), AUDIT_SINK=str(sink))
        assert "nothing is lost" in told

    def test_a_password_is_not_told(self, make):
        """What cannot be taken for a database is refused without its words."""
        place = make("sqlite")
        source = place.folder / "none.db"
        told = self.typed(
            place, "restore", str(source), "--against", "postgres://me:s3cr3t@host/db", code=2
        )
        assert "s3cr3t" not in told


async def test_killed_backup_has_no_name(make, monkeypatch):
    """Until it is whole and on disk a backup is not there under its name."""
    place = make("sqlite")
    await Filled().fill(place)
    target, seen = place.folder / "copy.db", []
    await backup(place.settings(), target, lambda *_: seen.append(target.exists()))
    assert seen
    assert not any(seen)
    assert target.exists()
    assert [path.name for path in place.folder.iterdir() if path.name[0] == "."] == []
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_backup_ends_though_others_write(tmp_path):
    """Somebody who commits all the time does not make it begin again and again."""
    place = Place(tmp_path)
    place.file.parent.mkdir()
    place.sql("PRAGMA journal_mode=WAL")
    place.sql("CREATE TABLE t (x)")
    for _ in range(10):
        place.sql("INSERT INTO t VALUES (randomblob(4000000))")
    driver, seen = SqliteDriver(place.file), []

    def write(left: int, total: int) -> None:
        seen.append(left)
        assert len(seen) < 100
        place.sql("INSERT INTO t VALUES (1)")

    try:
        driver.backup(tmp_path / "copy.db", write)
    finally:
        driver.close_now()
    assert seen == sorted(seen, reverse=True)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM t").fetchone() == (10,)
