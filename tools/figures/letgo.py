"""`letgo`: a rule of 2 copies is cancelled; until every replica that nothing else holds has its tombstone."""

from __future__ import annotations

from collections.abc import Iterator

from dlm.core import rules
from figures import resync, worlds
from figures.measuring import Bench, Figure, Place, Race


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("letgo", "copies/s", resync.OK, let_go, "bare SQL, same end state", let_go_bare)
    yield from bench.run(race, files, 2 * files)


def let_go(place: Place) -> None:
    with place.database.begin("bench.cancel", worlds.ACTOR) as tx:
        rules.cancel(tx, tx.scalar("SELECT uuid FROM rule"))
    worlds.judge_all(place.database)
    with place.database.begin("bench.look") as tx:
        assert tx.scalar("SELECT state FROM rule") == "gone"


def let_go_bare(place: Place) -> None:
    with place.database.begin("bench.bare") as tx:
        tx.run("DELETE FROM lock WHERE rule_id = 1")
        tx.run(
            """UPDATE replica r SET tombstone_at = %(now)s + interval '1 day'
                 FROM attachment a
                WHERE a.parent_id = (SELECT id FROM did WHERE kind = 'dataset') AND r.did_id = a.child_id
                  AND NOT EXISTS (SELECT FROM lock l WHERE l.did_id = r.did_id AND l.storage_id = r.storage_id)
                  AND NOT EXISTS (SELECT FROM attachment b JOIN lock l ON l.did_id = b.parent_id
                                   WHERE b.child_id = r.did_id AND l.storage_id = r.storage_id)"""
        )
        tx.run("UPDATE rule SET state = 'gone', next_judge_at = NULL")
