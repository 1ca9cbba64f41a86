"""What every test may ask for: a clock to set, and the outside test vectors."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.services import Postgres, in_thread, running_postgres

ROOT = Path(__file__).resolve().parents[1]

# A shell ignores it for what it starts in the background, and every program that a test starts and
# interrupts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One example may be slow on a busy machine; what is slow every time shows in the run's total.
settings.register_profile(
    "akm", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("akm")


MOST_PROCESSES = 4
"""Of a whole run: each has servers of its own, and some tests are clusters."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes ``-n auto`` is: none where files or tests were chosen."""
    chosen = config.option.keyword or any(not Path(each).is_dir() for each in config.args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if chosen else min(MOST_PROCESSES, cores or 1)


class Clock:
    """Unix seconds that stand still until a test moves them."""

    def __init__(self, now: float = 1_760_000_000) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    @property
    def seconds(self) -> int:
        """As a caller would write it into a timestamp."""
        return int(self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One redis-server for all tests that leave it running; see `redis_at`."""
    from tests.integration.redis_servers import redis_server

    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_at(shared_redis: Any) -> Any:
    """The same, empty."""
    shared_redis("FLUSHALL")
    return shared_redis


@pytest.fixture(scope="session")
def vectors() -> Any:
    """A reader of outside vectors by file name; skips the test where they are not at hand."""

    def read(name: str) -> Any:
        folder = Path(os.environ.get("AKM_VECTORS") or ROOT.parent / "shared" / "vectors")
        path = folder / name
        if not path.is_file():
            pytest.skip(f"{name} is not at hand: set AKM_VECTORS to the folder that holds it")
        return json.loads(path.read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run, with a database ``akm_empty`` that is migrated."""
    from api_key_manager.storage.postgres_schema import upgrade_at

    with running_postgres() as server:
        server.sql("CREATE DATABASE akm_empty")
        in_thread(lambda: upgrade_at(server.url("akm_empty")))
        yield server
