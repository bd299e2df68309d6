"""`register`: files that are at a storage enter the catalogue, 10,000 a call, and a dataset with them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from dlm.core import dids, replicas
from dlm.core import files as columns
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World, derived
from figures.services import Web

BATCH = 10_000
BARE = "bare SQL from a prepared set"


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("register", "files/s", PREPARED, register, BARE, register_bare)
    found = []
    for size in (files // 10, files, 10 * files):
        found += bench.run(race, size)
        yield found[-1]
    yield derived("register-flat", found[2], found[0], f"the same at {files // 10:,}")
    yield from bench.run(Race("register-rest", "files/s", PREPARED, register_by_rest, BARE, register_bare), files)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare", worlds.ACTOR) as tx:
        worlds.base(tx)
        dids.add_collections(tx, [dids.NewCollection("bench", "ds")])
        tx.run(
            """CREATE TABLE prepared AS
               SELECT 'run/2026/file.' || i AS name, 1000 + i AS size, lpad(to_hex(i), 8, '0') AS adler32
                 FROM generate_series(1, %(n)s) i""",
            n=place.size,
        )


PREPARED = World("files to register", prepare)


def batches(files: int) -> Iterator[list[dict[str, object]]]:
    for start in range(1, files + 1, BATCH):
        numbers = range(start, min(start + BATCH, files + 1))
        yield [{"name": f"run/2026/file.{i}", "size_bytes": 1000 + i, "adler32": f"{i:08x}"} for i in numbers]


def register(place: Place) -> None:
    for items in batches(place.size):
        with place.database.begin("bench.register", worlds.ACTOR) as tx:
            replicas.register(tx, "origin", columns.read(items, "bench"), dataset=("bench", "ds"))


def register_by_rest(place: Place) -> dict[str, float]:
    """One client of a real web service, which has one call after the other, already spelled out."""
    bodies = [
        json.dumps({"storage": "origin", "scope": "bench", "dataset": "bench:ds", "files": items})
        for items in batches(place.size)
    ]
    with Web(place) as web:
        return {"": sum(web.post("/api/v1/replicas", body, 201) for body in bodies)}


def register_bare(place: Place) -> None:
    """DID, replica and attachment rows in three statements."""
    with place.database.begin("bench.bare") as tx:
        tx.run(
            """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, adler32, is_open, created_at)
               SELECT 1, 'file', name, 1, size, 1, adler32, false, %(now)s FROM prepared ORDER BY name"""
        )
        tx.run(
            """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, next_check_at)
               SELECT id, 5, 'unverified', size_bytes, %(now)s, %(now)s FROM did WHERE kind = 'file' ORDER BY did.id"""
        )
        tx.run(
            """INSERT INTO attachment (parent_id, child_id, size_bytes)
               SELECT (SELECT id FROM did WHERE kind = 'dataset'), id, size_bytes
                 FROM did WHERE kind = 'file' ORDER BY did.id"""
        )
        tx.run(
            """UPDATE storage_usage SET used_files = %(n)s, used_bytes = (SELECT sum(size) FROM prepared)
                WHERE storage_id = 5""",
            n=place.size,
        )
        tx.run(
            "UPDATE did SET files = %(n)s, size_bytes = (SELECT sum(size) FROM prepared) WHERE kind = 'dataset'",
            n=place.size,
        )
