"""Speaking HTTP to one server: connections kept for the next call, redirects followed within bounds, bodies streamed.

http.client, and not a library above it, because uploads of unknown length must be redirected before a byte of them is
sent (dCache and XRootD answer a PUT with the address of the node that takes it).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from functools import cached_property
from urllib.parse import SplitResult, urljoin, urlsplit

from dlm.errors import StorageError
from dlm.protocols.connections import Lent, PacedResponse, Pool, is_readable
from dlm.protocols.network import (
    STATUS_CLASSES,
    STATUS_CLASSES_WRITING,
    from_network_error,
    is_loopback,
    is_near,
    tls_context,
    translating,
)
from dlm.rooted import shown
from dlm.types import ErrorClass, is_named
from dlm.unforeseen import ODD

BLOCK_BYTES = 1 << 20
REDIRECTS = 5
CONTINUE_WAIT_S = 1.0  # for "100 Continue", which servers may leave out
READING = ("GET", "HEAD", "PROPFIND")  # what may be sent to another place: it changes nothing there
_RAISED = (*ODD, http.client.HTTPException)
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

    def blocks(self, doing: str, path: str, size_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The body; IO if it ends before its announced length."""
        left = self._response.length
        while True:
            with translating(doing, path):
                block = self._response.read(size_bytes)
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
        with contextlib.suppress(*_RAISED):
            if not self._response.isclosed() and (self._response.length or 0) < 1 << 14:
                self._response.read(1 << 16)
        is_whole = self._response.isclosed() and not self._response.will_close
        self._response.close()
        self._pool.give_back(connection, is_whole)

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server:
    """The server of a root, spoken to with its secret. `trusted_hosts` get the secret too when redirected to."""

    def __init__(
        self, root: SplitResult, context: ssl.SSLContext | None, timeout_s: float, secret: Mapping[str, str],
        trusted_hosts: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.root, self.context, self.timeout_s = root, context, timeout_s
        self._lent = Lent()
        self._pool = Pool(root, context, timeout_s, self._lent)
        self._authorization = authorization(secret)
        self._shows_certificate = "certificate" in secret
        self._authority = {"ca": secret["ca"]} if "ca" in secret else {}
        self._trusted_hosts = tuple(trusted_hosts)

    def close(self) -> None:
        self._pool.close()

    def hang_up(self) -> None:
        """Close, and end what threads wait for."""
        self.close()
        self._lent.end()

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
            with translating(request.verb(), request.path):
                connection, is_used = pool.borrow()
            try:
                connection.request(request.method, request.target, request.body or None, self._headers(pool, request))
                return Answer(pool, connection, connection.getresponse())
            except BaseException as error:  # whatever ends it: the connection is in the middle of something
                pool.drop(connection)
                if not isinstance(error, _RAISED):
                    raise
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
            with translating(request.verb(), request.path):
                connection, is_used = pool.borrow()
            try:
                connection.putrequest(request.method, request.target, skip_accept_encoding=True)
                for name, value in {**self._headers(pool, request), **length, "Expect": "100-continue"}.items():
                    connection.putheader(name, value)
                connection.endheaders()
                return connection, _early_answer(pool, connection)
            except BaseException as error:  # whatever ends it: the connection is in the middle of something
                pool.drop(connection)
                if not isinstance(error, _RAISED):
                    raise
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
        with translating(request.verb(), request.path):
            place = urlsplit(urljoin(f"{pool.root.scheme}://{pool.root.netloc}{request.target}", location))
            refusal = self._refusal(place, request)
        if refusal is not None:
            elsewhere = f"a redirect to {shown(place.scheme)}://{shown(place.netloc)} is refused"
            raise StorageError(ErrorClass.IO, f"{shown(request.path)}: {elsewhere}: {refusal}")
        target = (place.path or "/") + (f"?{place.query}" if place.query else "")
        if (place.scheme, place.netloc) == (self.root.scheme, self.root.netloc):
            return self._pool, replace(request, target=target)
        is_here = is_loopback(self.root.hostname or "") or is_near(self.root.hostname or "")
        is_distant = not (is_here or self._is_trusted(place))
        elsewhere_pool = Pool(place, self._context_for(place), self.timeout_s, self._lent, is_distant)
        elsewhere_pool.close()  # it keeps nothing: the next file may be elsewhere
        return elsewhere_pool, replace(request, target=target)

    def _refusal(self, place: SplitResult, request: Request) -> str | None:
        """Why the server may not send us there, None if it may; ValueError when it is no address."""
        host, _ = place.hostname or "", place.port
        if place.scheme not in ("https", "http") or not host:
            return "it is no address of a web server"
        # An unencrypted root that is not of this host is one for which the administrator allows that.
        is_open = self.context is None and (is_loopback(host) or not is_loopback(self.root.hostname or ""))
        if place.scheme == "http" and not is_open:
            return "it is not encrypted"
        if request.method not in READING and not self._is_trusted(place):
            return f"{request.method} goes to the storage's own host, and to those in its option trusted_hosts"
        return None

    def _context_for(self, place: SplitResult) -> ssl.SSLContext | None:
        """Whom we trust there; who we are is for those that may see it."""
        if place.scheme == "http":
            return None
        if self.context is not None and (self._is_trusted(place) or not self._shows_certificate):
            return self.context
        return self._anonymous

    @cached_property
    def _anonymous(self) -> ssl.SSLContext:
        return tls_context(self._authority)


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
    if not is_readable(connection.sock, min(CONTINUE_WAIT_S, pool.timeout_s)):
        return None
    response = _EarlyResponse(connection.sock, method="PUT")
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


class _EarlyResponse(PacedResponse):
    """One that stops at `100 Continue` instead of reading on."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()
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
            pool.drop(connection)


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
    except _RAISED as error:
        cause = failure or error
        raise from_network_error(cause, request.verb(), request.path) from cause
    if failure is not None and answer.status < 300:
        answer.close()
        raise from_network_error(failure, request.verb(), request.path) from failure
    return answer
