"""A proxy on loopback that counts what goes by, apart for connections of XRootD's own programs and of all others."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SERVERS, OTHERS = "servers", "others"
_THEIRS = ("xrootd", "xrdcp")


class Counting:
    """Passes everything on to the port; `bytes` counts both directions by who made the connection.

    `holds` is whose connections are taken, and nothing is ever said on them.
    """

    def __init__(self, port: int, holds: str | None = None) -> None:
        self.target, self.holds = port, holds
        self.bytes: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self._ends: list[socket.socket] = []

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                who = SERVERS if program_at(near.getpeername()[1], self.port) in _THEIRS else OTHERS
                if who == self.holds:
                    self._ends.append(near)
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self._ends += (near, far)
                for one, other in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pump, args=(one, other, who), daemon=True))
                    self._threads[-1].start()

    def _pump(self, one: socket.socket, other: socket.socket, who: str) -> None:
        with contextlib.suppress(OSError):
            while block := one.recv(1 << 16):
                self.bytes[who] += len(block)
                other.sendall(block)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in (self._listener, *self._ends):
            end.close()


@contextlib.contextmanager
def counting(port: int, holds: str | None = None) -> Iterator[Counting]:
    proxy = Counting(port, holds)
    try:
        yield proxy
    finally:
        proxy.close()


def program_at(port: int, connected_to: int) -> str:
    """The program whose socket on this host has the one port, and is connected to the other; '' if none is found."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            here, there, *_ = words = line.split()[1:]
            if (int(here.rpartition(":")[2], 16), int(there.rpartition(":")[2], 16)) == (port, connected_to):
                return _owner(f"socket:[{words[8]}]")
    return ""


def _owner(link: str) -> str:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) == link for fd in (process / "fd").iterdir()):
                return (process / "comm").read_text().strip()
    return ""
