"""`judge`: a rule of 2 copies over a dataset, nothing there; until all replicas and requests stand."""

from __future__ import annotations

from collections.abc import Iterator

from dlm.core import rules
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, derived


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("judge", "copies/s", worlds.AT_ORIGIN, place, "bare SQL, same end state", place_bare)
    found = []
    for size in (files // 10, files, 10 * files):
        found += bench.run(race, size, 2 * size)
        yield found[-1]
    yield derived("judge-flat", found[2], found[0], f"the same at {files // 10:,}")


def place(place: Place) -> None:
    with place.database.begin("bench.declare", worlds.ACTOR) as tx:
        rules.declare(tx, [rules.Declaration("bench:ds", 2, "type=disk", spread="site")])
    worlds.judge_all(place.database)


def place_bare(place: Place) -> None:
    """Two replicas and two requests a file, and two locks, as one person would write it who knows the answer."""
    with place.database.begin("bench.bare") as tx:
        tx.run(
            """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at, fill_after)
               SELECT d.id, s, 1, d.files, d.size_bytes, %(now)s, NULL
                 FROM did d, unnest(ARRAY[1, 2]) s WHERE d.kind = 'dataset'"""
        )
        tx.run(
            """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
               SELECT child_id, s, 'copying', size_bytes, %(now)s
                 FROM attachment, unnest(ARRAY[1, 2]) s ORDER BY 1, 2"""
        )
        tx.run(
            """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
               SELECT child_id, s, size_bytes, %(now)s, %(now)s, 3
                 FROM attachment, unnest(ARRAY[1, 2]) s ORDER BY 1, 2"""
        )
        tx.run("UPDATE storage_usage SET reserved_bytes = 1000 * %(n)s WHERE storage_id IN (1, 2)", n=place.size)
