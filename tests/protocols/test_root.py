"""XRootD over root://: conformance, and what a network can do to it."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlm.errors import StorageError
from dlm.protocols import StorageProtocol
from dlm.types import Checksums, ErrorClass
from protocols.conformance import STORAGE_ID, ProtocolConformance, get, put, refusal
from protocols.faults import NetworkFaults, below, remembered
from protocols.filesystems import mounted, needs_root
from protocols.planted import plant
from protocols.servers import Place, certificate, claimed, cutting, port_of, through
from protocols.xrootd import given_to_user, needs_gfal, open_directory, xrootd, xrootd_certificate, xrootd_token

pytestmark = [pytest.mark.protocols, needs_gfal]
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_directory() as base, xrootd(base / "server", prefilled=True) as place:
        yield place


class TestXrootd(ProtocolConformance):
    excludes_writers = False  # its rename takes the place of what is there
    refused_names = ("%2e%2e%2foutside", "a\nb", "a?b=c")

    @pytest.fixture
    def storage(self, server: Place) -> Iterator[StorageProtocol]:
        with claimed(server, COUNT) as storage:
            yield storage


class TestFaults(NetworkFaults):
    half_written = ("root.write:before", "root.write:after", "root.rename:before")

    def test_a_wrong_secret_is_a_matter_of_permission_and_is_not_told(
        self, storage: StorageProtocol, place: Place
    ) -> None:
        with open_directory() as base, xrootd_token(base) as closed, claimed(closed, COUNT) as known:
            super().test_a_wrong_secret_is_a_matter_of_permission_and_is_not_told(known, closed)

    def test_a_read_that_is_cut_off_is_an_error_and_not_a_short_file(
        self, storage: StorageProtocol, place: Place
    ) -> None:
        content = os.urandom(12 << 20)
        put(storage, "f", content)
        with cutting(port_of(place)) as proxy:
            proxy.down_limit = 3 << 20
            with through(place, proxy.port).storage(below(storage, place)) as cut:
                try:
                    assert get(cut, "f") == content, "the library goes on over a new connection"
                except StorageError as error:
                    assert error.error_class in (ErrorClass.IO, ErrorClass.UNAVAILABLE)

    @pytest.fixture
    def place(self, server: Place) -> Place:
        return server

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage


class TestServer:
    def test_what_the_server_remembers_of_a_digest_is_no_witness_unless_told_so(self, server: Place) -> None:
        remembered(server, COUNT)

    def test_what_nobody_can_understand_is_an_error(self, server: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        with claimed(server, COUNT) as storage:
            put(storage, "f", b"x")
            monkeypatch.setattr(storage, "_call", lambda *_: (1, 10**15, 0o100644))
            assert refusal(lambda: storage.stat("f")) == ErrorClass.IO
            for told in ("[1]", "x", '{"totalsize": "many"}', '{"totalsize": 5}', '{"totalsize": 1e999}'):
                monkeypatch.setattr(storage, "_call", lambda *_, told=told: told)
                assert refusal(storage.space) == ErrorClass.IO

    def test_empty_directories_go_with_their_last_file(self, server: Place) -> None:
        with claimed(server, COUNT) as storage:
            root = server.directory / storage.ref.prefix.rpartition("/")[2]
            put(storage, "a/b/c/f", b"")
            put(storage, "a/g", b"")
            storage.delete("a/b/c/f")
            assert [path.name for path in (root / "a").iterdir()] == ["g"]
            storage.delete("a/g")
            assert not (root / "a").exists() and root.exists()

    def test_names_that_are_not_utf8_are_refused(self, server: Place) -> None:
        with claimed(server, COUNT) as storage:
            assert refusal(lambda: put(storage, "a\udce9b", b"x")) == ErrorClass.INVALID_PATH

    def test_a_token_lets_in(self) -> None:
        with open_directory() as base, xrootd_token(base) as place, claimed(place, COUNT) as storage:
            put(storage, "d/f", b"content")
            assert get(storage, "d/f") == b"content"
            assert [entry.path for entry in storage.list()] == ["d/f"]
            assert storage.checksum("d/f") == Checksums(adler32=f"{zlib.adler32(b'content'):08x}")
            assert storage.space().total_bytes > 0 and storage.delete("d/f")
            told = (base / "server" / "server.log").read_text()
        assert place.secret["token"] not in told

    def test_a_certificate_lets_in_by_a_proxy_of_it(self) -> None:
        with open_directory() as base, xrootd_certificate(base) as place:
            with claimed(place, COUNT) as storage:
                put(storage, "d/f", b"content")
                assert get(storage, "d/f") == b"content"
            with place.storage(secret={"ca": place.secret["ca"]}) as nobody:
                assert refusal(lambda: nobody.stat("f")) == ErrorClass.PERMISSION
            with place.storage(secret={**place.secret, "key": "no key"}) as broken:
                assert refusal(lambda: broken.stat("f")) == ErrorClass.PERMISSION

    @needs_root
    def test_who_runs_dlm_is_not_who_dlm_is_to_a_storage(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with open_directory() as base, xrootd_certificate(base) as place:
            secret = place.secret
            plant(tmp_path, monkeypatch, certificate=secret["certificate"], key=secret["key"])
            with place.storage(secret={"ca": secret["ca"]}) as nobody:
                assert refusal(lambda: nobody.stat("f")) == ErrorClass.PERMISSION
        monkeypatch.undo()
        with open_directory() as base, xrootd_token(base) as place:
            plant(tmp_path, monkeypatch, token=place.secret["token"])
            with place.storage(secret={"ca": place.secret["ca"]}) as nobody:
                assert refusal(lambda: nobody.stat("f")) == ErrorClass.PERMISSION

    def test_a_certificate_that_nobody_vouches_for_is_not_spoken_to(self) -> None:
        with open_directory() as base, certificate(base / "tls") as (crt, key, ca):
            given_to_user(base / "tls")
            key.chmod(0o400)
            tls = (f"xrd.tls {crt} {key}", "xrd.tlsca noverify", "xrootd.tls all")
            with xrootd(base / "server", *tls) as place:
                with claimed(replace(place, secret={"ca": ca}), COUNT) as storage:
                    put(storage, "f", b"x")
                    assert get(storage, "f") == b"x"
                with place.storage() as stranger, pytest.raises(StorageError) as caught:
                    stranger.stat("f")
        assert caught.value.error_class == ErrorClass.UNAVAILABLE and "certificate" in str(caught.value.hint)


@needs_root
def test_a_full_disk_is_told_and_the_part_removed() -> None:
    with open_directory() as base, xrootd(base / "server") as place:
        small = place.directory / "storage-full"
        with mounted(small, "size=3m,mode=0777"), place.storage("storage-full") as storage:
            storage.claim(STORAGE_ID)
            assert refusal(lambda: put(storage, "d/f", os.urandom(5 << 20))) == ErrorClass.NO_SPACE
            assert list(storage.list()) == [] and storage.remove_temporaries("1.1") == 0
            put(storage, "d/f", b"x")
