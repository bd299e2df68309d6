"""XRootD over root://: conformance, and what a network can do to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from dlm.protocols import StorageProtocol
from protocols.conformance import ProtocolConformance
from protocols.faults import NetworkFaults
from protocols.servers import Place, claimed
from protocols.xrootd import needs_gfal, xrootd

pytestmark = [pytest.mark.protocols, needs_gfal]
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with xrootd(tmp_path_factory.mktemp("xrootd")) as place:
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

    @pytest.fixture
    def place(self, server: Place) -> Place:
        return server

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage
