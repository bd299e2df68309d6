"""`judges`: one, two and four judge processes on many datasets, each with a rule of 2 copies, nothing there.

Beside each the same work by as many connections of bare SQL at once: on a machine of two cores that the database
shares, the cores are the limit, and what counts is how much of the yardstick's own gain the judges have.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Barrier

from dlm import config
from dlm.core import rules
from dlm.daemons.judge import Judge
from dlm.db.engine import Database
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World

FILES_EACH = 2000  # large enough that a judge takes one dataset at a time
NUMBERS = (1, 2, 4)
REST_S = 0.02


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    found: dict[int, Figure] = {}
    size = max(4, files // FILES_EACH) * FILES_EACH
    for number in NUMBERS:
        name, yardstick = f"judges {number}", f"bare SQL, {number} connections"
        race = Race(name, "copies/s", DISJOINT, partial(place, number), yardstick, partial(place_bare, number))
        (found[number],) = bench.run(replace(race, arrange=declare), size, 2 * size)
        yield found[number]
    one = found[NUMBERS[0]]
    for number in NUMBERS[1:]:
        yield speedup(found[number], one, number)


def speedup(many: Figure, one: Figure, number: int) -> Figure:
    """How much faster so many are than one, beside the same of the yardstick."""
    ours, bare = many.value / one.value, many.yardstick_value / one.yardstick_value
    return replace(
        many,
        figure=f"judges-speedup {number}",
        unit="×",
        value=round(ours, 3),
        yardstick="bare SQL's own",
        yardstick_value=round(bare, 3),
        ratio=round(ours / bare, 3),
    )


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        worlds.base(tx)
        for number in range(datasets(place)):
            worlds.files(tx, FILES_EACH, f"ds{number}")
        worlds.count(tx)


def datasets(place: Place) -> int:
    return place.size // FILES_EACH


DISJOINT = World("many datasets", prepare)


def declare(place: Place) -> None:
    with place.database.begin("bench.declare", worlds.ACTOR) as tx:
        wishes = [rules.Declaration(f"bench:ds{i}", 2, "type=disk", spread="site") for i in range(datasets(place))]
        rules.declare(tx, wishes)


def place(number: int, place: Place) -> dict[str, float]:
    """Seconds from the moment that all judges stand ready until the last has nothing left to do."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(number + 1)
    judges = [context.Process(target=_judge, args=(place.database.dsn, ready)) for _ in range(number)]
    for judge in judges:
        judge.start()
    ready.wait()
    start = time.perf_counter()
    for judge in judges:
        judge.join()
    seconds = time.perf_counter() - start
    assert [judge.exitcode for judge in judges] == [0] * number
    return {"": seconds}


def _judge(dsn: str, ready: Barrier) -> None:
    database = Database(dsn)
    judge = Judge(database, config.load(None, {}, {}))
    is_done = _is_done(database)  # opens the connection too
    ready.wait()
    while not is_done:
        if not judge.run_once().is_full:
            time.sleep(REST_S)
        is_done = _is_done(database)
    database.dispose()


def _is_done(database: Database) -> bool:
    with database.begin("bench.look") as tx:
        return not tx.scalar(
            """SELECT EXISTS (SELECT FROM rule WHERE state = 'declared')
                   OR EXISTS (SELECT FROM lock WHERE fill_after IS NOT NULL)"""
        )


def place_bare(number: int, place: Place) -> None:
    """Two locks a dataset, two replicas and two requests a file, by threads that have a share of the datasets each."""
    threads = [threading.Thread(target=_place_share, args=(place, number, share)) for share in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _place_share(place: Place, number: int, share: int) -> None:
    ours = "(SELECT id FROM did WHERE kind = 'dataset' AND id %% %(number)s = %(share)s)"
    with place.database.begin("bench.bare") as tx:
        tx.run(
            f"""INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at, fill_after)
                SELECT d.id, s, r.id, d.files, d.size_bytes, %(now)s, NULL
                  FROM did d JOIN rule r ON r.did_id = d.id, unnest(ARRAY[1, 2]) s WHERE d.id IN {ours}""",
            number=number,
            share=share,
        )
        for insert in (
            """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
               SELECT child_id, s, 'copying', size_bytes, %(now)s""",
            """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
               SELECT child_id, s, size_bytes, %(now)s, %(now)s, 3""",
        ):
            tx.run(
                f"{insert} FROM attachment, unnest(ARRAY[1, 2]) s WHERE parent_id IN {ours} ORDER BY 1, 2",
                number=number,
                share=share,
            )
        tx.run(
            "UPDATE storage_usage SET reserved_bytes = reserved_bytes + 1000 * %(n)s WHERE storage_id IN (1, 2)",
            n=place.size // number,
        )
