"""Services on this host: the database, the web, the daemons; started in the background, found again, stopped."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dlm.config import PREFIX
from dlm.errors import Conflict, Transient

STOP_S = 30.0
POLL_S = 0.05
LOG_BYTES = 16 * 1024 * 1024
SECRETS = ("DLM_TOKEN", "DLM_CLIENT_TOKEN")  # services need none of the client's
_started: list[subprocess.Popen[bytes]] = []  # kept, because a Popen warns when it goes before its process


@dataclass(frozen=True, slots=True)
class Service:
    """A program that runs in the background. Its pid file is locked by it as long as it lives: nothing to guess."""

    name: str
    program: str
    arguments: tuple[str, ...]
    run_dir: Path

    @property
    def pid_file(self) -> Path:
        return self.run_dir / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.run_dir / "log" / f"{self.name}.log"

    def pid(self) -> int | None:
        """The pid of the running service, None when it does not run."""
        try:
            with self.pid_file.open("rb") as file:
                if _lock(file.fileno()):
                    return None
                return int(file.read(32) or 0) or None
        except (FileNotFoundError, ValueError):
            return None

    def start(self, environment: Mapping[str, str]) -> int:
        """The pid of the service, started if it did not run."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _lock(descriptor):
                return self._running()
            process = self._spawn(descriptor, environment)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{process.pid}\n".encode(), 0)
            return process.pid
        finally:
            os.close(descriptor)  # not unlocked: the service holds it on

    def _running(self) -> int:
        pid = self.pid()
        if pid is None:
            raise Transient(f"{self.name} is being started or stopped by another process", hint="try again")
        return pid

    def _spawn(self, lock: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*program(self.program), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is not for the service
                pass_fds=(lock,),
                env=environment,
            )
        _started.append(process)
        return process

    def stop(self) -> bool:
        """End the service in order, by force after a while; False when it did not run."""
        pid = self.pid()
        if pid is None:
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if _until(lambda: self.pid() is None, STOP_S):
                return True
        raise Transient(f"{self.name} (pid {pid}) does not end", hint=f"see {self.log}")

    def wait(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Return once it is ready; Conflict with its last words when it ended, Transient when it takes too long."""
        limit = time.monotonic() + timeout_s
        while True:
            if self.pid() is None:  # asked first: another program may have its port, and be ready
                raise Conflict(f"{self.name} ended while starting: {last_words(self.log)}", hint=f"see {self.log}")
            if is_ready():
                return
            if time.monotonic() > limit:
                raise Transient(f"{self.name} is not ready after {timeout_s:.0f} s", hint=f"see {self.log}")
            time.sleep(POLL_S)


def _lock(descriptor: int) -> bool:
    """Take the lock; False when a service has it."""
    for process in _started:
        process.poll()  # a child of ours that ended is a zombie until we look
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    limit = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > limit:
            return False
        time.sleep(POLL_S)
    return True


def program(name: str) -> Sequence[str]:
    """How to start a program of dlm: the script beside this Python, else its module."""
    script = Path(sys.executable).parent / name
    modules = {"dlm-web": "dlm.web.main", "dlm-daemon": "dlm.daemons.main"}
    return [str(script)] if script.exists() else [sys.executable, "-m", modules[name]]


def environment(config_path: str | None, flags: Mapping[str, str]) -> dict[str, str]:
    """What services are started with: this program's own settings, without its token."""
    kept = {name: text for name, text in os.environ.items() if name not in SECRETS}
    if config_path:
        kept["DLM_CONFIG"] = os.path.abspath(config_path)
    given = {PREFIX + name.upper(): text for name, text in flags.items()}
    return kept | {name: text for name, text in given.items() if name not in SECRETS}


def last_words(path: Path) -> str:
    """The last line of a log that says something, its hint left out."""
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(" hint:")]
    except FileNotFoundError:
        lines = []
    return lines[-1] if lines else "it said nothing"


def free_share(path: Path) -> tuple[int, float]:
    """(bytes free, share free) of the file system on which the path, or its nearest parent, stands."""
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free, usage.free / usage.total


def write_secret(path: Path, text: str) -> None:
    """Put the text into a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)


def services(run_dir: Path) -> Iterator[Service]:
    """The services that `up` starts, in that order."""
    yield Service("web", "dlm-web", (), run_dir)
    yield Service("daemons", "dlm-daemon", ("all",), run_dir)
