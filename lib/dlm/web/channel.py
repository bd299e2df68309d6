"""What a connection may hold of this process: disk for a body, and a thread while nobody reads the answer."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from waitress.adjustments import Adjustments
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.utilities import RequestEntityTooLarge

from dlm.web.native import PREFIX

# What is larger than this many times the limit is refused in plain text at once. Up to it the body is read, kept
# nowhere, and the app refuses with a problem document, which a client that is still sending gets to see.
REFUSED_AT = 8


class Body(OverflowableBuffer):
    """Keeps a body up to `most_bytes`; what comes beyond is counted and let go."""

    def __init__(self, overflow: int, most_bytes: int) -> None:
        super().__init__(overflow)
        self.most_bytes = most_bytes
        self.let_go_bytes = 0

    def __len__(self) -> int:
        return int(super().__len__()) + self.let_go_bytes

    def append(self, block: bytes) -> None:
        if len(self) + len(block) > self.most_bytes:
            self.let_go_bytes += len(block)
        else:
            super().append(block)


class Parser(HTTPRequestParser):
    """Takes a large body only where a file is put, and none at all from who shows no token."""

    error: Any
    most_bytes: int | None = None  # None: the server's limit holds, and no other

    def __init__(self, adj: Adjustments, limit_bytes: int) -> None:
        super().__init__(adj)
        self.limit_bytes = limit_bytes

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        has_token = self.headers.get("AUTHORIZATION", "").lower().startswith("bearer ")
        is_upload = self.command == "PUT" and f"/{self.path.lstrip('/')}".startswith(f"{PREFIX}/bytes/")
        if has_token and is_upload:
            return
        self.most_bytes = self.limit_bytes if has_token else 0
        if self.body_rcv is not None:
            self.body_rcv.buf = Body(self.adj.inbuf_overflow, self.most_bytes)

    def received(self, data: bytes) -> int:
        consumed = int(super().received(data))
        size = max(self.content_length, self.body_bytes_received)
        if self.most_bytes is not None and size > REFUSED_AT * self.limit_bytes:
            self.error = self.error or RequestEntityTooLarge(f"exceeds {self.limit_bytes} bytes")
            self.expect_continue = False  # else waitress asks for the body that it has just refused
            self.completed = True
        return consumed


class Channel(HTTPChannel):
    """A connection that knows since when its answer does not leave."""

    def __init__(self, *args: Any, limit_bytes: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser_class = partial(Parser, limit_bytes=limit_bytes)
        self.moved_at = time.monotonic()
        self.seen_activity = 0.0

    def close_if_stalled(self, limit_s: float) -> None:
        """Close the connection when an answer waits and nothing of it was taken for `limit_s`.

        waitress does not: it waits in the app's thread for the reader, and so few readers could have all threads.
        Closing is for the loop's own thread; it wakes the app's.
        """
        now = time.monotonic()
        if not self.total_outbufs_len or self.last_activity != self.seen_activity:
            self.seen_activity, self.moved_at = self.last_activity, now
        elif now - self.moved_at > limit_s:
            self.handle_close()
