"""`judge-present`: a rule of 2 copies whose data is there already; from the declaration until it is ok."""

from __future__ import annotations

from collections.abc import Iterator

from dlm.core import rules
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("judge-present", "s", THERE, judge, "bare SQL: locks, and who holds how much", judge_bare)
    yield from bench.run(race, 10 * files)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        worlds.base(tx)
        worlds.files(tx, place.size, at=None)
        worlds.replicas(tx, "ds", "s1")
        worlds.replicas(tx, "ds", "s2")


THERE = World("two copies there", prepare)


def judge(place: Place) -> None:
    with place.database.begin("bench.declare", worlds.ACTOR) as tx:
        rules.declare(tx, [rules.Declaration("bench:ds", 2, "s1|s2")])
    worlds.judge_all(place.database)
    with place.database.begin("bench.look") as tx:
        assert tx.scalar("SELECT state FROM rule") == "ok"


def judge_bare(place: Place) -> None:
    with place.database.begin("bench.bare") as tx:
        tx.run(
            """SELECT r.storage_id, count(*), sum(r.size_bytes)
                 FROM attachment a JOIN replica r ON r.did_id = a.child_id AND r.state = 'available'
                GROUP BY r.storage_id"""
        )
        tx.run(
            """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at, fill_after)
               SELECT d.id, s, 1, d.files, d.size_bytes, %(now)s, NULL
                 FROM did d, unnest(ARRAY[1, 2]) s WHERE d.kind = 'dataset'"""
        )
