"""XRootD over root://: conformance, and what a network can do to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from dlm.protocols import StorageProtocol
from protocols.conformance import ProtocolConformance
from protocols.faults import NetworkFaults
from protocols.servers import Place, claimed
from protocols.xrootd import needs_gfal, open_directory, xrootd

pytestmark = [pytest.mark.protocols, needs_gfal]
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_directory() as base, xrootd(base / "server", prefilled=True) as place:
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

    def test_a_wrong_secret_is_a_matter_of_permission_and_is_not_told(self, tmp_path: object) -> None:
        """Of the server that asks for one: see below."""

    def test_a_read_that_is_cut_off_is_an_error_and_not_a_short_file(
        self, storage: StorageProtocol, place: Place
    ) -> None:
        content = os.urandom(12 << 20)
        put(storage, "f", content)
        with cutting(port_of(place)) as proxy:
            proxy.down_limit = 3 << 20
            with through(place, proxy.port).storage(below(storage, place)) as cut:
                try:
                    assert get(cut, "f") == content, "the library goes on over a new connection"
                except StorageError as error:
                    assert error.error_class in (ErrorClass.IO, ErrorClass.UNAVAILABLE)

    @pytest.fixture
    def place(self, server: Place) -> Place:
        return server

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage
