"""Real processes beside a measurement: the web service and daemons on the place's database, and a small client."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from dlm.core import accounts
from figures import worlds
from figures.measuring import Place

LIB = str(Path(__file__).resolve().parents[2] / "lib")
START_S = 30.0


class Program:
    """A dlm program on the place's database, ended at the end of the block."""

    def __init__(self, place: Place, module: str, *arguments: str, **settings: object) -> None:
        self.place = place
        self.command = [sys.executable, "-m", module, *arguments]
        self.settings = {"database_dsn": place.database.dsn, "log_level": "warning", **settings}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Program:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DLM_")}
        ours = {f"DLM_{name.upper()}": str(value) for name, value in self.settings.items()}
        with (self.place.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env={**kept, **ours, "PYTHONPATH": LIB}
            )
        return self

    def peak_rss_mb(self) -> float:
        """The most memory that the program had so far."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


class Caller:
    """A client of a web service that runs."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.token = token

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **more}

    def post(self, path: str, body: str, status: int) -> float:
        """The seconds that one POST takes on a connection of its own; AssertionError for another status."""
        connection = self.connect()
        start = time.perf_counter()
        connection.request("POST", path, body, self.headers())
        answer = connection.getresponse()
        text = answer.read()
        seconds = time.perf_counter() - start
        connection.close()
        assert answer.status == status, text[:500]
        return seconds


class Web(Program, Caller):
    """`dlm-web` on a free port, answering; with a token of the bench's account."""

    def __init__(self, place: Place, **settings: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        super().__init__(place, "dlm.web.main", web_port=self.port, run_dir=place.directory, **settings)
        with place.database.begin("bench.token", worlds.ACTOR) as tx:
            self.token, _ = accounts.make_token(tx, "bench")

    def __enter__(self) -> Web:
        super().__enter__()
        limit = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
                return self
            except OSError:
                if time.monotonic() > limit or (self.process and self.process.poll() is not None):
                    raise
                time.sleep(0.05)
