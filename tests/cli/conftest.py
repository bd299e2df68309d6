"""dlm-admin against the real web service on a real socket, over a real database; daemons run by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from waitress.wasyncore import close_all, loop

from dlm.cli.main import cli
from dlm.clock import ManualClock
from dlm.config import Settings
from dlm.core import accounts
from dlm.db.engine import Database
from dlm.web import main
from dlm.web.app import create_app
from world import World


class Admin:
    """Runs dlm-admin in this process, as the account of the token."""

    def __init__(self, url: str, token: str) -> None:
        self.environment = {"DLM_URL": url, "DLM_TOKEN": token, "COLUMNS": "200"}

    def run(self, *words: Any, status: int = 0, **options: Any) -> Result:
        done = CliRunner(env=self.environment).invoke(cli, [str(word) for word in words], **options)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == status, f"{' '.join(map(str, words))} ended with {done.exit_code}: {done.output}"
        return done

    def __call__(self, *words: Any, status: int = 0) -> str:
        """What it prints on standard output."""
        return self.run(*words, status=status).stdout

    def error(self, *words: Any, status: int) -> str:
        """What it prints on standard error."""
        return self.run(*words, status=status).stderr

    def json(self, *words: Any, status: int = 0) -> Any:
        """The one object that it prints with --json."""
        return json.loads(self.run(*words, "--json", status=status).stdout)

    def lines(self, *words: Any) -> list[Any]:
        """The objects that it prints with --json, one a line."""
        return [json.loads(line) for line in self.run(*words, "--json").stdout.splitlines()]


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    return World(database, clock, tmp_path / "world")


@pytest.fixture
def url(database: Database, world: World) -> Iterator[str]:
    """The address of the web service."""
    sockets: dict[int, Any] = {}
    settings = replace(world.settings, web_port=0)
    server = main.listen(create_app(database, settings), settings, sockets, main.bind(settings))
    (listener,) = main.listeners(sockets)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            loop(timeout=0.05, map=sockets, count=1)
        main.finish(server, sockets)
        close_all(sockets)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.effective_port}"
    stop.set()
    thread.join()


def token_for(database: Database, name: str, *roles: str) -> str:
    with database.begin("test") as tx:
        accounts.ensure_account(tx, name, roles=roles)
        return accounts.make_token(tx, name, "test")[0]


@pytest.fixture
def admin(url: str, database: Database, world: World) -> Admin:
    return Admin(url, token_for(database, "root", "admin"))


@pytest.fixture
def user(url: str, database: Database, world: World) -> Admin:
    return Admin(url, token_for(database, "ada", "user"))


@pytest.fixture
def settings(world: World) -> Settings:
    return world.settings
