"""S3 against rclone's server, which checks keys, and moto, which knows conditional writes."""

from __future__ import annotations

import gc
import itertools
import os
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dlm import effects
from dlm.errors import StorageError
from dlm.protocols import StorageProtocol
from dlm.protocols.interface import ReadBack
from dlm.types import ErrorClass, ProtocolRef, Secret
from protocols.conformance import STORAGE_ID, ProtocolConformance, get, put, refusal
from protocols.faults import NetworkFaults, not_trusted, read_only
from protocols.servers import Place, certificate, claimed, moto, rclone_serves

botocore = pytest.importorskip("botocore", reason="botocore is not installed: pip install 'dlm[s3]'")
from botocore.exceptions import ClientError  # noqa: E402

from dlm.protocols.s3 import S3Protocol  # noqa: E402
from dlm.protocols.s3_client import translating  # noqa: E402
from dlm.protocols.s3_parts import PART_BYTES, part_bytes, parts_of  # noqa: E402

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with rclone_serves("s3", tmp_path_factory.mktemp("rclone")) as place:
        yield place


@pytest.fixture(scope="module")
def moto_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with moto(tmp_path_factory.mktemp("moto")) as place:
        yield place


class TestRclone(ProtocolConformance):
    tells_space = False
    deletes_in_bulk = True
    excludes_writers = False  # rclone serve s3 does not look at If-None-Match

    @pytest.fixture
    def storage(self, rclone_s3: Place) -> Iterator[StorageProtocol]:
        with claimed(rclone_s3, COUNT) as storage:
            yield storage


class TestMoto(ProtocolConformance):
    tells_space = False
    deletes_in_bulk = True
    refused_names = ("a\nb",)  # moto has no route to it
    refused_as = ErrorClass.IO

    @pytest.fixture
    def storage(self, moto_s3: Place) -> Iterator[StorageProtocol]:
        with claimed(moto_s3, COUNT) as storage:
            yield storage


class TestFaults(NetworkFaults):
    half_written = ("s3.create:before", "s3.create:after", "s3.complete:before")

    @pytest.fixture
    def place(self, rclone_s3: Place) -> Place:
        return rclone_s3

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage


class TestProof:
    """What has its name before it was read back goes again if it is wrong, and only that."""

    @pytest.fixture
    def storage(self, moto_s3: Place) -> Iterator[StorageProtocol]:
        with claimed(moto_s3, COUNT) as storage:
            yield storage

    @pytest.mark.parametrize(("wrong_times", "stays"), [(0, True), (1, True), (2, False)])
    @pytest.mark.parametrize("size", [7, 6 << 20])
    def test_only_what_is_wrong_at_a_second_look_too_is_removed(
        self, storage: StorageProtocol, wrong_times: int, stays: bool, size: int
    ) -> None:
        left = [wrong_times]

        def prove(read_back: ReadBack) -> None:
            assert read_back(("adler32",)) == storage.checksum("f")
            left[0] -= 1
            if left[0] >= 0:
                raise StorageError(ErrorClass.CHECKSUM_MISMATCH, "wrong")

        def act() -> object:
            return storage.write("f", [os.urandom(size)], attempt="1", prove=prove)

        assert (act() is not None) if stays else refusal(act) == ErrorClass.CHECKSUM_MISMATCH
        assert (storage.stat("f") is not None) is stays

    def test_what_another_attempt_has_made_right_meanwhile_stays(self, storage: StorageProtocol) -> None:
        looks = itertools.count(1)

        def prove(_: ReadBack) -> None:
            if next(looks) == 2:
                put(storage, "f", b"right", attempt="2", replace=True)
            raise StorageError(ErrorClass.CHECKSUM_MISMATCH, "wrong")

        assert refusal(lambda: storage.write("f", [b"wrong"], attempt="1", prove=prove)) == ErrorClass.CHECKSUM_MISMATCH
        assert get(storage, "f") == b"right"

    def test_the_same_bytes_of_another_attempt_stay(self, storage: StorageProtocol) -> None:
        looks = itertools.count(1)

        def prove(read_back: ReadBack) -> None:
            if next(looks) == 2:
                put(storage, "f", b"the same", attempt="1.2", replace=True)
            read_back(("adler32",))
            raise StorageError(ErrorClass.CHECKSUM_MISMATCH, "a cache on the way says so")

        act = partial(storage.write, "f", [b"the same"], attempt="1.1", prove=prove)
        assert refusal(act) == ErrorClass.CHECKSUM_MISMATCH
        assert get(storage, "f") == b"the same"
        assert storage.stat("f").written_by == "1.2"

    def test_nothing_comes_between_the_last_question_and_the_removal(self, storage: StorageProtocol) -> None:
        asked: list[str] = []
        head = storage._head
        storage._head = lambda path: (asked.append("look"), head(path))[1]

        def prove(read_back: ReadBack) -> None:
            read_back(("adler32",))
            asked.append("is there time?")
            raise StorageError(ErrorClass.CHECKSUM_MISMATCH, "wrong")

        effects.install(lambda point: asked.append(point))
        try:
            refusal(partial(storage.write, "f", [b"x"], attempt="1.1", prove=prove))
        finally:
            effects.install(None)
        assert asked[-4:] == ["look", "is there time?", "s3.delete:before", "s3.delete:after"]

    def test_what_cannot_be_read_back_now_stays(self, storage: StorageProtocol) -> None:
        def prove(_: ReadBack) -> None:
            raise StorageError(ErrorClass.TIMEOUT, "no answer")

        assert refusal(lambda: storage.write("f", [b"x"], attempt="1", prove=prove)) == ErrorClass.TIMEOUT
        assert get(storage, "f") == b"x"


class TestConditions:
    """Where the server knows If-None-Match, who comes between the look and the write is never overwritten."""

    @pytest.fixture
    def storage(self, moto_s3: Place) -> Iterator[StorageProtocol]:
        with claimed(moto_s3, COUNT) as storage:
            yield storage

    @pytest.mark.parametrize(("size", "point"), [(7, "s3.put:before"), (11 << 20, "s3.complete:before")])
    def test_one_who_comes_first_is_adopted_or_respected(
        self, storage: StorageProtocol, moto_s3: Place, size: int, point: str
    ) -> None:
        content = os.urandom(size)
        for there in (content, content[:-1] + bytes([content[-1] ^ 1])):
            with moto_s3.storage(storage.ref.prefix.removeprefix(moto_s3.prefix + "/")) as other:
                effects.install(lambda reached, there=there, other=other: between(reached, point, other, there))
                try:
                    if there == content:
                        assert put(storage, "d/f", content).was_adopted
                    else:
                        assert refusal(lambda: put(storage, "d/f", content)) == ErrorClass.DESTINATION_EXISTS
                finally:
                    effects.install(None)
            assert get(storage, "d/f") == there
            assert storage.remove_temporaries("1.1") == 0
            storage.delete("d/f")


def between(reached: str, point: str, other: StorageProtocol, content: bytes) -> None:
    """At the point, another writer puts its content there."""
    if reached == point:
        effects.install(None)
        put(other, "d/f", content, attempt="2")


class TestServer:
    def test_a_bucket_that_is_not_there_blames_no_file(self, rclone_s3: Place) -> None:
        prefix = rclone_s3.prefix.replace("/bucket", "/no-such-bucket")
        with rclone_s3.storage(prefix=prefix) as storage, pytest.raises(StorageError) as caught:
            storage.stat("f")
        assert caught.value.error_class == ErrorClass.UNAVAILABLE and "bucket" in str(caught.value.hint)

    def test_a_certificate_that_nobody_vouches_for_is_not_trusted(self, tmp_path: Path) -> None:
        with certificate(tmp_path / "tls") as (crt, key, ca):
            options = ("--cert", str(crt), "--key", str(key))
            secret = {"access_key": "AKIDAKID", "secret_key": "secretsecret", "ca": ca}
            with rclone_serves("s3", tmp_path / "server", *options, secret=secret) as place:
                not_trusted(place)

    def test_a_read_only_export_takes_nothing(self, tmp_path: Path) -> None:
        with rclone_serves("s3", tmp_path / "one") as place, claimed(place, COUNT) as storage:
            put(storage, "f", b"x")
            options = ("--read-only",)
            with (
                rclone_serves("s3", tmp_path / "two", *options, secret=place.secret, serving=place.directory) as locked,
                locked.storage(storage.ref.prefix.removeprefix(place.prefix + "/")) as reader,
            ):
                read_only(storage, reader)

    def test_a_url_signed_before_lets_in_who_has_no_secret(self, rclone_s3: Place) -> None:
        with claimed(rclone_s3, COUNT) as storage:
            put(storage, "a b/f", b"content")
            assert isinstance(storage, S3Protocol)
            url = storage.presigned("a b/f", expires_s=60)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.read() == b"content"
        assert rclone_s3.secret["secret_key"] not in url

    @pytest.mark.parametrize(
        "prefix", ["http://storage.example/bucket", "https://storage.example", "https:///bucket", "x"]
    )
    def test_a_prefix_that_is_no_safe_place_is_refused_before_anything_is_sent(
        self, rclone_s3: Place, prefix: str
    ) -> None:
        with rclone_s3.storage(prefix=prefix) as storage, pytest.raises(StorageError) as caught:
            storage.stat("f")
        assert (caught.value.error_class, caught.value.field) == (ErrorClass.UNAVAILABLE, "prefix")

    def test_names_that_no_bulk_request_can_carry_are_deleted_one_by_one(self, rclone_s3: Place) -> None:
        with claimed(rclone_s3, COUNT) as storage:
            for path in ("a\x01b", "a\rb", "plain", "<&>"):
                put(storage, path, b"x")
            assert storage.delete_many(["a\x01b", "a\rb", "plain", "<&>", "no\x02"]) == {
                "a\x01b": True, "a\rb": True, "plain": True, "<&>": True, "no\x02": False,
            }  # fmt: skip
            assert list(storage.list()) == []

    @pytest.mark.parametrize("answers", [[False, True], [False, False, True], [False, False, False, True]])
    def test_nothing_is_deleted_once_time_is_over(self, rclone_s3: Place, answers: list[bool]) -> None:
        with claimed(rclone_s3, COUNT) as storage:
            for path in ("a", "b"):
                put(storage, path, b"x")
            left = iter(answers)
            assert storage.delete_many(["a", "b"], lambda: next(left, True)) == {}
            assert [entry.path for entry in storage.list()] == ["a", "b"]

    def test_who_has_the_last_second_taken_by_the_listing_deletes_nothing(self, rclone_s3: Place) -> None:
        with claimed(rclone_s3, COUNT) as storage:
            put(storage, "a", b"x")
            reached: list[str] = []
            effects.install(reached.append)
            try:
                assert storage.delete_many(["a"], lambda: "s3.delete:before" in reached) == {}
            finally:
                effects.install(None)
            assert get(storage, "a") == b"x"

    def test_more_than_a_thousand_are_deleted_in_one_go(self, rclone_s3: Place) -> None:
        with claimed(rclone_s3, COUNT) as storage:
            for number in range(600):
                put(storage, f"{number:05}", b"")
            wanted = [f"{number:05}" for number in range(0, 2400, 2)]
            outcomes = storage.delete_many(wanted)
            assert [path for path, was_there in outcomes.items() if was_there is True] == wanted[:300]
            assert sum(1 for _ in storage.list()) == 300


def test_ten_thousand_parts_hold_the_largest_file() -> None:
    assert sum(part_bytes(number, None) for number in range(10_000)) >= 5 * 10**12
    for size in (1, PART_BYTES, 5 * 10**12 + 1):
        assert 9000 * part_bytes(0, size) >= size


def test_parts_are_small_where_the_size_is_known() -> None:
    assert part_bytes(8999, 40 * 10**9) == PART_BYTES
    assert part_bytes(8999, 10**12) < 120 << 20 < part_bytes(8999, None)
    blocks = [b"x" * (3 << 20)] * 5
    assert [len(part) for part in parts_of(blocks, 15 << 20)] == [PART_BYTES] * 3


def test_what_the_server_says_is_shown_and_not_believed() -> None:
    code = "\x1b[2J" + "x" * 100_000
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    with pytest.raises(StorageError) as caught, translating("read", "f"):
        raise ClientError(answer, "GetObject")
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_file_of_a_client_is_there_as_long_as_the_client(tmp_path: Path) -> None:
    with certificate(tmp_path) as (_, _, ca):
        ref = ProtocolRef(1, "s3", STORAGE_ID, "s3", "https://127.0.0.1:1/bucket", secret=Secret({"ca": ca}))
        storage = S3Protocol(ref)
        client = storage._connected()
        file = Path(client._endpoint.http_session._verify)
        storage.close()
        assert file.read_text() == ca
        del client
        gc.collect()
        assert not file.exists()
