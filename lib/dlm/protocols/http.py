"""Speaking HTTP to one server: connections kept for the next call, redirects followed within bounds, bodies streamed.

http.client, and not a library above it, because uploads of unknown length must be redirected before a byte of them is
sent (dCache and XRootD answer a PUT with the address of the node that takes it).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from urllib.parse import SplitResult, urljoin, urlsplit

from dlm.errors import StorageError
from dlm.protocols.network import STATUS_CLASSES, STATUS_CLASSES_WRITING, from_network_error, is_loopback, translating
from dlm.rooted import shown
from dlm.types import ErrorClass, is_named

BLOCK_BYTES = 1 << 20
IDLE_CONNECTIONS = 8
REDIRECTS = 5
CONTINUE_WAIT_S = 1.0  # for "100 Continue", which servers may leave out
_REDIRECTING = (301, 302, 303, 307, 308)
_STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked; `target` is the quoted path and query, `path` what a message calls it."""

    method: str
    target: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    def verb(self) -> str:
        return {"GET": "read", "PUT": "write", "DELETE": "delete"}.get(self.method, self.method.lower())


class Answer:
    """A status, headers, and a body that is read or dropped by `close`."""

    def __init__(self, pool: Pool, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers: Message = response.headers
        self._pool, self._response = pool, response
        self._connection: http.client.HTTPConnection | None = connection

    def blocks(self, doing: str, path: str) -> Iterator[bytes]:
        """The body; IO if it ends before its announced length."""
        left = self._response.length
        while True:
            with translating(doing, path):
                block = self._response.read(BLOCK_BYTES)
            if not block:
                break
            left = None if left is None else left - len(block)
            yield block
        if left:
            raise StorageError(ErrorClass.IO, f"cannot {doing} {shown(path)}: the connection ended {left} bytes early")

    def close(self) -> None:
        """Give the connection back, if nothing of the body is left in it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(OSError, http.client.HTTPException):
            if not self._response.isclosed() and (self._response.length or 0) < 1 << 14:
                self._response.read(1 << 16)
        is_whole = self._response.isclosed() and not self._response.will_close
        self._response.close()
        self._pool.give_back(connection, is_whole)

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pool:
    """Connections to one host. Each is used by one thread at a time; those that nobody uses are kept for the next."""

    def __init__(self, root: SplitResult, context: ssl.SSLContext | None, timeout_s: float) -> None:
        self.root, self.context, self.timeout_s = root, context, timeout_s
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def borrow(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._fresh(), False
            if connection.sock is not None and not _is_readable(connection.sock, 0):
                return connection, True
            connection.close()  # the server has closed it meanwhile

    def give_back(self, connection: http.client.HTTPConnection, is_reusable: bool) -> None:
        with self._lock:
            if is_reusable and not self._is_closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _fresh(self) -> http.client.HTTPConnection:
        host, port = self.root.hostname or "", self.root.port
        if self.context is None:
            return http.client.HTTPConnection(host, port, timeout=self.timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=self.timeout_s, context=self.context)

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._is_closed = self._idle, [], True
        for connection in idle:
            connection.close()


class Server:
    """The server of a root, spoken to with its secret. `trusted_hosts` get the secret too when redirected to."""

    def __init__(
        self, root: SplitResult, context: ssl.SSLContext | None, timeout_s: float, secret: Mapping[str, str],
        trusted_hosts: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.root, self.context, self.timeout_s = root, context, timeout_s
        self._pool = Pool(root, context, timeout_s)
        self._authorization = authorization(secret)
        self._trusted_hosts = tuple(trusted_hosts)

    def close(self) -> None:
        self._pool.close()

    def ask(self, request: Request) -> Answer:
        """The answer to a request whose body is in memory; redirects followed."""
        pool = self._pool
        for _ in range(REDIRECTS):
            answer = self._ask_once(pool, request)
            if answer.status not in _REDIRECTING or "Location" not in answer.headers:
                return answer
            answer.close()
            pool, request = self._redirected(pool, request, answer.headers["Location"])
        raise StorageError(ErrorClass.IO, f"{shown(request.path)}: more than {REDIRECTS} redirects")

    def _ask_once(self, pool: Pool, request: Request) -> Answer:
        while True:
            connection, is_used = pool.borrow()
            try:
                connection.request(request.method, request.target, request.body or None, self._headers(pool, request))
                return Answer(pool, connection, connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_used and isinstance(error, _STALE) and request.method != "MOVE":
                    continue  # closed by the server while idle: nothing of this was done
                raise from_network_error(error, request.verb(), request.path) from error

    def send(self, request: Request, chunks: Iterable[bytes], size_bytes: int | None) -> Answer:
        """The answer to a request whose body is streamed. Redirects are followed before a byte of it is sent."""
        pool = self._pool
        for _ in range(REDIRECTS):
            connection, early = self._begun(pool, request, size_bytes)
            if early is None:
                return _sent(pool, connection, request, chunks, size_bytes)
            if early.status not in _REDIRECTING or "Location" not in early.headers:
                return early
            early.close()
            pool, request = self._redirected(pool, request, early.headers["Location"])
        raise StorageError(ErrorClass.IO, f"{shown(request.path)}: more than {REDIRECTS} redirects")

    def _begun(
        self, pool: Pool, request: Request, size_bytes: int | None
    ) -> tuple[http.client.HTTPConnection, Answer | None]:
        """A connection that waits for the body; or with the answer of a server that does not want it."""
        length = {"Transfer-Encoding": "chunked"} if size_bytes is None else {"Content-Length": str(size_bytes)}
        while True:
            connection, is_used = pool.borrow()
            try:
                connection.putrequest(request.method, request.target, skip_accept_encoding=True)
                for name, value in {**self._headers(pool, request), **length, "Expect": "100-continue"}.items():
                    connection.putheader(name, value)
                connection.endheaders()
                return connection, _early_answer(pool, connection)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_used and isinstance(error, _STALE):
                    continue
                raise from_network_error(error, request.verb(), request.path) from error

    def _headers(self, pool: Pool, request: Request) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "dlm", **request.headers}
        if self._authorization and self._is_trusted(pool.root):
            headers["Authorization"] = self._authorization
        return headers

    def _is_trusted(self, place: SplitResult) -> bool:
        """True for where the secret may go: this server, and what the administrator named."""
        host = place.hostname or ""
        return host == self.root.hostname or is_named(host, self._trusted_hosts)

    def _redirected(self, pool: Pool, request: Request, location: str) -> tuple[Pool, Request]:
        place = urlsplit(urljoin(f"{pool.root.scheme}://{pool.root.netloc}{request.target}", location))
        is_plain = place.scheme == "http"
        allowed = place.scheme == "https" or (is_plain and (self.context is None or is_loopback(place.hostname or "")))
        if not allowed or not place.hostname:
            elsewhere = f"{shown(place.scheme)}://{shown(place.netloc)}"
            raise StorageError(ErrorClass.IO, f"{shown(request.path)}: a redirect to {elsewhere} is refused")
        target = (place.path or "/") + (f"?{place.query}" if place.query else "")
        if (place.scheme, place.netloc) != (self.root.scheme, self.root.netloc):
            context = None if is_plain else self.context or ssl.create_default_context()
            pool = Pool(place, context, self.timeout_s)
            pool.close()  # it keeps nothing: the next file may be elsewhere
        return pool, replace(request, target=target)


def authorization(secret: Mapping[str, str]) -> str | None:
    """The header that the secret speaks with, if it is a token or a password."""
    if "token" in secret:
        return f"Bearer {secret['token']}"
    if "username" in secret and "password" in secret:
        pair = f"{secret['username']}:{secret['password']}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"
    return None


def refused(answer: Answer, request: Request, *, writing: bool = False, because: str = "") -> StorageError:
    """The StorageError for an answer that is none of the expected."""
    error_class = (STATUS_CLASSES_WRITING if writing else STATUS_CLASSES).get(answer.status, ErrorClass.IO)
    reason = because or http.client.responses.get(answer.status, "")
    hint = "the secret is wrong, expired, or allows too little" if answer.status in (401, 403) else None
    detail = f"cannot {request.verb()} {shown(request.path)}: the server says {answer.status} {reason}".rstrip()
    return StorageError(error_class, detail, hint=hint, status=answer.status)


def _early_answer(pool: Pool, connection: http.client.HTTPConnection) -> Answer | None:
    """What the server says before it got the body; None if it wants it, or says nothing for a moment."""
    if not _is_readable(connection.sock, min(CONTINUE_WAIT_S, pool.timeout_s)):
        return None
    response = _Response(connection.sock, method="PUT")
    connection.sock.settimeout(CONTINUE_WAIT_S)
    try:
        response.begin()
    except TimeoutError:  # what was readable was TLS's own
        return None
    finally:
        connection.sock.settimeout(pool.timeout_s)
    if response.status == http.client.CONTINUE:
        return None
    response.will_close = True  # a server that still waits for the body cannot be asked anything else
    return Answer(pool, connection, response)


class _Response(http.client.HTTPResponse):
    """One that stops at `100 Continue` instead of reading on."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if status == http.client.CONTINUE:
            http.client.parse_headers(self.fp)
            raise _Continue
        return version, status, reason

    def begin(self) -> None:
        try:
            super().begin()
        except _Continue:
            self.status = http.client.CONTINUE


class _Continue(Exception):
    """The server wants the body."""


def _sent(
    pool: Pool,
    connection: http.client.HTTPConnection,
    request: Request,
    chunks: Iterable[bytes],
    size_bytes: int | None,
) -> Answer:
    """The answer once all chunks are sent. A connection on which that fails is closed, which ends the upload."""
    is_done = False
    try:
        failure = None
        for chunk in chunks:  # what the producer raises is the caller's
            failure = _send_chunk(connection, chunk, size_bytes is None)
            if failure is not None:
                break
        if failure is None and size_bytes is None:
            failure = _send_chunk(connection, b"", True)
        answer = _final_answer(pool, connection, request, failure)
        is_done = True
        return answer
    finally:
        if not is_done:
            connection.close()


def _send_chunk(connection: http.client.HTTPConnection, chunk: bytes, is_framed: bool) -> OSError | None:
    """Send a part of the body; the error of a server that does not take it any more."""
    try:
        if is_framed:
            connection.send(b"%x\r\n" % len(chunk))
            connection.send(chunk + b"\r\n" if len(chunk) < 1 << 16 else chunk)
            if len(chunk) >= 1 << 16:
                connection.send(b"\r\n")
        else:
            connection.send(chunk)
    except OSError as error:
        return error
    return None


def _final_answer(
    pool: Pool, connection: http.client.HTTPConnection, request: Request, failure: OSError | None
) -> Answer:
    """The answer to an upload; a server that ended it half-way may have said why."""
    try:
        answer = Answer(pool, connection, connection.getresponse())
    except (OSError, http.client.HTTPException) as error:
        cause = failure or error
        raise from_network_error(cause, request.verb(), request.path) from cause
    if failure is not None and answer.status < 300:
        answer.close()
        raise from_network_error(failure, request.verb(), request.path) from failure
    return answer


def _is_readable(sock: object, wait_s: float) -> bool:
    poll = select.poll()  # not select(): descriptors above 1023 are usual in a daemon
    poll.register(sock, select.POLLIN)  # type: ignore[arg-type]
    return bool(poll.poll(wait_s * 1000))
