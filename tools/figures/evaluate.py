"""`evaluate`: 10,000 files attached to a dataset with 1, 5 and 20 rules on it that overlap, small and large.

Two parts: `place`, until every file has its replicas and requests; `ok`, from the arrival of the last copy until every
rule is ok again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import product

from dlm.core import dids, rules
from dlm.db import changes
from dlm.db.engine import Tx
from dlm.types import ChangeKind
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World, derived

NEW = 10_000
RULES = (1, 5, 20)


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    small, large = files // 10, 10 * files
    found: dict[tuple[int, int, str], Figure] = {}
    for size, number in product((small, large), RULES):
        name = f"evaluate-{number}-rules in {size:,}"
        race = Race(name, "s", under(number), attach, "bare SQL, same rows", attach_bare)
        for figure in bench.run(race, size, NEW):
            found[size, number, figure.figure.rpartition(" ")[2]] = figure
            yield figure
    for part in ("place", "whole"):
        for size in (small, large):
            one, twenty = found[size, 1, part], found[size, 20, part]
            yield derived(f"evaluate-rules {part} in {size:,}", twenty, one, "1 rule")
        much, little = found[large, 20, part], found[small, 20, part]
        yield derived(f"evaluate-dataset {part}", much, little, f"dataset of {small:,}, 20 rules")


def prepare_files(place: Place) -> None:
    """A dataset at s1, s2 and origin."""
    with place.database.begin("bench.prepare") as tx:
        worlds.base(tx)
        worlds.files(tx, place.size)
        worlds.replicas(tx, "ds", "s1")
        worlds.replicas(tx, "ds", "s2")


AT_THREE = World("a dataset at three storages", prepare_files)


def prepare(number: int, place: Place) -> None:
    """`number` rules on a dataset, which are ok; new files at origin."""
    with place.database.begin("bench.prepare") as tx:
        worlds.files(tx, NEW, "new")
        tx.run(
            """INSERT INTO account (name, kind, created_at)
               SELECT 'user' || i, 'person', %(now)s FROM generate_series(1, %(n)s) i""",
            n=number,
        )
        worlds.count(tx)
    with place.database.begin("bench.declare", worlds.ACTOR) as tx:
        wishes = [rules.Declaration("bench:ds", 2, "s1|s2", account=f"user{i}") for i in range(1, number + 1)]
        rules.declare(tx, wishes)
    worlds.judge_all(place.database)


def under(number: int) -> World:
    """A dataset whose copies are there, with so many rules on it, and new files at origin."""
    return World(f"under {number} rules", partial(prepare, number), on=AT_THREE)


def attach(place: Place) -> dict[str, float]:
    start = time.perf_counter()
    attach_and_judge(place)
    placed = time.perf_counter()
    with place.database.begin("bench.arrive") as tx:
        worlds.arrive(tx)
    arrived = time.perf_counter()
    worlds.judge_all(place.database)
    ended = time.perf_counter()
    with place.database.begin("bench.look") as tx:
        assert tx.scalar("SELECT count(*) FROM rule WHERE state <> 'ok'") == 0
    return {"place": placed - start, "ok": ended - arrived, "whole": placed - start + ended - arrived}


def attach_and_judge(place: Place) -> None:
    """Attach the new files, and judge until nothing is due."""
    with place.database.begin("bench.attach", worlds.ACTOR) as tx:
        dids.attach(tx, "bench", "ds", [("bench", f"new.{i}") for i in range(1, NEW + 1)])
    worlds.judge_all(place.database)


def attach_bare(place: Place) -> dict[str, float]:
    start = time.perf_counter()
    with place.database.begin("bench.bare") as tx:
        _attach_bare(tx)
    placed = time.perf_counter()
    with place.database.begin("bench.arrive") as tx:
        changes.add(tx, ChangeKind.ARRIVED, storage_id=1, file_ids=[1])
        tx.run("UPDATE rule SET state = 'ok'")
    ended = time.perf_counter()
    return {"place": placed - start, "ok": ended - placed, "whole": ended - start}


def _attach_bare(tx: Tx) -> None:
    tx.run(
        """INSERT INTO attachment (parent_id, child_id, size_bytes)
           SELECT (SELECT id FROM did WHERE name = 'ds'), id, size_bytes
             FROM did d WHERE name LIKE 'new.%%' ORDER BY d.id"""
    )
    tx.run(
        """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
           SELECT d.id, s, 'copying', d.size_bytes, %(now)s
             FROM did d, unnest(ARRAY[1, 2]) s WHERE d.name LIKE 'new.%%' ORDER BY 1, 2"""
    )
    tx.run(
        """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
           SELECT d.id, s, d.size_bytes, %(now)s, %(now)s, 3
             FROM did d, unnest(ARRAY[1, 2]) s WHERE d.name LIKE 'new.%%' ORDER BY 1, 2"""
    )
