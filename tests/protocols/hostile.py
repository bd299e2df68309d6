"""A server on loopback that says what it wants, byte by byte: to see what adapters make of it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator

Said = Callable[[bytes], Iterable[bytes]]  # from the head of a request: the pieces of what is said, then the end


class Hostile:
    """Answers each connection by a script until the block ends; `met` is called with who came over TLS."""

    def __init__(
        self, script: Said, host: str = "127.0.0.1", context: ssl.SSLContext | None = None,
        met: Callable[[ssl.SSLSocket], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._script, self._context, self._met = script, context, met
        self._listener = socket.create_server((host, 0), backlog=64)
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self.asked: list[bytes] = []
        self.sent_bytes = 0
        self.pause = threading.Event()  # set when all is over
        self._ends: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                self._ends.add(end)
                self._threads.append(threading.Thread(target=self._answer, args=(end,), daemon=True))
                self._threads[-1].start()

    def _answer(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError), self._greeted(end) as end:
            head = b""
            while b"\r\n\r\n" not in head and (more := end.recv(1 << 16)):
                head += more
            if head:
                self.asked.append(head)
                for piece in self._script(head):
                    if self.pause.is_set():
                        break
                    end.sendall(piece)
                    self.sent_bytes += len(piece)
                end.shutdown(socket.SHUT_WR)
                while end.recv(1 << 16):  # else what was not read resets the connection before the answer is read
                    pass

    def _greeted(self, end: socket.socket) -> socket.socket:
        if self._context is None:
            return end
        greeted = self._context.wrap_socket(end, server_side=True)
        self._ends.add(greeted)
        self._met(greeted)
        return greeted

    def close(self) -> None:
        self.pause.set()
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@contextlib.contextmanager
def hostile(
    script: Said, host: str = "127.0.0.1", context: ssl.SSLContext | None = None,
    met: Callable[[ssl.SSLSocket], None] = lambda _: None,
) -> Iterator[Hostile]:  # fmt: skip
    server = Hostile(script, host, context, met)
    try:
        yield server
    finally:
        server.close()


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    """A whole answer, after which the connection ends."""
    lines = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def method_of(head: bytes) -> str:
    return head.partition(b" ")[0].decode()


def path_of(head: bytes) -> str:
    return head.split(b" ")[1].decode()


def own_address() -> str | None:
    """An address of this host that is not its loopback; None without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing
        found = str(probe.getsockname()[0])
        return None if found.startswith(("127.", "169.254.", "0.")) else found
    return None
