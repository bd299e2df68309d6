"""What a network and a server can do to any protocol, as one class of tests.

A test module subclasses it and gives the fixtures `place` (a running server) and `storage` (a fresh one on it).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dlm.errors import StorageError
from dlm.protocols import StorageProtocol
from dlm.types import Checksums, ErrorClass, Secret
from protocols.conformance import OTHER_ID, STORAGE_ID, adler32, get, put, refusal
from protocols.filesystems import killed_at
from protocols.servers import (
    PREFILLED,
    PREFILLED_FILES,
    Place,
    claimed,
    cutting,
    free_port,
    held_while,
    port_of,
    silent,
    through,
)


def below(storage: StorageProtocol, place: Place) -> str:
    """The storage's directory below its server's root."""
    return storage.ref.prefix.removeprefix(place.prefix).strip("/")


class NetworkFaults:
    half_written: tuple[str, ...] = ()  # the effects points at which a dying writer leaves a temporary

    def test_a_wrong_secret_is_a_matter_of_permission_and_is_not_told(
        self, storage: StorageProtocol, place: Place
    ) -> None:
        wrong = {key: "wr0ng-s3cret" if key in ("password", "secret_key", "token") else value
                 for key, value in place.secret.items()}  # fmt: skip
        if "private_key" in wrong:
            wrong = {"username": wrong["username"], "password": "wr0ng-s3cret"}
        with place.storage(below(storage, place), secret=Secret(wrong)) as stranger:
            for act in (lambda: stranger.stat("f"), lambda: put(stranger, "f", b"x"), stranger.identify):
                with pytest.raises(StorageError) as caught:
                    act()
                assert caught.value.error_class == ErrorClass.PERMISSION
                assert "wr0ng" not in f"{caught.value!r} {caught.value.hint} {caught.value.facts} {stranger.ref!r}"

    def test_a_host_that_never_answers_costs_the_timeout(self, storage: StorageProtocol, place: Place) -> None:
        with silent() as port, through(place, port).storage(options={**place.options, "timeout_s": "0.3"}) as mute:
            for act in (lambda: mute.stat("f"), lambda: list(mute.list()), lambda: put(mute, "f", b"x"),
                        lambda: mute.delete_many(["f"]), lambda: mute.claim(STORAGE_ID)):  # fmt: skip
                started = time.monotonic()
                assert refusal(act) == ErrorClass.TIMEOUT
                assert time.monotonic() - started < 5

    def test_a_host_where_nothing_listens_is_unavailable(self, place: Place) -> None:
        with through(place, free_port()).storage() as nowhere:
            assert refusal(lambda: nowhere.stat("f")) == ErrorClass.UNAVAILABLE

    def test_a_host_without_a_name_is_unavailable(self, place: Place) -> None:
        prefix = place.prefix.replace("127.0.0.1", "no-such-host.invalid").replace("http:", "https:")
        with place.storage(prefix=prefix, options={**place.options, "allow_http": "true", "timeout_s": "5"}) as nowhere:
            assert refusal(lambda: nowhere.stat("f")) == ErrorClass.UNAVAILABLE

    def test_a_root_that_is_not_there_blames_no_file(self, place: Place) -> None:
        with place.storage("nothing/here") as storage:
            assert refusal(lambda: storage.stat("f")) == ErrorClass.UNAVAILABLE
            assert refusal(lambda: storage.delete_many(["f"])) == ErrorClass.UNAVAILABLE

    def test_the_root_of_another_storage_is_not_touched(self, storage: StorageProtocol, place: Place) -> None:
        put(storage, "f", b"x")
        with place.storage(below(storage, place), storage_uuid=OTHER_ID) as foreign:
            for act in (lambda: foreign.stat("f"), lambda: foreign.delete("f"), lambda: put(foreign, "g", b"")):
                assert refusal(act) == ErrorClass.UNAVAILABLE
        assert get(storage, "f") == b"x"

    def test_a_root_below_another_is_told_by_the_marker_above(self, storage: StorageProtocol, place: Place) -> None:
        assert storage.marked_above() is None
        with place.storage(f"{below(storage, place)}/deep/er") as inner:
            assert inner.marked_above() == storage.ref.prefix
        if "localhost" not in storage.ref.prefix:  # nor does another name of the server hide it
            with place.storage(prefix=storage.ref.prefix.replace("127.0.0.1", "localhost") + "/x") as alias:
                assert alias.marked_above() is not None

    def test_a_host_that_never_answers_is_not_asked_for_each_level_above(
        self, storage: StorageProtocol, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with silent() as port:
            options = {**place.options, "timeout_s": "0.3"}
            with through(place, port).storage("a/b/c/d/e/f/g/h/i/j/k", options=options) as mute:
                started = time.monotonic()
                assert refusal(mute.marked_above) == ErrorClass.TIMEOUT
                assert time.monotonic() - started < 3
        monkeypatch.setattr("dlm.protocols.remote.ABOVE_S", 0.0)
        with place.storage(f"{below(storage, place)}/deep") as inner:
            assert refusal(inner.marked_above) == ErrorClass.TIMEOUT

    def test_a_marker_is_looked_at_again_after_a_while(
        self, storage: StorageProtocol, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert storage.stat("f") is None
        storage._delete(".dlm-storage")  # type: ignore[attr-defined]
        assert storage.stat("f") is None, "remembered for seconds"
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 6)
        assert refusal(lambda: storage.stat("f")) == ErrorClass.UNAVAILABLE

    def test_a_storage_that_is_only_read_is_known_by_its_url(self, storage: StorageProtocol, place: Place) -> None:
        seal = storage.seal()
        with place.storage(below(storage, place), storage_uuid=seal) as reader:
            reader.require_marker(seal)
            assert refusal(lambda: reader.require_marker(seal + "x")) == ErrorClass.UNAVAILABLE

    def test_a_read_that_is_cut_off_is_an_error_and_not_a_short_file(
        self, storage: StorageProtocol, place: Place
    ) -> None:
        put(storage, "f", os.urandom(12 << 20))
        with cutting(port_of(place)) as proxy:
            proxy.down_limit = 3 << 20
            with through(place, proxy.port).storage(below(storage, place)) as cut:
                assert refusal(lambda: get(cut, "f")) in (ErrorClass.IO, ErrorClass.UNAVAILABLE)
                assert refusal(lambda: cut.checksum("f")) in (ErrorClass.IO, ErrorClass.UNAVAILABLE)

    def test_a_write_that_is_cut_off_leaves_nothing_in_the_place(self, storage: StorageProtocol, place: Place) -> None:
        def content() -> Iterator[bytes]:
            for _ in range(12):
                yield os.urandom(1 << 20)

        with cutting(port_of(place)) as proxy:
            proxy.up_limit = 3 << 20
            with through(place, proxy.port).storage(below(storage, place)) as cut:
                error_class = refusal(lambda: cut.write("d/f", content(), attempt="5.1"))
                assert error_class in (ErrorClass.IO, ErrorClass.UNAVAILABLE)
        assert storage.stat("d/f") is None and list(storage.list()) == []
        storage.remove_temporaries("5.1")
        assert put(storage, "d/f", b"x", attempt="5.2").was_adopted is False

    def test_a_producer_that_dies_far_into_a_large_file_leaves_nothing(self, storage: StorageProtocol) -> None:
        def broken() -> Iterator[bytes]:
            for _ in range(14):
                yield os.urandom(1 << 20)
            raise ZeroDivisionError

        # As the engine numbers them: a server may hold what a broken upload wrote locked for a moment yet (XRootD, 423).
        for attempt, size_bytes in (("1", None), ("2", 15 << 20)):
            with pytest.raises(ZeroDivisionError):
                storage.write("d/f", broken(), attempt=attempt, size_bytes=size_bytes)
            assert storage.stat("d/f") is None and list(storage.list()) == []
            assert storage.remove_temporaries(attempt) == 0
        put(storage, "d/f", b"x")

    def test_a_writer_killed_half_way_leaves_what_the_next_attempt_removes(
        self, storage: StorageProtocol, place: Place
    ) -> None:
        content = os.urandom(12 << 20)

        def write() -> None:
            with place.storage(below(storage, place)) as mine:
                put(mine, "d/f", content, attempt="7.1")

        for point in self.half_written:
            assert killed_at(point, write), point
            assert storage.stat("d/f") is None
            assert list(storage.list()) == []
            assert storage.remove_temporaries("7.0", "7.1") == 1, point
            assert storage.remove_temporaries("7.1") == 0
        assert put(storage, "d/f", content, attempt="7.2").was_adopted is False
        assert get(storage, "d/f") == content

    def test_a_name_that_is_too_long_is_refused_and_nothing_hangs(self, storage: StorageProtocol) -> None:
        name = "d/" + "n" * 1100
        assert isinstance(refusal(lambda: put(storage, name, b"x")), str)
        assert list(storage.list()) == []
        assert storage.remove_temporaries("1.1") == 0

    def test_a_directory_of_ten_thousand_files_is_listed_in_little_memory(self, place: Place) -> None:
        with place.storage(PREFILLED) as storage:
            storage.claim(STORAGE_ID)
            assert next(storage.list("many")).size_bytes == 1
            count, grown = held_while(lambda: storage.list("many"))
        assert count == PREFILLED_FILES
        assert grown < 16 << 20

    def test_a_large_file_that_came_there_meanwhile_is_adopted_or_respected(self, storage: StorageProtocol) -> None:
        content = os.urandom(11 << 20)
        for other, expected in ((content, "adopted"), (content[:-1] + bytes([content[-1] ^ 1]), "destination_exists")):
            did = threading.Event()

            def chunks(other: bytes = other, did: threading.Event = did) -> Iterator[bytes]:
                for start in range(0, len(content), 1 << 20):
                    if start and not did.is_set():
                        did.set()
                        put(storage, "d/f", other, attempt="2")
                    yield content[start : start + (1 << 20)]

            if expected == "adopted":
                assert storage.write("d/f", chunks(), attempt="1").was_adopted
            else:
                assert refusal(lambda: storage.write("d/f", chunks(), attempt="1")) == expected
            assert get(storage, "d/f") == other
            assert storage.remove_temporaries("1", "2") == 0
            storage.delete("d/f")

    def test_connections_are_closed_with_the_storage(self, storage: StorageProtocol, place: Place) -> None:
        settle = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with place.storage(below(storage, place)) as mine:
                put(mine, "f", b"x" * 100_000)
                with mine.read("f") as chunks:
                    next(chunks)
                list(mine.list())
        limit = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) > settle + 2 and time.monotonic() < limit:
            threading.Event().wait(0.02)
        assert len(os.listdir("/proc/self/fd")) <= settle + 2


def read_only(storage: StorageProtocol, locked: StorageProtocol) -> None:
    """Check what a read-only export, the same root as `storage`, refuses and gives."""
    put(storage, "f", b"x")
    assert get(locked, "f") == b"x"
    assert refusal(lambda: put(locked, "g", b"x")) in (ErrorClass.PERMISSION, ErrorClass.IO)
    assert refusal(lambda: locked.delete("f")) in (ErrorClass.PERMISSION, ErrorClass.IO)
    assert [entry.path for entry in storage.list()] == ["f"]


def not_trusted(place: Place) -> None:
    """Check that a server whose certificate nobody vouches for is not spoken to, and with the authority it is."""
    with place.storage("tls") as known:
        known.claim(STORAGE_ID, create_root=True)
        put(known, "f", b"x")
        assert get(known, "f") == b"x"
    stranger = replace(place, secret={key: value for key, value in place.secret.items() if key != "ca"})
    with stranger.storage("tls") as unknown, pytest.raises(StorageError) as caught:
        unknown.stat("f")
    assert caught.value.error_class == ErrorClass.UNAVAILABLE and "certificate" in str(caught.value.hint)


def remembered(server: Place, count: Iterator[int]) -> None:
    """Prove that what the server remembers of a file's digest is no witness of its bytes, unless told so."""
    content = os.urandom(1000)
    with claimed(server, count) as storage:
        path = server.directory / storage.ref.prefix.rpartition("/")[2] / "f"
        put(storage, "f", content)
        options = {**server.options, "remembered_digests": "true"}
        with server.storage(prefix=storage.ref.prefix, options=options) as believer:
            before = believer.checksum("f")
            moment = path.stat()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns))
            assert believer.checksum("f") == before == Checksums(adler32=adler32(content))
        assert storage.checksum("f") != before
