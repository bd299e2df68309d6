"""The commands of a host, as real processes: database, services, doctor, verify."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlm.cli.host import Service, write_secret
from dlm.db.embedded import EmbeddedPostgres
from dlm.errors import Conflict, Transient
from dlm.vault import Vault

pytestmark = pytest.mark.processes
PATIENCE_S = 120


class Host:
    """A directory with an installation of its own; every command is a process."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        self.variables = variables

    def run(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("DLM_")}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "dlm.cli.main", *words],
            cwd=self.directory,
            env={**kept, **self.variables},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == status, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def __call__(self, *words: str, status: int = 0) -> str:
        return self.run(*words, status=status).stdout

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", status=status).stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def host(empty_dsn: str, tmp_path: Path) -> Iterator[Host]:
    """A host on an external, empty database; its services are stopped at the end."""
    port = free_port()
    address = {"DLM_WEB_PORT": str(port), "DLM_URL": f"http://127.0.0.1:{port}"}
    host = Host(tmp_path, DLM_DATABASE_DSN=empty_dsn, **address)
    yield host
    host.run("down")


@pytest.fixture
def embedded(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Host]:
    """A host with an embedded database of its own, which is removed at the end."""
    directory = tmp_path / "db"
    programs = pytestconfig.getoption("--pg-bin")
    chosen = {"DLM_DATABASE_BIN_DIR": str(programs)} if programs else {}
    yield Host(tmp_path, DLM_DATABASE_EMBEDDED_DIR=str(directory), **chosen)
    EmbeddedPostgres(directory, programs).remove()


def test_the_embedded_database_is_made_started_looked_at_and_stopped(embedded: Host) -> None:
    assert embedded.json("db", "status", status=75)["running"] is False
    made = embedded.json("db", "init")
    token = embedded.directory / made["token_file"]
    assert token.stat().st_mode & 0o777 == 0o600
    before = token.read_text()
    assert "account root" in embedded("db", "init")
    assert token.read_text() == before, "a token that is valid stays"
    key = embedded.directory / "var" / "secrets.key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(Vault(str(key)).key_ids()) == 1
    assert "the newest" in embedded("db", "status")
    assert "runs already" in embedded("db", "start")
    assert embedded("db", "psql", "--", "-tAc", "SELECT name FROM account").strip() == "root"
    assert "nothing to do" in embedded("db", "upgrade")
    embedded("db", "stop")
    assert "does not run" in embedded("doctor", status=1)
    assert "dlm-admin db start" in embedded("doctor", status=1)


def test_up_starts_everything_once_and_down_stops_it(host: Host) -> None:
    first = host.json("up")
    assert sorted(first["daemons"]["names"]) == ["auditor", "conveyor", "judge", "reaper"]
    again = host.json("up")
    assert again["web"] == {**first["web"], "was_running": True}
    assert again["daemons"]["pid"] == first["daemons"]["pid"]
    assert "root" in host("account", "list")
    doctor = [json.loads(line) for line in host("doctor", "--json").splitlines()]
    assert {line["what"]: line["state"] for line in doctor if line["state"] == "fail"} == {}
    assert {"python", "database", "schema", "time", "partitions", "daemons", "web", "token"} <= {
        line["what"] for line in doctor
    }
    assert "clean: the catalogue" in host("verify")
    os.kill(first["web"]["pid"], signal.SIGKILL)
    assert "does not answer" in host.run("account", "list", status=75).stderr
    assert host.json("up")["web"]["was_running"] is False
    assert host.json("down")["stopped"] == ["daemons", "web"]
    assert host("down") == "nothing ran\n"


def test_a_service_that_cannot_start_is_told_with_its_last_words(host: Host) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(host.variables["DLM_WEB_PORT"])))
        taken.listen()
        error = host.run("up", status=1).stderr
    assert "web ended while starting" in error and "cannot listen" in error and "web.log" in error


def test_the_service_that_up_started_is_found_again_without_its_address(host: Host, tmp_path: Path) -> None:
    url = host.variables.pop("DLM_URL")
    host("up")
    assert host.json("status")["promises"]["total"] == 0
    elsewhere = Host(tmp_path / "elsewhere", DLM_URL=url)
    elsewhere.directory.mkdir()
    error = elsewhere.run("status", status=1).stderr
    assert f"{url} wants a token, and there is none in {tmp_path}/elsewhere/var/token" in error


def test_up_wants_a_port_that_stays(host: Host) -> None:
    assert "web.port" in host.run("--set", "web.port=0", "up", status=2).stderr


def test_an_external_database_is_not_started_or_stopped(host: Host) -> None:
    assert "not dlm's own" in host.run("db", "start", status=1).stderr
    host("db", "init")
    assert host.json("db", "status")["embedded"] is False


def test_a_database_that_is_away_is_a_temporary_failure(host: Host) -> None:
    host.variables["DLM_DATABASE_DSN"] = "postgresql+psycopg://nobody@127.0.0.1:9/none"
    for words in (("db", "status"), ("verify",)):
        error = host.run(*words, status=75).stderr
        assert "the database at 127.0.0.1:9 does not answer: connection refused" in error
        assert "hint: does it run, and is database.dsn right?" in error
    assert "fail  database" in host("doctor", status=1)
    host.variables["DLM_DATABASE_DSN"] = "postgresql+psycopg://nobody:secret@no-such-host.invalid/none"
    error = host.run("db", "status", status=75).stderr
    assert "no such host" in error and "secret" not in error


@pytest.mark.parametrize("dsn", ["nonsense:secret", "postgresql://me:secret@host/name", "mysql://me:secret@host/name"])
def test_a_dsn_that_is_none_is_told_without_repeating_it(host: Host, dsn: str) -> None:
    host.variables["DLM_DATABASE_DSN"], kept = dsn, host.variables["DLM_DATABASE_DSN"]
    error = host.run("db", "status", status=2).stderr
    host.variables["DLM_DATABASE_DSN"] = kept
    assert "database.dsn does not begin with postgresql+psycopg://" in error and "secret" not in error


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        (
            "postgresql+psycopg://ada:se%40cret@db:5433/dlm?sslmode=require",
            "postgresql://ada@db:5433/dlm?sslmode=require",
        ),
        ("postgresql+psycopg://ada@/dlm?host=/run/pg&password=se%40cret", "postgresql://ada@/dlm?host=%2Frun%2Fpg"),
    ],
)
def test_psql_gets_the_password_where_nobody_else_sees_it(tmp_path: Path, dsn: str, address: str) -> None:
    program = tmp_path / "psql"
    program.write_text('#!/bin/sh\necho "$@" "$PGPASSWORD"\n')
    program.chmod(0o755)
    host = Host(tmp_path, DLM_DATABASE_DSN=dsn, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert host("db", "psql", "--", "-l").split() == ["--dbname", address, "-l", "se@cret"]


def test_an_old_schema_is_told_by_doctor_with_the_way_out(host: Host) -> None:
    text = host("doctor", status=1)
    assert "fail  schema" in text and "dlm-admin db upgrade" in text
    assert host.json("db", "upgrade")["changed"] is True
    assert "ok    schema" in host("doctor", status=1), "the web does not run, but the schema is there"


def test_verify_names_each_breach_and_fails(host: Host, tmp_path: Path) -> None:
    host("up")
    host("site", "add", "perth")
    host("storage", "add", "perth-disk", "--site", "perth", "--path", str(tmp_path / "disk"))
    (tmp_path / "file").write_bytes(b"content")
    host("did", "put", str(tmp_path / "file"), "--storage", "perth-disk", "--dataset", "demo:ds")
    assert "clean: the catalogue and the files" in host("verify", "--files")
    (stored,) = (tmp_path / "disk" / "demo").rglob("file")
    stored.write_bytes(b"changed")
    (tmp_path / "disk" / "dark").write_bytes(b"nobody's")
    found = [json.loads(line) for line in host("verify", "--files", "--json", status=1).splitlines()]
    assert {line["invariant"] for line in found} == {"I3 files are what the catalogue says", "I3 no dark files"}
    assert "2 breaches" in host("verify", "--files", status=1)


def test_a_secret_is_written_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    write_secret(tmp_path / "run" / "token", "dlm_x")
    assert (tmp_path / "run" / "token").read_text() == "dlm_x\n"
    assert (tmp_path / "run" / "token").stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_pid_file_that_was_left_behind_is_not_believed(tmp_path: Path) -> None:
    service = Service("web", "dlm-web", (), tmp_path)
    service.pid_file.write_text(f"{os.getpid()}\n")
    assert service.pid() is None and service.stop() is False


def test_a_service_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    service = Service("web", "dlm-daemon", ("nonsense",), tmp_path)
    service.start(dict(os.environ))
    with pytest.raises((Conflict, Transient), match="there is no daemon 'nonsense'|nothing"):
        service.wait(lambda: False, PATIENCE_S)
