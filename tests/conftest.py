"""One embedded PostgreSQL for the whole run, started by the first test that needs it; a fresh database for every test.

The process that was started first (the controller under xdist) names the directory and stops the server at the end.
Workers only start it: `EmbeddedPostgres.start` is safe to call from many processes.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dlm.clock import ManualClock
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database
from dlm.vault import Vault

DIRECTORY = "DLM_TEST_DIRECTORY"
PREFIX = "dlm-test-"
TEMPLATE = "template_dlm"
# Nothing here survives the run, so nothing needs to be safe on disk; many workers, many sessions.
OPTIONS = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "max_wal_size=256MB",
    "max_connections=200",
    "shared_buffers=64MB",
)
# Copying the template makes 600 files: 10 ms in memory, 400 ms on a slow disk.
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 2 * 1024**3
NAMES = itertools.count(1)
KEY = "A" * 43  # of secrets: 32 bytes that everybody knows


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pg-bin", type=Path, help="directory of the PostgreSQL programs to test with")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    remove_leftovers()
    directory = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=fastest_place())
    os.chmod(directory, 0o755)  # as root the server runs as another user
    os.environ[DIRECTORY] = directory


def pytest_unconfigure(config: pytest.Config) -> None:
    # A worker ends before the server that it started, which the controller stops: no leak to warn of.
    atexit.register(warnings.simplefilter, "ignore", ResourceWarning)
    if not hasattr(config, "workerinput"):
        remove(Path(os.environ[DIRECTORY]))


def fastest_place() -> Path:
    """Memory, where there is enough of it; else the usual place for temporary files."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        return MEMORY
    return Path(tempfile.gettempdir())


def remove_leftovers() -> None:
    """Stop and remove the servers of runs that were killed."""
    places = {MEMORY, Path(tempfile.gettempdir())}
    for directory in (found for place in places for found in place.glob(f"{PREFIX}*-*")):
        pid = directory.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists() and os.access(directory, os.W_OK):
            remove(directory)


def remove(directory: Path) -> None:
    EmbeddedPostgres(directory / "db").remove()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> EmbeddedPostgres:
    """The running server of this test run."""
    server = EmbeddedPostgres(Path(os.environ[DIRECTORY], "db"), pytestconfig.getoption("--pg-bin"), OPTIONS)
    server.start()
    return server


@pytest.fixture(scope="session")
def template(server: EmbeddedPostgres) -> str:
    """The name of a database that is migrated to the newest schema, for copying."""
    from dlm.db.migrate import upgrade

    migrated = Path(os.environ[DIRECTORY], "migrated")
    with open(Path(os.environ[DIRECTORY], "template.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first worker migrates, the others wait
        if not migrated.exists():
            server.drop_database(TEMPLATE)
            upgrade(server.create_database(TEMPLATE))
            migrated.touch()
    return TEMPLATE


@pytest.fixture
def empty_dsn(server: EmbeddedPostgres) -> Iterator[str]:
    """The address of a fresh database without any schema."""
    name = f"test_{os.getpid()}_{next(NAMES)}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture
def dsn(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """The address of a fresh database with the schema and nothing else in it."""
    name = f"test_{os.getpid()}_{next(NAMES)}"
    yield server.create_database(name, template)
    server.drop_database(name)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that moves only when told."""
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def database(dsn: str, clock: ManualClock) -> Iterator[Database]:
    """A fresh, empty database on the test's clock."""
    database = Database(dsn, clock=clock, vault=Vault(text=KEY))
    yield database
    database.dispose()
