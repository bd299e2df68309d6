"""Every command that the README shows works, in the order in which it stands there, on a service of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm.db.embedded import EmbeddedPostgres
from pages import CHECKOUT, Block, blocks, commands
from processes import free_port

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

README = CHECKOUT / "README.md"
EXAMPLE_DSN = "postgresql+psycopg://dlm@db.example.org/dlm"
MOST_NOT_RUN = 3


class Reader:
    """Types what the README shows, in an empty home with a few recordings; variables that are exported stay."""

    def __init__(self, directory: Path, empty_dsn: str) -> None:
        self.home = directory
        self.empty_dsn = empty_dsn
        scripts = directory / "bin"
        scripts.mkdir()
        for name, module in (("dlm-admin", "cli"), ("dlm-daemon", "daemons"), ("dlm-web", "web")):
            script = scripts / name
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -m dlm.{module}.main "$@"\n')
            script.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DLM_")}
        path = f"{scripts}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**kept, "HOME": str(directory), "PATH": path, "PYTHONPATH": str(CHECKOUT / "lib")}

    def prepare(self) -> None:
        recordings = self.home / "recordings" / "2019"
        recordings.mkdir(parents=True)
        for name in ("harbour", "lake", "market"):
            (recordings / f"{name}.wav").write_bytes(name.encode() * 1000)
        (self.home / "var").mkdir()
        port = free_port()
        client = f"[client]\nurl = http://127.0.0.1:{port}\n"
        (self.home / "var" / "dlm.cfg").write_text(f"[web]\nport = {port}\n{client}[auditor]\ninterval_s = 0.5\n")

    def type(self, command: str) -> str:
        """What the command prints; AssertionError with its own words when it fails."""
        if "RULE" in command.split():
            command = command.replace("RULE", self.rule())
        script = (
            f"{command.replace(EXAMPLE_DSN, self.empty_dsn)}\nstatus=$?\nenv -0 > {self.home}/environment\nexit $status"
        )
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.home, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        left = (self.home / "environment").read_text().split("\0")
        self.environment = dict(variable.split("=", 1) for variable in left if "=" in variable)
        return done.stdout

    def rule(self) -> str:
        return str(json.loads(self.type("dlm-admin rule list --json").splitlines()[0])["id"])


@pytest.fixture
def reader(pytestconfig: pytest.Config, empty_dsn: str) -> Iterator[Reader]:
    directory = Path(os.environ["DLM_TEST_DIRECTORY"], f"reader-{os.getpid()}")
    directory.mkdir(mode=0o755)
    reader = Reader(directory, empty_dsn)
    reader.prepare()
    pg_bin = pytestconfig.getoption("--pg-bin")
    if pg_bin is not None:
        reader.environment["DLM_DATABASE_BIN_DIR"] = str(pg_bin)
    try:
        yield reader
    finally:
        reader.environment.pop("DLM_DATABASE_DSN", None)
        reader.type("dlm-admin down")
        EmbeddedPostgres(directory / "var" / "db").remove()


def shell_blocks() -> list[Block]:
    return [block for block in blocks(README) if block.language in ("sh", "console")]


def test_every_command_of_the_readme_works(reader: Reader) -> None:
    printed = [
        (command, reader.type(command)) for block in shell_blocks() if not block.not_run for command in commands(block)
    ]
    said = dict(printed)
    assert len(printed) > 25
    assert "ok" in next(text for command, text in said.items() if "rule add" in command)
    assert "harbour" in next(text for command, text in said.items() if " why " in command)


def test_what_no_test_runs_is_little_and_says_why() -> None:
    not_run = [block for block in shell_blocks() if block.not_run]
    assert len(not_run) <= MOST_NOT_RUN


def test_every_fence_names_its_language() -> None:
    assert [block.line_number for block in blocks(README) if not block.language] == []
