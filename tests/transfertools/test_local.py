"""The local transfertool with real files, real corruption, and real deaths."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlm import effects
from dlm.errors import Unsupported
from dlm.protocols import StorageProtocol, open_protocol
from dlm.transfertools import Copy, Outcome, select
from dlm.transfertools.local import GROUP_BYTES, GROUP_FILES, SMALL_BYTES, LocalTool, groups
from dlm.types import Checksums, ErrorClass, ProtocolRef
from protocols.filesystems import as_nobody, killed_at, mounted, needs_root, open_to_nobody

LARGE = SMALL_BYTES + 12_345


def adler32(content: bytes) -> Checksums:
    return Checksums(adler32=f"{zlib.adler32(content):08x}")


class World:
    """A source and a destination storage on this disk, and copies between them."""

    def __init__(self, base: Path) -> None:
        self.source = self._storage(base, "source", 1)
        self.destination = self._storage(base, "destination", 2)

    @staticmethod
    def _storage(base: Path, name: str, storage_id: int) -> StorageProtocol:
        ref = ProtocolRef(storage_id, name, f"{name}-id", "posix", str(base / name))
        protocol = open_protocol(ref)
        protocol.claim(ref.storage_uuid, create_root=True)
        return protocol

    def root(self, side: str) -> Path:
        return Path(getattr(self, side).ref.prefix)

    def give(self, path: str, content: bytes) -> Copy:
        """Put content at the source; the copy that is to be made of it, fully described."""
        file = self.root("source") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return Copy(
            len(list(self.source.list())), "1.1", self.source.ref, path, self.destination.ref, f"to/{path}",
            len(content), adler32(content),
        )  # fmt: skip

    def run(self, *copies: Copy, deadline_s: float = 60, stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
        outcomes = LocalTool().copy_many(copies, time.monotonic() + deadline_s, stop)
        return sorted(outcomes, key=lambda outcome: outcome.request_id)

    def arrived(self) -> dict[str, bytes]:
        """The destination's files and their content; fails if temporaries remain."""
        temporaries = self.root("destination") / ".dlm-tmp"
        assert not temporaries.exists() or list(temporaries.iterdir()) == []
        root = self.root("destination")
        return {entry.path: (root / entry.path).read_bytes() for entry in self.destination.list()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def at_point() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Have something happen at an effects point, for the time of a test."""

    def install(point: str, act: Callable[[], object]) -> None:
        effects.install(lambda reached: act() if reached == point else None)

    yield install
    effects.install(None)


def classes(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.error_class for outcome in outcomes]


class TestCopies:
    @pytest.mark.parametrize("content", [b"", b"x", b"hello" * 1000, os.urandom(LARGE)], ids=len)
    def test_a_file_arrives_with_its_size_and_checksum(self, world: World, content: bytes) -> None:
        [outcome] = world.run(world.give("d/f", content))
        assert outcome.ok and outcome.error is None and outcome.duration_s > 0
        assert (outcome.size_bytes, outcome.checksums) == (len(content), adler32(content))
        assert (outcome.bytes_moved, outcome.was_adopted) == (len(content), False)
        assert world.arrived() == {"to/d/f": content}

    def test_many_files_of_all_sizes_arrive_each_with_its_outcome(self, world: World) -> None:
        contents = {f"d{number % 40}/f{number}": bytes([number % 256]) * (number * 7) for number in range(300)}
        contents["large"] = os.urandom(LARGE)
        copies = [world.give(path, content) for path, content in contents.items()]
        outcomes = world.run(*copies)
        assert [outcome.request_id for outcome in outcomes] == [copy.request_id for copy in copies]
        assert all(outcome.ok for outcome in outcomes)
        assert world.arrived() == {f"to/{path}": content for path, content in contents.items()}

    def test_expected_checksums_of_every_kind_are_checked_and_returned(self, world: World) -> None:
        expected = Checksums(md5="900150983cd24fb0d6963f7d28e17f72")
        [outcome] = world.run(replace(world.give("f", b"abc"), checksums=expected))
        assert outcome.checksums == replace(expected, adler32="024d0127")

    def test_without_expectations_adler32_is_computed(self, world: World) -> None:
        copy = replace(world.give("f", b"abc"), checksums=Checksums(), size_bytes=None)
        [outcome] = world.run(copy)
        assert outcome.ok and outcome.checksums == adler32(b"abc")

    def test_one_poisoned_item_harms_no_other(self, world: World) -> None:
        good = [world.give(f"f{number}", b"x") for number in range(20)]
        bad = replace(good[7], source_path="../../etc/passwd")
        outcomes = world.run(*good[:7], bad, *good[8:])
        assert [outcome.ok for outcome in outcomes] == [number != 7 for number in range(20)]
        assert (outcomes[7].error_class, outcomes[7].side) == (ErrorClass.INVALID_PATH, "source")

    def test_outcomes_come_while_others_are_still_copied(self, world: World) -> None:
        copies = [world.give(f"f{number}", b"x") for number in range(3)]
        iterator = LocalTool(threads=1).copy_many(copies, time.monotonic() + 60, lambda: False)
        assert next(iterator).ok
        iterator.close()

    def test_nothing_to_copy_is_nothing_to_report(self, world: World) -> None:
        assert world.run() == []


class TestDestination:
    def test_the_same_content_is_adopted_without_moving_a_byte(self, world: World) -> None:
        copy = world.give("f", b"content")
        world.run(copy)
        for again in (copy, replace(copy, checksums=Checksums(), size_bytes=None), replace(copy, replace=True)):
            [outcome] = world.run(replace(again, attempt="1.2"))
            assert outcome.ok and outcome.was_adopted and outcome.bytes_moved == 0
            assert (outcome.size_bytes, outcome.checksums) == (7, adler32(b"content"))

    def test_what_arrived_before_counts_even_when_the_source_has_gone(self, world: World) -> None:
        copy = world.give("f", b"content")
        world.run(copy)
        world.source.delete("f")
        [outcome] = world.run(replace(copy, attempt="1.2"))
        assert outcome.ok and outcome.was_adopted

    @pytest.mark.parametrize("there", [b"other!!", b"shorter"[:3], b""])
    def test_other_content_is_kept_unless_replacing(self, world: World, there: bytes) -> None:
        copy = world.give("f", b"content")
        world.destination.write("to/f", [there], attempt="0")
        for unknown in (copy, replace(copy, checksums=Checksums(), size_bytes=None)):
            assert classes(world.run(unknown)) == [ErrorClass.DESTINATION_EXISTS]
            assert world.arrived() == {"to/f": there}
        [outcome] = world.run(replace(copy, replace=True))
        assert outcome.ok and not outcome.was_adopted
        assert world.arrived() == {"to/f": b"content"}

    @pytest.mark.parametrize(("content", "error_class"), [(b"content", None), (b"unlike!", "destination_exists")])
    def test_one_who_comes_first_is_adopted_or_respected(
        self, world: World, at_point: Callable[..., None], content: bytes, error_class: str | None
    ) -> None:
        copy = world.give("f", b"content")
        at_point("posix.rename:before", lambda: (world.root("destination") / "to/f").write_bytes(content))
        [outcome] = world.run(copy)
        assert (outcome.error_class, outcome.was_adopted) == (error_class, error_class is None)
        assert world.arrived() == {"to/f": content}

    def test_a_link_at_the_destination_is_never_written_through(self, world: World, tmp_path: Path) -> None:
        copy = world.give("f", b"content")
        victim = tmp_path / "victim"
        victim.write_bytes(b"untouched")
        (world.root("destination") / "to").mkdir()
        (world.root("destination") / "to/f").symlink_to(victim)
        assert classes(world.run(copy)) == [ErrorClass.DESTINATION_EXISTS]
        assert world.run(replace(copy, replace=True))[0].ok
        assert victim.read_bytes() == b"untouched" and world.arrived() == {"to/f": b"content"}

    @needs_root
    @pytest.mark.parametrize("size_bytes", [600_000, LARGE])
    def test_a_full_disk_is_told_and_the_part_removed(self, tmp_path: Path, size_bytes: int) -> None:
        with mounted(tmp_path / "destination", "size=1m"):
            world = World(tmp_path)
            copies = [world.give(name, os.urandom(size_bytes)) for name in "ab"]
            outcomes = world.run(*copies)
            assert ErrorClass.NO_SPACE in classes(outcomes)
            assert {outcome.side for outcome in outcomes if not outcome.ok} == {"destination"}
            assert len(world.arrived()) == sum(outcome.ok for outcome in outcomes)

    @needs_root
    def test_a_read_only_destination_is_a_matter_of_permission(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "destination", "size=1m"):
            world = World(tmp_path)
            copy = world.give("f", b"x")
            subprocess.run(["mount", "-o", "remount,ro", str(world.root("destination"))], check=True)
            [outcome] = world.run(copy)
        assert (outcome.error_class, outcome.side) == (ErrorClass.PERMISSION, "destination")

    def test_a_destination_closed_to_us_is_a_matter_of_permission(self, world: World) -> None:
        copy = world.give("f", b"x")
        world.root("destination").chmod(0o555)
        open_to_nobody(world.root("destination"))

        def run() -> None:
            [outcome] = world.run(copy)
            assert (outcome.error_class, outcome.side) == (ErrorClass.PERMISSION, "destination")

        assert as_nobody(run) == 0


class TestSource:
    def test_an_altered_source_is_corrupt_and_nothing_arrives(self, world: World) -> None:
        copies = [world.give("f", b"content"), world.give("large", os.urandom(LARGE))]
        with open(world.root("source") / "large", "r+b") as file:
            file.seek(LARGE // 2)
            file.write(b"flip")
        (world.root("source") / "f").write_bytes(b"contenT")
        outcomes = world.run(*copies)
        assert classes(outcomes) == [ErrorClass.SOURCE_CORRUPT] * 2
        assert {outcome.side for outcome in outcomes} == {"source"}
        assert world.arrived() == {}

    def test_a_source_of_another_size_is_corrupt(self, world: World) -> None:
        [outcome] = world.run(replace(world.give("f", b"content"), size_bytes=8))
        assert outcome.error_class == ErrorClass.SOURCE_CORRUPT and "7 bytes, not 8" in str(outcome.error)

    def test_directories_that_a_failed_copy_removes_meanwhile_are_made_again(
        self, world: World, at_point: Callable[..., None]
    ) -> None:
        copy = replace(world.give("f", b"content"), destination_path="to/deep/f")
        left = [2]

        def remove() -> None:
            if left[0]:
                left[0] -= 1
                for name in ("to/deep", "to"):
                    with contextlib.suppress(FileNotFoundError):
                        (world.root("destination") / name).rmdir()

        at_point("posix.mkdir:after", remove)
        assert classes(world.run(copy)) == [None]
        assert world.arrived() == {"to/deep/f": b"content"}

    def test_a_missing_source_leaves_no_directory_behind(self, world: World) -> None:
        copy = replace(world.give("f", b"x"), source_path="d/nothing")
        [outcome] = world.run(copy)
        assert (outcome.error_class, outcome.side) == (ErrorClass.SOURCE_MISSING, "source")
        assert not (world.root("destination") / "to").exists()

    @pytest.mark.parametrize("change", [b"more", b""], ids=["appended", "truncated"])
    def test_a_source_that_changes_while_it_is_copied_is_noticed(
        self, world: World, at_point: Callable[..., None], change: bytes
    ) -> None:
        copy = replace(world.give("f", b"content"), checksums=Checksums(), size_bytes=None)

        def change_source() -> None:
            with open(world.root("source") / "f", "ab" if change else "wb") as file:
                file.write(change)

        at_point("posix.write:before", change_source)
        assert classes(world.run(copy)) == [ErrorClass.SOURCE_CHANGED]
        assert world.arrived() == {}

    def test_a_link_at_the_source_is_not_followed(self, world: World, tmp_path: Path) -> None:
        copy = world.give("f", b"x")
        (world.root("source") / "f").unlink()
        (world.root("source") / "f").symlink_to("/etc/passwd")
        assert classes(world.run(copy)) == [ErrorClass.INVALID_PATH]


class TestVerification:
    @pytest.mark.parametrize("size_bytes", [1000, LARGE])
    def test_bytes_that_change_on_the_way_to_the_disk_never_arrive(
        self, world: World, at_point: Callable[..., None], size_bytes: int
    ) -> None:
        copies = [world.give("f", os.urandom(size_bytes))]
        if size_bytes < SMALL_BYTES:
            copies.append(world.give("g", b"sound"))

        def damage() -> None:
            for temporary in (world.root("destination") / ".dlm-tmp").iterdir():
                if temporary.stat().st_size == size_bytes:
                    with open(temporary, "r+b") as file:
                        file.write(b"flip")

        at_point("posix.write:after", damage)
        outcome, *others = LocalTool(threads=1).copy_many(copies, time.monotonic() + 60, lambda: False)
        assert (outcome.error_class, outcome.side) == (ErrorClass.CHECKSUM_MISMATCH, "destination")
        assert all(other.ok for other in others)
        assert "to/f" not in world.arrived()


class TestAvailability:
    @pytest.mark.parametrize("side", ["source", "destination"])
    @pytest.mark.parametrize("loss", ["root", "marker", "foreign"])
    def test_a_storage_that_is_not_there_is_blamed_and_no_file(self, world: World, side: str, loss: str) -> None:
        copies = [world.give("f", b"x"), world.give("g", b"x")]
        if loss == "root":
            world.root(side).rename(world.root(side).with_name("gone"))
        elif loss == "marker":
            (world.root(side) / ".dlm-storage").unlink()
        else:
            (world.root(side) / ".dlm-storage").write_text('{"id": "another", "name": "n"}')
        outcomes = world.run(*copies)
        assert classes(outcomes) == [f"{side}_unavailable"] * 2
        assert {outcome.side for outcome in outcomes} == {side}

    def test_one_absent_source_leaves_the_other_source_working(self, world: World, tmp_path: Path) -> None:
        good = world.give("f", b"x")
        absent = replace(good.source, prefix=str(tmp_path / "absent"))
        bad = replace(good, request_id=99, source=absent, destination_path="to/g")
        assert classes(world.run(good, bad)) == [None, ErrorClass.SOURCE_UNAVAILABLE]


class TestLimits:
    def test_nothing_is_started_within_the_margin(self, world: World) -> None:
        copies = [world.give(f"f{number}", b"x") for number in range(5)]
        outcomes = world.run(*copies, deadline_s=1.0)
        assert classes(outcomes) == [ErrorClass.INTERRUPTED] * 5
        assert world.arrived() == {}

    def test_a_stop_interrupts_a_file_between_two_buffers(self, world: World) -> None:
        asked = iter(range(1000))
        [outcome] = world.run(world.give("f", b"x" * LARGE), stop=lambda: next(asked) > 5)
        assert (outcome.error_class, outcome.side) == (ErrorClass.INTERRUPTED, None)
        assert 0 < outcome.bytes_moved < LARGE
        assert world.arrived() == {}

    def test_nothing_gets_its_name_after_a_stop(self, world: World, at_point: Callable[..., None]) -> None:
        copies = [world.give(f"f{number}", b"x") for number in range(5)]
        stopped = threading.Event()
        at_point("posix.flush:after", stopped.set)
        assert classes(world.run(*copies, stop=stopped.is_set)) == [ErrorClass.INTERRUPTED] * 5
        assert world.arrived() == {}

    def test_a_stop_between_two_names_keeps_the_first_and_interrupts_the_rest(
        self, world: World, at_point: Callable[..., None]
    ) -> None:
        copies = [world.give(f"f{number}", b"x") for number in range(5)]
        stopped = threading.Event()
        at_point("posix.rename:after", stopped.set)
        outcomes = list(LocalTool(threads=1).copy_many(copies, time.monotonic() + 60, stopped.is_set))
        assert classes(outcomes) == [None] + [ErrorClass.INTERRUPTED] * 4
        assert world.arrived() == {"to/f0": b"x"}

    def test_a_storage_that_hangs_holds_nobody_beyond_the_deadline(
        self, world: World, at_point: Callable[..., None]
    ) -> None:
        release = threading.Event()
        before = set(threading.enumerate())
        at_point("posix.write:before", release.wait)
        tool = LocalTool(margin_s=0.0)
        [outcome] = tool.copy_many([world.give("f", b"x")], time.monotonic() + 0.2, lambda: False)
        assert outcome.error_class == ErrorClass.TIMEOUT
        release.set()
        for held in set(threading.enumerate()) - before:
            held.join()
        assert world.arrived() == {}, "the thread that woke up late must not name a file"


class TestDeath:
    POINTS = [
        "posix.mkdir:after", "posix.write:before", "posix.write:after", "posix.fsync:before", "posix.fsync:after",
        "posix.flush:before", "posix.flush:after", "posix.rename:before", "posix.link:after", "posix.rename:after",
    ]  # fmt: skip

    @pytest.mark.parametrize("point", POINTS)
    @pytest.mark.parametrize("size_bytes", [1000, LARGE], ids=["group", "alone"])
    def test_after_a_death_at_any_point_the_next_attempt_puts_things_right(
        self, world: World, point: str, size_bytes: int
    ) -> None:
        contents = {f"d/f{number}": os.urandom(size_bytes) for number in range(2 if size_bytes == LARGE else 9)}
        copies = [world.give(path, content) for path, content in contents.items()]
        died = killed_at(point, lambda: world.run(*copies))
        assert died or (point, size_bytes) in self.NOT_REACHED
        world.destination.remove_temporaries("1.1")
        outcomes = world.run(*(replace(copy, attempt="1.2") for copy in copies))
        assert all(outcome.ok for outcome in outcomes)
        assert world.arrived() == {f"to/{path}": content for path, content in contents.items()}

    # A group has flushes where a file alone has its own fsync.
    NOT_REACHED = {
        ("posix.fsync:before", 1000), ("posix.fsync:after", 1000),
        ("posix.flush:before", LARGE), ("posix.flush:after", LARGE),
    }  # fmt: skip


class TestGroups:
    def test_large_files_go_alone_and_small_ones_in_bounded_groups(self, world: World) -> None:
        small = world.give("f", b"x")
        copies = [replace(small, request_id=number) for number in range(2 * GROUP_FILES + 2)]
        copies[5] = replace(small, request_id=5, size_bytes=LARGE)
        shares = list(groups(copies, threads=1))
        assert [len(share) for share in shares] == [1, GROUP_FILES, GROUP_FILES, 1]

    def test_a_group_is_bounded_in_bytes(self, world: World) -> None:
        copies = [replace(world.give("f", b"x"), size_bytes=SMALL_BYTES)] * 20
        assert [len(share) for share in groups(copies, threads=1)] == [GROUP_BYTES // SMALL_BYTES] * 2 + [4]

    def test_a_group_has_one_pair_of_storages(self, world: World) -> None:
        one = world.give("f", b"x")
        other = replace(one, source=replace(one.source, prefix="/elsewhere"))
        assert list(groups([one, other, one, other], threads=1)) == [[one, one], [other, other]]


def test_a_pair_of_schemes_without_a_tool_is_unsupported() -> None:
    assert isinstance(select("posix", "file"), LocalTool)
    with pytest.raises(Unsupported, match="posix to gopher"):
        select("posix", "gopher")


def test_no_descriptor_stays_open_whatever_the_outcome(world: World) -> None:
    good = [world.give(f"d{number}/f", b"x") for number in range(100)]
    bad = [replace(copy, size_bytes=2) for copy in good[:30]] + [replace(copy, source_path="no") for copy in good[:30]]
    before = len(os.listdir("/proc/self/fd"))
    world.run(*good[50:], *bad, replace(good[40], destination_path="../x"))
    world.run(*good, world.give("large", b"x" * LARGE))
    assert len(os.listdir("/proc/self/fd")) == before
