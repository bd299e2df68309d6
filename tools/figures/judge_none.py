"""`judge-none`: the same with grouping NONE over 50 storages of 10 sites, spread and weighted."""

from __future__ import annotations

from collections.abc import Iterator

from dlm.core import rules
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World

STORAGES, SITES = 50, 10


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("judge-none", "copies/s", FIFTY, share_out, "bare SQL, as many rows", share_out_bare)
    yield from bench.run(race, files, 2 * files)
    yield from bench.run(race, 10 * files, 20 * files)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        worlds.base(tx, STORAGES, SITES)
        worlds.files(tx, place.size)


FIFTY = World("fifty storages", prepare)


def share_out(place: Place) -> None:
    with place.database.begin("bench.declare", worlds.ACTOR) as tx:
        wish = rules.Declaration("bench:ds", 2, "type=disk", grouping="none", spread="site", weight="share")
        rules.declare(tx, [wish])
    worlds.judge_all(place.database)


def share_out_bare(place: Place) -> None:
    """A lock, a replica and a request for two storages of each file, chosen by its id."""
    chosen = "(VALUES (1 + child_id % 25), (26 + child_id % 25)) AS s (id)".replace("%", "%%")
    with place.database.begin("bench.bare") as tx:
        tx.run(
            f"""INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at, fill_after)
                SELECT child_id, s.id, 1, 1, size_bytes, %(now)s, NULL
                  FROM attachment CROSS JOIN LATERAL {chosen} ORDER BY 1, 2"""
        )
        tx.run(
            f"""INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
                SELECT child_id, s.id, 'copying', size_bytes, %(now)s
                  FROM attachment CROSS JOIN LATERAL {chosen} ORDER BY 1, 2"""
        )
        tx.run(
            f"""INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
                SELECT child_id, s.id, size_bytes, %(now)s, %(now)s, 3
                  FROM attachment CROSS JOIN LATERAL {chosen} ORDER BY 1, 2"""
        )
