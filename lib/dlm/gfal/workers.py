"""Workers that speak gfal2: started when first needed, watched at each call, killed when one takes too long."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from dlm import config
from dlm.errors import StorageError
from dlm.gfal import extension, proxy, worker
from dlm.gfal.speech import Speech
from dlm.rooted import shown
from dlm.types import ErrorClass
from dlm.unforeseen import ODD

START_S = 30.0
REST_S = 5.0
BUFFER_BYTES = 4 << 20
KEPT, KEPT_S = 2, 30.0  # idle workers that wait for the next speaker, all storages together, and for how long
LOOK_S = 0.1  # how often a caller who may change their mind is asked
# Who dlm is to a storage, its secret says; nothing that stands around in the environment, or in /tmp, does.
IDENTITIES = (
    "BEARER_TOKEN", "NETRC", "XDG_RUNTIME_DIR",
    "X509_CERT", "X509_KEY", "X509_USER_CERT", "X509_USER_KEY", "X509_USER_PROXY",
    "XrdSecCREDS", "XrdSecGSIUSERCERT", "XrdSecGSIUSERKEY", "XrdSecNETRC", "XrdSecPROXY", "XrdSecPROXYCREDS",
    "XrdSecSSSKT", "XrdSecUSER", "XrdSecsssENDORSEMENT", "XrdSecsssKT",
)  # fmt: skip
PROXY_VARIABLES = ("X509_USER_PROXY", "XrdSecGSIUSERPROXY")  # for TLS, for GSI
ENVIRONMENT = {
    # What is not said is looked for in /tmp (x509up_u0, krb5cc_0, bt_u0), and below the home directory.
    "BEARER_TOKEN_FILE": "/dev/null",
    "HOME": "/nonexistent",
    "KRB5CCNAME": "FILE:/dev/null",
    "XrdSecGSIUSERPROXY": "/dev/null",
    # What XRootD's client takes from there; how long a call may take is ours to say.
    "XRD_CONNECTIONRETRY": "1",
    "XRD_CONNECTIONWINDOW": "3600",
    "XRD_REQUESTTIMEOUT": "86400",
    "XRD_STREAMTIMEOUT": "3600",
    "XRD_STREAMERRORWINDOW": "0",
    "XRD_TIMEOUTRESOLUTION": "1",
}
SETTINGS = (
    ("CORE", "NAMESPACE_TIMEOUT", 86400),
    ("CORE", "CHECKSUM_TIMEOUT", 86400),
    ("HTTP PLUGIN", "RETRIEVE_BEARER_TOKEN", False),  # nobody is asked for tokens: there are those of the secret
    ("HTTP PLUGIN", "LOG_SENSITIVE", False),
    ("HTTP PLUGIN", "ENABLE_STREAM_COPY", False),  # never through this host, when storages are to copy
    ("HTTP PLUGIN", "DEFAULT_COPY_MODE", "3rd pull"),  # the destination asks the source: only it is told a secret
    ("HTTP PLUGIN", "ENABLE_FALLBACK_TPC_COPY", False),
    ("XROOTD PLUGIN", "COPY_CHECKSUM_TYPE", "ADLER32"),
)
_CLASSES = {
    errno.ENOENT: ErrorClass.SOURCE_MISSING,
    errno.ENOTDIR: ErrorClass.SOURCE_MISSING,
    errno.EEXIST: ErrorClass.DESTINATION_EXISTS,
    errno.EISDIR: ErrorClass.DESTINATION_EXISTS,
    errno.EACCES: ErrorClass.PERMISSION,
    errno.EPERM: ErrorClass.PERMISSION,
    errno.EROFS: ErrorClass.PERMISSION,
    errno.EBADE: ErrorClass.PERMISSION,  # how authentication fails
    errno.ENOSPC: ErrorClass.NO_SPACE,
    errno.EDQUOT: ErrorClass.NO_SPACE,
    errno.ENAMETOOLONG: ErrorClass.INVALID_PATH,
    errno.ETIMEDOUT: ErrorClass.TIMEOUT,
    errno.ECONNREFUSED: ErrorClass.UNAVAILABLE,
    errno.EHOSTUNREACH: ErrorClass.UNAVAILABLE,
    errno.EHOSTDOWN: ErrorClass.UNAVAILABLE,
    errno.ENETUNREACH: ErrorClass.UNAVAILABLE,
    errno.ENETRESET: ErrorClass.UNAVAILABLE,  # how TLS fails
}
_HINTS = {errno.ENETRESET: "is the certificate of its authority in the secret's ca, or known to this host?"}


class GfalError(Exception):
    """gfal2 could not do this; `code` is an errno, worker.DIED where there is none."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    def judged(self, doing: str, path: str, *, writing: bool = False) -> StorageError:
        """The StorageError for it. Where we write, nothing of ours is missing."""
        error_class = _CLASSES.get(self.code, ErrorClass.IO)
        if writing and error_class == ErrorClass.SOURCE_MISSING:
            error_class = ErrorClass.IO
        return StorageError(
            error_class, f"cannot {doing} {shown(path)}: {shown(str(self))}", hint=_HINTS.get(self.code)
        )


@contextlib.contextmanager
def translating(doing: str, path: str, *, writing: bool = False) -> Iterator[None]:
    """Turns what gfal2 says inside the block, and what odd answers raise there, into a StorageError."""
    try:
        yield
    except GfalError as error:
        raise error.judged(doing, path, writing=writing) from error
    except ODD as error:
        detail = f"cannot {doing} {shown(path)}: the server's answer cannot be understood ({shown(str(error))})"
        raise StorageError(ErrorClass.IO, detail) from error


class Worker:
    """One process, and one caller at a time. After a call that took too long it is dead.

    StorageError UNAVAILABLE when it cannot be started: nothing of a file is known then.
    """

    def __init__(self, speech: Speech) -> None:
        library = extension.found()
        self.is_dead = False
        self._directory: str | None = None  # where XRootD's client finds whom it trusts
        self.pid = os.getpid()  # a forked child has the socket and is not the one who may use it
        self._channel, far = socket.socketpair()
        for end in (self._channel, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        with far:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(worker.__file__)], stdin=far.fileno(), stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env=_environment(speech), cwd="/", start_new_session=True,
                )  # fmt: skip
            except OSError:
                self._channel.close()
                raise
        try:
            told: dict[str, Any] = {"files": dict(speech.files), "bearers": speech.bearers, "stand_in": None}
            if speech.certificate is not None:
                told["files"] |= dict.fromkeys(PROXY_VARIABLES, proxy.made(*speech.certificate))
            elif speech.is_xrootd:
                told["stand_in"] = proxy.of_nobody()
            if speech.authorities:
                self._directory = tempfile.mkdtemp(prefix="dlm-trusted-")
            told |= {"authorities": speech.authorities, "directory": self._directory}
            self.call("begin", str(library), SETTINGS, told, limit_s=START_S)
        except GfalError as error:
            self.kill()
            raise StorageError(ErrorClass.UNAVAILABLE, f"gfal2 cannot be started: {error}") from error
        except BaseException:
            self.kill()
            raise

    def call(
        self, name: str, *arguments: Any, limit_s: float, body: bytes = b"",
        is_over: Callable[[], bool] | None = None, idle_s: float | None = None,
    ) -> Any:  # fmt: skip
        """What the call gives. GfalError with ETIMEDOUT once `limit_s` has passed, ECANCELED once `is_over()`.

        The process ends by itself when no other call follows within `idle_s`, if that is given.
        """
        until = time.monotonic() + limit_s
        header = {"call": name, "arguments": arguments, "limit_s": limit_s + 1, "idle_s": idle_s}
        try:
            self._channel.settimeout(limit_s)
            worker.send(self._channel, header, body)
            self._wait(until, is_over)
            answer, data = worker.receive(self._channel)
        except TimeoutError:
            self.kill()
            raise GfalError(errno.ETIMEDOUT, f"no answer within {limit_s:g} s") from None
        except (EOFError, OSError):
            self.kill()
            if self._process.returncode == -signal.SIGALRM:
                raise GfalError(errno.ETIMEDOUT, "nothing came for too long") from None
            raise GfalError(worker.DIED, "the library crashed") from None
        except BaseException:  # also a signal: what answers later is for nobody
            self.kill()
            raise
        if "code" in answer:
            raise GfalError(answer["code"], answer["text"])
        return answer.get("value", data)

    def _wait(self, until: float, is_over: Callable[[], bool] | None) -> None:
        """Return when there is an answer; TimeoutError if there is none in time."""
        waiting = select.poll()
        waiting.register(self._channel, select.POLLIN)
        while True:
            left = until - time.monotonic()
            step = left if is_over is None else min(left, LOOK_S)
            if waiting.poll(max(0.0, step) * 1000):
                return
            if left <= 0:
                raise TimeoutError
            if is_over is not None and is_over():
                self.kill()
                raise GfalError(errno.ECANCELED, "asked to stop")

    @property
    def process_id(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End the process; more than once does no harm."""
        self.is_dead = True
        self._channel.close()
        if self.pid == os.getpid():
            self._process.kill()  # one that has ended keeps the status that it ended with
            self._process.wait()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)


class Kept:
    """A few idle workers whose storage was closed: the next who opens it has no start to wait for.

    A storage is opened for every look at its marker; starting costs some 60 ms of a processor.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[float, Speech, Worker]] = []  # until when; the oldest first
        self._lock = threading.RLock()  # the collector may close a forgotten storage while we hold it
        self._is_closed = False

    def take(self, speech: Speech) -> Worker | None:
        """A worker that was told the same, if there is one."""
        with self._lock:
            now, mine = time.monotonic(), os.getpid()
            for entry in self._idle:
                if entry[1] == speech and entry[0] > now and entry[2].pid == mine:
                    self._idle.remove(entry)
                    return entry[2]
        return None

    def give(self, speech: Speech, idle: Worker) -> None:
        """Keep the worker for a while, or end it; those that have waited for nobody end."""
        with contextlib.suppress(GfalError):
            if not self._is_closed and idle.pid == os.getpid():
                idle.call("rest", limit_s=REST_S, idle_s=2 * KEPT_S)
        with self._lock:
            now = time.monotonic()
            self._idle.append((0.0 if idle.is_dead or self._is_closed else now + KEPT_S, speech, idle))
            here = [entry for entry in self._idle if entry[2].pid == os.getpid()]
            ended = [entry for entry in here if entry[0] <= now]
            ended += [entry for entry in here if entry not in ended][:-KEPT]
            self._idle = [entry for entry in self._idle if entry not in ended]
        for _, _, worker_ended in ended:
            worker_ended.kill()

    def close(self) -> None:
        """End all of them, and keep none from now on."""
        with self._lock:
            self._is_closed = True
            ended, self._idle = self._idle, []
        for _, _, worker_ended in ended:
            worker_ended.kill()


_KEPT = Kept()
atexit.register(_KEPT.close)


class Workers:
    """The workers of one storage, as many as calls at once; they stay until `close`."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._is_closed = False

    @contextlib.contextmanager
    def one(self) -> Iterator[Worker]:
        """A worker for this caller alone."""
        found = self._taken()
        try:
            yield found
        finally:
            self._given_back(found)

    def _taken(self) -> Worker:
        with self._lock:
            self._is_closed = False
            while self._idle:
                found = self._idle.pop()
                if found.pid == os.getpid():
                    return found
        try:
            return _KEPT.take(self._speech) or Worker(self._speech)
        except OSError as error:
            raise StorageError(ErrorClass.UNAVAILABLE, f"gfal2 cannot be started: {error.strerror}") from error

    def _given_back(self, found: Worker) -> None:
        if found.is_dead:
            return
        with self._lock:
            if not self._is_closed:
                self._idle.append(found)
                return
        _KEPT.give(self._speech, found)

    def call(self, name: str, *arguments: Any, limit_s: float) -> Any:
        """What one call gives; GfalError."""
        with self.one() as found:
            return found.call(name, *arguments, limit_s=limit_s)

    def close(self) -> None:
        """Let go of those that are idle, and of the others when they are given back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for found in idle:
            _KEPT.give(self._speech, found)


def _environment(speech: Speech) -> dict[str, str]:
    ours = {name: value for name, value in config.for_others().items() if name not in IDENTITIES}
    # XRootD's client cannot begin TLS with a proxy that it cannot read.
    return {**ours, **ENVIRONMENT, **({} if speech.is_xrootd else {"X509_USER_PROXY": "/dev/null"})}
