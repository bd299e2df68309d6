"""The supervisor against real servers, each with a directory of its own."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dlm.db import binaries, embedded
from dlm.db.binaries import SHARED_ROOT, find_binaries
from dlm.db.embedded import EmbeddedPostgres
from dlm.errors import Conflict, NotFound

OPTIONS = ("fsync=off", "shared_buffers=16MB", "max_connections=20")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="dlm-embedded-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def postgres(place: Path, pytestconfig: pytest.Config) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(place / "db", pytestconfig.getoption("--pg-bin"), OPTIONS)
    yield server
    server.remove()


def query(dsn: str, text: str) -> object:
    with psycopg.connect(dsn.replace("+psycopg", "")) as connection:
        return connection.execute(text).fetchone()[0]


def is_gone(pid: int) -> bool:
    """True when there is no such process, or only its zombie, or another one by now."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or ") Z " in status.read_text() or "(postgres)" not in status.read_text()


def kill(server: EmbeddedPostgres) -> None:
    os.kill(server.status()["pid"], signal.SIGKILL)


def test_start_makes_a_server_and_its_database(postgres: EmbeddedPostgres) -> None:
    dsn = postgres.start()
    assert query(dsn, "SELECT current_database()") == "dlm"
    assert query(dsn, "SHOW server_encoding") == "UTF8"
    assert query(dsn, "SHOW shared_buffers") == "16MB"
    assert query(dsn, "SHOW listen_addresses") == ""
    assert postgres.status()["running"]


def test_starting_twice_gives_the_same_server(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    pid = postgres.status()["pid"]
    other = EmbeddedPostgres(postgres.directory, postgres.bin_dir, OPTIONS)
    assert other.start() == postgres.dsn()
    assert other.status()["pid"] == pid


def test_two_starters_at_once_make_one_server(postgres: EmbeddedPostgres) -> None:
    starters = [EmbeddedPostgres(postgres.directory, postgres.bin_dir, OPTIONS) for _ in range(4)]
    threads = [threading.Thread(target=starter.start) for starter in starters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({starter.status()["pid"] for starter in starters}) == 1
    for starter in starters:
        starter.stop()


def test_a_killed_server_starts_again_and_keeps_its_data(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.start().replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    kill(postgres)
    assert query(postgres.start(), "SELECT answer FROM kept") == 42
    kill(postgres)
    other = EmbeddedPostgres(postgres.directory, postgres.bin_dir, OPTIONS)  # its pid is a zombie of ours meanwhile
    assert query(other.start(), "SELECT answer FROM kept") == 42
    other.stop()


def test_a_session_that_computes_does_not_hold_up_the_restart_after_a_kill(postgres: EmbeddedPostgres) -> None:
    connection = psycopg.connect(postgres.start().replace("+psycopg", ""), autocommit=True)
    connection.pgconn.send_query(b"DO 'BEGIN RAISE WARNING $$begun$$; LOOP END LOOP; END'")
    select.select([connection.fileno()], [], [], 10)  # until it says that it begun
    kill(postgres)
    assert query(postgres.start(), "SELECT 1") == 1
    assert is_gone(connection.info.backend_pid)
    connection.close()


def test_a_stale_pid_that_went_to_another_process_does_not_hinder(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    pid_file = postgres.data / "postmaster.pid"
    text = pid_file.read_text()
    kill(postgres)
    postgres.stop()
    ours = str(os.getpid())
    owner = postgres.data.stat()
    pid_file.write_text(text.replace(text.split("\n")[0], ours, 1))
    os.chown(pid_file, owner.st_uid, owner.st_gid)
    assert not postgres.is_running()
    assert query(postgres.start(), "SELECT 1") == 1


def test_a_server_is_left_alone_while_a_process_of_a_killed_one_lives(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.init()
    held = postgres._try_lock()  # as an orphaned backend does, which inherited the descriptor
    assert held is not None
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.2)
    with pytest.raises(embedded.Transient, match="not ready"):
        postgres.start()
    assert not (postgres.data / "postmaster.pid").exists()
    os.close(held)


def test_the_server_outlives_the_process_that_started_it(postgres: EmbeddedPostgres) -> None:
    code = (
        "import sys; from pathlib import Path; from dlm.db.embedded import EmbeddedPostgres as E;"
        "b = sys.argv[2]; print(E(Path(sys.argv[1]), Path(b) if b else None, sys.argv[3:]).start())"
    )
    arguments = [str(postgres.directory), str(postgres.bin_dir or ""), *OPTIONS]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert query(run.stdout.strip(), "SELECT 1") == 1


def test_stop_ends_the_server_and_may_be_said_twice(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    assert not postgres.is_running()
    postgres.stop()


def test_a_database_is_copied_from_a_template_and_dropped(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.start().replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE copied AS SELECT 7 AS seven")
    dsn = postgres.create_database("a copy", template="dlm")
    assert query(dsn, "SELECT seven FROM copied") == 7
    assert postgres.create_database("a copy") == dsn
    postgres.drop_database("a copy")
    postgres.drop_database("a copy")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn.replace("+psycopg", ""))


def test_a_deep_directory_gets_a_short_socket(place: Path, pytestconfig: pytest.Config) -> None:
    deep = place / ("long" * 30 + ", with a comma and blanks")
    server = EmbeddedPostgres(deep, pytestconfig.getoption("--pg-bin"), OPTIONS)
    try:
        assert query(server.start(), "SELECT 1") == 1
        assert server.socket_dir.parent == Path("/tmp")
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700
    finally:
        server.remove()
    assert not server.socket_dir.exists()


def test_a_strangers_socket_directory_is_refused(place: Path, pytestconfig: pytest.Config) -> None:
    server = EmbeddedPostgres(place / ("long" * 30), pytestconfig.getoption("--pg-bin"), OPTIONS)
    server.init()
    server.socket_dir.mkdir(mode=0o777)
    server.socket_dir.chmod(0o777)
    try:
        with pytest.raises(Conflict, match="mode 0700"):
            server.start()
    finally:
        server.remove()


def test_a_server_that_ends_while_starting_says_why(postgres: EmbeddedPostgres) -> None:
    broken = EmbeddedPostgres(postgres.directory, postgres.bin_dir, [*OPTIONS, "no_such_setting=1"])
    with pytest.raises(Conflict, match="no_such_setting"):
        broken.start()


def test_data_of_another_version_is_refused(postgres: EmbeddedPostgres) -> None:
    postgres.init()
    version = postgres.data / "PG_VERSION"
    version.write_text("14\n")
    with pytest.raises(Conflict, match="14, which made the data"):
        postgres.start()


def test_a_directory_without_programs_is_refused(place: Path) -> None:
    with pytest.raises(NotFound, match="no PostgreSQL programs"):
        EmbeddedPostgres(place / "db", bin_dir=place).init()


def test_a_half_made_cluster_is_made_afresh(postgres: EmbeddedPostgres) -> None:
    (postgres.directory / "data.half").mkdir(parents=True)
    assert query(postgres.start(), "SELECT 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user, who may be shut out")
def test_below_a_closed_directory_the_data_stands_elsewhere(place: Path, postgres: EmbeddedPostgres) -> None:
    place.chmod(0o700)
    assert query(postgres.start(), "SELECT 1") == 1
    home = postgres.home
    assert home.parent == SHARED_ROOT
    other = EmbeddedPostgres(postgres.directory, postgres.bin_dir, OPTIONS)
    assert other.status()["pid"] == postgres.status()["pid"]
    postgres.remove()
    assert not home.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user, who may be shut out")
def test_programs_below_a_closed_directory_are_copied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_dir = find_binaries()
    package = bin_dir.parent.parent
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    for source in (package, package.with_name(package.name + ".libs")):
        shutil.copytree(source, closed / source.name, symlinks=True)
    monkeypatch.setattr(binaries, "SHARED_ROOT", place)
    server = EmbeddedPostgres(place / "db", closed / package.name / "pginstall" / "bin", OPTIONS)
    try:
        assert query(server.start(), "SELECT 1") == 1
        (copied,) = place.glob("dlm-postgres-*")
        assert Path(f"/proc/{server.status()['pid']}/exe").resolve().is_relative_to(copied)
    finally:
        server.remove()


def test_only_the_starter_is_let_in(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    socket_dir = postgres.socket_dir.stat()
    assert socket_dir.st_mode & 0o777 == 0o700
    assert (postgres.home / "pg_hba.conf").read_text() == "local all dlm peer map=dlm\n"
    with pytest.raises(psycopg.OperationalError, match="no pg_hba.conf entry"):
        psycopg.connect(host=str(postgres.socket_dir), user="other", dbname="dlm")
