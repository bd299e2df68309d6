"""SFTP against OpenSSH and rclone's server: conformance, and what a network can do to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from dlm.protocols import StorageProtocol
from protocols.conformance import ProtocolConformance
from protocols.faults import NetworkFaults
from protocols.servers import Place, claimed, rclone_serves, sshd

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with sshd(tmp_path_factory.mktemp("openssh")) as place:
        yield place


@pytest.fixture(scope="module")
def rclone_sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with rclone_serves("sftp", tmp_path_factory.mktemp("rclone")) as place:
        yield place


class TestOpenSsh(ProtocolConformance):
    @pytest.fixture
    def storage(self, openssh: Place) -> Iterator[StorageProtocol]:
        with claimed(openssh, COUNT) as storage:
            yield storage


class TestRclone(ProtocolConformance):
    excludes_writers = False  # its rename takes the place of what is there

    @pytest.fixture
    def storage(self, rclone_sftp: Place) -> Iterator[StorageProtocol]:
        with claimed(rclone_sftp, COUNT) as storage:
            yield storage


class TestFaults(NetworkFaults):
    half_written = ("sftp.write:before", "sftp.write:after", "sftp.rename:before")

    @pytest.fixture
    def place(self, openssh: Place) -> Place:
        return openssh

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage
