"""Connections to web servers: kept for the next call, ended from outside, and bounded in how slowly they may answer."""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import SplitResult

from dlm.errors import StorageError
from dlm.protocols.network import is_near
from dlm.rooted import shown
from dlm.types import ErrorClass

IDLE_CONNECTIONS = 8
CONTINUES = 8  # in front of one answer
LEAST_BYTES_S = 1 << 10  # a body that comes more slowly is not waited for


class Lent:
    """The sockets that threads wait at, which can be ended from outside."""

    def __init__(self) -> None:
        self._sockets: dict[http.client.HTTPConnection, socket.socket] = {}
        self._lock = threading.Lock()
        self._is_over = False

    def add(self, connection: http.client.HTTPConnection) -> None:
        """Remember a connection; INTERRUPTED, with the connection closed, when all are to end."""
        with self._lock:
            if not self._is_over:
                self._sockets[connection] = connection.sock
                return
        connection.close()
        raise StorageError(ErrorClass.INTERRUPTED, "the storage is closed")

    def remove(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._sockets.pop(connection, None)

    def end(self) -> None:
        """Have every wait at them end now, and no other begin."""
        with self._lock:
            self._is_over = True
            ended = list(self._sockets.values())
        for one in ended:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # past TLS, which another thread is at


class Pool:
    """Connections to one host. Each is used by one thread at a time; those that nobody uses are kept for the next.

    To a `distant` host none is made that ends near: such names are given by who has no business there.
    """

    def __init__(
        self, root: SplitResult, context: ssl.SSLContext | None, timeout_s: float, lent: Lent, is_distant: bool = False
    ) -> None:
        self.root, self.context, self.timeout_s, self.is_distant = root, context, timeout_s, is_distant
        self._idle: list[http.client.HTTPConnection] = []
        self._lent = lent
        self._lock = threading.Lock()
        self._is_closed = False

    def borrow(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            is_used = connection is not None
            if connection is None:
                connection = self._fresh()
            elif connection.sock is None or is_readable(connection.sock, 0):
                connection.close()  # the server has closed it meanwhile
                continue
            self._lent.add(connection)
            return connection, is_used

    def drop(self, connection: http.client.HTTPConnection) -> None:
        """Close a connection that was lent."""
        self._lent.remove(connection)
        connection.close()

    def give_back(self, connection: http.client.HTTPConnection, is_reusable: bool) -> None:
        self._lent.remove(connection)
        with self._lock:
            if is_reusable and not self._is_closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _fresh(self) -> http.client.HTTPConnection:
        host, port = self.root.hostname or "", self.root.port
        if self.context is None:
            connection = http.client.HTTPConnection(host, port, timeout=self.timeout_s)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=self.timeout_s, context=self.context)
        connection.response_class = PacedResponse
        connection.connect()
        if self.is_distant and is_near(connection.sock.getpeername()[0]):
            connection.close()
            raise StorageError(ErrorClass.IO, f"a redirect to {shown(self.root.netloc)} is refused: it is this host")
        return connection

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._is_closed = self._idle, [], True
        for connection in idle:
            connection.close()


class _Paced(io.RawIOBase):
    """What a server says; TimeoutError when it says so little at a time that it would never end.

    A socket's timeout is for each piece, and a byte is a piece. All waiting for one answer may take two timeouts, and a
    second for each LEAST_BYTES_S of its body that came.
    """

    is_head = True  # the body has not begun

    def __init__(self, raw: io.RawIOBase, timeout_s: float) -> None:
        self._raw, self._timeout_s = raw, timeout_s
        self._waited_s = 0.0
        self._body_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        size = self._raw.readinto(buffer)
        self._waited_s += time.monotonic() - began
        self._body_bytes += 0 if self.is_head else size or 0
        if size and self._waited_s > 2 * self._timeout_s + self._body_bytes / LEAST_BYTES_S:
            raise TimeoutError("the answer comes too slowly")
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class PacedResponse(http.client.HTTPResponse):
    """One that neither takes for ever, nor begins for ever."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self._paced = _Paced(sock.makefile("rb", buffering=0), sock.gettimeout() or 0.0)
        self.fp = io.BufferedReader(self._paced)
        self._beginnings = 0

    def begin(self) -> None:
        super().begin()
        self._paced.is_head = False

    def _read_status(self) -> tuple[str, int, str]:
        self._beginnings += 1
        if self._beginnings > CONTINUES:
            raise http.client.HTTPException("the answer begins again and again")
        return super()._read_status()  # type: ignore[misc]


def is_readable(sock: object, wait_s: float) -> bool:
    """True once there is something to read, or the end; False when there is nothing for so long."""
    poll = select.poll()  # not select(): descriptors above 1023 are usual in a daemon
    poll.register(sock, select.POLLIN)  # type: ignore[arg-type]
    return bool(poll.poll(wait_s * 1000))
