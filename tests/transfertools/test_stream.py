"""The stream transfertool between every pair of storages, with real servers on loopback."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.protocols import StorageProtocol, open_protocol
from dlm.transfertools import Copy, Outcome, select
from dlm.transfertools.stream import StreamTool
from dlm.types import Checksums, ErrorClass, ProtocolRef
from protocols.conformance import get
from protocols.servers import Place, Served, moto, rclone_serves, resident_bytes, silent, sshd, through, wsgidav
from protocols.xrootd import xrootd_reachable

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)
KINDS = ["posix", "s3", "webdav", "sftp", "xrootd"]
SOURCE_ID, DESTINATION_ID = "source-id", "destination-id"


def adler32(content: bytes) -> Checksums:
    return Checksums(adler32=f"{zlib.adler32(content):08x}")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """A server of each kind, running once it is asked for."""
    served = Served(
        tmp_path_factory.mktemp("servers"),
        {
            "posix": lambda base: contextlib.nullcontext(Place("posix", str(base), {}, base, {})),
            "s3": partial(rclone_serves, "s3"),
            "moto": moto,
            "webdav": partial(rclone_serves, "webdav"),
            "wsgidav": wsgidav,
            "sftp": sshd,
            "xrootd": xrootd_reachable,
        },
    )
    with contextlib.closing(served):
        yield served


class Way:
    """A source and a destination, and copies between them."""

    def __init__(self, source: Place, destination: Place) -> None:
        self.source = self._claimed(source, 1, SOURCE_ID)
        self.destination = self._claimed(destination, 2, DESTINATION_ID)
        self._below = destination.directory / ("bucket" if destination.scheme == "s3" else "")

    @staticmethod
    def _claimed(place: Place, storage_id: int, uuid: str) -> StorageProtocol:
        ref = place.ref(f"way-{next(COUNT)}", storage_id=storage_id, storage_name=uuid, storage_uuid=uuid)
        protocol = open_protocol(ref)
        protocol.claim(uuid, create_root=True)
        return protocol

    def give(self, path: str, content: bytes) -> Copy:
        self.source.write(path, [content], attempt="0")
        return Copy(
            next(COUNT),
            "1.1",
            self.source.ref,
            path,
            self.destination.ref,
            f"to/{path}",
            len(content),
            adler32(content),
        )

    def run(self, *copies: Copy, deadline_s: float = 60, stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
        tool = StreamTool(open_protocol, margin_s=0.0)
        outcomes = tool.copy_many(copies, time.monotonic() + deadline_s, stop)
        return sorted(outcomes, key=lambda outcome: outcome.request_id)

    def arrived(self) -> dict[str, bytes]:
        """The destination's files and their content; fails if temporaries remain."""
        assert self.destination.remove_temporaries("0", "1.1", "1.2") == 0
        return {entry.path: get(self.destination, entry.path) for entry in self.destination.list()}

    def spoil(self, content: bytes) -> None:
        """Change what lies behind the destination's server, under whatever name, and has this content."""
        root = self._below / self.destination.ref.prefix.rpartition("/")[2]
        for file in root.rglob("*"):
            if file.is_file() and file.read_bytes() == content:
                file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def close(self) -> None:
        self.source.close()
        self.destination.close()


PAIRS = [(one, other) for one in KINDS for other in KINDS if (one, other) != ("posix", "posix")]


@pytest.fixture
def way(request: pytest.FixtureRequest, places: dict[str, Place]) -> Iterator[Way]:
    """Between the kinds of the test's parameter."""
    source, destination = request.param
    way = Way(places[source], places[destination])
    yield way
    way.close()


@pytest.fixture
def at_point() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Have something happen at an effects point, for the time of a test."""
    yield lambda point, act: effects.install(lambda reached: act() if reached == point else None)
    effects.install(None)


every_pair = pytest.mark.parametrize("way", PAIRS, ids=lambda pair: "-to-".join(pair), indirect=True)
into_each = pytest.mark.parametrize("way", [("posix", kind) for kind in KINDS], ids=lambda p: p[1], indirect=True)
from_each = pytest.mark.parametrize("way", [(kind, "posix") for kind in KINDS], ids=lambda p: p[0], indirect=True)


@every_pair
def test_files_arrive_with_size_and_checksum_and_a_second_time_are_adopted(way: Way) -> None:
    contents = {"empty": b"", "d/é +%#&": b"x", "large": os.urandom((9 << 20) + 17)}
    copies = [way.give(path, content) for path, content in contents.items()]
    for copy, outcome in zip(copies, way.run(*copies), strict=True):
        assert outcome.ok, outcome
        assert (outcome.size_bytes, outcome.checksums) == (copy.size_bytes, copy.checksums)
        assert (outcome.bytes_moved, outcome.was_adopted) == (copy.size_bytes, False)
    assert way.arrived() == {f"to/{path}": content for path, content in contents.items()}
    for path in contents:
        way.source.delete(path)
    again = way.run(*(replace(copy, attempt="1.2") for copy in copies))
    assert all(outcome.ok and outcome.was_adopted and outcome.bytes_moved == 0 for outcome in again)


@into_each
def test_other_content_is_kept_unless_replacing(way: Way) -> None:
    copy = way.give("f", b"content")
    way.destination.write("to/f", [b"other!!"], attempt="0")
    for asked in (copy, replace(copy, checksums=Checksums(), size_bytes=None)):
        [outcome] = way.run(asked)
        assert (outcome.error_class, outcome.side) == (ErrorClass.DESTINATION_EXISTS, "destination")
    [outcome] = way.run(replace(copy, replace=True))
    assert outcome.ok and not outcome.was_adopted
    assert way.arrived() == {"to/f": b"content"}


@into_each
def test_without_expectations_adler32_is_computed_and_the_same_is_adopted(way: Way) -> None:
    copy = replace(way.give("f", b"abc"), checksums=Checksums(), size_bytes=None)
    assert [(outcome.ok, outcome.was_adopted, outcome.checksums) for outcome in way.run(copy) + way.run(copy)] == [
        (True, False, adler32(b"abc")), (True, True, adler32(b"abc")),
    ]  # fmt: skip


@from_each
def test_a_source_that_is_not_what_it_should_be_never_gets_a_name(way: Way) -> None:
    copy = way.give("f", b"content")
    [wrong] = way.run(replace(copy, checksums=adler32(b"contenT")))
    [short] = way.run(replace(copy, size_bytes=8))
    [missing] = way.run(replace(copy, source_path="nothing"))
    assert [(o.error_class, o.side) for o in (wrong, short, missing)] == [
        (ErrorClass.SOURCE_CORRUPT, "source"), (ErrorClass.SOURCE_CORRUPT, "source"),
        (ErrorClass.SOURCE_MISSING, "source"),
    ]  # fmt: skip
    assert way.arrived() == {}


STORED = (
    "posix.fsync:after", "s3.put:after", "s3.complete:after", "dav.put:after", "sftp.write:after", "root.write:after",
)  # fmt: skip
NAMING = ("posix.rename:before", "dav.move:before", "sftp.rename:before", "root.rename:before")


@into_each
@pytest.mark.parametrize("size", [7, (5 << 20) + 7])
def test_what_was_stored_wrong_is_noticed_before_it_has_a_name(way: Way, size: int) -> None:
    content = os.urandom(size)
    copy, reached = way.give("f", content), []

    def spoil(point: str) -> None:
        reached.append(point)
        if point in STORED:
            way.spoil(content)

    effects.install(spoil)
    try:
        [outcome] = way.run(copy)
    finally:
        effects.install(None)
    assert (outcome.error_class, outcome.side) == (ErrorClass.CHECKSUM_MISMATCH, "destination")
    assert set(reached) & set(STORED) and not set(reached) & set(NAMING)
    assert way.arrived() == {}
    assert way.run(replace(copy, attempt="1.2"))[0].ok


@into_each
def test_what_naming_has_lost_does_not_count(way: Way, at_point: Callable[..., None]) -> None:
    copies = [way.give("f", b"content"), way.give("g", b"content")]
    at_point("stream.write:after", lambda: way.destination.write("to/f", [b"cont"], attempt="9", replace=True))
    [short] = way.run(copies[0])
    at_point("stream.write:after", lambda: way.destination.delete("to/g"))
    [lost] = way.run(copies[1])
    for outcome in (short, lost):
        assert (outcome.error_class, outcome.side) == (ErrorClass.CHECKSUM_MISMATCH, "destination")
    assert way.arrived() == {}


@into_each
def test_what_is_stored_too_late_gets_no_name(way: Way) -> None:
    copy = way.give("f", b"content")
    reached: list[str] = []
    effects.install(reached.append)
    try:
        [outcome] = way.run(copy, stop=lambda: bool(set(reached) & set(STORED)))
    finally:
        effects.install(None)
    assert outcome.error_class == ErrorClass.INTERRUPTED and not set(reached) & set(NAMING)
    assert way.run(replace(copy, attempt="1.2"))[0].ok


@pytest.mark.parametrize("size", [7, (5 << 20) + 7])
def test_what_an_earlier_attempt_left_unproven_on_s3_is_not_in_the_way(places: dict[str, Place], size: int) -> None:
    content = os.urandom(size)
    with contextlib.closing(Way(places["posix"], places["moto"])) as way:
        copy = way.give("f", content)
        for attempt, expected in (("1.1", True), ("1.3", False), ("2.1", False)):
            way.destination.write("to/f", [content[:-1] + b"?"], attempt=attempt, replace=True)
            [outcome] = way.run(replace(copy, attempt="1.2"))
            assert outcome.ok is expected, attempt
            assert (outcome.error_class is None) or outcome.error_class == ErrorClass.DESTINATION_EXISTS
        way.destination.write("to/f", [content[:-1] + b"?"], attempt="1.1", replace=True)
        assert way.run(replace(copy, attempt="1.2"))[0].ok and way.arrived() == {"to/f": content}


def test_reading_back_asks_whether_there_is_time(places: dict[str, Place]) -> None:
    with contextlib.closing(Way(places["posix"], places["s3"])) as way:
        copy = way.give("f", os.urandom(6 << 20))
        looks = itertools.count()
        assert not way.run(copy, stop=lambda: next(looks) < 0)[0].was_adopted
        assert next(looks) > 6 + 6
        looks = itertools.count()
        assert way.run(copy, stop=lambda: next(looks) < 0)[0].was_adopted
        assert next(looks) > 6


@into_each
def test_a_source_that_changes_while_it_is_copied_is_noticed(way: Way, at_point: Callable[..., None]) -> None:
    content = os.urandom(6 << 20)
    copy = replace(way.give("f", content), checksums=Checksums(), size_bytes=None)
    file = Path(way.source.ref.prefix) / "f"

    def grow(*_: object) -> bool:
        with open(file, "ab") as out:
            out.write(b"more")
        return False

    [outcome] = way.run(copy, stop=grow)
    assert (outcome.error_class, outcome.side) == (ErrorClass.SOURCE_CHANGED, "source")
    assert way.arrived() == {}


@into_each
def test_a_stop_half_way_leaves_nothing(way: Way) -> None:
    copies = [way.give("f", os.urandom(12 << 20)), way.give("g", b"x")]
    looks = itertools.count()
    outcomes = way.run(*copies, stop=lambda: next(looks) > 4)
    assert {(outcome.error_class, outcome.side) for outcome in outcomes if not outcome.ok} == {("interrupted", None)}
    assert "to/f" not in way.arrived()


@into_each
def test_one_poisoned_item_harms_no_other(way: Way) -> None:
    copies = [way.give(f"f{number}", b"x") for number in range(6)]
    bad = replace(copies[2], source_path="../../etc/passwd")
    worse = replace(copies[3], destination_path="../x")
    outcomes = way.run(*copies[:2], bad, worse, *copies[4:])
    assert [outcome.ok for outcome in outcomes] == [True, True, False, False, True, True]
    assert [(o.error_class, o.side) for o in outcomes[2:4]] == [
        (ErrorClass.INVALID_PATH, "source"), (ErrorClass.INVALID_PATH, "destination"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_storage_that_is_another_one_now_is_unavailable(places: dict[str, Place], kind: str) -> None:
    with contextlib.closing(Way(places["posix"], places[kind])) as way:
        copy = way.give("f", b"x")
        foreign = replace(way.destination.ref, storage_uuid="another-id")
        [there] = way.run(replace(copy, destination=foreign))
        [here] = way.run(replace(copy, source=replace(foreign), source_path="f", destination=way.source.ref))
    assert (there.error_class, there.side) == (ErrorClass.DESTINATION_UNAVAILABLE, "destination")
    assert (here.error_class, here.side) == (ErrorClass.SOURCE_UNAVAILABLE, "source")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_storage_that_never_answers_holds_nobody_beyond_the_deadline(places: dict[str, Place], kind: str) -> None:
    with silent() as port, contextlib.closing(Way(places["posix"], places[kind])) as way:
        copy = way.give("f", b"x")
        ref = through(places[kind], port).ref(options={**places[kind].options, "timeout_s": "0.8"})
        started = time.monotonic()
        [outcome] = way.run(replace(copy, destination=ref), deadline_s=0.3)
        assert outcome.error_class == ErrorClass.TIMEOUT and time.monotonic() - started < 5
        [outcome] = way.run(replace(copy, destination=ref), deadline_s=30)
        assert (outcome.error_class, outcome.side) == (ErrorClass.TIMEOUT, "destination")


@every_pair
def test_large_files_go_by_in_little_memory(way: Way) -> None:
    size = 96 << 20
    block = os.urandom(1 << 20)
    way.source.write("f", itertools.repeat(block, size >> 20), attempt="0", size_bytes=size)
    copy = Copy(1, "1.1", way.source.ref, "f", way.destination.ref, "to/f", size)
    before, held = resident_bytes(), [0]

    def look() -> bool:
        held[0] = max(held[0], resident_bytes())
        return False

    assert way.run(copy, stop=look)[0].ok
    assert held[0] - before < 64 << 20
    assert way.destination.stat("to/f") is not None


def test_the_table_says_which_tool_moves_what() -> None:
    assert isinstance(select("posix", "s3", open_protocol=open_protocol), StreamTool)
    for pair in (("posix", "gopher"), ("gopher", "s3")):
        with pytest.raises(Unsupported, match=" to ".join(pair)):
            select(*pair, open_protocol=open_protocol)


def test_a_storage_whose_secret_cannot_be_had_is_its_own_failure(tmp_path: Path) -> None:
    source = ProtocolRef(1, "here", SOURCE_ID, "posix", str(tmp_path))
    destination = ProtocolRef(2, "there", DESTINATION_ID, "dav", "dav://127.0.0.1:1", unusable="no such secret")
    with pytest.raises(StorageError, match="no such secret"):
        open_protocol(destination)
    tool = StreamTool(open_protocol)
    [outcome] = tool.copy_many([Copy(1, "1", source, "f", destination, "f")], time.monotonic() + 9, lambda: False)
    assert (outcome.error_class, outcome.side) == (ErrorClass.DESTINATION_UNAVAILABLE, "destination")
