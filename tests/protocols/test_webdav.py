"""WebDAV against rclone's server and WsgiDAV: conformance, and what a network and a web server can do to it."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest

from dlm.errors import StorageError
from dlm.protocols import StorageProtocol, open_protocol
from dlm.staging import temporary_name
from dlm.types import Checksums, ErrorClass, ProtocolRef, Secret
from protocols.conformance import STORAGE_ID, ProtocolConformance, adler32, get, put, refusal
from protocols.faults import NetworkFaults, not_trusted, read_only
from protocols.servers import Place, certificate, claimed, rclone_serves, wsgidav

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def rclone_webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with rclone_serves("webdav", tmp_path_factory.mktemp("rclone")) as place:
        yield place


@pytest.fixture(scope="module")
def wsgidav_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with wsgidav(tmp_path_factory.mktemp("wsgidav")) as place:
        yield place


class TestRclone(ProtocolConformance):
    tells_space = False
    refused_names = ("a\nb",)

    @pytest.fixture
    def storage(self, rclone_webdav: Place) -> Iterator[StorageProtocol]:
        with claimed(rclone_webdav, COUNT) as storage:
            yield storage


class TestWsgiDav(ProtocolConformance):
    excludes_writers = False  # it looks, then moves
    refused_names = ("a\nb", "a?b=c", "a&b;c", "a#b", "100%", "%2e%2e%2foutside")  # it would move to other names

    @pytest.fixture
    def storage(self, wsgidav_server: Place) -> Iterator[StorageProtocol]:
        with claimed(wsgidav_server, COUNT) as storage:
            yield storage


class TestFaults(NetworkFaults):
    half_written = ("dav.put:after",)

    @pytest.fixture
    def place(self, rclone_webdav: Place) -> Place:
        return rclone_webdav

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage


class TestServer:
    def test_a_certificate_that_nobody_vouches_for_is_not_trusted(self, tmp_path: Path) -> None:
        with certificate(tmp_path / "tls") as (crt, key, ca):
            options = ("--cert", str(crt), "--key", str(key))
            secret = {"username": "user", "password": "word", "ca": ca}
            with rclone_serves("webdav", tmp_path / "server", *options, secret=secret) as place:
                assert place.scheme == "davs"
                not_trusted(place)

    def test_a_certificate_lets_in(self, tmp_path: Path) -> None:
        with certificate(tmp_path / "tls") as (crt, key, ca):
            options = ("--cert", str(crt), "--key", str(key), "--client-ca", str(crt))
            secret = {"ca": ca, "certificate": ca, "key": key.read_text()}
            with rclone_serves("webdav", tmp_path / "server", *options, secret=secret) as place:
                with claimed(place, COUNT) as storage:
                    put(storage, "f", b"x")
                stranger = replace(place, secret={"ca": ca})
                with stranger.storage("tls") as storage:
                    assert refusal(lambda: storage.stat("f")) in (ErrorClass.PERMISSION, ErrorClass.IO)
                broken = replace(place, secret=secret | {"key": "no key at all"})
                with broken.storage("tls") as storage, pytest.raises(StorageError) as caught:
                    storage.stat("f")
                assert caught.value.error_class == ErrorClass.PERMISSION
                assert "no key" not in str(caught.value)

    def test_a_read_only_export_takes_nothing(self, tmp_path: Path) -> None:
        with rclone_serves("webdav", tmp_path / "one") as place, claimed(place, COUNT) as storage:
            put(storage, "f", b"x")
            below = storage.ref.prefix.removeprefix(place.prefix + "/")
            locked = rclone_serves(
                "webdav", tmp_path / "two", "--read-only", secret=place.secret, serving=place.directory
            )
            with locked as export, export.storage(below) as reader:
                read_only(storage, reader)

    def test_an_unencrypted_server_elsewhere_is_refused_unless_allowed(self) -> None:
        ref = ProtocolRef(1, "far", STORAGE_ID, "dav", "dav://storage.invalid/x", options={"timeout_s": "3"})
        with open_protocol(ref) as storage, pytest.raises(StorageError, match="not encrypted"):
            storage.stat("f")
        allowed = replace(ref, options={"timeout_s": "3", "allow_http": "true"})
        with open_protocol(allowed) as storage, pytest.raises(StorageError) as caught:
            storage.stat("f")
        assert "not encrypted" not in str(caught.value)

    def test_a_collection_is_never_deleted_nor_replaced(self, rclone_webdav: Place) -> None:
        with claimed(rclone_webdav, COUNT) as storage:
            put(storage, "d/f", b"x")
            assert storage.delete("d") is False
            for replacing in (False, True):
                assert refusal(lambda r=replacing: put(storage, "d", b"y", replace=r)) == ErrorClass.DESTINATION_EXISTS
            assert get(storage, "d/f") == b"x"


class Scripted(http.server.BaseHTTPRequestHandler):
    """A web server that does what its script says, and remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    script: ClassVar[Callable[[Scripted], tuple[int, dict[str, str], bytes]]]
    asked: ClassVar[list[tuple[str, str, str | None, bytes]]]

    def handle_expect_100(self) -> bool:
        return self.path in self.early or super().handle_expect_100()  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self._body()
        self.asked.append((self.command, self.path, self.headers.get("Authorization"), body))
        status, headers, content = type(self).script(self)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.path in self.early:  # type: ignore[attr-defined]
            self.close_connection = True
            return b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    do_GET = do_HEAD = do_PUT = do_PROPFIND = do_MKCOL = do_MOVE = do_DELETE = _answer  # noqa: N815


@contextlib.contextmanager
def scripted(
    script: Callable[[Scripted], tuple[int, dict[str, str], bytes]], early: tuple[str, ...] = ()
) -> Iterator[type]:
    """The handler of a running server; `early` are the paths whose answer does not wait for the body."""
    handler = type("Handler", (Scripted,), {"script": staticmethod(script), "asked": [], "early": early})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.port = server.server_port  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def spoken(port: int, **options: str) -> StorageProtocol:
    secret = Secret({"token": "t0ken"})
    options = {"timeout_s": "5", **options}
    return open_protocol(
        ProtocolRef(1, "web", STORAGE_ID, "dav", f"dav://127.0.0.1:{port}/r", "secret", options, secret)
    )


MARKED = (200, {}, json.dumps({"id": STORAGE_ID}).encode())


def told(href: str, size: int = 3, kind: str = "") -> bytes:
    """A multistatus of one resource."""
    prop = f"<getcontentlength>{size}</getcontentlength><resourcetype>{kind}</resourcetype>"
    inner = f"<response><href>{href}</href><propstat><prop>{prop}</prop></propstat></response>"
    return f'<?xml version="1.0"?><multistatus xmlns="DAV:">{inner}</multistatus>'.encode()


class TestHeaders:
    """What only some servers do, by servers that do as a script says."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [("Digest", "adler32=24d0127"), ("Digest", "md5=kAFQmDzST7DWlj99KOF/cg==,ADLER32=024d0127"),
         ("Digest", "adler32=Ak0BJw=="), ("Repr-Digest", "adler=:Ak0BJw==:")],
    )  # fmt: skip
    def test_a_digest_of_the_server_is_taken(self, name: str, value: str) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            return (200, {name: value}, b"") if asked.command == "HEAD" else MARKED

        with scripted(script) as server, spoken(server.port, remembered_digests="true") as storage:
            assert storage.checksum("f") == Checksums(adler32="024d0127")
            assert [(command, token) for command, _, token, _ in server.asked] == [
                ("GET", "Bearer t0ken"), ("HEAD", "Bearer t0ken"),
            ]  # fmt: skip

    def test_a_digest_that_is_none_is_computed_instead(self) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            if asked.path.endswith(".dlm-storage"):
                return MARKED
            if asked.command == "PROPFIND":
                return 207, {}, told("/r/f")
            return 200, {"Digest": "adler32=zzz, unixsum=1"}, b"abc"

        with scripted(script) as server, spoken(server.port, remembered_digests="true") as storage:
            assert storage.checksum("f") == Checksums(adler32="024d0127")

    def test_what_the_server_remembers_of_a_digest_is_no_witness_unless_told_so(self) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            if asked.path.endswith(".dlm-storage"):
                return MARKED
            if asked.command == "PROPFIND":
                return (207, {}, told(asked.path)) if asked.path == "/r/f" else (404, {}, b"")
            if asked.command in ("PUT", "MOVE", "MKCOL", "DELETE"):
                return 201, {}, b""
            return 200, {"Digest": "adler32=024d0127"}, b"abX"

        with scripted(script) as server, spoken(server.port) as storage:
            assert storage.checksum("f") == Checksums(adler32=adler32(b"abX"))
            found: list[Checksums] = []
            act = partial(storage.write, "f", [b"abc"], attempt="1", replace=True)
            act(prove=lambda read_back: found.append(read_back(("adler32",))))
            assert found == [Checksums(adler32="024d0127")], "of what was just written it is one"

    def test_an_upload_is_redirected_before_it_is_sent_to_a_host_that_is_trusted(self) -> None:
        def node(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            return 201, {}, b""

        with scripted(node) as elsewhere:

            def door(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
                if asked.path.endswith(".dlm-storage"):
                    return MARKED
                if asked.command == "PUT":
                    return 307, {"Location": f"http://localhost:{elsewhere.port}/node?ticket=1"}, b""
                return (404, {}, b"") if asked.command == "PROPFIND" else (201, {}, b"")

            content = os.urandom(5 << 20)
            staged = "/r/.dlm-tmp/" + quote(temporary_name("1.1", "f"))
            for size_bytes in (None, len(content), 5):
                sent = content[:size_bytes]
                elsewhere.asked.clear()
                early = (staged,) if size_bytes != 5 else ()
                with scripted(door, early=early) as server, spoken(server.port, trusted_hosts="localhost") as storage:
                    blocks = iter([sent[: 2 << 20], sent[2 << 20 :]])
                    storage.write("f", blocks, attempt="1.1", size_bytes=size_bytes)
                assert elsewhere.asked == [("PUT", "/node?ticket=1", "Bearer t0ken", sent)]
                elsewhere.asked.clear()
                with scripted(door, early=early) as server, spoken(server.port) as storage:
                    with pytest.raises(StorageError, match="PUT goes to the storage's own host.*trusted_hosts"):
                        storage.write("f", [sent], attempt="1.1", size_bytes=size_bytes)
                assert elsewhere.asked == []

    def test_reading_is_redirected_anywhere_and_the_secret_is_not(self) -> None:
        with scripted(lambda asked: (200, {}, b"abc")) as elsewhere:

            def door(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
                if asked.path.endswith(".dlm-storage"):
                    return MARKED
                if asked.command == "GET":
                    return 307, {"Location": f"http://localhost:{elsewhere.port}/node?ticket=1"}, b""
                return 207, {}, told("/r/f")

            for options, token in (({}, None), ({"trusted_hosts": "localhost"}, "Bearer t0ken")):
                elsewhere.asked.clear()
                with scripted(door) as server, spoken(server.port, **options) as storage:
                    assert get(storage, "f") == b"abc"
                assert elsewhere.asked == [("GET", "/node?ticket=1", token, b"")]

    def test_a_file_whose_size_is_not_told_is_not_taken_for_empty(self) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            listing = told("/r/f").replace(b"<getcontentlength>3</getcontentlength>", b"")
            return MARKED if asked.command == "GET" else (207, {}, listing)

        with scripted(script) as server, spoken(server.port) as storage:
            assert refusal(lambda: storage.stat("f")) == ErrorClass.IO

    def test_redirects_end(self) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            return 302, {"Location": asked.path + "x"}, b""

        with scripted(script) as server, spoken(server.port) as storage:
            with pytest.raises(StorageError, match="redirects"):
                storage.stat("f")
            assert len(server.asked) == 5

    def test_a_server_that_knows_no_ranges_is_read_all_the_same(self) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            if asked.path.endswith(".dlm-storage"):
                return MARKED
            return (207, {}, told("/r/f", 10)) if asked.command == "PROPFIND" else (200, {}, b"0123456789")

        with scripted(script) as server, spoken(server.port) as storage:
            assert get(storage, "f", offset=3, length=4) == b"3456"
            assert get(storage, "f", offset=8, length=9) == b"89"

    @pytest.mark.parametrize(
        "listing",
        [b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>', told("/r/f")[:-20], b"<html>", b"",
         told("/elsewhere/f"), told("/r/../../etc/passwd"), told("/r/d/deeper/f"),
         b'<multistatus xmlns="DAV:"><response><href>' + b"x" * 100_000],
    )  # fmt: skip
    def test_a_listing_that_cannot_be_believed_is_an_error(self, listing: bytes) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            return MARKED if asked.command == "GET" else (207, {}, listing)

        with scripted(script) as server, spoken(server.port) as storage:
            assert refusal(lambda: list(storage.list())) == ErrorClass.IO

    @pytest.mark.parametrize(
        ("status", "expected"),
        [(401, "permission"), (403, "permission"), (507, "no_space"), (413, "no_space"), (503, "unavailable"),
         (500, "io"), (408, "timeout"), (405, "permission")],
    )  # fmt: skip
    def test_what_the_server_says_has_a_class(self, status: int, expected: str) -> None:
        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            if asked.path.endswith(".dlm-storage"):
                return MARKED
            if asked.command in ("PROPFIND", "MKCOL"):
                return (404 if asked.command == "PROPFIND" else 201), {}, b""
            return status, {}, b"<h1>because</h1>"

        with scripted(script) as server, spoken(server.port) as storage:
            assert refusal(lambda: put(storage, "f", b"x")) == expected
            with pytest.raises(StorageError, match=str(status)):
                storage.write("f", [os.urandom(1 << 20)] * 3, attempt="1")

    def test_a_server_that_has_its_fill_half_way_can_say_why(self) -> None:
        staged = "/r/.dlm-tmp/" + quote(temporary_name("1.1", "f"))

        def script(asked: Scripted) -> tuple[int, dict[str, str], bytes]:
            if asked.path.endswith(".dlm-storage"):
                return MARKED
            return {"PUT": 507, "PROPFIND": 404}.get(asked.command, 201), {}, b""

        with scripted(script, early=(staged,)) as server, spoken(server.port) as storage:
            blocks = [os.urandom(1 << 20)] * 9
            assert refusal(lambda: storage.write("f", blocks, attempt="1.1")) == ErrorClass.NO_SPACE

    def test_other_than_the_announced_length_is_not_sent_as_whole(self, rclone_webdav: Place) -> None:
        with claimed(rclone_webdav, COUNT) as storage:
            for blocks in (2, 4):
                content = [b"x" * (1 << 20)] * blocks
                acted = partial(storage.write, "f", content, attempt="1", size_bytes=3 << 20)
                assert refusal(acted) == ErrorClass.SOURCE_CHANGED
            assert list(storage.list()) == [] and storage.remove_temporaries("1") == 0
