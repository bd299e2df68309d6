"""A promise kept between XRootD storages, by real daemons: put on one, and copied to the other by the storages."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from processes import Service, serving
from protocols.servers import Place
from protocols.xrootd import needs_gfal, open_directory, xrootd

pytestmark = [pytest.mark.processes, pytest.mark.protocols, pytest.mark.timeout(300), needs_gfal]
SETTINGS = {"conveyor.interval_s": 0.2, "judge.interval_s": 0.2, "log.level": "info"}


@pytest.fixture(scope="module")
def service(pytestconfig: pytest.Config) -> Iterator[Service]:
    with serving("xrootd", pytestconfig.getoption("--pg-bin"), SETTINGS) as service:
        yield service


@pytest.fixture(scope="module")
def places() -> Iterator[list[Place]]:
    with open_directory() as base, xrootd(base / "one") as one, xrootd(base / "other") as other:
        yield [one, other]


def test_a_rule_of_two_copies_is_kept_between_two_servers(service: Service, places: list[Place]) -> None:
    service.client.post("/sites", {"name": "perth"})
    service.client.post("/scopes", {"name": "test"})
    for name, place in zip(("one", "other"), places, strict=True):
        way = {"scheme": "root", "prefix": f"{place.prefix}/data"}
        service.client.post("/storages", {"name": name, "site": "perth", "protocols": [way]})
    content = os.urandom(3 << 20)
    with service.client.open("PUT", "/bytes/test/f", content, query={"storage": "one"}) as answer:
        answer.read()
    rule = service.client.post("/rules", {"did": "test:f", "copies": 2, "storages": "*"})
    service.until("both copies", lambda: service.client.get(f"/rules/{rule['id']}")["state"] == "ok")
    stored = [file.read_bytes() for file in (places[1].directory / "data").rglob("*") if file.is_file()]
    assert content in stored
    told = "".join(log.read_text() for log in service.logs.iterdir())
    assert "conveyor" in told and "by way of this host" not in told
