"""`interactive`: a small rule, declared while a placement of a million files is under way; until it is placed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from dlm import config
from dlm.core import rules
from dlm.daemons.judge import Judge
from dlm.db.engine import Database
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World

RULES, LEAST = 1000, 20  # small rules that there are, and that are declared at least
PAUSE_S = 0.1
POLL_S = 0.01


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("interactive", "ms", SMALL_BESIDE, beside_a_large_one, "the same, alone", alone)
    yield from bench.run(race, 10 * files, 1)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        worlds.files(tx, RULES, "small")
        worlds.count(tx)


SMALL_BESIDE = World("small datasets beside", prepare, on=worlds.AT_ORIGIN)


def beside_a_large_one(place: Place) -> dict[str, float]:
    declare(place.database, "bench:ds")
    return waits(place.database)


def alone(place: Place) -> dict[str, float]:
    return waits(place.database)


def waits(database: Database) -> dict[str, float]:
    """p50 and p99 of the time from declaring a rule on one file until it has its locks, beside what one judge does."""
    stop = threading.Event()
    judge = threading.Thread(target=_judge, args=(database, stop))
    judge.start()
    found = []
    try:
        for number in range(1, RULES + 1):
            start = time.perf_counter()
            rule = declare(database, f"bench:small.{number}")
            while _state(database, rule) == "declared":
                time.sleep(POLL_S)
            found.append(time.perf_counter() - start)
            if number >= LEAST and not _is_placing(database):
                break
            time.sleep(PAUSE_S)
    finally:
        stop.set()
        judge.join()
    return worlds.percentiles(found)


def declare(database: Database, did: str) -> str:
    with database.begin("bench.declare", worlds.ACTOR) as tx:
        return rules.declare(tx, [rules.Declaration(did, 2, "type=disk", spread="site")])[0].id


def _state(database: Database, rule: str) -> str:
    with database.begin("bench.look") as tx:
        return str(tx.scalar("SELECT state FROM rule WHERE uuid = %(rule)s", rule=rule))


def _is_placing(database: Database) -> bool:
    with database.begin("bench.look") as tx:
        return bool(tx.scalar("SELECT EXISTS (SELECT FROM lock WHERE fill_after IS NOT NULL AND files > 1000)"))


def _judge(database: Database, stop: threading.Event) -> None:
    judge = Judge(database, config.load(None, {}, {}))
    while not stop.is_set():
        if not judge.run_once().is_full:
            stop.wait(POLL_S)
