"""What a node on PostgreSQL starts with, and what it refuses with one clear line; the schema; and
the commands, as processes."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from api_key_manager.connections import metadata
from api_key_manager.core.exceptions import ConfigurationError, StorageError
from api_key_manager.storage.postgres_schema import current_of, upgrade_at
from api_key_manager.storage.schema import HEAD
from api_key_manager.wiring import open_deployment
from tests.integration.places import signed
from tests.integration.postgres_nodes import Shared
from tests.services import Postgres, free_port, running_postgres

OTHER_MASTER = base64.b64encode(bytes(range(1, 33))).decode()


@pytest.fixture
def shared(tmp_path: Path, postgres: Postgres) -> Iterator[Shared]:
    place = Shared(tmp_path, postgres)
    yield place
    place.drop()


@pytest.fixture
def empty(tmp_path: Path, postgres: Postgres) -> Iterator[Shared]:
    """A database without tables."""
    place = Shared(tmp_path, postgres, template="template0")
    yield place
    place.drop()


async def opens(shared: Shared, **options: Any) -> None:
    async with shared.open(**options) as node:
        key = await node.manager.create_key()
        assert (await node.manager.verify(**signed(node.manager, key))).valid


async def why_not(shared: Shared, **options: Any) -> str:
    """The one line with which it is refused."""
    with pytest.raises((ConfigurationError, StorageError)) as error:
        await opens(shared, **options)
    line = str(error.value)
    assert "\n" not in line
    assert "s3cret" not in line
    return line


async def test_another_master_key(shared):
    """A node with another master key than the database was made with does not start, nor does one
    without any; neither changes anything."""
    await opens(shared)
    before = shared.sql("SELECT * FROM keyring ORDER BY kind")
    assert "cannot be used" in await why_not(shared, AKM_MASTER_KEY=OTHER_MASTER)
    told = await why_not(shared, AKM_MASTER_KEY="")
    assert "needs AKM_MASTER_KEY, the same on every node" in told
    told = await why_not(shared, AKM_MASTER_KEY="", AKM_MASTER_KEY_FILE=str(shared.key_file))
    assert f"{shared.key_file} is not there" in told
    assert shared.sql("SELECT * FROM keyring ORDER BY kind") == before


async def test_first_starts_at_once(empty):
    """Of several nodes that start at once on a database without tables each ends up with the same
    schema, data keys and peppers."""
    settings = empty.settings()
    opened = [open_deployment(settings) for _ in range(4)]
    nodes = await asyncio.gather(*(each.__aenter__() for each in opened))
    try:
        key = await nodes[0].manager.create_key("k")
        token = await nodes[1].manager.create_key("b", kind="bearer")
        for node in nodes:
            assert (await node.manager.verify(**signed(node.manager, key))).valid
            assert (await node.manager.verify(token=token["token"])).valid
    finally:
        for each in opened:
            await each.__aexit__(None, None, None)
    assert empty.sql("SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert empty.sql("SELECT count(*) FROM deployment") == [(1,)]


async def test_an_old_server(shared, monkeypatch):
    """A server older than 14 is refused, before anything is changed there."""
    old = SimpleNamespace(major=13)
    monkeypatch.setattr(asyncpg.Connection, "get_server_version", lambda _: old)
    assert await why_not(shared) == "PostgreSQL 13 is too old: 14 is needed"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda url: url.replace("/akm_", "/none_"),
            "the server has no database of the name in its URL (3D000)",
        ),
        (lambda url: url.replace("akm:", "nobody:"), "it refuses the user of its URL"),
        (lambda url: url + "?sslmode=require", "it takes no connection with TLS"),
        (lambda url: url + "?sslmode=sometimes", "a parameter of its URL"),
        (
            lambda url: url + "?sslmode=verify-full&sslrootcert=/none.pem",
            "a file that its URL names",
        ),
        (
            lambda url: url.replace("127.0.0.1", "host.invalid"),
            "the host of its URL is unknown (Name or service not known)",
        ),
    ],
    ids=["database", "user", "no TLS there", "sslmode", "sslrootcert", "host"],
)
async def test_a_url_that_does_not_work(shared, change, told):
    """Each mistake in the URL is refused with a line that says what it is, without the password."""
    line = await why_not(shared, DATABASE_URL=change(shared.url.replace("akm@", "akm:s3cret@")))
    assert told in line


def test_one_line_of_a_process(shared):
    """`akm serve` says in one line that nobody is there, and ends."""
    url = f"postgresql://akm:s3cret@127.0.0.1:{free_port()}/akm"
    done = shared.akm("serve", DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "akm: the database cannot be used: nobody listens at the host and port of its URL\n"
    )


async def test_a_standby_is_refused(shared, monkeypatch):
    """Nobody follows changes on a standby, which may lag, unless the URL asks for one by name."""
    from api_key_manager.storage import postgres_errors as postgres

    assert postgres.only_primary(shared.url) == {"target_session_attrs": "primary"}
    assert postgres.only_primary(shared.url + "?target_session_attrs=any") == {}
    error = asyncpg.TargetServerAttributeNotMatched("none of the hosts match")
    assert "only a standby" in str(postgres.storage_error(error))


async def test_schema_is_the_tables(shared):
    """Nothing is missing from, added to, or typed otherwise than in `connections.tables`."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(shared.url), poolclass=NullPool,
    )  # fmt: skip

    def compare(connection: Any) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": False})
        return compare_metadata(context, metadata)

    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []
    await engine.dispose()
    # What Alembic does not compare: ids are in the order of their bytes.
    collations = shared.sql(
        "SELECT DISTINCT collation_name FROM information_schema.columns"
        " WHERE column_name = 'key_id' AND table_schema = 'public'"
    )
    assert collations == [("C",)]


async def test_upgrades_at_once(empty):
    """Several upgrades of an empty database at once agree, and the next one has nothing to do."""
    await asyncio.gather(*(upgrade_at(empty.url) for _ in range(5)))
    assert await current_of(empty.url) == HEAD
    assert not await upgrade_at(empty.url)


async def test_somebody_elses_database(empty):
    """A database with other tables is refused, and left as it is."""
    empty.sql("CREATE TABLE theirs (id int)")
    assert "is a database of something else" in await why_not(empty)
    assert empty.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == [("theirs",)]


def certificate(
    name: str, issuer: tuple[x509.Certificate, Any] | None = None
) -> tuple[x509.Certificate, Any]:
    """One for 127.0.0.1 by an issuer, or an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def written(path: Path, thing: Any) -> Path:
    if isinstance(thing, x509.Certificate):
        data = thing.public_bytes(serialization.Encoding.PEM)
    else:
        data = thing.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )  # fmt: skip
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, Path]]:
    """A server that takes the user `node` only over TLS and with a password (SCRAM), and the folder
    of the certificates."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = certificate("an authority")
    written(folder / "ca.pem", ca[0])
    written(folder / "other.pem", certificate("another authority")[0])
    with running_postgres() as server:
        server.sql("CREATE ROLE node LOGIN SUPERUSER PASSWORD 's3cret'")
        server.sql("CREATE DATABASE akm_empty")
        data = server.folder / "data"
        cert, key = certificate("127.0.0.1", ca)
        for name, thing in (("server.crt", cert), ("server.key", key)):
            path = written(data / name, thing)
            if os.geteuid() == 0:
                owner = pwd.getpwnam("postgres")
                os.chown(path, owner.pw_uid, owner.pw_gid)
        with (data / "postgresql.conf").open("a") as conf:
            conf.write("\nssl = on\n")
        (data / "pg_hba.conf").write_text(
            "host all akm 127.0.0.1/32 trust\nhostssl all node 127.0.0.1/32 scram-sha-256\n"
        )
        server.stop()
        server.start()
        yield server, folder


async def test_tls_and_password(secure, tmp_path):
    """sslmode=verify-full with the right authority and the right password works, over TLS; another
    authority, a wrong password and no TLS are refused."""
    server, folder = secure
    shared = Shared(tmp_path, server)
    url = shared.url.replace("akm@", "node:s3cret@")
    good = f"{url}?sslmode=verify-full&sslrootcert={folder}/ca.pem"
    async with shared.open(DATABASE_URL=good) as node:
        await node.manager.create_key()
        found = shared.sql("SELECT ssl, count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                           " WHERE usename = 'node' GROUP BY 1")  # fmt: skip
        assert [ssl for ssl, _ in found] == [True]
        password = shared.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'node'")[0][0]
        assert password.startswith("SCRAM-SHA-256$")
    told = await why_not(shared, DATABASE_URL=good.replace("ca.pem", "other.pem"))
    assert "certificate verify failed" in told
    told = await why_not(shared, DATABASE_URL=good.replace("s3cret", "s3cret-not"))
    assert "it refuses the user or the password of its URL (28P01)" in told
    told = await why_not(shared, DATABASE_URL=f"{url}?sslmode=disable")
    assert "a connection without TLS (28000)" in told
    told = await why_not(shared, DATABASE_URL=good.replace("127.0.0.1", "localhost"))
    assert "certificate verify failed" in told
    shared.drop()


def test_commands(empty):
    """`akm db upgrade`, `keys`, `audit`, `doctor` work on PostgreSQL as on a file, and so
    does `db backup`."""
    done = empty.akm("keys", "list")
    assert done.returncode == 2
    assert "is empty: `akm serve` or `akm db upgrade` makes it ready" in done.stderr
    assert empty.akm("db", "upgrade").returncode == 0
    key = json.loads(empty.akm("keys", "create", "k", "--owner", "o", "--json").stdout)
    assert key["key_id"] == "k"
    assert empty.akm("keys", "revoke", "k", "--reason", "left").returncode == 0
    assert "revoked" in empty.akm("keys", "list").stdout
    log = [json.loads(line) for line in empty.akm("audit", "export").stdout.splitlines()]
    assert [e["action"] for e in log if e["key_id"] == "k"] == [
        "key_created", "key_revoked",
    ]  # fmt: skip
    done = empty.akm("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    done = empty.akm("db", "backup", "copy.db")
    assert done.returncode == 0, done.stderr
    assert (empty.folder / "copy.db").exists()
    empty.sql("UPDATE keys SET owner = 'editor'")
    done = empty.akm("doctor")
    assert done.returncode == 1
    assert "1 of 1 were edited" in done.stdout


async def test_who_only_looks_decides_nothing(shared):
    """A command that only looks writes nothing, so it cannot bind a database to its own master
    key before the server has started."""
    with pytest.raises(ConfigurationError, match="has no keys yet"):
        async with shared.open(create=False, background=False):
            pass
    assert shared.sql("SELECT count(*) FROM keyring") == [(0,)]


async def test_no_master_key_makes_no_tables(empty):
    """Without the master key a database is not even begun."""
    with pytest.raises(ConfigurationError, match="AKM_MASTER_KEY"):
        async with empty.open(AKM_MASTER_KEY=""):
            pass
    assert empty.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
