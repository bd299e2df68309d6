"""The PostgreSQL server that comes with pip, supervised: one directory, one server, reached by a unix socket only.

It outlives the process that started it. Who is running is decided by a lock that the server's processes inherit
(`lock` in the directory): it is free exactly when the last of them is gone, whatever a pid file says.

Who may connect: the system's word for who is on the other end of the socket (`peer`), and the list in `pg_ident.conf`:
the user who started the server, and the one it runs as. Trust would admit every process of the server's uid, and a
password would be one more secret to keep; with peer there is nothing to steal, and nothing to lose.

As root the server runs as `postgres`, else `nobody`, because PostgreSQL refuses root. Where that user cannot enter the
directory (a checkout under /root), the data stands in /var/lib/dlm-database-… and `place` in the directory links to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from dlm.db.binaries import SHARED_ROOT, as_user, find_binaries, for_user, reaches
from dlm.errors import Conflict, NotFound, Transient

ROLE = "dlm"
PORT = 5432  # names the socket; nothing listens on TCP
SOCKET_PATH_BYTES = 107  # the kernel's limit for a unix socket's path
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
LOG_BYTES = 16 * 1024 * 1024

# For a laptop; whoever has a bigger machine names options of their own, or brings their own PostgreSQL.
DEFAULTS = (
    "listen_addresses=",
    f"port={PORT}",
    "max_connections=60",
    "shared_buffers=128MB",
    "max_wal_size=2GB",
    "jit=off",  # compiling costs more than it saves on statements as short as ours
    "timezone=UTC",
    "log_timezone=UTC",
)

_started: list[subprocess.Popen[bytes]] = []  # kept, because a Popen warns when it goes before its process


class EmbeddedPostgres:
    """A PostgreSQL server whose data, socket and log stand in one directory. `options` are `name=value` settings."""

    def __init__(self, directory: Path, bin_dir: Path | None = None, options: Sequence[str] = ()) -> None:
        self.directory = Path(os.path.abspath(directory))
        self.bin_dir = bin_dir
        self.options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """Where the data really stands: the directory, or what `place` links to."""
        place = self.directory / "place"
        return place.resolve() if place.is_symlink() else self.directory

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def socket_dir(self) -> Path:
        """The directory of the socket: in the home, or a short one in /tmp when the path would not do as a socket's."""
        inside = self.home / "socket"
        path = os.fsencode(inside / f".s.PGSQL.{PORT}")
        # A comma separates sockets for server and clients alike, so that only plain names go without quoting.
        if len(path) <= SOCKET_PATH_BYTES and re.fullmatch(rb"[\w./-]+", path, re.ASCII):
            return inside
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(f"/tmp/dlm-{self._owner().pw_uid}-{digest}")

    def dsn(self, database: str = "dlm") -> str:
        """The address of a database for SQLAlchemy; holds no secret."""
        return f"postgresql+psycopg://{ROLE}@/{quote(database)}?host={quote(str(self.socket_dir))}&port={PORT}"

    def is_running(self) -> bool:
        """True when the server is there; it may still be starting."""
        return self._server_pid() is not None

    def status(self) -> dict[str, Any]:
        """What is there now, for people and machines."""
        version = self.data / "PG_VERSION"
        return {
            "running": self.is_running(),
            "pid": self._server_pid(),
            "initialised": _exists(version),
            "directory": str(self.directory),
            "data": str(self.data),
            "socket": str(self.socket_dir),
            "log": str(self.log),
            "dsn": self.dsn(),
        }

    def init(self) -> None:
        """Make the database cluster, unless it is there. Killed half-way, the next call starts afresh."""
        self._make_directory()
        owner = self._owner()
        if os.geteuid() == 0 and not reaches(owner, self.home):
            self._move_home()
        with self._locked():
            if not _exists(self.data):
                self._initdb(owner)

    def start(self) -> str:
        """The DSN of the running server's database `dlm`, which is started, and made, as far as necessary."""
        self.init()
        self._forget_ended()
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            self._raise_if_ended()
            lock = self._try_lock()
            if lock is None:
                self._end_orphans()
            else:
                try:
                    self._spawn(lock)
                finally:
                    os.close(lock)  # not unlocked: the server's processes hold it on
            if time.monotonic() > give_up_at:
                raise Transient(f"PostgreSQL is not ready after {START_TIMEOUT_S:.0f} s", hint=f"see {self.log}")
            time.sleep(POLL_S)
        self.create_database("dlm")
        return self.dsn()

    def stop(self) -> None:
        """End the server, its sessions with it (a fast stop); returns when all its processes are gone."""
        give_up_at = time.monotonic() + STOP_TIMEOUT_S
        pid = self._server_pid()
        if pid is not None:
            self._signal(pid, signal.SIGINT)
        while not self._is_gone():
            if time.monotonic() > give_up_at:
                raise Transient(f"PostgreSQL (pid {pid}) does not stop", hint=f"see {self.log}")
            time.sleep(POLL_S)

    def remove(self) -> None:
        """End the server and delete everything: data, log, directory."""
        if not self.directory.exists():
            return
        if self.home.is_dir():
            self.stop()
        for path in {self.socket_dir, self.home, self.directory}:
            if path.exists():
                shutil.rmtree(path)

    def create_database(self, name: str, template: str | None = None) -> str:
        """The DSN of the database, which is made (as a copy of `template`) unless it is there."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        made_meanwhile = (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation)
        with self._connect() as connection, contextlib.suppress(*made_meanwhile):
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(statement)
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Remove the database and end its sessions; nothing when it is not there."""
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    # Who, and where

    def _owner(self) -> pwd.struct_passwd:
        """The user whose processes the server's are: who owns the data, else ourselves, else an unprivileged one."""
        uid = self.data.stat().st_uid if _exists(self.data) else os.geteuid()
        if uid != 0:
            return _user(uid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise NotFound("PostgreSQL refuses to run as root, and there is no user postgres or nobody")

    def _make_directory(self) -> None:
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir()
            self.directory.chmod(0o755)  # the way to the data; what is private in it is closed itself
        except FileExistsError:
            return
        except OSError as error:
            raise Conflict(f"cannot make {self.directory}: {error.strerror}", field="embedded_dir") from error

    def _move_home(self) -> None:
        if _exists(self.data):
            raise Conflict(f"{self._owner().pw_name}, who owns the data, cannot enter {self.home}")
        home = Path(tempfile.mkdtemp(prefix="dlm-database-", dir=SHARED_ROOT))
        home.chmod(0o755)
        try:
            (self.directory / "place").symlink_to(home)
        except FileExistsError:  # another starter was first
            home.rmdir()

    def _programs(self, owner: pwd.struct_passwd) -> Path:
        version = self.data / "PG_VERSION"
        major = int(version.read_text()) if _exists(version) else None
        return for_user(find_binaries(self.bin_dir, major), owner)

    def _settings(self, programs: Path) -> list[str]:
        places = [
            f"unix_socket_directories={self.socket_dir}",
            f"hba_file={self.home / 'pg_hba.conf'}",
            f"ident_file={self.home / 'pg_ident.conf'}",
        ]
        library = programs.parent / "lib" / "pg_stat_statements.so"
        extras = ["shared_preload_libraries=pg_stat_statements"] if library.exists() else []
        return [part for setting in (*DEFAULTS, *places, *extras, *self.options) for part in ("-c", setting)]

    # Making and starting

    def _initdb(self, owner: pwd.struct_passwd) -> None:
        # Made under another name and renamed: `data` exists only when it is whole.
        draft = Path(tempfile.mkdtemp(prefix="data.", dir=self.home))
        os.chown(draft, owner.pw_uid, owner.pw_gid)
        # Locale C alone would mean SQL_ASCII, and psycopg would return bytes.
        command = [str(self._programs(owner) / "initdb"), "-D", str(draft), "-U", ROLE]
        command += ["--encoding=UTF8", "--locale=C", "--auth=peer"]
        command += ["--no-sync"] if "fsync=off" in self.options else []
        run = subprocess.run(command, cwd="/", env=_environment(), capture_output=True, text=True, **as_user(owner))
        if run.returncode != 0:
            raise Conflict(f"initdb failed: {_last_line(run.stderr)}")
        draft.rename(self.data)

    def _spawn(self, lock: int) -> None:
        if self.is_running():  # by hand, without our lock
            return
        owner = self._owner()
        if os.geteuid() == 0 and not reaches(owner, self.data):
            raise Conflict(f"{owner.pw_name}, who owns the data, cannot enter {self.data}")
        programs = self._programs(owner)
        self._make_socket_dir(owner)
        self._write_access(owner)
        self._remove_stale()
        if _exists(self.log) and self.log.stat().st_size > LOG_BYTES:
            self.log.rename(self.log.with_suffix(".1"))
        with open(self.log, "ab", opener=_private) as log:
            self._process = subprocess.Popen(
                [programs / "postgres", "-D", self.data, *self._settings(programs)],
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is not for the server
                pass_fds=(lock,),
                **as_user(owner),
            )
        _started.append(self._process)

    def _make_socket_dir(self, owner: pwd.struct_passwd) -> None:
        path = self.socket_dir
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            os.chown(path, owner.pw_uid, owner.pw_gid)
        found = path.lstat()  # a short one stands in /tmp, where a stranger may have been first
        if found.st_uid != owner.pw_uid or found.st_mode & 0o170077 != 0o040000:
            raise Conflict(f"{path} must be a directory of {owner.pw_name} with mode 0700", hint="remove it")

    def _write_access(self, owner: pwd.struct_passwd) -> None:
        # Outside the data directory: root writes nothing where an unprivileged user could put a link.
        names = sorted({owner.pw_name, _user(os.geteuid()).pw_name})
        lines = "".join(f'dlm "{name}" {ROLE}\n' for name in names)
        for name, text in (("pg_hba.conf", f"local all {ROLE} peer map=dlm\n"), ("pg_ident.conf", lines)):
            path = self.home / name
            path.write_text(text)
            path.chmod(0o644)

    def _remove_stale(self) -> None:
        """Remove what a killed server left. Called under the lock: no process of the server is alive.

        PostgreSQL would clean up by itself, except when the pid is a zombie's or went to another process.
        """
        lock_of_socket = self.socket_dir / f".s.PGSQL.{PORT}.lock"
        for path in (self.data / "postmaster.pid", lock_of_socket, lock_of_socket.with_suffix("")):
            path.unlink(missing_ok=True)

    def _end_orphans(self) -> None:
        """Kill the sessions of a server that was killed: one that computes would notice only at its next wait.

        Only these are called `postgres: …`; a server that is just starting has no such process before its pid file.
        """
        if self.is_running():
            return
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile, or is none of ours
                title = (process / "cmdline").read_bytes()
                if title.startswith(b"postgres: ") and os.readlink(process / "cwd") == str(self.data.resolve()):
                    os.kill(int(process.name), signal.SIGKILL)

    # Looking

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.socket_dir), port=PORT, user=ROLE, dbname="postgres", autocommit=True, connect_timeout=10
        )

    def _ready(self) -> bool:
        if not self.is_running():
            return False
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _raise_if_ended(self) -> None:
        if not self._forget_ended():
            return
        last = _last_line(self.log.read_text(errors="replace"))
        raise Conflict(f"PostgreSQL ended while starting: {last}", hint=f"see {self.log}")

    def _forget_ended(self) -> bool:
        """True when the child of ours that was the server has ended; a zombie until we look."""
        if self._process is None or self._process.poll() is None:
            return False
        self._process = None
        return True

    def _server_pid(self) -> int | None:
        """The pid of the server, when the process it names lives, is a PostgreSQL, and stands in our data."""
        if self._process is not None:
            self._process.poll()
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            status = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return None
        name, state = re.fullmatch(r"\d+ \((.*)\) (\S).*", status, re.DOTALL).groups()  # type: ignore[union-attr]
        if state in "ZX" or name != "postgres":
            return None
        # The link may be closed to root in a container: then the name must do, and the lock protects the data.
        with contextlib.suppress(OSError):
            return pid if os.readlink(f"/proc/{pid}/cwd") == str(self.data.resolve()) else None
        return pid

    def _is_gone(self) -> bool:
        if self.is_running():
            return False
        lock = self._try_lock()
        if lock is None:
            return False
        os.close(lock)
        self._process = None
        return True

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    # The lock

    def _try_lock(self) -> int | None:
        """A descriptor that holds the lock, or None when a process of the server, or a starter, has it."""
        if not self.home.is_dir():
            raise NotFound(f"{self.home} does not exist", hint="dlm-admin db init")
        descriptor = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock while the cluster is made; a running server is proof that it was made already."""
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while (lock := self._try_lock()) is None and not _exists(self.data):
            if time.monotonic() > give_up_at:
                raise Transient(f"another process has been making {self.home} for {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)


def _user(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise NotFound(f"uid {uid} has no entry in the user database, which PostgreSQL needs") from None


def _exists(path: Path) -> bool:
    """True when the path is there; closed to us counts as there, so that nothing is made over it."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # the log quotes statements, and these quote names


def _environment() -> dict[str, str]:
    # Nothing of ours: PGDATA, PGOPTIONS, LD_LIBRARY_PATH and the locale would all reach the server.
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
