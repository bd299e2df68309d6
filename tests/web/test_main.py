"""`dlm-web` as a real process on a real socket."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlm.core import accounts
from dlm.db.engine import Database

pytestmark = pytest.mark.processes

COMMAND = [sys.executable, "-m", "dlm.web.main", "--port", "0"]
LIB = Path(__file__).parents[2] / "lib"


@contextmanager
def running(dsn: str, tmp_path: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(LIB), "DLM_DATABASE_DSN": dsn, **variables}
    process = subprocess.Popen(COMMAND, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    drain = threading.Thread(target=process.stderr.read)
    try:
        line = next((line for line in process.stderr if "listening on" in line), None)
        assert line is not None, f"dlm-web ended with {process.wait()}"
        drain.start()
        yield process, int(line.rpartition(":")[2])
    finally:
        process.kill()
        process.wait()
        if drain.ident is not None:
            drain.join()
        process.stderr.close()


def ask(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """(status, JSON) of one call on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, f"/api/v1{path}", body, headers or {})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, json.loads(answer)


def token(dsn: str) -> dict[str, str]:
    """The header of an administrator's token."""
    database = Database(dsn)
    with database.begin("test") as tx:
        accounts.add_account(tx, "root", roles=["admin"])
        text, _ = accounts.make_token(tx, "root")
    database.dispose()
    return {"Authorization": f"Bearer {text}"}


def test_it_serves_and_ends_at_sigterm_with_status_0(dsn: str, tmp_path: Path) -> None:
    headers = token(dsn)
    with running(dsn, tmp_path) as (process, port):
        assert ask(port, "GET", "/health")[0] == 200
        assert ask(port, "POST", "/scopes", json.dumps({"name": "ska"}), headers)[0] == 201
        assert ask(port, "GET", "/dids/ska/a%2Fb%25c//d", None, headers)[0] == 404
        assert ask(port, "GET", "/accounts/%ff", None, headers)[1]["field"] == "path"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_a_body_of_50_mb_gets_413_over_the_wire(dsn: str, tmp_path: Path) -> None:
    headers = token(dsn)
    with running(dsn, tmp_path) as (_, port):
        status, wrong = ask(port, "POST", "/accounts", b"x" * 50_000_000, headers)
        assert (status, wrong["type"]) == (413, "/problems/too-large")


def test_it_answers_503_while_the_database_is_away_and_does_not_end(tmp_path: Path) -> None:
    with running("postgresql+psycopg://nobody@127.0.0.1:1/none", tmp_path) as (process, port):
        assert ask(port, "GET", "/health")[0] == 503
        assert ask(port, "GET", "/version")[0] == 200
        assert process.poll() is None


def test_another_wsgi_server_gets_the_app_from_the_settings(dsn: str, tmp_path: Path) -> None:
    code = "from dlm.web.main import make_app; print(make_app().test_client().get('/api/v1/health').status)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(LIB), "DLM_DATABASE_DSN": dsn}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "200 OK\n", done.stderr


def test_a_request_under_way_is_finished_at_sigterm(dsn: str, tmp_path: Path) -> None:
    headers = token(dsn)
    database = Database(dsn)
    with running(dsn, tmp_path) as (process, port), database.begin("test") as tx:
        accounts.add_scope(tx, "ska", "root")  # uncommitted: whoever adds the same name waits
        answers: list[tuple[int, Any]] = []
        call = threading.Thread(target=lambda: answers.append(ask(port, "POST", "/scopes", '{"name": "ska"}', headers)))
        call.start()
        while not tx.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            assert call.is_alive()
        process.send_signal(signal.SIGTERM)
        while not _refuses(port):
            assert process.poll() is None
        tx.connection.rollback()
        call.join()
        assert answers[0][0] == 201
        assert process.wait(15) == 0
    database.dispose()


def _refuses(port: int) -> bool:
    """True when nobody listens there any more."""
    try:
        ask(port, "GET", "/version")
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--host", "192.0.2.1"], 2, "cannot listen"),
        (["--config", "/nowhere/dlm.cfg"], 1, "no configuration file"),
        (["--port", "70000"], 2, "web_port"),
    ],
)
def test_what_keeps_it_from_starting_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], status: int, told: str
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(LIB),
        "DLM_DATABASE_DSN": "postgresql+psycopg://x@127.0.0.1:1/x",
    }
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status and told in done.stderr and "Traceback" not in done.stderr


# --- several processes -------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(look: Callable[[], bool]) -> None:
    """Return once it is so; AssertionError after a while."""
    limit = time.monotonic() + 20
    while not look():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_two_processes_serve_one_port_and_end_together(dsn: str, tmp_path: Path) -> None:
    headers = token(dsn)
    with running(dsn, tmp_path, DLM_WEB_PROCESSES="2") as (process, port):
        until(lambda: len(children(process.pid)) == 2)
        workers = children(process.pid)
        assert ask(port, "POST", "/scopes", json.dumps({"name": "ska"}), headers)[0] == 201
        assert {ask(port, "GET", "/scopes/ska", None, headers)[0] for _ in range(20)} == {200}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_process_that_dies_is_replaced_while_the_other_one_serves(dsn: str, tmp_path: Path) -> None:
    with running(dsn, tmp_path, DLM_WEB_PROCESSES="2") as (process, port):
        until(lambda: len(children(process.pid)) == 2)
        before = children(process.pid)
        os.kill(before[0], signal.SIGKILL)
        assert ask(port, "GET", "/health")[0] == 200
        until(lambda: len(set(children(process.pid)) - set(before)) == 1)
        assert {ask(port, "GET", "/health")[0] for _ in range(10)} == {200}


def test_processes_do_not_outlive_the_one_that_started_them(dsn: str, tmp_path: Path) -> None:
    with running(dsn, tmp_path, DLM_WEB_PROCESSES="2") as (process, _):
        until(lambda: len(children(process.pid)) == 2)
        workers = children(process.pid)
        process.kill()
        process.wait()
        until(lambda: not any(is_running(pid) for pid in workers))


def is_running(pid: int) -> bool:
    """False for one that has ended, even when nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_under_way_is_finished_and_nothing_new_is_taken(dsn: str, tmp_path: Path, number: int) -> None:
    headers = token(dsn)
    database = Database(dsn)
    with running(dsn, tmp_path, DLM_WEB_PROCESSES=str(number)) as (process, port), database.begin("test") as tx:
        accounts.add_scope(tx, "ska", "root")  # not committed: whoever adds the same name waits
        answers: list[tuple[int, Any]] = []
        call = threading.Thread(target=lambda: answers.append(ask(port, "POST", "/scopes", '{"name": "ska"}', headers)))
        call.start()
        until(lambda: bool(tx.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted")))
        process.send_signal(signal.SIGTERM)
        until(lambda: not takes(port))
        tx.connection.rollback()
        call.join()
        assert answers[0][0] == 201 and process.wait(25) == 0
    database.dispose()


def takes(port: int) -> bool:
    """True when the port takes a connection."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize("host", ["", "a..b", "no.such.host.invalid"])
def test_a_host_that_is_none_is_refused_in_one_line(dsn: str, tmp_path: Path, host: str) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(LIB), "DLM_DATABASE_DSN": dsn}
    ended = subprocess.run([*COMMAND, "--host", host], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert ended.returncode != 0 and "listen on" in ended.stderr and "Traceback" not in ended.stderr


def test_a_policy_that_cannot_be_read_is_told_once_by_several_processes_too(dsn: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(LIB), "DLM_DATABASE_DSN": dsn, "DLM_WEB_PROCESSES": "2"}
    environment["DLM_WEB_POLICY_FILE"] = str(tmp_path / "none")
    ended = subprocess.run(COMMAND, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert ended.returncode != 0 and "policy" in ended.stderr and "replaced" not in ended.stderr
