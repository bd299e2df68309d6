"""WebDAV against rclone's server and WsgiDAV: conformance, and what a network and a web server can do to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from dlm.protocols import StorageProtocol
from protocols.conformance import ProtocolConformance
from protocols.faults import NetworkFaults
from protocols.servers import Place, claimed, rclone_serves, wsgidav

pytestmark = pytest.mark.protocols
COUNT = itertools.count(1)


@pytest.fixture(scope="module")
def rclone_webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with rclone_serves("webdav", tmp_path_factory.mktemp("rclone")) as place:
        yield place


@pytest.fixture(scope="module")
def wsgidav_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with wsgidav(tmp_path_factory.mktemp("wsgidav")) as place:
        yield place


class TestRclone(ProtocolConformance):
    tells_space = False
    refused_names = ("a\nb",)

    @pytest.fixture
    def storage(self, rclone_webdav: Place) -> Iterator[StorageProtocol]:
        with claimed(rclone_webdav, COUNT) as storage:
            yield storage


class TestWsgiDav(ProtocolConformance):
    excludes_writers = False  # it looks, then moves
    refused_names = ("a\nb", "a?b=c", "a&b;c", "a#b", "100%", "%2e%2e%2foutside")  # it would move to other names

    @pytest.fixture
    def storage(self, wsgidav_server: Place) -> Iterator[StorageProtocol]:
        with claimed(wsgidav_server, COUNT) as storage:
            yield storage


class TestFaults(NetworkFaults):
    half_written = ("dav.put:after",)

    @pytest.fixture
    def place(self, rclone_webdav: Place) -> Place:
        return rclone_webdav

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[StorageProtocol]:
        with claimed(place, COUNT) as storage:
            yield storage
