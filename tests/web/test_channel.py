"""What one connection can take of the web service: no thread by not reading, no disk by sending."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from waitress.adjustments import Adjustments
from waitress.wasyncore import close_all

from dlm.config import Settings
from dlm.web import main
from dlm.web.channel import REFUSED_AT, Parser

BLOCK = b"x" * (1 << 20)
LARGE = [BLOCK] * 40  # beyond what waitress takes in before it lets the app wait
LIMIT_BYTES = 100_000


def answers(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A large answer, or the length of what came."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return LARGE if environ["PATH_INFO"] == "/large" else [b"small"]


@pytest.fixture
def sockets() -> Iterator[dict[int, Any]]:
    made: dict[int, Any] = {}
    settings = Settings(web_port=0, web_threads=2)
    server = main.listen(answers, settings, made, main.bind(settings))  # type: ignore[arg-type]
    yield made
    close_all(made)
    server.task_dispatcher.shutdown()


def asked(sockets: dict[int, Any], path: str) -> socket.socket:
    (listener,) = main.listeners(sockets)
    client = socket.create_connection(("127.0.0.1", int(listener.effective_port)))
    client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    client.setblocking(False)
    return client


def test_readers_who_do_not_read_do_not_keep_the_threads(sockets: dict[int, Any]) -> None:
    stalled = [asked(sockets, "/large") for _ in range(2)]
    limit = time.monotonic() + 30
    while sum(channel for channel in main.busy(sockets)) < 2 or not _all_wait(sockets):
        main.turn(sockets, 60)
        assert time.monotonic() < limit
    other = asked(sockets, "/small")
    got = b""
    while b"small" not in got:
        main.turn(sockets, 0.3)
        got += _read(other)
        assert time.monotonic() < limit, "the threads are kept"
    for client in [*stalled, other]:
        client.close()


def test_a_slow_reader_gets_the_whole_answer(sockets: dict[int, Any]) -> None:
    client = asked(sockets, "/large")
    got, limit = 0, time.monotonic() + 30
    while got < len(LARGE) * len(BLOCK):
        main.turn(sockets, 5)
        got += len(_read(client))
        assert time.monotonic() < limit
    client.close()


def _all_wait(sockets: dict[int, Any]) -> bool:
    channels = [item for item in sockets.values() if isinstance(item, main.Channel)]
    return all(channel.total_outbufs_len > channel.adj.outbuf_high_watermark for channel in channels)


def _read(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 20)
    except BlockingIOError:
        return b""


def parsed(first: str, *headers: str, body_bytes: int) -> Parser:
    """What the server holds of a request whose body it is sent, as long as it wants more."""
    parser = Parser(Adjustments(max_request_body_size=10_000_000, inbuf_overflow=1000), LIMIT_BYTES)
    lines = [f"{first} HTTP/1.1", f"Content-Length: {body_bytes}", *headers, "", ""]
    parser.received("\r\n".join(lines).encode())
    left = body_bytes
    while not parser.completed and left:
        left -= parser.received(b"x" * min(left, 10_000))
    return parser


def kept_bytes(parser: Parser) -> int:
    return len(parser.get_body_stream().read())


TOKEN = "Authorization: Bearer dlm_" + "x" * 43
UPLOAD = "PUT /api/v1/bytes/ska/a?storage=disk"


@pytest.mark.parametrize(
    ("first", "headers", "size", "kept"),
    [
        (UPLOAD, [TOKEN], 500_000, 500_000),
        ("PUT //api/v1/bytes/ska/a", [TOKEN], 500_000, 500_000),
        (UPLOAD, [], 500_000, 0),
        ("POST /api/v1/dids", [], 50_000, 0),
        ("POST /api/v1/dids", [TOKEN], 50_000, 50_000),
        ("POST /api/v1/dids", [TOKEN], 100_000, 100_000),
        ("POST /api/v1/bytes/ska/a", [TOKEN], 500_000, 100_000),
        ("GET /nowhere", [TOKEN], 500_000, 100_000),
    ],
)
def test_only_an_upload_with_a_token_keeps_more_than_the_limit(
    first: str, headers: list[str], size: int, kept: int
) -> None:
    parser = parsed(first, *headers, body_bytes=size)
    assert parser.error is None and parser.completed
    assert (kept_bytes(parser), len(parser.body_rcv)) == (kept, size), "the app still sees what was sent"
    parser.close()


@pytest.mark.parametrize("headers", [[], [TOKEN], [TOKEN, "Expect: 100-continue"]])
def test_far_too_much_is_refused_before_it_is_sent(headers: list[str]) -> None:
    parser = parsed("POST /api/v1/dids", *headers, body_bytes=REFUSED_AT * LIMIT_BYTES + 1)
    assert parser.error.code == 413 and parser.completed and not parser.expect_continue
    assert parser.body_bytes_received == 0


def test_chunks_of_unknown_length_are_no_way_around() -> None:
    parser = Parser(Adjustments(max_request_body_size=10_000_000, inbuf_overflow=1000), LIMIT_BYTES)
    parser.received(b"POST /api/v1/dids HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not parser.completed:
        parser.received(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
    assert parser.error.code == 413 and kept_bytes(parser) == 0
