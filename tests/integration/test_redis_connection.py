"""The one connection to Redis: order, deadlines, loss, and what it says of all that."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import socket
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api_key_manager.connections import redis as module
from api_key_manager.connections.redis import LuaScript, Redis, RedisReplyError
from api_key_manager.core.exceptions import StorageError
from tests.integration.redis_servers import redis_server, standing_in
from tests.services import free_port

SECRET = "s3cr3t-of-the-test"


@pytest.fixture
async def redis(redis_at):
    connection = Redis(redis_at.url, timeout=5)
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def connected(url: str, seconds: float = 0.2):
    connection = Redis(url, timeout=seconds)
    try:
        yield connection
    finally:
        await connection.close()


async def eventually(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


async def outcomes(redis: Redis, times: int, *command) -> list:
    """Answers, or the exceptions in their place."""
    calls = (redis.call(*command) for _ in range(times))
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_of_one_turn_share_a_pipeline(redis):
    """Each gets its own answer; what goes out in one write holds 512 at most."""
    await redis.call("PING")
    before = redis.pipelines
    answers = await asyncio.gather(*(redis.call("ECHO", f"{i}") for i in range(2000)))
    assert answers == [b"%d" % i for i in range(2000)]
    assert redis.pipelines - before == 4
    assert (redis.calls, redis.failures) == (2001, 0)


async def test_an_error_is_one_calls_own(redis):
    """A refusal in the middle of a pipeline shifts nothing and breaks nothing."""
    await redis.call("SET", "text", "x")
    answers = await asyncio.gather(
        redis.call("ECHO", "a"), redis.call("INCR", "text"), redis.call("LPUSH", "text", SECRET),
        redis.call("NO-SUCH", SECRET), redis.call("ECHO", "b"), return_exceptions=True,
    )  # fmt: skip
    assert (answers[0], answers[4]) == (b"a", b"b")
    codes = [(type(e), e.code) for e in answers[1:4]]
    assert codes == [(RedisReplyError, "ERR"), (RedisReplyError, "WRONGTYPE"),
                     (RedisReplyError, "ERR")]  # fmt: skip
    assert not any(SECRET in str(e) for e in answers[1:4])
    assert (redis.problem, redis.failures) == (None, 3)


async def test_a_cancelled_call_keeps_its_place(redis):
    """The answer to a question that nobody waits for goes to nobody."""
    first = asyncio.ensure_future(redis.call("ECHO", "1"))
    second = asyncio.ensure_future(redis.call("ECHO", "2"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"2"
    assert await redis.call("ECHO", "3") == b"3"


async def test_values_of_every_kind(redis):
    """Bytes, text, numbers and nothing pass unchanged; so do large ones."""
    large = bytes(range(256)) * 4096
    await redis.call("SET", b"\x00\r\n", large)
    assert await redis.call("GET", b"\x00\r\n") == large
    assert await redis.call("GET", "nothing") is None
    assert await redis.call("INCRBY", "n", -7) == -7
    assert await redis.call("EVAL", "return {1, {2, 'x'}, false}", 0) == [1, [2, b"x"], None]


async def test_scripts_are_sent_once(redis, redis_at):
    """A server that does not know a script gets it, one that does gets its name."""
    script = LuaScript("return {KEYS[1], ARGV[1]}")
    for _ in range(2):
        redis_at("SCRIPT", "FLUSH")
        for _ in range(3):
            assert await redis.run(script, ["k"], [5]) == [b"k", b"5"]
    assert redis.calls == 8
    await redis.call("LPUSH", "list", 1)
    with pytest.raises(RedisReplyError, match="WRONGTYPE"):
        await redis.run(LuaScript("return redis.call('GET', KEYS[1])"), ["list"], [])


async def test_a_late_answer_is_nobodys(redis_at):
    """A call past its deadline fails; the next one gets its own answer, on another connection."""
    async with connected(redis_at.url) as redis:
        await redis.call("PING")
        sleeps = asyncio.ensure_future(redis.call("BLPOP", "nothing", "0"))
        await asyncio.sleep(0.1)
        behind = asyncio.ensure_future(redis.call("ECHO", "behind"))
        with pytest.raises(StorageError, match=r"no answer within 0\.2 s"):
            await sleeps
        redis_at("RPUSH", "nothing", "late")
        # It was asked later and has time left: it fails alone that is late.
        assert await behind == b"behind"
        assert await redis.call("ECHO", "next") == b"next"
        assert redis.problem is None
        assert len(redis._wires) == 1


async def test_a_paused_server(redis_at, caplog):
    """SIGSTOP: calls fail after the time-out, then at once; when it goes on, so do they; a line
    of log per change."""
    async with connected(redis_at.url) as redis:
        await redis.call("PING")
        redis_at.pause()
        try:
            with caplog.at_level(logging.INFO):
                started = time.monotonic()
                failed = await outcomes(redis, 50, "PING")
                assert all(type(e) is StorageError for e in failed)
                assert 0.19 < time.monotonic() - started < 2
                assert "no answer within" in redis.problem
                started = time.monotonic()
                for _ in range(200):
                    assert type((await outcomes(redis, 1, "PING"))[0]) is StorageError
                assert time.monotonic() - started < 0.15
                await asyncio.sleep(0.5)
                redis_at.resume()
                await eventually(lambda: redis.problem is None)
                assert await redis.call("ECHO", "again") == b"again"
        finally:
            redis_at.resume()
    lines = [(r.levelname, r.message) for r in caplog.records if "api_key_manager" in r.name]
    assert [level for level, _ in lines] == ["WARNING", "INFO"], lines
    assert "away" in lines[0][1]


async def test_a_killed_server_that_comes_back(tmp_path):
    """SIGKILL: whoever waits fails at once; the same port answers later, and nobody restarts us."""
    with redis_server(tmp_path) as server:
        async with connected(server.url, 5) as redis:
            await redis.call("PING")
            waits = asyncio.ensure_future(redis.call("BLPOP", "nothing", "0"))
            await asyncio.sleep(0.05)
            server.kill()
            with pytest.raises(StorageError, match="the connection was lost"):
                await asyncio.wait_for(waits, 1)
            for _ in range(10):
                await outcomes(redis, 1, "PING")
            assert "no connection" in redis.problem
            server.start()
            await eventually(lambda: redis.problem is None)
            assert await redis.call("PING") == b"PONG"


async def test_a_cut_connection(redis, redis_at):
    """CLIENT KILL: the next call is on another connection; an idle one that ends is no failure."""
    for _ in range(10):
        await redis.call("PING")
        redis_at("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually(lambda: redis._wire is None)
    assert (redis.problem, redis.failures) == (None, 0)


async def test_wrong_credentials(tmp_path):
    """A wrong or missing password, a user without rights: said, without the password."""
    weak = ["--user", "weak", "on", ">w", "+get", "+ping", "~ours:*"]
    with redis_server(tmp_path, *weak, password="right") as server:
        port = server.port
        for credentials, why in ((f":{SECRET}@", "WRONGPASS"), ("", "NOAUTH"),
                                 (f"nobody:{SECRET}@", "WRONGPASS")):  # fmt: skip
            async with connected(f"redis://{credentials}127.0.0.1:{port}", 1) as redis:
                found = [(await outcomes(redis, 1, "GET", "x"))[0] for _ in range(7)]
                assert all(isinstance(e, StorageError) for e in found)
                assert why in redis.problem
                assert not any(SECRET in str(e) for e in found)
        async with connected(f"redis://weak:w@127.0.0.1:{port}", 1) as redis:
            assert await redis.call("GET", "ours:x") is None
            for command in (("GET", "theirs:x"), ("SET", "ours:x", 1)):
                with pytest.raises(RedisReplyError, match="NOPERM: its user may not do this"):
                    await redis.call(*command)
        async with connected(f"redis://:right@127.0.0.1:{port}/3", 1) as redis:
            await redis.call("SET", "x", 1)
            assert b"db=3" in await redis.call("CLIENT", "INFO")


async def test_a_database_that_is_not_there(redis_at):
    """Nothing is ever done in another database than the URL's."""
    async with connected(f"{redis_at.url}/9999", 1) as redis:
        found = await outcomes(redis, 3, "SET", "x", 1)
        assert all(isinstance(e, StorageError) for e in found)
    assert redis_at("DBSIZE") == 0


async def test_a_socket_of_this_machine(redis_at):
    """unix:// works like the others."""
    async with connected(f"unix://{redis_at.socket}?db=2", 1) as redis:
        await redis.call("SET", "x", 1)
    assert redis_at("INFO", "keyspace").count("db2:keys=1") == 1


async def test_a_replica(tmp_path):
    """READONLY is told by name; the connection is made anew, since the name may lead to the new
    primary."""
    with redis_server(tmp_path) as server:
        async with connected(server.url, 1) as redis:
            await redis.call("SET", "x", 1)
            await asyncio.sleep(1.1)
            server("REPLICAOF", "127.0.0.1", free_port())
            first = redis._wire
            with pytest.raises(RedisReplyError, match="READONLY: it is a replica"):
                await redis.call("SET", "x", 2)
            assert await redis.call("GET", "x") == b"1"
            assert redis._wire is not first
            # Also from within a script.
            with pytest.raises(RedisReplyError) as caught:
                await redis.run(LuaScript("return redis.call('SET', KEYS[1], 1)"), ["x"], [])
            assert caught.value.code == "READONLY"
            server("REPLICAOF", "NO", "ONE")
            assert await redis.call("SET", "x", 3) == b"OK"


async def test_no_memory_left(tmp_path):
    """OOM is refused by name; what needs no memory goes on."""
    with redis_server(tmp_path, "--maxmemory", "1mb") as server:
        async with connected(server.url, 1) as redis:
            sets = (redis.call("SET", f"k{i}", bytes(50_000)) for i in range(100))
            found = await asyncio.gather(*sets, return_exceptions=True)
            assert "OOM: its memory is used up" in str(found[-1])
            assert await redis.call("PING") == b"PONG"
            assert redis.problem is None


LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


async def test_loading():
    """A server that is still loading is away, and is asked again by itself."""
    async with standing_in(*[LOADING] * 6, b"+PONG\r\n") as server, connected(server.url) as redis:
        for _ in range(5):
            with pytest.raises(RedisReplyError, match="LOADING: it is still loading its data"):
                await redis.call("PING")
        assert "LOADING" in redis.problem
        await eventually(lambda: redis.problem is None)
        assert await redis.call("PING") == b"PONG"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak its protocol"),
        (b"*1\r\n:1\r\n" * 2, "an answer to no question"),
        (b"$10\r\nhalf", "no answer within"),
        (b"*-2\r\n", "does not speak its protocol"),
        (b"$99999999999999999999\r\n", "does not speak its protocol"),
        (None, "no answer within"),
    ],
)
async def test_what_is_no_redis(answer, why):
    """Garbage, too much and too little end the connection, and nobody gets what is not theirs."""
    async with standing_in(answer) as server, connected(server.url, 0.1) as redis:
        found = []
        while redis.problem is None:
            found += await outcomes(redis, 1, "GET", "x")
            assert len(found) < 20
        assert why in redis.problem
        assert server.connections >= 4


async def test_a_flood():
    """An answer without end is not kept."""
    flood = b"$400000000\r\n" + bytes(34_000_000)
    async with standing_in(flood) as server, connected(server.url, 5) as redis:
        with pytest.raises(StorageError, match="an answer of more than 33554432 bytes"):
            await redis.call("GET", "x")


async def test_a_server_that_closes_at_once():
    """What hangs up is a failure for who asked, each time, until calls fail at once."""

    async def hang_up(_, writer):
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with connected(f"redis://127.0.0.1:{port}", 1) as redis:
        for _ in range(8):
            assert isinstance((await outcomes(redis, 1, "PING"))[0], StorageError)
        assert redis.problem is not None
    server.close()


async def test_nobody_there():
    """A refused connection is told at once, and then not even tried until the next probe."""
    async with connected(f"redis://127.0.0.1:{free_port()}", 5) as redis:
        started = time.monotonic()
        for _ in range(100):
            assert isinstance((await outcomes(redis, 1, "PING"))[0], StorageError)
        assert time.monotonic() - started < 1
        assert "no connection" in redis.problem
        assert redis.failures == 100


async def test_too_many_wait():
    """What waits is bounded."""
    async with standing_in(None) as server, connected(server.url, 1) as redis:
        found = await outcomes(redis, 17_000, "PING")
        assert sum("too many" in str(e) for e in found) == 17_000 - 16_384


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_that_stood_still(redis_at, loop):
    """Answers that are here, but unread since this process was busy, are not late; also where
    timers come before what is to be read, as in uvloop."""

    def stall(reader: socket.socket) -> None:
        reader.recv(1)
        redis_at("RPUSH", "list", "in time")
        time.sleep(0.3)

    async def stand_still() -> None:
        reader, writer = socket.socketpair()
        async with connected(redis_at.url, 0.1) as redis:
            asyncio.get_running_loop().add_reader(reader, stall, reader)
            asked = asyncio.ensure_future(redis.call("BLPOP", "list", "0"))
            await asyncio.sleep(0.03)
            writer.send(b"x")
            assert await asked == [b"list", b"in time"]
        asyncio.get_running_loop().remove_reader(reader)
        reader.close()
        writer.close()

    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(stand_still())


async def test_closing(redis_at):
    """Whoever waits fails; so does every later call; the server has no connection left."""
    redis = Redis(redis_at.url, timeout=5)
    await redis.call("PING")
    waits = asyncio.ensure_future(redis.call("BLPOP", "nothing", "0"))
    await asyncio.sleep(0.05)
    await redis.close()
    for call in (waits, redis.call("PING")):
        with pytest.raises(StorageError, match="closed"):
            await call
    await eventually(lambda: redis_at("CLIENT", "LIST").count("\n") == 1)


async def test_wake_ups(redis, redis_at, monkeypatch):
    """A subscriber hears what is published, an empty message when it begins to listen, and again
    after its connection was cut."""
    heard: list[bytes] = []
    task = asyncio.ensure_future(redis.subscribe("wake", heard.append))
    await eventually(lambda: heard == [b""])
    await redis.publish("wake", b"one")
    await redis.publish("other", b"not ours")
    await redis.publish("wake", 2)
    await eventually(lambda: heard == [b"", b"one", b"2"])
    assert redis_at("CLIENT", "KILL", "TYPE", "pubsub") == 1
    await eventually(lambda: heard[3:] == [b""])
    await redis.publish("wake", b"four")
    await eventually(lambda: heard[4:] == [b"four"])
    task.cancel()
    await asyncio.wait([task])
    await eventually(lambda: "sub=1" not in redis_at("CLIENT", "LIST"))


async def test_a_subscription_without_the_right(tmp_path, caplog):
    """It is said, once, and tried again: with the right it listens, without a restart."""
    caplog.set_level(logging.INFO)
    weak = ["--user", "weak", "on", ">w", "+ping", "&ours"]
    with redis_server(tmp_path, *weak) as server:
        async with connected(f"redis://weak:w@127.0.0.1:{server.port}", 1) as redis:
            heard: list[bytes] = []
            task = asyncio.ensure_future(redis.subscribe("ours", heard.append))
            await asyncio.sleep(0.5)
            server("ACL", "SETUSER", "weak", "+subscribe")
            await eventually(lambda: heard == [b""])
            task.cancel()
            await asyncio.wait([task])
    lines = [(r.levelname, r.message) for r in caplog.records if "wake-ups" in r.message]
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert "NOPERM" in lines[0][1]


async def test_a_subscription_that_went_dead(redis_at, monkeypatch):
    """A connection on which nothing comes, not even an answer to a PING, is made anew."""
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.1)
    async with connected(redis_at.url) as redis:
        heard: list[bytes] = []
        task = asyncio.ensure_future(redis.subscribe("wake", heard.append))
        await asyncio.sleep(0.5)
        assert heard == [b""]
        redis_at.pause()
        await asyncio.sleep(0.5)
        redis_at.resume()
        await eventually(lambda: len(heard) >= 2)
        assert set(heard) == {b""}
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """An authority of our own, and what it says of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the test's authority")])
    plain, local = serialization.NoEncryption(), ipaddress.ip_address("127.0.0.1")

    def certificate(subject, issuer, public, by, *extensions):
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
        )  # fmt: skip
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    (folder / "ca.pem").write_bytes(
        certificate(authority, authority, authority_key.public_key(), authority_key,
                    (x509.BasicConstraints(True, None), True), (identifier, False), (usage, True))
    )  # fmt: skip
    (folder / "server.pem").write_bytes(
        certificate(
            x509.Name([]), authority, key.public_key(), authority_key,
            (x509.SubjectAlternativeName([x509.IPAddress(local)]), True),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
        )
    )  # fmt: skip
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return folder


async def test_tls(tmp_path, certificates):
    """Only a server with a certificate of the named authority, for the name that was called, is
    spoken to; and a certificate of one's own can be shown."""
    tls = free_port()
    files = [
        "--tls-port", str(tls), "--tls-cert-file", str(certificates / "server.pem"),
        "--tls-key-file", str(certificates / "server.key"),
        "--tls-ca-cert-file", str(certificates / "ca.pem"), "--tls-auth-clients", "yes",
    ]  # fmt: skip
    mine = f"ssl_certfile={certificates}/server.pem&ssl_keyfile={certificates}/server.key"
    trusted = f"ssl_ca_certs={certificates}/ca.pem&{mine}"
    with redis_server(tmp_path, *files):
        async with connected(f"rediss://127.0.0.1:{tls}/1?{trusted}", 2) as redis:
            assert await redis.call("PING") == b"PONG"
            heard: list[bytes] = []
            task = asyncio.ensure_future(redis.subscribe("wake", heard.append))
            await eventually(lambda: heard == [b""])
            task.cancel()
            await asyncio.wait([task])
        async with connected(f"rediss://127.0.0.1:{tls}?ssl_cert_reqs=none&{mine}", 2) as redis:
            assert await redis.call("PING") == b"PONG"
        for host, options in (("127.0.0.1", mine), ("localhost", trusted)):
            async with connected(f"rediss://{host}:{tls}?{options}", 2) as redis:
                with pytest.raises(StorageError, match="no connection"):
                    await redis.call("PING")
        # Without a certificate of one's own: the server hangs up.
        only = f"ssl_ca_certs={certificates}/ca.pem"
        async with connected(f"rediss://127.0.0.1:{tls}?{only}", 2) as redis:
            with pytest.raises(StorageError):
                await redis.call("PING")
