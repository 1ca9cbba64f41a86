"""Checkpoints outside of the database: in a file, at an HTTP endpoint, and when it is away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.audit.checkpoint import Checkpoint, Signer
from api_key_manager.audit.sealing import LogKeys, Notary
from api_key_manager.audit.sink import FileSink, HttpSink, notes_in
from api_key_manager.core import ConfigurationError, StorageError
from tests.integration.audit_logs import findings, sealed
from tests.integration.places import Place
from tests.integration.postgres_nodes import eventually


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Endpoint:
    """What takes checkpoints over HTTP. ``status`` other than 200 refuses them."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.status = 200
        self.location = ""
        self.url = ""


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bytes = b"") -> None:
            self.send_response(state.status)
            if state.location:
                self.send_header("Location", state.location)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer("\n".join(state.notes[-1:]).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if state.status == 200:
                state.notes.append(body)
            self.answer()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/checkpoints"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sizes(notes: list[str]) -> list[int]:
    return [int(note.split("\n")[1]) for note in notes]


async def test_file_gets_every_checkpoint(place, tmp_path):
    """While everything runs each checkpoint arrives in the file once, in order, and the file is its
    owner's."""
    file = tmp_path / "checkpoints"
    async with place.open(AUDIT_SINK=str(file)) as deployment:
        for number in range(4):
            await deployment.manager.create_key(f"k{number}")
            await asyncio.sleep(0.25)
        assert deployment.degraded() == []
    assert file.stat().st_mode & 0o777 == 0o600
    stored = place.sql("SELECT note FROM audit_batches ORDER BY first")
    assert notes_in(file.read_text()) == [note for (note,) in stored]
    async with place.open(background=False, AUDIT_SINK=str(file)) as deployment:
        assert await findings(deployment) == []


async def test_file_after_a_crash_in_the_middle_of_a_line(place, tmp_path):
    """What a crash left of a checkpoint is passed over, and what comes next can be read."""
    file = tmp_path / "checkpoints"
    async with place.open(background=False, AUDIT_SINK=str(file)) as deployment:
        await deployment.manager.create_key("a")
    whole = file.read_text()
    file.write_text(whole + notes_in(whole)[-1][:40])
    async with place.open(background=False, AUDIT_SINK=str(file)) as deployment:
        await deployment.manager.create_key("b")
    assert sizes(notes_in(file.read_text())) == [1, 2, 3]
    async with place.open(background=False, AUDIT_SINK=str(file)) as deployment:
        assert await findings(deployment) == []


async def test_endpoint_that_goes_away_and_comes_back(place):
    """What an endpoint refused is sent again, in order, and meanwhile `/readyz` says so."""
    with endpoint() as far:
        async with place.open(AUDIT_SINK=far.url) as deployment:
            await eventually(lambda: far.notes)
            far.status = 500
            await deployment.manager.create_key("k")
            await eventually(deployment.degraded)
            assert "the sink of checkpoints is behind" in deployment.degraded()[0]
            assert deployment.problems() == []
            await deployment.manager.create_key("l")
            far.status = 200
            await eventually(lambda: not deployment.degraded())
            await eventually(lambda: sizes(far.notes)[-1] == 3)
        assert sizes(far.notes) == sorted(set(sizes(far.notes)))


async def test_nothing_is_sealed_before_the_sink_was_asked(place):
    """A process that cannot know what was promised promises nothing; events are written."""
    with endpoint() as far:
        async with place.open(background=False, AUDIT_SINK=far.url) as deployment:
            await deployment.manager.create_key("a")
        far.status = 503
        async with place.open(AUDIT_SINK=far.url) as deployment:
            await deployment.manager.create_key("b")
            await eventually(lambda: any("cannot be sealed" in w for w in deployment.degraded()))
            assert place.sql("SELECT size FROM audit_origins") == [(2,)]
            far.status = 200
            await eventually(lambda: place.sql("SELECT size FROM audit_origins") == [(3,)])


async def test_redirects_and_huge_answers_are_refused():
    """An endpoint that sends elsewhere, or without end, takes no checkpoint."""
    with endpoint() as far:
        sink = HttpSink(far.url, lambda _: None)
        far.status, far.location = 302, far.url
        with pytest.raises(StorageError, match="302 to POST"):
            await sink.put(["note"])
        far.status, far.notes = 200, ["x" * 100_000]
        with pytest.raises(StorageError, match="more than 64 KiB"):
            await sink.newest()
    with pytest.raises(StorageError, match="cannot be reached"):
        await sink.newest()


async def test_file_costs_few_signatures(tmp_path):
    """However many checkpoints are in the file: one is read, the newest; and not one that is only
    said to be larger, or signed by somebody else."""
    notary, ours = Notary(LogKeys(bytes(32), bytes(32)), "here"), Signer(bytes(32))
    reads: list[str] = []

    def read(note: str) -> tuple[int, int] | None:
        reads.append(note)
        return notary.read(note)

    def note(size: int, signer: Signer = ours) -> str:
        name = notary.name(2)
        return signer.sign(name, Checkpoint(name, size, bytes(32)).text())

    sink = FileSink(tmp_path / "sink", read)
    await sink.put([note(size) for size in range(1, 300)])
    reads.clear()
    assert await sink.newest() == note(299)
    assert len(reads) == 1
    forged = note(299).replace("\n299\n", "\n900\n")
    with (tmp_path / "sink").open("a") as file:
        file.write("\n".join([note(5), forged, note(800, Signer(bytes(range(32)))), note(4)]))
    assert await sink.newest() == note(299)


async def test_file_that_cannot_be_written(tmp_path):
    """A folder that is not there is an error that names the path."""
    with pytest.raises(StorageError, match="cannot be written"):
        await FileSink(tmp_path / "none" / "file", lambda _: None).put(["note"])


@pytest.mark.parametrize("where", ["ftp://host/x", "https://user@host/x", "https://", "s3://b"])
def test_what_is_no_sink(place, where):
    """Another scheme, or a URL with a user name, stops the start."""
    with pytest.raises(ConfigurationError, match="is not allowed: the path of a file"):
        place.settings(AUDIT_SINK=where)


async def test_another_database_may_use_the_same_file(tmp_path):
    """Of a sink that several databases share each sees its own checkpoints."""
    file = tmp_path / "checkpoints"
    for name in ("one", "two", "one"):
        async with Place(tmp_path, name).open(background=False, AUDIT_SINK=str(file)) as deployment:
            await deployment.manager.create_key()
            await sealed(deployment)
            assert await findings(deployment) == []
    assert sorted(sizes(notes_in(file.read_text()))) == [1, 1, 2, 2, 3]


async def test_forged_checkpoint_in_the_sink(place, tmp_path):
    """A checkpoint that we did not sign is named by verify, and starts no new log."""
    file = tmp_path / "checkpoints"
    async with place.open(background=False, AUDIT_SINK=str(file)) as deployment:
        await deployment.manager.create_key("a")
    newest = notes_in(file.read_text())[-1]
    file.write_text(file.read_text() + newest.replace("\n2\n", "\n9\n") + "\n")
    async with place.open(background=False, AUDIT_SINK=str(file)) as deployment:
        (found,) = await findings(deployment)
        assert "wrong signature" in found.message
        await deployment.manager.create_key("b")
        await sealed(deployment)
        assert deployment.sealer is not None
        assert deployment.sealer.problems() == []
