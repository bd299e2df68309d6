"""`latency`: from the POST of a rule on one file of 1 KiB until its copy is AVAILABLE, in an idle system."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from dlm.did import derived_paths
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World
from figures.services import Program, Web

RULES = 100
WARM = 3
POLL_S = 0.005
LIMIT_S = 30.0


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("latency", "ms", ON_DISK, wait_for_copies, arrange=arrange)
    yield from bench.run(race, RULES + WARM, 1)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare", worlds.ACTOR) as tx:
        worlds.on_disk(tx, place.directory, 2)
        worlds.files(tx, place.size, size_bytes=1024)


ON_DISK = World("files on disk", prepare)


def arrange(place: Place) -> None:
    worlds.take_roots(place)
    names = [f"ds.{i}" for i in range(1, place.size + 1)]
    worlds.write_files(place.directory / "files" / "origin", derived_paths("bench", names), b"x" * 1024)


def wait_for_copies(place: Place) -> dict[str, float]:
    with Web(place) as web, Program(place, "dlm.daemons.main", "all", run_dir=place.directory):
        found = [_wait(place, web, number) for number in range(1, place.size + 1)]
    return worlds.percentiles(found[WARM:])


def _wait(place: Place, web: Web, number: int) -> float:
    start = time.perf_counter()
    web.post("/api/v1/rules", json.dumps({"did": f"bench:ds.{number}", "copies": 1, "storages": "s1"}), 201)
    while not _is_available(place, number):
        if time.perf_counter() - start > LIMIT_S:
            raise AssertionError(f"no copy of file {number} after {LIMIT_S:g} s")
        time.sleep(POLL_S)
    return time.perf_counter() - start


def _is_available(place: Place, number: int) -> bool:
    with place.database.begin("bench.look") as tx:
        return bool(
            tx.scalar(
                """SELECT EXISTS (SELECT FROM replica WHERE state = 'available' AND storage_id = 1
                                     AND did_id = (SELECT id FROM did WHERE scope_id = 1 AND name = %(name)s))""",
                name=f"ds.{number}",
            )
        )
