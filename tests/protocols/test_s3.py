"""S3 against rclone's server, which checks keys, and moto, which knows conditional writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from dlm.protocols import StorageProtocol
from protocols.conformance import ProtocolConformance
from protocols.faults import NetworkFaults
from protocols.servers import Place, claimed, rclone_serves

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with rclone_serves("s3", tmp_path_factory.mktemp("rclone")) as place:
        yield place


class TestRclone(ProtocolConformance):
    tells_space = False
    excludes_writers = False  # rclone serve s3 does not look at If-None-Match

    @pytest.fixture
    def storage(self, rclone_s3: Place) -> Iterator[StorageProtocol]:
        with claimed(rclone_s3, COUNT) as storage:
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
