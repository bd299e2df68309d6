"""The posix protocol: conformance, and what only a file system can do to it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.protocols import StorageProtocol, open_protocol
from dlm.protocols.posix import LEAST_SHARED
from dlm.types import ErrorClass, ProtocolRef
from protocols.conformance import OTHER_ID, STORAGE_ID, ProtocolConformance, get, put, refusal
from protocols.filesystems import as_nobody, in_child, killed_at, mounted, needs_root, open_to_nobody


def posix(root: Path, storage_uuid: str = STORAGE_ID) -> StorageProtocol:
    return open_protocol(ProtocolRef(1, "disk", storage_uuid, "posix", str(root)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def storage(root: Path) -> StorageProtocol:
    protocol = posix(root)
    protocol.claim(STORAGE_ID, create_root=True)
    return protocol


@pytest.fixture
def tiny(root: Path) -> Iterator[StorageProtocol]:
    """A claimed storage of one MiB."""
    with mounted(root, "size=1m"):
        protocol = posix(root)
        protocol.claim(STORAGE_ID)
        yield protocol


class TestPosix(ProtocolConformance):
    pass


class TestSymbolicLinks:
    @pytest.fixture
    def outside(self, tmp_path: Path, root: Path, storage: StorageProtocol) -> Path:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (root / "way-out").symlink_to(outside)
        (root / "link").symlink_to(outside / "secret")
        return outside

    @pytest.mark.parametrize("path", ["way-out/secret", "link"])
    def test_no_link_is_read_through(self, storage: StorageProtocol, outside: Path, path: str) -> None:
        for act in (storage.stat, storage.read, storage.checksum):
            assert refusal(lambda act=act: act(path)) == ErrorClass.INVALID_PATH

    def test_no_link_is_written_through(self, storage: StorageProtocol, outside: Path) -> None:
        assert refusal(lambda: put(storage, "way-out/new", b"x")) == ErrorClass.INVALID_PATH
        assert refusal(lambda: put(storage, "link", b"x")) == ErrorClass.DESTINATION_EXISTS
        put(storage, "link", b"mine", replace=True)
        assert get(storage, "link") == b"mine"
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"secret": b"secret"}

    def test_no_link_is_deleted_through(self, storage: StorageProtocol, outside: Path) -> None:
        assert refusal(lambda: storage.delete("way-out/secret")) == ErrorClass.INVALID_PATH
        storage.delete("link")
        assert (outside / "secret").exists()

    def test_no_link_is_listed(self, storage: StorageProtocol, outside: Path) -> None:
        put(storage, "f", b"")
        assert [entry.path for entry in storage.list()] == ["f"]

    def test_the_directory_of_temporaries_may_not_be_a_link(
        self, storage: StorageProtocol, outside: Path, root: Path
    ) -> None:
        (root / ".dlm-tmp").symlink_to(outside)
        assert refusal(lambda: put(storage, "f", b"x")) == ErrorClass.INVALID_PATH
        assert len(list(outside.iterdir())) == 1

    def test_a_link_as_the_marker_is_refused(self, storage: StorageProtocol, root: Path) -> None:
        (root / ".dlm-storage").rename(root / "elsewhere")
        (root / ".dlm-storage").symlink_to("elsewhere")
        assert refusal(lambda: storage.stat("f")) == ErrorClass.INVALID_PATH

    def test_the_root_itself_may_be_reached_through_a_link(self, storage: StorageProtocol, root: Path) -> None:
        put(storage, "f", b"x")
        (root.parent / "alias").symlink_to(root)
        assert get(posix(root.parent / "alias"), "f") == b"x"


class TestAvailability:
    def test_without_its_root_a_storage_blames_no_file(self, storage: StorageProtocol, root: Path) -> None:
        put(storage, "f", b"x")
        root.rename(root.with_name("unmounted"))
        acts: list[Callable[[], object]] = [
            lambda: storage.stat("f"), lambda: storage.read("f"), lambda: storage.delete("f"),
            lambda: list(storage.list()), lambda: storage.identify(), lambda: put(storage, "g", b""),
            lambda: storage.checksum("f"), lambda: storage.space(), lambda: storage.delete_many(["f"]),
        ]  # fmt: skip
        assert {refusal(act) for act in acts} == {ErrorClass.UNAVAILABLE}

    def test_without_its_marker_a_storage_blames_no_file(self, storage: StorageProtocol, root: Path) -> None:
        (root / ".dlm-storage").unlink()
        assert storage.identify() is None
        for act in (storage.stat, storage.read, storage.delete):
            assert refusal(lambda act=act: act("f")) == ErrorClass.UNAVAILABLE

    def test_under_another_marker_nothing_is_done(self, storage: StorageProtocol, root: Path) -> None:
        put(storage, "f", b"x")
        stranger = posix(root, OTHER_ID)
        assert refusal(lambda: stranger.delete("f")) == ErrorClass.UNAVAILABLE
        assert get(storage, "f") == b"x"

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "disk"}', "null"])
    def test_a_damaged_marker_makes_a_storage_unavailable(
        self, storage: StorageProtocol, root: Path, text: str
    ) -> None:
        (root / ".dlm-storage").write_text(text)
        assert refusal(lambda: storage.stat("f")) == ErrorClass.UNAVAILABLE

    def test_a_root_that_may_not_be_written_needs_no_marker_but_content(self, tmp_path: Path) -> None:
        unmarked = posix(tmp_path, "")
        assert refusal(lambda: unmarked.stat("f")) == ErrorClass.UNAVAILABLE
        (tmp_path / "f").write_bytes(b"abc")
        assert get(unmarked, "f") == b"abc"

    def test_a_sealed_root_is_told_from_another_directory_in_its_place(self, tmp_path: Path) -> None:
        for name in ("original", "impostor"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "f").write_bytes(name.encode())
        sealed = posix(tmp_path / "original", posix(tmp_path / "original").seal())
        assert get(sealed, "f") == b"original"
        (tmp_path / "original").rename(tmp_path / "away")
        (tmp_path / "impostor").rename(tmp_path / "original")
        assert refusal(lambda: sealed.read("f")) == ErrorClass.UNAVAILABLE
        assert list(tmp_path.glob("*/.dlm*")) == []

    def test_claiming_a_missing_root_needs_a_word(self, root: Path) -> None:
        assert refusal(lambda: posix(root).claim(STORAGE_ID)) == ErrorClass.UNAVAILABLE
        posix(root).claim(STORAGE_ID, create_root=True)
        assert posix(root).identify() == STORAGE_ID

    def test_claiming_an_unwritable_root_is_refused_clearly(self, root: Path) -> None:
        root.mkdir(mode=0o555)
        open_to_nobody(root)

        def claim() -> None:
            with pytest.raises(StorageError, match="cannot write marker into .*: Permission denied") as caught:
                posix(root).claim(STORAGE_ID)
            assert caught.value.error_class == ErrorClass.PERMISSION

        assert as_nobody(claim) == 0
        assert list(root.iterdir()) == []

    def test_a_root_without_write_permission_can_be_read(self, storage: StorageProtocol, root: Path) -> None:
        put(storage, "d/f", b"x")
        for path in (root, root / "d"):
            path.chmod(0o555)
        open_to_nobody(root)

        def use() -> None:
            assert get(storage, "d/f") == b"x"
            assert [entry.path for entry in storage.list()] == ["d/f"]
            assert refusal(lambda: put(storage, "g", b"")) == ErrorClass.PERMISSION
            assert refusal(lambda: storage.delete("d/f")) == ErrorClass.PERMISSION

        try:
            assert as_nobody(use) == 0
        finally:
            for path in (root, root / "d"):
                path.chmod(0o755)

    def test_a_directory_that_cannot_be_listed_is_an_error_and_no_silence(
        self, storage: StorageProtocol, root: Path
    ) -> None:
        put(storage, "d/f", b"x")
        (root / "d").chmod(0)
        open_to_nobody(root)

        def use() -> None:
            assert refusal(lambda: list(storage.list())) == ErrorClass.PERMISSION
            assert refusal(lambda: storage.stat("d/f")) == ErrorClass.PERMISSION

        try:
            assert as_nobody(use) == 0
        finally:
            (root / "d").chmod(0o755)

    @needs_root
    def test_a_file_system_mounted_read_only_can_be_read(self, tiny: StorageProtocol, root: Path) -> None:
        put(tiny, "d/f", b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        assert get(tiny, "d/f") == b"x"
        tiny.claim(STORAGE_ID)
        assert refusal(lambda: put(tiny, "g", b"")) == ErrorClass.PERMISSION
        assert refusal(lambda: tiny.delete("d/f")) == ErrorClass.PERMISSION


class TestFileSystem:
    @needs_root
    def test_a_full_disk_is_told_and_the_part_removed(self, tiny: StorageProtocol) -> None:
        free_bytes = tiny.space().free_bytes
        chunks = (b"x" * 100_000 for _ in range(20))
        assert refusal(lambda: tiny.write("d/f", chunks, attempt="1")) == ErrorClass.NO_SPACE
        assert list(tiny.list()) == []
        assert tiny.space().free_bytes >= free_bytes - 8192

    def test_a_file_larger_than_allowed_is_told_as_no_space(self, storage: StorageProtocol) -> None:
        def write() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            assert refusal(lambda: put(storage, "f", b"x" * 20_000)) == ErrorClass.NO_SPACE

        assert in_child(write) == 0
        assert list(storage.list()) == []

    @needs_root
    def test_a_file_system_inside_the_root_has_its_temporaries_beside_the_file(
        self, storage: StorageProtocol, root: Path
    ) -> None:
        with mounted(root / "inner", "size=1m"):
            put(storage, "inner/d/f", b"x", attempt="7")
            assert get(storage, "inner/d/f") == b"x"
            assert [entry.path for entry in storage.list()] == ["inner/d/f"]
            assert list((root / ".dlm-tmp").iterdir()) == []
            assert killed_at("posix.fsync:after", lambda: put(storage, "inner/d/g", b"y", attempt="8"))
            assert [entry.path for entry in storage.list()] == ["inner/d/f"]
            assert len(list((root / "inner/d").iterdir())) == 2
            assert storage.remove_temporaries("8") == 1
            assert [path.name for path in (root / "inner/d").iterdir()] == ["f"]

    def test_a_name_too_long_for_the_file_system_is_refused(self, storage: StorageProtocol) -> None:
        assert refusal(lambda: put(storage, "n" * 256, b"")) == ErrorClass.INVALID_PATH
        assert refusal(lambda: put(storage, "n" * 256 + "/f", b"")) == ErrorClass.INVALID_PATH

    def test_a_file_in_a_directorys_place_is_an_invalid_path(self, storage: StorageProtocol) -> None:
        put(storage, "f", b"")
        assert refusal(lambda: put(storage, "f/g", b"")) == ErrorClass.INVALID_PATH

    def test_a_directory_in_a_files_place_is_in_the_way(self, storage: StorageProtocol) -> None:
        put(storage, "d/f", b"")
        assert refusal(lambda: put(storage, "d", b"")) == ErrorClass.DESTINATION_EXISTS
        assert refusal(lambda: put(storage, "d", b"", replace=True)) == ErrorClass.DESTINATION_EXISTS

    def test_a_name_that_is_not_utf8_is_listed_read_and_deleted(self, storage: StorageProtocol, root: Path) -> None:
        with open(os.fsencode(root) + b"/caf\xe9", "wb") as file:
            file.write(b"latin")
        [entry] = storage.list()
        assert os.fsencode(entry.path) == b"caf\xe9"
        assert get(storage, entry.path) == b"latin"
        assert storage.delete(entry.path) is True

    def test_an_error_shows_a_strange_name_escaped(self, storage: StorageProtocol) -> None:
        with pytest.raises(StorageError, match=r"a\\nb\\udce9") as caught:
            storage.read("a\nb\udce9")
        caught.value.detail.encode()

    def test_a_fifo_neither_hangs_nor_counts(self, storage: StorageProtocol, root: Path) -> None:
        os.mkfifo(root / "fifo")
        assert storage.stat("fifo") is None
        assert refusal(lambda: storage.read("fifo")) == ErrorClass.SOURCE_MISSING
        assert list(storage.list()) == []

    def test_empty_directories_go_with_their_last_file(self, storage: StorageProtocol, root: Path) -> None:
        put(storage, "a/b/c/f", b"")
        put(storage, "a/g", b"")
        storage.delete("a/b/c/f")
        assert [path.name for path in (root / "a").iterdir()] == ["g"]
        storage.delete("a/g")
        assert not (root / "a").exists() and root.exists()

    def test_a_directory_removed_while_a_writer_is_at_it_is_made_again(
        self, storage: StorageProtocol, root: Path
    ) -> None:
        def remove_directory(reached: str) -> None:
            if reached == "posix.rename:before":
                (root / "a/b").rmdir()
                (root / "a").rmdir()

        effects.install(remove_directory)
        try:
            put(storage, "a/b/f", b"x")
        finally:
            effects.install(None)
        assert get(storage, "a/b/f") == b"x"

    def test_temporaries_stand_apart_and_are_removed_by_attempt(self, storage: StorageProtocol, root: Path) -> None:
        for attempt in ("1.1", "1.12"):
            assert killed_at("posix.fsync:after", lambda attempt=attempt: put(storage, "d/f", b"x", attempt=attempt))
        assert len(list((root / ".dlm-tmp").iterdir())) == 2
        assert list(storage.list()) == []
        assert storage.remove_temporaries("1.1", "9.9") == 1
        assert [path.name.split("~")[0] for path in (root / ".dlm-tmp").iterdir()] == ["1.12"]
        assert storage.remove_temporaries("1.12") == 1
        assert storage.remove_temporaries("1.12") == 0

    def test_reading_closes_its_file_however_it_ends(self, storage: StorageProtocol) -> None:
        put(storage, "f", b"x" * 3_000_000)
        before = len(os.listdir("/proc/self/fd"))
        for _ in storage.read("f"):
            break
        with storage.read("f") as chunks:
            next(chunks)
        list(storage.read("f"))
        storage.read("f").close()
        listing = storage.list()
        next(listing)
        del listing
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "point",
    ["posix.mkdir:after", "posix.write:before", "posix.write:after", "posix.fsync:before", "posix.fsync:after",
     "posix.rename:before", "posix.link:after", "posix.rename:after"],
)  # fmt: skip
def test_a_writer_killed_at_any_point_leaves_what_the_next_attempt_puts_right(
    storage: StorageProtocol, root: Path, point: str
) -> None:
    assert killed_at(point, lambda: put(storage, "d/f", b"content", attempt="1.1"))
    storage.remove_temporaries("1.1")
    put(storage, "d/f", b"content", attempt="1.2")
    assert get(storage, "d/f") == b"content"
    assert [entry.path for entry in storage.list()] == ["d/f"]
    assert list((root / ".dlm-tmp").iterdir()) == []


@pytest.mark.parametrize("point", ["posix.unlink:before", "posix.unlink:after", "posix.flush:before"])
def test_a_delete_killed_at_any_point_can_be_repeated(storage: StorageProtocol, point: str) -> None:
    for name in "abc":
        put(storage, f"d/{name}", b"")
    assert killed_at(point, lambda: storage.delete_many(["d/a", "d/b", "d/c"]))
    assert not any(isinstance(outcome, StorageError) for outcome in storage.delete_many(["d/a", "d/b", "d/c"]).values())
    assert list(storage.list()) == []


def test_an_unknown_scheme_is_unsupported_and_file_means_posix(root: Path) -> None:
    with pytest.raises(Unsupported, match="gopher") as caught:
        open_protocol(ProtocolRef(1, "disk", STORAGE_ID, "gopher", "/x"))
    assert "posix" in str(caught.value.hint)
    assert type(open_protocol(ProtocolRef(1, "disk", STORAGE_ID, "file", str(root)))) is type(posix(root))


class TestManyDeletions:
    """From LEAST_SHARED files on, two threads delete."""

    @pytest.fixture
    def paths(self, storage: StorageProtocol, root: Path) -> list[str]:
        """More files than one thread deletes, half of them alone in their directories."""
        paths = [f"d{number if number % 2 else 0}/f{number}" for number in range(LEAST_SHARED + 50)]
        for path in paths:
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(b"x")
        return paths

    def test_each_path_has_its_answer_and_no_empty_directory_stays(
        self, storage: StorageProtocol, root: Path, paths: list[str]
    ) -> None:
        put(storage, "d0/stays", b"x")
        outcomes = storage.delete_many([*paths, "d0/never-was", "../outside"])
        assert isinstance(outcomes.pop("../outside"), StorageError)
        assert outcomes == dict.fromkeys(paths, True) | {"d0/never-was": False}
        assert {entry.name for entry in root.glob("d*")} == {"d0"}
        assert [entry.path for entry in storage.list()] == ["d0/stays"]

    def test_it_is_durable_with_one_flush_after_all_of_them(
        self, storage: StorageProtocol, root: Path, paths: list[str]
    ) -> None:
        left: list[int] = []
        effects.install(lambda point: left.append(len(list(storage.list()))) if point == "posix.flush:before" else None)
        try:
            storage.delete_many(paths)
        finally:
            effects.install(None)
        assert left == [0]

    @pytest.mark.parametrize("is_caller", [True, False])
    def test_when_one_thread_fails_the_other_has_ended_too(
        self, storage: StorageProtocol, paths: list[str], is_caller: bool
    ) -> None:
        """Nothing is deleted any more while the caller writes down what became of the files."""

        def is_over() -> bool:
            if (threading.current_thread() is threading.main_thread()) is is_caller:
                raise InterruptedError
            return False

        with pytest.raises(InterruptedError):
            storage.delete_many(paths, is_over)
        middle = len(paths) // 2
        failed = sorted(paths)[middle:] if is_caller else sorted(paths)[:middle]
        assert {entry.path for entry in storage.list()} == set(failed)
