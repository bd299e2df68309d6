"""`tangle`: 10,000 files, each in 100 datasets, with 20 rules: 100 more attached, everything moved, rules let go.

Beside it the same with each file in 10 datasets and 2 rules: a ratio of 0.1 is cost linear in the overlaps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from dlm.core import dids, rules
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World

NEW = 100


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race(
        "tangle-overlaps",
        "s",
        World("tangled", partial(prepare, 100, 20)),
        partial(live, 100),
        "a tenth of the overlaps",
        partial(live, 10),
        World("tangled a little", partial(prepare, 10, 2)),
    )
    yield from bench.run(race, files // 10)


def prepare(datasets: int, rule_number: int, place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        worlds.base(tx)
        worlds.files(tx, place.size)
        worlds.files(tx, NEW, "new")
        tx.run(
            """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, created_at)
               SELECT 1, 'dataset', 'view' || i, 1, 1000 * %(n)s, %(n)s, %(now)s
                 FROM generate_series(1, %(datasets)s) i""",
            n=place.size,
            datasets=datasets,
        )
        tx.run(
            """INSERT INTO attachment (parent_id, child_id, size_bytes)
               SELECT v.id, a.child_id, a.size_bytes FROM did v, attachment a JOIN did d ON d.id = a.parent_id
                WHERE v.name LIKE 'view%%' AND d.name = 'ds' ORDER BY 1, 2"""
        )
        worlds.count(tx)
    with place.database.begin("bench.declare", worlds.ACTOR) as tx:
        wishes = [rules.Declaration(f"bench:view{i}", 2, "s1|s2") for i in range(1, rule_number + 1)]
        rules.declare(tx, wishes)
    worlds.judge_all(place.database)


def live(datasets: int, place: Place) -> dict[str, float]:
    """The seconds of each act until the judge has nothing left to do."""
    moments = [time.perf_counter()]

    def judged() -> None:
        worlds.judge_all(place.database)
        moments.append(time.perf_counter())

    for number in range(1, datasets + 1):
        with place.database.begin("bench.attach", worlds.ACTOR) as tx:
            dids.attach(tx, "bench", f"view{number}", [("bench", f"new.{i}") for i in range(1, NEW + 1)])
    judged()
    with place.database.begin("bench.arrive") as tx:
        worlds.arrive(tx)
    judged()
    with place.database.begin("bench.cancel", worlds.ACTOR) as tx:
        for row in tx.rows("SELECT uuid FROM rule"):
            rules.cancel(tx, row.uuid)
    judged()
    return dict(zip(("attach", "finish", "let-go"), map(float.__sub__, moments[1:], moments), strict=True))
