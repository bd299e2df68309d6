"""WebDAV against XRootD's https, with a token: conformance, and what a network can do to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from dlm.protocols import StorageProtocol
from protocols.conformance import ProtocolConformance
from protocols.faults import NetworkFaults, remembered
from protocols.servers import Place, claimed
from protocols.xrootd import open_directory, xrootd_https

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_directory() as base, xrootd_https(base, prefilled=True) as (place, _):
        yield place


class TestXrootd(ProtocolConformance):
    tells_space = False
    excludes_writers = False  # its MOVE takes the place of what is there
    refused_names = ("%2e%2e%2foutside", " ", "a\nb", "a?b=c", "a#b", "100%")

    @pytest.fixture
    def storage(self, server: Place) -> Iterator[StorageProtocol]:
        with claimed(server, COUNT) as storage:
            yield storage


class TestFaults(NetworkFaults):
    half_written = ("dav.put:after", "dav.move:before")

    @pytest.fixture
    def place(self, server: Place) -> Place:
        return server

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage


def test_what_the_server_remembers_of_a_digest_is_no_witness_unless_told_so(server: Place) -> None:
    remembered(server, COUNT)
