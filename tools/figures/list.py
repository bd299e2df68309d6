"""`list`: every replica of a dataset as NDJSON, through the core and over REST; and the wait for the first byte."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from dlm.core import replicas
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race
from figures.services import Web


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    yardstick = "bare SQL, rows fetched"
    yield from bench.run(Race("list", "files/s", worlds.dataset_at_origin, stream, yardstick, fetch), files)
    yield from bench.run(Race("list-rest", "files/s", worlds.dataset_at_origin, stream_rest, yardstick, fetch), files)
    yield from bench.run(Race("list-rest-first", "ms", worlds.dataset_at_origin, wait_for_first), files, 1)


def stream(place: Place) -> None:
    lines = 0
    with place.database.begin("bench.list", worlds.ACTOR) as tx:
        for row in replicas.stream(tx, "bench", "ds"):
            shown = {"did": f"{row.scope}:{row.name}", "storage": row.storage, "state": row.state}
            facts = {"size_bytes": row.size_bytes, "path": replicas.path_of(row), "adler32": row.adler32}
            lines += len(json.dumps(shown | facts)) > 0
    assert lines == place.size


def fetch(place: Place) -> None:
    with place.database.begin("bench.bare") as tx:
        rows = tx.rows(
            """SELECT d.name, s.name, r.state, r.size_bytes, d.adler32, r.path FROM attachment a
                 JOIN replica r ON r.did_id = a.child_id JOIN did d ON d.id = r.did_id
                 JOIN storage s ON s.id = r.storage_id"""
        )
    assert len(rows) == place.size


def stream_rest(place: Place) -> dict[str, float]:
    return {"": _read(place)[1]}


def wait_for_first(place: Place) -> dict[str, float]:
    return {"": _read(place)[0]}


def _read(place: Place) -> tuple[float, float]:
    """Seconds until the first byte, and until the last."""
    with Web(place) as web:
        connection = web.connect()
        connection.request("GET", "/api/v1/dids/bench/ds", headers=web.headers())
        connection.getresponse().read()  # a first request that is not measured: the service has started
        start = time.perf_counter()
        connection.request("GET", "/api/v1/replicas/bench/ds", headers=web.headers(Accept="application/x-ndjson"))
        answer = connection.getresponse()
        head = answer.read(1)
        first = time.perf_counter() - start
        lines = head.count(b"\n")
        while block := answer.read(1 << 16):
            lines += block.count(b"\n")
        seconds = time.perf_counter() - start
    assert answer.status == 200 and lines == place.size, (answer.status, lines)
    return first, seconds
