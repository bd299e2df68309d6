"""A whole dlm in real processes, for tests: its own PostgreSQL, web and daemons, killed and restarted at will."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm.cli.client import Client
from dlm.cli.session import Session
from dlm.db.embedded import EmbeddedPostgres
from dlm.errors import Transient

OPTIONS = ("fsync=off", "synchronous_commit=on", "shared_buffers=32MB", "max_wal_size=256MB")
DAEMONS = ("judge", "conveyor", "reaper", "auditor")
STALLED_S = 60.0  # without any progress
POLL_S = 0.1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """Everything that `dlm-admin up` starts, each in a process that this one owns."""

    def __init__(self, directory: Path, pg_bin: Path | None, settings: Mapping[str, object]) -> None:
        self.directory = directory
        self.server = EmbeddedPostgres(directory / "db", pg_bin, OPTIONS)
        self.config = directory / "dlm.cfg"
        self.logs = directory / "log"
        self.logs.mkdir()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: list[str] = []
        self.said: list[str] = []  # by dlm-admin
        port = free_port()
        fixed = {
            "database.dsn": self.server.dsn(),
            "run.dir": directory,
            "web.port": port,
            "client.url": f"http://127.0.0.1:{port}",
            "client.token_file": directory / "token",
            "secrets.key_file": directory / "secrets.key",
        }
        self._write_config({**fixed, **settings})

    def _write_config(self, settings: Mapping[str, object]) -> None:
        sections: dict[str, list[str]] = {}
        for name, value in settings.items():
            section, _, key = name.partition(".")
            sections.setdefault(section, []).append(f"{key} = {value}")
        text = "\n".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
        self.config.write_text(text)

    # -- starting and ending --------------------------------------------------------------------------------------

    def start(self) -> None:
        self.server.start()
        self.admin("db", "init")
        for name in ("web", *DAEMONS):
            self.start_one(name)
        self.until("web to answer", self._answers)

    def start_one(self, name: str) -> None:
        """Start web or a daemon."""
        program = ["-m", "dlm.web.main"] if name == "web" else ["-m", "dlm.daemons.main", name]
        with open(self.logs / f"{name}.log", "ab") as log:
            command = [sys.executable, *program]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment())

    def _environment(self) -> dict[str, str]:
        lib = str(Path(__file__).resolve().parents[1] / "lib")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DLM_")}
        return {**kept, "DLM_CONFIG": str(self.config), "PYTHONPATH": lib}

    def kill(self, name: str) -> None:
        """`kill -9` of web, a daemon or PostgreSQL, and start it again."""
        self.killed.append(name)
        if name == "postgres":
            os.kill(int(self.server.status()["pid"]), signal.SIGKILL)
            self.server.start()
            return
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.start_one(name)

    def check_alive(self) -> None:
        """Nothing ends by itself, whatever happens around it."""
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}: {self.tail(name)}"

    def stop(self) -> None:
        """End everything; the database with all it holds."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.server.remove()

    def tail(self, name: str) -> str:
        return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    # -- talking to it --------------------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        return Session(str(self.config)).client

    def _answers(self) -> bool:
        try:
            return bool(self.client.get("/health")["status"] == "ok")
        except Transient:
            return False

    def admin(self, *words: str, status: int = 0, given: str | None = None) -> Any:
        """What `dlm-admin` answered (its last JSON line), with that status; asked again while the service is away.

        `given` is its standard input.
        """
        limit = time.monotonic() + STALLED_S
        while True:
            command = [sys.executable, "-m", "dlm.cli.main", *words, "--json"]
            done = subprocess.run(command, input=given, capture_output=True, text=True, env=self._environment())
            self.said.append(done.stdout + done.stderr)
            if done.returncode != 75 or time.monotonic() > limit:
                break
            self.check_alive()
        assert done.returncode == status, f"{words}: {done.returncode} {done.stdout} {done.stderr}"
        lines = done.stdout.splitlines()
        return json.loads(lines[-1]) if lines else None

    def until(self, what: str, is_so: Callable[[], bool], each: Callable[[], None] = lambda: None) -> None:
        """Return once it is so; the service may be away meanwhile. AssertionError after a minute."""
        limit = time.monotonic() + STALLED_S
        while True:
            self.check_alive()
            each()
            try:
                if is_so():
                    return
            except Transient:
                pass
            assert time.monotonic() < limit, f"still waiting for {what}\n{self.look()}"
            time.sleep(POLL_S)

    def look(self) -> str:
        """What a person would look at."""
        return "\n".join(f"--- {name}\n{self.tail(name)}" for name in self.processes)


@contextmanager
def serving(name: str, pg_bin: Path | None, settings: Mapping[str, object]) -> Iterator[Service]:
    """A service that runs, in a directory of its own of that name."""
    directory = Path(os.environ["DLM_TEST_DIRECTORY"], f"{name}-{os.getpid()}")
    directory.mkdir(mode=0o755)
    service = Service(directory, pg_bin, settings)
    try:
        service.start()
        yield service
    finally:
        service.stop()
