"""What every protocol must do, as one class of tests. An adapter's test module subclasses it and gives the fixture
`storage`: a fresh, claimed, empty storage (a StorageProtocol with the id STORAGE_ID)."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from dlm.errors import StorageError, Unsupported
from dlm.protocols import StorageProtocol, Written
from dlm.types import Checksums, ErrorClass

STORAGE_ID = "6b1f9f4e-9d3a-4d0c-8f57-000000000001"
OTHER_ID = "6b1f9f4e-9d3a-4d0c-8f57-000000000002"

ESCAPES = [
    "../outside", "a/../../outside", "/etc/passwd", "a//b", "a/./b", ".", "..", "", "a/", "a/..", "nul\0byte",
    "lone\ud800surrogate", "x/" * 2100 + "y", ".dlm-storage", ".dlm-tmp/x", "a/.dlm-tmp~1~00",
]  # fmt: skip

STRANGE = [
    "%2e%2e%2foutside", "a\\..\\b", "...", " ", "-rf", "*", "a\nb", "café", "🛰", "a b", "100%", "a+b", "a#b", "a?b=c",
    "a&b;c", "q'u\"ote", "ä/ö/ü",
]  # fmt: skip


def put(storage: StorageProtocol, path: str, content: bytes, attempt: str = "1.1", **options: bool) -> Written:
    return storage.write(path, [content], attempt=attempt, **options)


def get(storage: StorageProtocol, path: str, **part: int) -> bytes:
    with storage.read(path, **part) as chunks:
        return b"".join(chunks)


def adler32(content: bytes) -> str:
    return f"{zlib.adler32(content):08x}"


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    return caught.value.error_class


class ProtocolConformance:
    tells_space = True  # the storage says how much it has
    excludes_writers = True  # of writers of one path at the same time, one wins; else only dlm's lease sees to that
    deletes_in_bulk = False  # files are gathered, and one request takes all of them or none
    refused_names: tuple[str, ...] = ()  # what this protocol cannot take, and says so
    refused_as = ErrorClass.INVALID_PATH

    def test_what_is_written_can_be_read(self, storage: StorageProtocol) -> None:
        written = put(storage, "a/b/c.dat", b"hello")
        assert written == Written(5, Checksums(adler32=adler32(b"hello")), was_adopted=False)
        assert get(storage, "a/b/c.dat") == b"hello"

    def test_a_file_may_be_empty(self, storage: StorageProtocol) -> None:
        assert storage.write("empty", [], attempt="1").size_bytes == 0
        stat = storage.stat("empty")
        assert stat is not None and stat.size_bytes == 0
        assert get(storage, "empty") == b""
        assert storage.checksum("empty").adler32 == "00000001"

    def test_content_is_streamed_in_and_out(self, storage: StorageProtocol) -> None:
        blocks = [bytes([number]) * 300_001 for number in range(12)]
        storage.write("large", iter(blocks), attempt="1")
        with storage.read("large") as chunks:
            sizes = [len(chunk) for chunk in chunks]
        assert len(sizes) > 1 and sum(sizes) == 12 * 300_001

    def test_parts_can_be_read(self, storage: StorageProtocol) -> None:
        put(storage, "digits", b"0123456789")
        assert get(storage, "digits", offset=3) == b"3456789"
        assert get(storage, "digits", offset=3, length=4) == b"3456"
        assert get(storage, "digits", offset=8, length=99) == b"89"
        assert get(storage, "digits", offset=10) == b""
        assert get(storage, "digits", length=0) == b""

    def test_stat_tells_size_and_time(self, storage: StorageProtocol) -> None:
        put(storage, "f", b"12345")
        stat = storage.stat("f")
        assert stat is not None and stat.size_bytes == 5
        assert abs(stat.modified_at - datetime.now(UTC)) < timedelta(minutes=5)

    def test_what_is_not_there_is_said_to_be_missing(self, storage: StorageProtocol) -> None:
        put(storage, "file", b"")
        for path in ("nothing", "no/directory", "file/below"):
            assert storage.stat(path) is None
            assert refusal(lambda path=path: storage.read(path)) == ErrorClass.SOURCE_MISSING
            assert refusal(lambda path=path: storage.checksum(path)) == ErrorClass.SOURCE_MISSING
            assert storage.delete(path) is False

    def test_a_directory_is_no_file(self, storage: StorageProtocol) -> None:
        put(storage, "d/f", b"")
        assert storage.stat("d") is None
        assert refusal(lambda: storage.read("d")) == ErrorClass.SOURCE_MISSING
        assert storage.delete("d") is False
        assert storage.stat("d/f") is not None

    def test_the_same_content_is_adopted(self, storage: StorageProtocol) -> None:
        put(storage, "f", b"same", attempt="1")
        again = put(storage, "f", b"same", attempt="2")
        assert again.was_adopted and again.size_bytes == 4

    def test_other_content_is_never_overwritten_silently(self, storage: StorageProtocol) -> None:
        put(storage, "f", b"first")
        assert refusal(lambda: put(storage, "f", b"other")) == ErrorClass.DESTINATION_EXISTS
        assert get(storage, "f") == b"first"
        assert [entry.path for entry in storage.list()] == ["f"]

    def test_other_content_is_replaced_when_asked(self, storage: StorageProtocol) -> None:
        put(storage, "f", b"first")
        assert put(storage, "f", b"second", replace=True).was_adopted is False
        assert get(storage, "f") == b"second"

    def test_a_producer_that_fails_leaves_nothing(self, storage: StorageProtocol) -> None:
        def broken() -> Iterator[bytes]:
            yield b"some"
            raise ConnectionResetError("the producer went away")

        with pytest.raises(ConnectionResetError):
            storage.write("d/f", broken(), attempt="1")
        assert storage.stat("d/f") is None
        assert list(storage.list()) == []
        assert storage.remove_temporaries("1") == 0

    def test_what_is_stored_is_proven_before_it_counts(self, storage: StorageProtocol) -> None:
        found: list[Checksums] = []
        storage.write("d/f", [b"a", b"bc"], attempt="1", prove=lambda read_back: found.append(read_back(("md5",))))
        assert found == [Checksums(md5="900150983cd24fb0d6963f7d28e17f72")]

        def wrong(_: object) -> None:
            raise StorageError(ErrorClass.CHECKSUM_MISMATCH, "wrong")

        for path, replace in (("d/g", False), ("d/g", True)):
            act = partial(storage.write, path, [b"x"], attempt="1", replace=replace, prove=wrong)
            assert refusal(act) == ErrorClass.CHECKSUM_MISMATCH
        assert [entry.path for entry in storage.list()] == ["d/f"]
        assert storage.remove_temporaries("1") == 0

    def test_checksums_are_computed_as_asked(self, storage: StorageProtocol) -> None:
        put(storage, "f", b"abc")
        assert storage.checksum("f", ("adler32", "md5", "sha256")) == Checksums(
            adler32="024d0127",
            md5="900150983cd24fb0d6963f7d28e17f72",
            sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        )
        written = storage.write("g", [b"a", b"bc"], attempt="1", algorithms=("md5",))
        assert written.checksums == Checksums(md5="900150983cd24fb0d6963f7d28e17f72")

    def test_a_deleted_file_is_gone_and_a_second_delete_says_so(self, storage: StorageProtocol) -> None:
        put(storage, "d/f", b"x")
        assert storage.delete("d/f") is True
        assert storage.stat("d/f") is None
        assert storage.delete("d/f") is False

    def test_a_bulk_delete_answers_for_each_path(self, storage: StorageProtocol) -> None:
        paths = [f"d{number % 7}/f{number}" for number in range(100)]
        for path in paths:
            put(storage, path, b"x")
        put(storage, "d0/stays", b"x")
        outcomes = storage.delete_many([*paths, "d0/never-was", "../outside"])
        assert all(outcomes[path] is True for path in paths)
        assert outcomes["d0/never-was"] is False
        error = outcomes["../outside"]
        assert isinstance(error, StorageError) and error.error_class == ErrorClass.INVALID_PATH
        assert [entry.path for entry in storage.list()] == ["d0/stays"]

    def test_a_bulk_delete_begins_nothing_once_it_is_over(self, storage: StorageProtocol) -> None:
        paths = [f"f{number}" for number in range(5)]
        for path in paths:
            put(storage, path, b"x")
        looks = iter([False, False])
        outcomes = storage.delete_many(paths, lambda: next(looks, True))
        assert list(outcomes.values()) == ([] if self.deletes_in_bulk else [True, True])
        assert {entry.path for entry in storage.list()} == set(paths) - outcomes.keys()

    def test_a_digest_ends_when_there_is_no_time_for_it(self, storage: StorageProtocol) -> None:
        storage.write("f", [b"x" * (1 << 20)] * 9, attempt="1")
        calls = iter([None])

        def between() -> None:
            if next(calls, "over"):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            storage.checksum("f", between=between)

    def test_listing_tells_all_files_below_a_prefix(self, storage: StorageProtocol) -> None:
        expected = {"a": 1, "b/c": 2, "b/d/e": 3, "bb/f": 4}
        for path, size in expected.items():
            put(storage, path, b"x" * size)
        assert {entry.path: entry.size_bytes for entry in storage.list()} == expected
        assert {entry.path for entry in storage.list("b")} == {"b/c", "b/d/e"}
        assert list(storage.list("nothing")) == []

    @pytest.mark.parametrize("path", ESCAPES, ids=lambda path: ascii(path)[:24])
    def test_no_path_leads_out_of_the_root(self, storage: StorageProtocol, path: str) -> None:
        acts: list[Callable[[], object]] = [
            lambda: storage.stat(path),
            lambda: storage.read(path),
            lambda: put(storage, path, b"evil"),
            lambda: put(storage, path, b"evil", replace=True),
            lambda: storage.delete(path),
            lambda: storage.checksum(path),
        ]
        assert [refusal(act) for act in acts] == [ErrorClass.INVALID_PATH] * len(acts)
        assert storage.identify() == STORAGE_ID

    @pytest.mark.parametrize("path", STRANGE)
    def test_strange_names_are_only_names(self, storage: StorageProtocol, path: str) -> None:
        if path in self.refused_names:
            assert refusal(lambda: put(storage, path, b"x")) == self.refused_as
            assert list(storage.list()) == []
            return
        put(storage, path, b"x")
        assert [entry.path for entry in storage.list()] == [path]
        assert get(storage, path) == b"x"
        assert storage.delete(path) is True

    def test_a_name_of_255_bytes_is_taken(self, storage: StorageProtocol) -> None:
        put(storage, "d/" + "n" * 255, b"x")
        assert get(storage, "d/" + "n" * 255) == b"x"

    def test_one_of_many_writers_of_one_path_wins_and_the_others_are_told(self, storage: StorageProtocol) -> None:
        start = threading.Barrier(8)
        results: dict[int, str] = {}

        def write(number: int) -> None:
            start.wait()
            try:
                put(storage, "d/contested", f"content of {number % 4}".encode(), attempt=f"{number}.1")
                results[number] = "ok"
            except StorageError as error:
                results[number] = error.error_class

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winner = int(get(storage, "d/contested").split()[-1])
        assert {entry.path for entry in storage.list()} == {"d/contested"}
        if not self.excludes_writers:
            assert "ok" in {results[winner], results[winner + 4]}
            assert set(results.values()) <= {"ok", ErrorClass.DESTINATION_EXISTS}
            return
        assert {number for number, result in results.items() if result == "ok"} == {winner, winner + 4}
        assert set(results.values()) == {"ok", ErrorClass.DESTINATION_EXISTS}

    def test_an_attempt_that_cannot_be_a_name_is_refused(self, storage: StorageProtocol) -> None:
        assert refusal(lambda: put(storage, "f", b"", attempt="../x")) == ErrorClass.INVALID_PATH

    def test_space_adds_up(self, storage: StorageProtocol) -> None:
        if not self.tells_space:
            with pytest.raises(Unsupported):
                storage.space()
            return
        space = storage.space()
        assert space.total_bytes > 0
        assert 0 <= space.free_bytes <= space.total_bytes
        assert 0 <= space.used_bytes <= space.total_bytes

    def test_the_marker_says_whose_root_it_is(self, storage: StorageProtocol) -> None:
        assert storage.identify() == STORAGE_ID
        storage.require_marker(STORAGE_ID)
        assert refusal(lambda: storage.require_marker(OTHER_ID)) == ErrorClass.UNAVAILABLE

    def test_claiming_again_is_harmless_and_a_foreign_root_is_refused(self, storage: StorageProtocol) -> None:
        storage.claim(STORAGE_ID)
        assert refusal(lambda: storage.claim(OTHER_ID)) == ErrorClass.DESTINATION_EXISTS
        assert storage.identify() == STORAGE_ID
