"""`resync`: the full check of a rule that has been ok, over a million files and two copies; due once a day."""

from __future__ import annotations

from collections.abc import Iterator

from figures import judge_present, worlds
from figures.measuring import Bench, Figure, Place, Race, World


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("resync", "s", OK, check, "bare SQL: an anti-join", check_bare)
    yield from bench.run(race, 10 * files)


OK = World("a rule that is ok", judge_present.judge, on=judge_present.THERE)


def check(place: Place) -> None:
    with place.database.begin("bench.due") as tx:
        tx.run("UPDATE rule SET next_judge_at = %(now)s")
    worlds.judge_all(place.database)


def check_bare(place: Place) -> None:
    with place.database.begin("bench.bare") as tx:
        tx.run(
            """SELECT l.storage_id, count(*) FROM lock l JOIN attachment a ON a.parent_id = l.did_id
                WHERE NOT EXISTS (SELECT FROM replica r WHERE r.did_id = a.child_id AND r.storage_id = l.storage_id
                                     AND r.state = 'available') GROUP BY 1"""
        )
