"""`list`: every replica of a dataset as NDJSON, through the core and over REST; and the wait for the first byte."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from dlm.core import replicas
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, derived
from figures.services import Web


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    yardstick = "bare SQL, rows fetched"
    race = Race("list", "files/s", worlds.AT_ORIGIN, stream, yardstick, fetch)
    yield from bench.run(race, files)
    units = {"first": "ms", "memory": "MB"}
    rest = Race("list-rest", "files/s", worlds.AT_ORIGIN, stream_rest, yardstick, fetch, units=units)
    (whole, first, memory) = bench.run(rest, files)
    (*_, before) = bench.run(rest, files // 10, repeat=1)
    yield from (whole, first)
    yield derived("list-rest memory", memory, before, f"the service's after a list of {files // 10:,}")


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
    """Seconds until the last byte and until the first, and the most memory that the service had, in MB."""
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
        memory = web.peak_rss_mb()
    assert answer.status == 200 and lines == place.size, (answer.status, lines)
    return {"": seconds, "first": first, "memory": memory}
