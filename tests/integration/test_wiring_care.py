"""Backup and doctor."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shutil
from pathlib import Path

import pytest

from api_key_manager import open_manager
from api_key_manager.connections.tables import key_versions, keys
from api_key_manager.core import ConfigurationError, KeyManager, sign
from api_key_manager.wiring import Finding, backup, diagnose
from tests.integration.places import Place, signed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def look(place: Place, **overrides: str) -> dict[str, Finding]:
    """The doctor's findings by topic, the worst of each."""
    worst: dict[str, Finding] = {}
    async for finding in diagnose(place.settings(**overrides)):
        rank = ("ok", "warning", "error").index(finding.level)
        known = worst.get(finding.topic)
        if known is None or rank > ("ok", "warning", "error").index(known.level):
            worst[finding.topic] = finding
    return worst


class TestBackup:
    async def test_while_writes_go_on(self, place):
        """A copy made in the middle of writes is whole: it opens with the same master key, what
        was acknowledged before it is in it, its records fit, and its revisions have no gap."""
        target = place.folder / "elsewhere" / "copy.db"
        target.parent.mkdir()
        async with place.open() as deployment:
            manager = deployment.manager
            made = [await manager.create_key(f"before-{i}") for i in range(20)]
            going = True

            async def write() -> None:
                i = 0
                while going:
                    await asyncio.gather(
                        *(manager.create_key(f"during-{i}-{n}", metadata={"x": "y" * 3000})
                          for n in range(10))
                    )  # fmt: skip
                    i += 1

            writer = asyncio.create_task(write())
            await asyncio.sleep(0.1)
            seen: list[tuple[int, int]] = []
            await backup(place.settings(), target, lambda *progress: seen.append(progress))
            going = False
            await writer
        assert seen
        assert seen[-1][0] == seen[-1][1] > 0
        assert target.stat().st_mode & 0o777 == 0o600
        copy = Place(place.folder)
        copy.file = target
        assert copy.sql("PRAGMA integrity_check") == [("ok",)]
        ((revision, changes),) = copy.sql(
            "SELECT revision, (SELECT count(*) FROM changes) FROM deployment"
        )
        assert revision == changes >= 20
        async with copy.open() as deployment:
            for key in made:
                assert await deployment.manager.verify(**signed(deployment.manager, key))
        assert (await look(copy))["records"].level == "ok"

    async def test_never_overwrites(self, place):
        """An existing target, of whatever kind, is refused and left as it is."""
        async with place.open():
            pass
        there = place.folder / "there"
        there.write_text("mine")
        (place.folder / "link").symlink_to(place.folder / "nowhere")
        for target in (there, place.file, place.folder, place.folder / "link"):
            with pytest.raises(ConfigurationError):
                await backup(place.settings(), target)
        assert there.read_text() == "mine"
        assert not (place.folder / "nowhere").exists()

    async def test_failed_copy_leaves_nothing(self, place):
        """A source that cannot be read leaves no half target behind."""
        place.file.parent.mkdir()
        place.file.write_text("no database" * 1000)
        with pytest.raises(Exception, match="cannot be"):
            await backup(place.settings(), place.folder / "copy.db")
        assert not list(place.folder.glob("copy.db*"))

    async def test_is_useless_without_the_master_key(self, place):
        """The master key is not in the copy, which does not open without it."""
        async with place.open() as deployment:
            await deployment.manager.create_key()
        await backup(place.settings(), place.folder / "copy.db")
        key = base64.b64decode(place.key_file.read_text())
        raw = (place.folder / "copy.db").read_bytes()
        for form in (key, key.hex().encode(), place.key_file.read_bytes().strip()):
            assert form not in raw
        stolen = Place(place.folder / "thief")
        stolen.file.parent.mkdir(parents=True)
        shutil.copy(place.folder / "copy.db", stolen.file)
        with pytest.raises(ConfigurationError, match=r"master key of .* is missing"):
            async with stolen.open():
                pass

    async def test_memory_has_nothing_to_copy(self, place):
        """Keys in memory, or a file that is not there, are said to be so."""
        with pytest.raises(ConfigurationError, match="memory://"):
            await backup(place.settings(DATABASE_URL="memory://"), place.folder / "x")
        with pytest.raises(ConfigurationError, match=str(place.file)):
            await backup(place.settings(), place.folder / "x")
        assert not (place.folder / "x").exists()


async def fill(manager: KeyManager) -> None:
    for name in ("a", "b", "c"):
        await manager.create_key(name, permissions=["x"], expires_at=manager.clock() + 9000)
    await manager.rotate_key("b", 3600)
    end = manager.clock() + 90 * 86_400
    await manager.create_key(
        "t", kind="bearer", realm="admin", permissions=["admin"], expires_at=end
    )


# A version that has ended is not loaded.
UNCOVERED = {"ended"}


class TestDoctor:
    async def test_nothing_to_say(self, place):
        """A sound database is found sound, and nothing is written to it."""
        async with place.open() as deployment:
            await fill(deployment.manager)
        before = place.file.read_bytes()
        found = await look(place)
        assert {finding.level for finding in found.values()} == {"ok"}
        assert "all 4 fit" in found["records"].message
        assert str(place.key_file) in found["backup"].message
        assert place.file.read_bytes() == before
        done = place.akm("doctor")
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize(
        "column",
        [c.name for c in keys.columns if c.name != "next_end_at"]
        + [f"v.{c.name}" for c in key_versions.columns if c.name not in UNCOVERED],
    )
    async def test_every_edited_row_is_found(self, place, column):
        """Whichever security column was edited, the key is named."""
        async with place.open() as deployment:
            await fill(deployment.manager)
        table, name = ("key_versions", column[2:]) if column[:2] == "v." else ("keys", column)
        value = "x" if name in ("key_id", "kind", "realm", "prefix") else 7
        place.sql(
            f"UPDATE {table} SET {name} = ? WHERE rowid = (SELECT min(rowid) FROM {table}"
            " WHERE key_id = 'b')", value,
        )  # fmt: skip
        finding = (await look(place))["records"]
        assert finding.level == "error"
        assert ("x" if column == "key_id" else "b") in finding.message.partition(":")[2]

    async def test_edited_row_on_the_command_line(self, place):
        """`akm doctor` names the edited key and ends with 1."""
        async with place.open() as deployment:
            await fill(deployment.manager)
        place.sql("UPDATE keys SET permissions = '[\"*\"]' WHERE key_id = 'c'")
        done = place.akm("doctor")
        assert done.returncode == 1
        assert "1 of 4 were edited or damaged: c" in done.stdout

    async def test_static_signatures(self, place):
        """Keys that still sign statically are listed until they have to sign better."""
        async with place.open() as deployment:
            manager = deployment.manager
            await fill(manager)
            for name in ("lazy", "mended"):
                key = await manager.create_key(name)
                assert await manager.verify(name, sign(key["secret"], name))
            await manager.update_key("mended", min_scheme="timestamped")
        finding = (await look(place))["static signatures"]
        assert finding.level == "warning"
        assert "1 keys" in finding.message
        assert "lazy" in finding.message
        assert "mended" not in finding.message

    @pytest.mark.parametrize("mode", [0o644, 0o660])
    async def test_loose_file_modes(self, place, mode):
        """A database that others may read is named, with the way out."""
        async with place.open():
            pass
        place.file.chmod(mode)
        found = await look(place)
        assert found["database"].level == "warning"
        assert f"chmod 600 {place.file}" in found["database"].message

    async def test_what_stops_a_start(self, place):
        """A missing file, a wrong key and a foreign file are findings, not crashes."""
        assert (await look(place))["database"].level == "error"
        async with open_manager(place.settings()):
            pass
        place.key_file.write_bytes(base64.b64encode(secrets.token_bytes(32)))
        assert (await look(place))["configuration"].level == "error"
        os.truncate(place.file, 0)
        place.file.write_text("text" * 300)
        assert (await look(place))["database"].level == "error"

    async def test_admin_token_from_the_settings(self, place):
        """AKM_ADMIN_TOKEN is pointed out, and not shown."""
        async with place.open():
            pass
        token = secrets.token_hex(32)
        found = await look(place, AKM_ADMIN_TOKEN=token)
        assert found["admin token"].level == "warning"
        assert token not in repr(found)
