"""The gfal2 transfertool: storages that copy between themselves, with real XRootD servers on loopback."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dlm import effects
from dlm.protocols import StorageProtocol, open_protocol
from dlm.transfertools import Copy, Outcome, select
from dlm.transfertools.gfal import GfalTool, Rests
from dlm.transfertools.stream import StreamTool
from dlm.types import Checksums, ErrorClass
from protocols.conformance import get
from protocols.counting import OTHERS, SERVERS, counting
from protocols.servers import Place, port_of, silent, through
from protocols.xrootd import needs_gfal, open_directory, xrootd, xrootd_https

pytestmark = [pytest.mark.protocols, needs_gfal]
COUNT = itertools.count(1)
Ends = tuple[Place, Place]


def adler32(content: bytes) -> Checksums:
    return Checksums(adler32=f"{zlib.adler32(content):08x}")


@pytest.fixture(scope="module")
def ends() -> Iterator[dict[str, Ends]]:
    """Two servers for each way of copying between them."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_directory())
        yield {
            "root": (stack.enter_context(xrootd(base / "r1")), stack.enter_context(xrootd(base / "r2"))),
            "https": stack.enter_context(xrootd_https(base)),
        }


class Way:
    """A source and a destination on two servers."""

    def __init__(self, ends: Ends) -> None:
        self.source, self.destination = (self._claimed(place, number) for number, place in enumerate(ends, 1))

    @staticmethod
    def _claimed(place: Place, storage_id: int) -> StorageProtocol:
        uuid = f"id-{storage_id}"
        ref = place.ref(f"way-{next(COUNT)}", storage_id=storage_id, storage_name=uuid, storage_uuid=uuid)
        ref = replace(ref, credentials=uuid)
        protocol = open_protocol(ref)
        protocol.claim(uuid, create_root=True)
        return protocol

    def give(self, path: str, content: bytes) -> Copy:
        self.source.write(path, [content], attempt="0")
        ends = (self.source.ref, path, self.destination.ref, f"to/{path}")
        return Copy(next(COUNT), "1.1", *ends, len(content), adler32(content))

    def run(self, *copies: Copy, deadline_s: float = 60, stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
        tool = select(self.source.ref.scheme, self.destination.ref.scheme, open_protocol=open_protocol)
        assert isinstance(tool, GfalTool)
        outcomes = tool.copy_many(copies, time.monotonic() + deadline_s, stop)
        return sorted(outcomes, key=lambda outcome: outcome.request_id)

    def arrived(self) -> dict[str, bytes]:
        """The destination's files and their content; fails if temporaries remain."""
        assert self.destination.remove_temporaries("0", "1.1", "1.2") == 0
        return {entry.path: get(self.destination, entry.path) for entry in self.destination.list()}

    def close(self) -> None:
        self.source.close()
        self.destination.close()


@pytest.fixture(params=["root", "https"])
def way(request: pytest.FixtureRequest, ends: dict[str, Ends]) -> Iterator[Way]:
    way = Way(ends[request.param])
    yield way
    way.close()


@pytest.fixture
def reached() -> Iterator[list[str]]:
    """The effects points that the test came by."""
    points: list[str] = []
    effects.install(points.append)
    yield points
    effects.install(None)


def test_files_are_copied_between_the_storages_and_a_second_time_are_adopted(way: Way, reached: list[str]) -> None:
    contents = {"empty": b"", "d/é +": b"x", "large": os.urandom((9 << 20) + 17)}
    copies = [way.give(path, content) for path, content in contents.items()]
    for copy, outcome in zip(copies, way.run(*copies), strict=True):
        assert outcome.ok, outcome
        assert (outcome.size_bytes, outcome.checksums) == (copy.size_bytes, copy.checksums)
        assert (outcome.bytes_moved, outcome.was_adopted) == (copy.size_bytes, False)
    assert reached.count("gfal.copy:after") == 3 and "stream.write:after" not in reached
    assert way.arrived() == {f"to/{path}": content for path, content in contents.items()}
    again = way.run(*(replace(copy, attempt="1.2") for copy in copies))
    assert all(outcome.ok and outcome.was_adopted and outcome.bytes_moved == 0 for outcome in again)


def test_other_content_is_kept_unless_replacing(way: Way) -> None:
    copy = way.give("f", b"content")
    way.destination.write("to/f", [b"other!!"], attempt="0")
    [outcome] = way.run(copy)
    assert (outcome.error_class, outcome.side) == (ErrorClass.DESTINATION_EXISTS, "destination")
    [outcome] = way.run(replace(copy, replace=True))
    assert outcome.ok and not outcome.was_adopted
    assert way.arrived() == {"to/f": b"content"}


def test_without_expectations_the_sources_digest_is_what_must_arrive(way: Way) -> None:
    [outcome] = way.run(replace(way.give("f", b"abc"), checksums=Checksums(), size_bytes=None))
    assert (outcome.ok, outcome.checksums, outcome.size_bytes) == (True, adler32(b"abc"), 3)


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


def test_what_was_stored_wrong_is_noticed_before_it_has_a_name(way: Way, ends: dict[str, Ends]) -> None:
    content = os.urandom(1 << 20)
    copy = way.give("f", content)
    below = way.destination.ref.prefix.rpartition("/")[2]
    [directory] = [place.directory / below for _, place in ends.values() if (place.directory / below).exists()]

    def spoil(point: str) -> None:
        for file in (directory / ".dlm-tmp").iterdir() if point == "gfal.copy:after" else ():
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    effects.install(spoil)
    try:
        [outcome] = way.run(copy)
    finally:
        effects.install(None)
    assert (outcome.error_class, outcome.side) == (ErrorClass.CHECKSUM_MISMATCH, "destination")
    assert way.arrived() == {}
    assert way.run(replace(copy, attempt="1.2"))[0].ok


def test_a_copy_that_is_asked_to_stop_leaves_nothing(way: Way, reached: list[str]) -> None:
    copy = way.give("f", os.urandom(4 << 20))
    [outcome] = way.run(copy, stop=lambda: "gfal.copy:before" in reached)
    assert (outcome.error_class, outcome.side) == (ErrorClass.INTERRUPTED, None)
    assert way.arrived() == {}


def test_one_poisoned_item_harms_no_other(way: Way) -> None:
    copies = [way.give(f"f{number}", b"x") for number in range(4)]
    bad = replace(copies[1], source_path="../../etc/passwd")
    worse = replace(copies[2], destination_path="../x")
    outcomes = way.run(copies[0], bad, worse, copies[3])
    assert [outcome.ok for outcome in outcomes] == [True, False, False, True]
    assert [(o.error_class, o.side) for o in outcomes[1:3]] == [
        (ErrorClass.INVALID_PATH, "source"), (ErrorClass.INVALID_PATH, "destination"),
    ]  # fmt: skip


def test_what_storages_cannot_copy_between_themselves_goes_by_way_of_this_host(
    way: Way, reached: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = way.give("f", b"content")
    monkeypatch.setattr("dlm.gfal.extension.DIRECTORIES", ())
    monkeypatch.setattr("dlm.gfal.extension.is_there", lambda: False)
    assert way.run(copy)[0].ok
    assert "gfal.copy:before" not in reached and "stream.write:after" in reached


def test_the_bytes_do_not_pass_through_this_host(ends: dict[str, Ends]) -> None:
    size = 32 << 20
    for one, other in ends.values():
        with counting(port_of(one)) as source, counting(port_of(other)) as destination:
            way = Way((through(one, source.port), through(other, destination.port)))
            [outcome] = way.run(replace(way.give("f", os.urandom(size)), attempt="2"))
            given = source.bytes[OTHERS]
            assert (outcome.ok, outcome.bytes_moved) == (True, size)
            assert size < given < size + (1 << 20), "what the test itself wrote there"
            assert source.bytes[SERVERS] > size, "the destination's server fetched it"
            assert destination.bytes[OTHERS] < 1 << 20
            way.close()


@pytest.mark.parametrize("kind", ["root", "https"])
def test_servers_that_do_not_reach_each_other_cost_a_while_and_then_a_rest(
    ends: dict[str, Ends], kind: str, reached: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm.transfertools.gfal.STALL_S", 1.0)
    monkeypatch.setattr("dlm.transfertools.gfal.RESTS", Rests())
    one, other = ends[kind]
    with counting(port_of(one), holds=SERVERS) as proxy:
        with contextlib.closing(Way((through(one, proxy.port), other))) as way:
            for name in ("f", "g"):
                assert way.run(way.give(name, b"content"))[0].ok
            assert way.arrived() == {"to/f": b"content", "to/g": b"content"}
    assert (reached.count("gfal.copy:before"), reached.count("stream.write:after")) == (1, 2)


def test_a_token_is_not_told_to_a_storage_that_is_not_trusted_with_it(
    ends: dict[str, Ends], reached: list[str]
) -> None:
    source, destination = (replace(place, options={}) for place in ends["https"])
    with contextlib.closing(Way((source, destination))) as way:
        assert way.run(way.give("f", b"content"))[0].ok
        assert way.arrived() == {"to/f": b"content"}
    assert "gfal.copy:before" not in reached and "stream.write:after" in reached


def test_a_name_that_the_servers_cannot_tell_each_other_goes_by_way_of_this_host(
    ends: dict[str, Ends], reached: list[str]
) -> None:
    with contextlib.closing(Way(ends["root"])) as way:
        assert way.run(way.give("a&b", b"content"))[0].ok
        assert way.arrived() == {"to/a&b": b"content"}
    assert "stream.write:after" in reached


def test_a_server_that_says_nothing_holds_nobody_beyond_the_deadline(ends: dict[str, Ends]) -> None:
    for place in (ends["root"][0], ends["https"][0]):
        with silent() as port, contextlib.closing(Way((place, place))) as way:
            copy = way.give("f", b"x")
            ref = through(place, port).ref(options={"timeout_s": "0.8"})
            started = time.monotonic()
            [outcome] = way.run(replace(copy, destination=ref), deadline_s=2.2)
            assert outcome.error_class in (ErrorClass.TIMEOUT, ErrorClass.INTERRUPTED)
            assert time.monotonic() - started < 8


def test_the_table_says_which_tool_moves_what() -> None:
    for pair in (("root", "root"), ("davs", "davs"), ("https", "davs")):
        assert isinstance(select(*pair, open_protocol=open_protocol), GfalTool)
    for pair in (("root", "posix"), ("davs", "s3"), ("root", "davs"), ("dav", "dav")):
        assert type(select(*pair, open_protocol=open_protocol)) is StreamTool
