"""What a server can say to do harm: whatever it is, it is a StorageError, in bounded time and memory."""

from __future__ import annotations

import itertools
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.protocols import StorageProtocol, open_protocol
from dlm.protocols.multistatus import RESPONSE_LIMIT_BYTES
from dlm.transfertools import Copy
from dlm.transfertools.stream import StreamTool
from dlm.types import ErrorClass, ProtocolRef, Secret
from protocols.conformance import STORAGE_ID, get, put, refusal
from protocols.hostile import Hostile, answer, hostile, method_of, own_address, path_of
from protocols.servers import certificate, resident_bytes

pytestmark = pytest.mark.protocols
MARKER_TEXT = json.dumps({"id": STORAGE_ID}).encode()
MARKED = answer(200, MARKER_TEXT)
PROP = "<getcontentlength>3</getcontentlength><getlastmodified>Fri, 20 Nov 2026 12:00:00 GMT</getlastmodified>"


def multistatus(*names: str, prop: str = PROP) -> bytes:
    each = "".join(
        f"<response><href>{name}</href><propstat><prop>{prop}</prop></propstat></response>" for name in names
    )
    return f'<?xml version="1.0"?><multistatus xmlns="DAV:">{each}</multistatus>'.encode()


def dav(server: Hostile, **options: str) -> StorageProtocol:
    options = {"timeout_s": "2", "allow_http": "true", **options}
    prefix = f"dav://{server.host}:{server.port}/r"
    return open_protocol(ProtocolRef(1, "web", STORAGE_ID, "dav", prefix, "s", options, Secret({"token": "t0ken"})))


def s3(server: Hostile) -> StorageProtocol:
    pytest.importorskip("botocore", reason="botocore is not installed: pip install 'dlm[s3]'")
    secret = Secret({"access_key": "AK", "secret_key": "SK"})
    prefix = f"http://127.0.0.1:{server.port}/bucket"
    return open_protocol(ProtocolRef(1, "s3", STORAGE_ID, "s3", prefix, "s", {"timeout_s": "2"}, secret))


ACTS: list[Callable[[StorageProtocol], object]] = [
    lambda s: s.stat("f"), lambda s: get(s, "f"), lambda s: get(s, "f", offset=1), lambda s: s.checksum("f"),
    lambda s: list(s.list()), lambda s: s.delete("f"), lambda s: put(s, "d/f", b"abc"), lambda s: s.space(),
    lambda s: s.write("g", [b"x" * (1 << 20)] * 2, attempt="1.1"), lambda s: s.remove_temporaries("1.1"),
    lambda s: s.identify(), lambda s: s.claim(STORAGE_ID), lambda s: s.delete_many(["f", "g"]),
]  # fmt: skip


def acted(storage: StorageProtocol, act: Callable[[StorageProtocol], object]) -> str | None:
    """The class of the error that came of it; anything but a StorageError fails the test."""
    try:
        act(storage)
    except Unsupported:
        return None
    except StorageError as error:
        assert len(str(error)) < 1000 and str(error).isprintable()
        return error.error_class
    return None


ODD_PLACES = [
    "/caf\xe9", "http://[::1/x", "http://127.0.0.1:99999/", "http://a..b/", "http://" + "a" * 70 + ".b/", "//",
    "http:///x",
    "http://127.0.0.1:x/", "gopher://h/", "file:///etc/passwd", "/\x01", "http://127.0.0.1:1/\xff", "\xff",
    "http://%zz/",
    "http://\xe9/", "?\x7f", "http://[v1.x]/", "https://a..b/",
]  # fmt: skip


class TestWebDav:
    @pytest.mark.parametrize("place", ODD_PLACES)
    def test_a_redirect_to_what_is_no_address_is_an_error(self, place: str) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            return [answer(307, b"", f"Location: {place}")]

        with hostile(script) as server, dav(server) as storage:
            for act in ACTS:
                assert acted(storage, act) is not None

    @pytest.mark.parametrize(
        "said",
        [b"", b"\x00", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/9.9 200 x\r\n\r\n", b"HTTP/1.1 99999999999 x\r\n\r\n",
         b"x" * 70_000,
         b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
         b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\nx",
         b"HTTP/1.1 207 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200,
         b"HTTP/1.1 207 x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\nx",
         b"HTTP/1.1 200 \xe9\r\n\xe9: \xff\r\n\r\n"],
        ids=range(12),
    )  # fmt: skip
    def test_what_is_no_http_is_an_error(self, said: bytes) -> None:
        with hostile(lambda _: [said]) as server, dav(server) as storage:
            for act in ACTS:
                assert acted(storage, act) is not None

    @pytest.mark.parametrize(
        "prop",
        ["<getlastmodified>Fri, 31 Dec 9999 23:59:59 -2300</getlastmodified><getcontentlength>3</getcontentlength>",
         "<getlastmodified>x</getlastmodified>", f"<getcontentlength>{'9' * 5000}</getcontentlength>",
         "<getcontentlength>1e9</getcontentlength>", "<getlastmodified>Fri, 99 Dec 2026 23:59:59</getlastmodified>"],
    )  # fmt: skip
    def test_a_property_that_nobody_can_understand_is_an_error(self, prop: str) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            return [MARKED if method_of(head) == "GET" else answer(207, multistatus("/r/f", prop=prop))]

        with hostile(script) as server, dav(server) as storage:
            assert acted(storage, ACTS[0]) == ErrorClass.IO
            assert acted(storage, ACTS[4]) == ErrorClass.IO

    def test_whatever_is_said_is_a_storage_error_or_an_answer(self) -> None:
        chance = random.Random(7)
        whole = [
            MARKED, answer(207, multistatus("/r/f")), answer(207, multistatus("/r/", "/r/f", "/r/d/")), answer(201),
            answer(200, b"abc", "Digest: adler32=024d0127", "Accept-Ranges: bytes"), answer(206, b"bc"),
            answer(307, b"", "Location: /r/elsewhere"), answer(412), answer(423), answer(500, b"<html>"),
        ]  # fmt: skip

        def script(head: bytes) -> Iterable[bytes]:
            if path_of(head).endswith(".dlm-storage") and chance.random() < 0.9:
                return [MARKED]
            return [mutated(chance, chance.choice(whole))]

        with hostile(script) as server:
            for _ in range(30):
                with dav(server, timeout_s="0.2") as storage:
                    for act in ACTS:
                        acted(storage, act)

    @pytest.mark.parametrize(
        "piece", [b"<a>" * 20_000, b"<a " + b"x" * 65_000, b"<response><href>/r/f</href></response>" * 1000]
    )
    def test_an_answer_about_one_file_ends_somewhere(self, piece: bytes) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            if method_of(head) == "GET":
                return [MARKED]
            return itertools.chain(
                [b'HTTP/1.1 207 x\r\nConnection: close\r\n\r\n<multistatus xmlns="DAV:">'], itertools.repeat(piece)
            )

        with hostile(script) as server, dav(server) as storage:
            before = resident_bytes()
            assert refusal(lambda: storage.stat("f")) == ErrorClass.IO
            assert resident_bytes() - before < 16 << 20

    def test_a_resource_of_a_listing_ends_somewhere(self) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            if method_of(head) == "GET":
                return [MARKED]
            begin = b'HTTP/1.1 207 x\r\nConnection: close\r\n\r\n<multistatus xmlns="DAV:"><response '
            return itertools.chain([begin], itertools.repeat(b"x" * 60_000))

        with hostile(script) as server, dav(server) as storage:
            started = time.monotonic()
            assert refusal(lambda: list(storage.list())) == ErrorClass.IO
            assert time.monotonic() - started < 5
            assert RESPONSE_LIMIT_BYTES < 1 << 20

    def test_a_file_that_is_longer_than_it_was_said_to_be_is_not_read_for_ever(self) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            if path_of(head).endswith(".dlm-storage"):
                return [MARKED]
            if method_of(head) == "PROPFIND":
                return [answer(207, multistatus("/r/f"))]
            return itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(b"x" * 65536))

        with hostile(script) as server, dav(server) as storage:
            for act in (lambda: get(storage, "f"), lambda: storage.checksum("f"), lambda: get(storage, "f", offset=1)):
                assert refusal(act) == ErrorClass.IO

    @pytest.mark.parametrize("where", ["head", "continue", "marker", "listing", "body"])
    def test_a_drip_costs_two_timeouts_and_no_more(self, where: str) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            begin, drop = {
                "head": (b"HTTP/1.1 200 OK\r\nA: ", b"x"),
                "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
                "marker": (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
            }.get(where, (b"", b""))
            if where in ("listing", "body"):
                if path_of(head).endswith(".dlm-storage"):
                    yield MARKED
                    return
                if method_of(head) == "PROPFIND" and where == "body":
                    yield answer(207, multistatus("/r/f"))
                    return
                begin, drop = (
                    (b"HTTP/1.1 207 x\r\n\r\n<a ", b"x") if where == "listing" else (b"HTTP/1.1 200 OK\r\n\r\n", b"x")
                )
            yield begin
            while not pause.wait(0.03):
                yield drop

        pause = threading.Event()
        with hostile(script) as server, dav(server, timeout_s="0.15") as storage:
            started = time.monotonic()
            assert refusal(lambda: get(storage, "f")) in (ErrorClass.TIMEOUT, ErrorClass.IO)
            assert time.monotonic() - started < 2
            pause.set()

    def test_a_name_that_stays_locked_is_left_after_one_timeout(self) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            if path_of(head).endswith(".dlm-storage"):
                return [MARKED]
            return [answer(207, multistatus("/r/f")) if method_of(head) == "PROPFIND" else answer(423)]

        with hostile(script) as server, dav(server, timeout_s="0.1") as storage:
            assert refusal(lambda: storage.delete("f")) == ErrorClass.IO
            assert 1 <= sum(method_of(head) == "DELETE" for head in server.asked) < 6

    def test_who_hangs_up_ends_what_others_wait_for(self) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            reached.set()
            over.wait(10)
            return [MARKED]

        reached, over, ended = threading.Event(), threading.Event(), threading.Event()
        with hostile(script) as server:
            storage = dav(server, timeout_s="60")

            def wait() -> None:
                with pytest.raises(StorageError):
                    storage.stat("f")
                ended.set()

            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            assert reached.wait(5)
            storage.close()
            assert not ended.wait(0.05), "who only closes leaves others alone"
            storage.hang_up()
            assert ended.wait(5)
            assert refusal(lambda: storage.stat("f")) == ErrorClass.INTERRUPTED
            over.set()

    def test_a_flight_that_ran_out_of_time_leaves_no_thread_behind(self, tmp_path: Path) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            if path_of(head).endswith(".dlm-storage"):
                return [MARKED]
            if method_of(head) == "PROPFIND":
                return [answer(207, multistatus("/r/f"))]
            return dripping()

        def dripping() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
            reached.set()
            over.wait(20)

        reached, over = threading.Event(), threading.Event()
        with hostile(script) as server:
            there = dav(server, timeout_s="60").ref
            here = ProtocolRef(2, "here", "here", "posix", str(tmp_path))
            open_protocol(here).claim("here")
            before = set(threading.enumerate())
            copy = Copy(1, "1.1", replace(there, storage_id=1), "f", here, "f", 3)
            tool = StreamTool(open_protocol, margin_s=0.0)
            [outcome] = tool.copy_many([copy], time.monotonic() + 0.5, lambda: False)
            assert outcome.error_class == ErrorClass.TIMEOUT and reached.is_set()
            for thread in set(threading.enumerate()) - before:
                if thread.name.startswith(("dlm-stream", "dlm-ahead")):
                    thread.join(5)
                    assert not thread.is_alive()
            over.set()


def mutated(chance: random.Random, said: bytes) -> bytes:
    """The bytes with some of them changed, doubled or left out."""
    found = bytearray(said)
    for _ in range(chance.choice((0, 1, 1, 3, 20))):
        at = chance.randrange(len(found)) if found else 0
        match chance.randrange(4):
            case 0:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del found[at : at + chance.randrange(1, 30)]
            case 2:
                found[at:at] = found[at : at + chance.randrange(1, 60)]
            case 3:
                found[at:at] = chance.choice(
                    (b"9" * 30, b"-", b"\r\n", b"\x00", b"\xff\xfe", b"<", b"&", b"%", b"chunked")
                )
    return bytes(found)


class TestS3:
    def test_whatever_is_said_is_a_storage_error_or_an_answer(self) -> None:
        chance = random.Random(7)
        told = "Last-Modified: Fri, 20 Nov 2026 12:00:00 GMT", 'ETag: "x"'
        entry = "<Contents><Key>f</Key><Size>3</Size><LastModified>2026-11-20T12:00:00Z</LastModified></Contents>"
        listed = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entry}</ListBucketResult>".encode()
        whole = [
            answer(200, b"abc", *told), answer(200, b"abc"), answer(206, b"bc", *told), answer(200, listed),
            answer(404),
            answer(200, listed.replace(b"<Key>f</Key>", b"")), answer(200, listed.replace(b"<Size>3</Size>", b"")),
            answer(200, listed.replace(b"2026-11-20T12:00:00Z", b"9999-12-31T23:59:59-23:00")), answer(204),
            answer(400, b"<Error><Code>\x1b[2J" + b"x" * 5000 + b"</Code></Error>"), answer(412), answer(500),
            answer(200, b"<DeleteResult><Error><Code>x</Code></Error></DeleteResult>"), answer(200, b"<a>"),
        ]  # fmt: skip

        def script(head: bytes) -> Iterable[bytes]:
            if path_of(head).endswith(".dlm-storage") and chance.random() < 0.9:
                return [answer(200, MARKER_TEXT, *told)]
            return [mutated(chance, chance.choice(whole))]

        with hostile(script) as server:
            for _ in range(3):
                with s3(server) as storage:
                    for act in ACTS:
                        acted(storage, act)

    def test_a_file_whose_time_is_not_told_is_an_error(self) -> None:
        def script(head: bytes) -> Iterable[bytes]:
            return [MARKED if method_of(head) == "GET" else answer(200)]

        with hostile(script) as server, s3(server) as storage:
            assert acted(storage, ACTS[0]) == ErrorClass.IO


@pytest.mark.parametrize("speaking", [dav, s3])
def test_a_marker_without_an_end_is_read_no_further_than_a_marker_goes(speaking: Callable[..., Any]) -> None:
    def script(head: bytes) -> Iterable[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + MARKER_TEXT
        yield from itertools.repeat(b" " * (1 << 16))

    with hostile(script) as server, speaking(server) as storage:
        assert storage.identify() == STORAGE_ID
        assert server.sent_bytes < 64 << 20


@pytest.mark.parametrize("prefix", ["davs://a..b/x", "https://a..b/bucket", "sftp://a..b/x"])
def test_a_host_that_has_no_name_is_said_to_be_none(prefix: str) -> None:
    scheme = "s3" if "bucket" in prefix else prefix.partition(":")[0]
    with (
        open_protocol(ProtocolRef(1, "x", STORAGE_ID, scheme, prefix)) as storage,
        pytest.raises(StorageError) as caught,
    ):
        storage.identify()
    assert (caught.value.error_class, caught.value.field) == (ErrorClass.UNAVAILABLE, "prefix")


def test_what_nobody_foresaw_fails_one_copy_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def surprise(point: str) -> None:
        if point == "dav.put:before" and next(times) == 0:
            raise RuntimeError("nobody \x1b foresaw")

    def script(head: bytes) -> Iterable[bytes]:
        kind = method_of(head)
        if path_of(head).endswith(".dlm-storage"):
            return [MARKED]
        is_there = kind == "PROPFIND" and any(one.startswith(b"MOVE") for one in server.asked)
        return [answer(207, multistatus(path_of(head))) if is_there else answer(404 if kind == "PROPFIND" else 201)]

    times = itertools.count()
    here = ProtocolRef(2, "here", "here", "posix", str(tmp_path))
    open_protocol(here).claim("here")
    for name in ("f", "g"):
        put(open_protocol(here), name, b"abc")
    with hostile(script) as server, dav(server) as storage:
        copies = [Copy(number, f"{number}.1", here, name, storage.ref, name, 3) for number, name in enumerate("fg")]
        effects.install(surprise)
        try:
            tool = StreamTool(open_protocol, threads=1)
            outcomes = list(tool.copy_many(copies, time.monotonic() + 20, lambda: False))
        finally:
            effects.install(None)
    assert [outcome.ok for outcome in outcomes][0] is False and outcomes[0].error_class == ErrorClass.IO
    assert "RuntimeError" in str(outcomes[0].error) and "\x1b" not in str(outcomes[0].error)
    assert "Traceback" in caplog.text and len(outcomes) == 2 and "RuntimeError" not in str(outcomes[1].error)


class TestRedirects:
    """Where a server sends us, and what is shown there."""

    @staticmethod
    def _door(place: str, methods: tuple[str, ...]) -> Callable[[bytes], Iterable[bytes]]:
        def script(head: bytes) -> Iterable[bytes]:
            if path_of(head).endswith(".dlm-storage"):
                return [MARKED]
            if method_of(head) in methods:
                return [answer(307, b"", f"Location: {place}")]
            return [answer(207, multistatus("/r/f")) if method_of(head) == "PROPFIND" else answer(201)]

        return script

    @pytest.mark.parametrize("method", ["DELETE", "PUT", "MOVE", "MKCOL"])
    def test_what_changes_something_is_done_on_the_own_host_only(self, method: str) -> None:
        with hostile(lambda _: [answer(201)]) as victim:
            door = self._door(f"http://localhost:{victim.port}/precious", (method,))
            with hostile(door) as server, dav(server) as storage:
                for act in (lambda s: s.delete("f"), lambda s: put(s, "d/f", b"abc", replace=True)):
                    acted(storage, act)
                with pytest.raises(StorageError, match="trusted_hosts"):
                    storage._delete("f") if method == "DELETE" else put(storage, "d/f", b"abc", replace=True)
            assert victim.asked == []
            with hostile(door) as server, dav(server, trusted_hosts="localhost") as storage:
                acted(storage, lambda s: s.delete("f"))
                acted(storage, lambda s: put(s, "d/f", b"abc", replace=True))
            assert {method_of(head) for head in victim.asked} == {method}

    def test_who_we_are_is_shown_to_the_own_host_and_to_those_that_are_trusted(self, tmp_path: Path) -> None:
        with certificate(tmp_path) as (crt, key, ca):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(crt, key)
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(crt)
            shown: list[bool] = []

            def elsewhere(end: ssl.SSLSocket) -> None:
                shown.append(end.getpeercert(True) is not None)

            with hostile(lambda _: [answer(200, b"abc")], context=context, met=elsewhere) as victim:
                door = self._door(f"https://localhost:{victim.port}/x", ("GET",))
                with hostile(door, context=context) as server:
                    secret = Secret({"certificate": crt.read_text(), "key": key.read_text(), "ca": ca})
                    for trusted in ({}, {"trusted_hosts": "localhost"}):
                        ref = ProtocolRef(
                            1, "web", STORAGE_ID, "davs", f"davs://127.0.0.1:{server.port}/r", "s", trusted, secret
                        )
                        with open_protocol(ref) as storage:
                            assert get(storage, "f") == b"abc"
            assert shown == [False, True]

    def test_nobody_is_sent_from_https_to_http(self, tmp_path: Path) -> None:
        with certificate(tmp_path) as (crt, key, ca):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(crt, key)
            with hostile(lambda _: [answer(200, b"abc")]) as victim:
                door = self._door(f"http://127.0.0.1:{victim.port}/x", ("GET",))
                with hostile(door, context=context) as server:
                    prefix = f"davs://127.0.0.1:{server.port}/r"
                    ref = ProtocolRef(1, "web", STORAGE_ID, "davs", prefix, "s", {}, Secret({"token": "t", "ca": ca}))
                    with open_protocol(ref) as storage, pytest.raises(StorageError, match="not encrypted"):
                        storage.read("f")
                assert victim.asked == []

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "[::ffff:127.0.0.1]"])
    def test_a_server_elsewhere_does_not_send_us_to_our_own_host(self, name: str) -> None:
        own = own_address()
        if own is None:
            pytest.skip("this host has no address but its loopback")
        with hostile(lambda _: [answer(200, b"abc")]) as victim:
            with hostile(self._door(f"http://{name}:{victim.port}/x", ("GET",)), own) as server, dav(server) as storage:
                assert refusal(lambda: get(storage, "f")) == ErrorClass.IO
            assert victim.asked == []

    def test_who_is_sent_back_asks_the_first_server_again(self) -> None:
        def back(head: bytes) -> Iterable[bytes]:
            return [answer(307, b"", f"Location: http://127.0.0.1:{server.port}/r/there")]

        def door(head: bytes) -> Iterable[bytes]:
            if path_of(head) == "/r/there":
                return [answer(200, b"abc")]
            return self._door(f"http://localhost:{other.port}/{quote('a b')}", ("GET",))(head)

        with hostile(back) as other, hostile(door) as server, dav(server) as storage:
            assert get(storage, "f") == b"abc"


ODDITIES: list[Exception] = [
    ValueError("x"), TypeError("x"), OverflowError("x"), KeyError("x"), EOFError("x"), UnicodeError("x"),
    OSError(5, "x"),
]  # fmt: skip


@pytest.mark.parametrize("error", ODDITIES, ids=lambda error: type(error).__name__)
def test_every_adapter_makes_a_storage_error_of_what_odd_answers_raise(error: Exception) -> None:
    pytest.importorskip("botocore", reason="botocore is not installed: pip install 'dlm[s3]'")
    pytest.importorskip("asyncssh", reason="asyncssh is not installed: pip install 'dlm[sftp]'")
    from dlm.gfal import workers
    from dlm.protocols import network, s3_client, ssh

    for adapter in (network, s3_client, ssh, workers):
        with pytest.raises(StorageError) as caught, adapter.translating("read", "f"):
            raise error
        assert caught.value.error_class == ErrorClass.IO, adapter
