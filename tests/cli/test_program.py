"""What holds for every command, and how dlm-admin fails."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.conftest import Admin
from dlm.cli.client import Client
from dlm.cli.main import cli
from dlm.cli.reference import reference
from dlm.db.engine import Database
from dlm.errors import Transient
from world import World

NOWHERE = "http://127.0.0.1:9"


def verbs(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    if not isinstance(command, click.Group):
        yield words
        return
    for name, below in command.commands.items():
        yield from verbs(below, (*words, name))


@pytest.mark.parametrize("words", list(verbs(cli)), ids=" ".join)
def test_every_command_has_help_and_speaks_json(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*words, "--help"], env={"COLUMNS": "100"})
    assert done.exit_code == 0 and "--json" in done.stdout
    first = done.stdout.split("\n\n")[1].strip()
    assert first and "Options:" not in first, "it says what it does"


def test_the_reference_is_what_the_program_says(pytestconfig: pytest.Config) -> None:
    page = pytestconfig.rootpath / "docs/reference/cli.md"
    assert page.read_text() == reference(), "python -m dlm.cli.reference > docs/reference/cli.md"


def test_a_service_that_does_not_answer_is_a_temporary_failure_with_the_way_out() -> None:
    error = Admin(NOWHERE, "dlm_x").error("rule", "list", status=75)
    assert error == (
        f"error: {NOWHERE} does not answer (connection refused)\n"
        " hint: start it: dlm-admin up   ·   it is elsewhere: --url, or DLM_URL\n"
    )


@contextmanager
def another_server(answer: bytes, length: int) -> Iterator[str]:
    """The address of a server that says 200 and sends this, whatever length it announces."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """It says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("words", [("account", "list"), ("account", "list", "--limit", "5"), ("status",)])
def test_another_service_at_the_address_is_told(words: tuple[str, ...]) -> None:
    page = b"<html>welcome"
    with another_server(page, len(page)) as address:
        assert f"{address} answered what is not JSON" in Admin(address, "dlm_x").error(*words, status=1)


def test_the_service_is_blamed_for_its_own_failures_and_for_no_others() -> None:
    with another_server(b"cut short", 100) as address:
        client = Client(address, "dlm_x")
        with pytest.raises(Transient, match="does not answer"), client.open("GET", "/bytes/a/b") as response:
            response.read()
        with pytest.raises(OSError, match="full"), client.open("GET", "/bytes/a/b"):
            raise OSError(errno.ENOSPC, "the disk here is full")


def test_what_the_host_refuses_is_told_in_one_line(admin: Admin, world: World, tmp_path: Path) -> None:
    world.add_storage("perth-disk")
    (name,) = world.many("perth-disk", 1, verified=True)
    (tmp_path / "file").write_text("in the way")
    error = admin.error("did", "get", f"test:{name}", "--to", tmp_path / "file" / "below", status=1)
    assert error.startswith(f"error: {tmp_path}/file/below") and error.endswith(": Not a directory\n")


def test_errors_are_objects_for_machines() -> None:
    done = Admin(NOWHERE, "dlm_x").run("rule", "list", "--json", status=75)
    assert done.stdout == ""
    told = json.loads(done.stderr)
    assert told["exit_status"] == 75 and "does not answer" in told["error"] and told["hint"]


def test_a_database_that_is_down_is_a_temporary_failure(admin: Admin, database: Database, server: object) -> None:
    name = database.engine.url.database
    with database.begin("test") as tx:
        tx.run("SELECT 1")
    database.dispose()
    server.drop_database(str(name))  # type: ignore[attr-defined]
    assert "database" in admin.error("rule", "list", status=75)


def test_without_a_token_it_says_where_one_was_looked_for(url: str, tmp_path: Path) -> None:
    nobody = Admin(url, "")
    nobody.environment["DLM_CLIENT_TOKEN_FILE"] = str(tmp_path / "token")
    error = nobody.error("rule", "list", status=1)
    assert f"{url} wants a token, and there is none in {tmp_path}/token" in error and "--token or DLM_TOKEN" in error


def test_the_token_comes_from_a_file_that_only_its_owner_can_read(admin: Admin, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(admin.environment["DLM_TOKEN"] + "\n")
    by_file = Admin(admin.environment["DLM_URL"], "")
    by_file.environment["DLM_CLIENT_TOKEN_FILE"] = str(file)
    file.chmod(0o644)
    assert f"chmod 600 {file}" in by_file.error("account", "list", status=2)
    file.chmod(0o600)
    assert "root" in by_file("account", "list")


def test_a_wrong_address_is_named(tmp_path: Path) -> None:
    assert "is no address" in Admin("perth", "x").error("status", status=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rule", "ad"), "no such command 'ad'. Did you mean 'add'?"),
        (("rule", "list", "--stat", "ok"), "no such option '--stat'"),
        (("rule", "add", "demo:x", "--on", "tier=1"), "missing option '--copies'"),
        (("rule", "add", "nocolon", "--copies", "1", "--on", "x"), "'nocolon' has no ':'"),
        (("rule", "add", "demo:x", "--copies", "two", "--on", "x"), "'two' is no number of copies"),
        (("rule", "add", "demo:x", "--copies", "1", "--on", "x", "--lifetime", "1y"), "'1y' is no duration"),
        (("storage", "set", "x", "--write", "maybe"), "'maybe' is neither on nor off"),
        (("storage", "set", "x", "--capacity", "5XB"), "'5XB' is no size"),
        (("storage", "attributes", "set", "x", "tier"), "'tier' is no key=value"),
        (("--set", "judge.batch=1", "config", "check"), "judge_batch is no setting"),
        (("did", "put", "/etc/hostname", "--scope", "x", "--storage", "a", "--on", "b"), "where to?"),
        (("why", "a", "b", "c"), "say what"),
        (("request", "retry"), "say which"),
        (("rule", "set", "x"), "nothing to change"),
        (("config", "show", "jugde"), "there is no section 'jugde'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_words_end_with_status_2_and_say_what_is_right(words: tuple[str, ...], message: str) -> None:
    error = Admin(NOWHERE, "dlm_x").error(*words, status=2)
    assert error.startswith("error: ") and message in error and error.count("\n") <= 2


def test_settings_are_shown_without_secrets() -> None:
    admin = Admin(NOWHERE, "dlm_secret")
    admin.environment["DLM_DATABASE_DSN"] = "postgresql+psycopg://dlm:hush@db.example.org/dlm"
    for words in (("config", "show"), ("config", "show", "--json"), ("config", "check"), ("config", "check", "--json")):
        shown = admin(*words)
        assert "hush" not in shown and "dlm_secret" not in shown and "db.example.org" in shown


def test_an_example_file_can_be_read_back(tmp_path: Path) -> None:
    file = tmp_path / "dlm.cfg"
    file.write_text(Admin(NOWHERE, "x")("config", "example"))
    assert "valid" in Admin(NOWHERE, "x")("--config", file, "config", "check")
