"""Key-encryption keys and peppers change while the database is in use; nothing that was sealed,
digested or signed before is lost, and nothing is believed that lies in the wrong place."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.core import ConfigurationError, StorageError
from api_key_manager.core.changing import Origin
from api_key_manager.core.models import ApiKey
from api_key_manager.encryption import (
    DATA,
    PEPPER,
)
from api_key_manager.storage import keyrings
from api_key_manager.wiring import diagnose
from api_key_manager.wiring.keyring import MOST_PER_DATA_KEY
from api_key_manager.wiring.retiring import retire, survey
from tests.integration.old_schemas import second_schema
from tests.integration.places import Place, signed
from tests.integration.postgres_nodes import Shared
from tests.services import Postgres

OLD, NEW = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def somewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A database that can be opened several times at once."""
    if request.param == "sqlite":
        yield Place(tmp_path)
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    place = Shared(tmp_path, postgres)
    yield place
    place.drop()


def no_progress(done: int, total: int | None) -> None:
    """Nobody watches."""


async def told(settings: Any, topic: str) -> str:
    """What doctor says of one topic."""
    found = [finding async for finding in diagnose(settings)]
    assert not [f for f in found if f.level == "error"], found
    return "; ".join(f"{f.level}: {f.message}" for f in found if f.topic == topic)


# The key-encryption key


async def test_changed_online(somewhere):
    """A running node goes on while every key is wrapped anew; then the old master key is needed no
    more, and opens nothing. Doctor says each time where things stand."""
    changing = {"AKM_MASTER_KEY": NEW, "AKM_PREVIOUS_MASTER_KEY": OLD}
    topic = "key-encryption key"
    async with somewhere.open(AKM_MASTER_KEY=OLD) as running:
        made = [await running.manager.create_key(), await running.manager.create_key(kind="bearer")]
        with pytest.raises(ConfigurationError) as refused:
            async with somewhere.open(AKM_MASTER_KEY=NEW):
                pass
        assert "AKM_PREVIOUS_MASTER_KEY" in str(refused.value)
        assert "akm secrets rotate-kek" in str(refused.value)
        assert "5 of 5 keys are still" in await told(somewhere.settings(**changing), topic)
        async with somewhere.open(create=False, background=False, **changing) as tool:
            keyring = tool.backend.keys
            # Two at once do no harm.
            counts = await asyncio.gather(
                keyring.rewrap("cli", no_progress), keyring.rewrap("cli", no_progress)
            )
            assert sum(counts) == 5
            assert await keyring.rewrap("cli", no_progress) == 0
        assert "can be removed now" in await told(somewhere.settings(**changing), topic)
        assert (await told(somewhere.settings(AKM_MASTER_KEY=NEW), topic)).startswith("ok: ")
        assert await running.manager.verify(**signed(running.manager, made[0]))
        assert await running.manager.verify(token=made[1]["token"])
        late = await running.manager.create_key()
    with pytest.raises(ConfigurationError, match="are wrapped under"):
        async with somewhere.open(AKM_MASTER_KEY=OLD):
            pass
    async with somewhere.open(AKM_MASTER_KEY=NEW) as after:
        for key in (made[0], late):
            assert await after.manager.verify(**signed(after.manager, key))
        assert await after.manager.verify(token=made[1]["token"])
        page = await after.manager.find_audit(action="kek_rotated")
        assert [event["detail"]["left"] for event in page["items"]] == [0]


async def test_what_was_minted_before_the_keyring_held_all_keys(place):
    """A database of an older schema keeps its MACs and its audit keys: what was derived from the
    master key moves into the keyring with its value, and the master key can then be changed."""
    derived = await second_schema(place, OLD)
    async with place.open(AKM_MASTER_KEY=OLD) as deployment:
        ring = deployment.backend.keys.keyring
        assert {place: ring.get(*place) for place in derived} == derived
        assert await deployment.manager.verify(
            **signed(deployment.manager, {"key_id": "s", "secret": "s" * 40})
        )
    assert place.sql("SELECT count(*) FROM keyring WHERE seal IS NULL OR kek IS NULL") == [(0,)]
    changing = {"AKM_MASTER_KEY": NEW, "AKM_PREVIOUS_MASTER_KEY": OLD}
    async with place.open(create=False, background=False, **changing) as tool:
        assert await tool.backend.keys.rewrap("cli", no_progress) == 5
    async with place.open(AKM_MASTER_KEY=NEW) as deployment:
        ring = deployment.backend.keys.keyring
        assert {place: ring.get(*place) for place in derived} == derived
        assert "all 2 fit their MACs" in await told(place.settings(AKM_MASTER_KEY=NEW), "records")


async def test_rows_of_another_database(tmp_path):
    """Two databases under one master key: a keyring row copied from one to the other is refused,
    though it unwraps; so is one that was moved to another kind or number."""
    here, there = Place(tmp_path / "here"), Place(tmp_path / "there")
    for each in (here, there):
        async with each.open(AKM_MASTER_KEY=OLD) as deployment:
            await deployment.manager.create_key("k")
    rows = there.sql("SELECT kind, number, wrapped, created_at, kek, seal FROM keyring")
    own = {row[0]: row for row in here.sql("SELECT kind, number, wrapped, seal FROM keyring")}
    for kind, number, wrapped, _, kek, seal in rows:
        for stolen in (seal, own[kind][3]):
            here.sql(
                "UPDATE keyring SET wrapped = ?, kek = ?, seal = ? WHERE kind = ? AND number = ?",
                wrapped, kek, stolen, kind, number,
            )  # fmt: skip
            with pytest.raises(ConfigurationError, match="cannot be used"):
                async with here.open(AKM_MASTER_KEY=OLD):
                    pass
        here.sql(
            "UPDATE keyring SET wrapped = ?, seal = ? WHERE kind = ? AND number = ?",
            own[kind][2], own[kind][3], kind, number,
        )  # fmt: skip
    async with here.open(AKM_MASTER_KEY=OLD):
        pass
    for kind in own:
        here.sql("UPDATE keyring SET number = 2 WHERE kind = ?", kind)
        with pytest.raises(ConfigurationError, match="cannot be used"):
            async with here.open(AKM_MASTER_KEY=OLD):
                pass
        here.sql("UPDATE keyring SET number = 1 WHERE kind = ?", kind)


# Peppers and data keys


async def until_moved(deployment: Any, key_id: str, pepper: int) -> ApiKey:
    await deployment.manager.move_digests()
    (record,) = await deployment.manager.store.load([key_id])
    assert record.versions[0].pepper == pepper
    return record


async def test_digest_moves_at_the_next_use(somewhere):
    """After a rotation the next use of a token moves its digest, once, with an event; what was
    warm in another node moves there too. Tokens work all the time."""
    async with somewhere.open() as here, somewhere.open() as there:
        key = await here.manager.create_key("b", kind="bearer")
        for node in (here, there):
            assert await node.manager.verify(token=key["token"])
        assert await there.backend.keys.rotate_pepper("cli") == 2
        await there.supervisor.stop()  # whose task would write the digest at any time
        assert await there.manager.verify(token=key["token"])
        assert there.manager.moves.depth == 1
        await there.manager.move_digests()
        record = await until_moved(there, "b", 2)
        # The other node has never heard of pepper 2, and learns of it from the record.
        here.manager.records.changed_all()
        assert await here.manager.verify(token=key["token"])
        assert not await here.manager.verify(token=key["token"][:-1] + "x")
        assert here.manager.moves.depth == 0
        events = (await here.manager.find_audit(action="key_digest_moved"))["items"]
        assert [event["detail"] for event in events] == [{"pepper": 2, "version": 1}]
        assert record.updated_at == record.created_at
        assert await there.backend.keys.digests() == {1: 0, 2: 1}


async def test_change_meanwhile_wins(place):
    """A revocation or a rotation between the use and the write of the new digest stands."""
    async with place.open() as deployment:
        manager = deployment.manager
        made = [await manager.create_key(f"b{i}", kind="bearer") for i in range(3)]
        await deployment.backend.keys.rotate_pepper("cli")
        for key in made:
            assert await manager.verify(token=key["token"])
        assert manager.moves.depth == 3
        rotated = await manager.rotate_key("b1")
        load = manager.store.load

        async def load_late(key_ids: Any) -> Any:
            records = await load(key_ids)
            await manager.revoke_key("b0")
            return records

        await manager.moves.write(load_late, manager._write, int(manager.clock() * 1_000_000))
        records = {r.key_id: r for r in await load(["b0", "b1", "b2"])}
        assert records["b0"].revoked
        assert records["b0"].versions[0].pepper == 1
        assert [v.version for v in records["b1"].versions] == [2]
        assert records["b2"].versions[0].pepper == 2
        assert not await manager.verify(token=made[0]["token"])
        assert not await manager.verify(token=made[1]["token"])
        assert await manager.verify(token=rotated["token"])


async def test_retired(somewhere):
    """A retired pepper takes the keys and admin tokens with it that were not used since, and says
    which; who was used stays, a rotated key loses only its old version, and the pepper is gone."""
    async with somewhere.open() as deployment:
        manager, keyring = deployment.manager, deployment.backend.keys
        used = await manager.create_key("used", kind="bearer")
        idle = await manager.create_key("idle", kind="bearer")
        await manager.create_key("revoked", kind="bearer")
        await manager.create_key("rotated", kind="bearer")
        signed_key = await manager.create_key("signed")
        token = await manager.create_key(kind="bearer", realm="admin", permissions=["admin"])
        await manager.revoke_key("revoked")
        await keyring.rotate_pepper("cli")
        rotated = await manager.rotate_key("rotated", 3600)
        assert await manager.verify(token=used["token"])
        await manager.move_digests()
        found = await survey(deployment, keyring, 2)
        assert (found.keys, found.tokens) == (["idle"], [token["key_id"]])
        assert sorted(found.versions) == ["revoked", "rotated"]
        assert await manager.verify(token=idle["token"])
        manager.moves._waiting.clear()
        assert await keyring.remove_peppers(2, "cli") == 4
        assert await retire(deployment, keyring, 2, Origin("cli"), no_progress) == 4
        assert await keyring.digests() == {2: 2}
        for key, works in ((used, True), (idle, False), (rotated, True)):
            assert bool(await manager.verify(token=key["token"])) is works
        assert await manager.verify(**signed(manager, signed_key))
        events = (await manager.find_audit(action="key_revoked"))["items"]
        assert [e["reason"] for e in events if e["key_id"] == "idle"] == ["pepper 1 is retired"]
        assert (await manager.find_audit(action="token_revoked"))["items"]
        assert (await manager.find_audit(action="pepper_retired"))["items"]
    async with somewhere.open(create=False) as again:
        assert again.backend.keys.keyring.numbers(PEPPER) == [2]
        assert await again.manager.verify(token=used["token"])
    assert "all" in await told(somewhere.settings(), "records")


async def test_nothing_is_minted_under_a_retired_pepper(somewhere):
    """A process that has not heard of a retirement hands out no token that others cannot check."""
    async with somewhere.open(background=False) as behind, somewhere.open() as ahead:
        keyring = ahead.backend.keys
        await keyring.rotate_pepper("cli")
        assert await retire(ahead, keyring, 2, Origin("cli"), no_progress) == 0
        with pytest.raises(StorageError, match="pepper 1 was retired"):
            await behind.manager.create_key("b", kind="bearer")
        await behind.manager.box.learn()
        key = await behind.manager.create_key("b", kind="bearer")
        assert await ahead.manager.verify(token=key["token"])


async def test_next_data_key(somewhere):
    """Before a data key has served its number of changes the next one is minted, by one of the
    nodes, and each opens what the other sealed."""
    async with somewhere.open() as here, somewhere.open() as there:
        first = await here.manager.create_key("first")
        add = MOST_PER_DATA_KEY // 2
        somewhere.sql(f"UPDATE deployment SET revision = revision + {add}")
        await asyncio.gather(
            here.backend.keys._mint_when_due(), there.backend.keys._mint_when_due()
        )
        ring = here.backend.keys.keyring
        assert ring.numbers(DATA) == [1, 2]
        await here.backend.keys._mint_when_due()
        assert ring.numbers(DATA) == [1, 2]
        second = await here.manager.create_key("second")
        (record,) = await here.manager.store.load(["second"])
        assert record.versions[0].sealed[:5] == b"\x01\x00\x00\x00\x02"
        for node in (here, there):
            for key in (first, second):
                assert await node.manager.verify(**signed(node.manager, key))


async def test_learns_once_for_many(place):
    """Requests that meet a number which this node does not know read the keyring together; one
    that nobody minted costs a reading a fifth of a second, and only its own key is refused."""
    async with place.open() as here, place.open() as there:
        made = [await here.manager.create_key(kind="bearer") for _ in range(20)]
        await there.backend.keys.rotate_pepper("cli")
        made += [await there.manager.create_key(kind="bearer") for _ in range(20)]
        readings = 0
        take = here.backend.keys._take

        async def counted(rows: Any) -> None:
            nonlocal readings
            readings += 1
            await take(rows)

        here.backend.keys._take = counted
        assert all(await asyncio.gather(*(here.manager.verify(token=key["token"]) for key in made)))
        assert 1 <= readings <= 2
        readings = 0
        place.sql("UPDATE key_versions SET pepper = 99 WHERE key_id = ?", made[0]["key_id"])
        here.manager.records.changed_all()
        started = asyncio.get_running_loop().time()
        verdicts = [await here.manager.verify(token=made[0]["token"]) for _ in range(3)]
        assert {verdict.reason.value for verdict in verdicts} == {"unavailable"}
        assert asyncio.get_running_loop().time() - started >= 0.4
        assert readings == 3
        assert await here.manager.verify(token=made[1]["token"])


async def test_rows_are_replaced_only_as_they_were_read(somewhere):
    """A row that changed since it was read is left alone."""
    async with somewhere.open(background=False) as deployment:
        driver = deployment.manager.store.driver
        stamp = deployment.backend.keys.notary.macs.stamp
        (row, *_) = await driver.read(keyrings.read_keyring)
        newer = row._replace(wrapped=b"newer")
        assert await driver.write(keyrings.rewrap_keys, [(newer, row)], None, stamp) == 0
        assert await driver.write(keyrings.rewrap_keys, [(row, newer)], None, stamp) == 1
        assert await driver.write(keyrings.rewrap_keys, [(row, newer)], None, stamp) == 0
        assert await driver.write(keyrings.rewrap_keys, [(newer, row)], None, stamp) == 1
