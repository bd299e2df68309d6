"""Counting by what is out of order says the same as counting every file, or that it is not sure."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm.clock import ManualClock
from dlm.core import placing
from dlm.core.placing import Limits
from dlm.db import changes, counting, judging
from dlm.db.engine import Database
from dlm.types import ChangeKind
from world import World


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """30 files of a dataset at `origin`, with a rule of two copies that is ok; rules of more than 10 files are large."""
    monkeypatch.setattr(placing, "LARGE_FILES", 10)
    world = World(database, clock, tmp_path, breaker_delete_share=1)
    for name in ("a", "b", "c"):
        world.add_storage(name)
    world.add_storage("origin", type="source")
    world.many("origin", 30)
    world.declare("ds", 2, "a|b")
    world.settle()
    return world


def counted(world: World) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]], bool]:
    """(by exceptions, file by file, whether the first is sure)."""
    with world.begin() as tx:
        quick = counting.count_by_exceptions(tx, [1], ["available"])
        full = judging.count_copies(tx, [1], ["available"])  # its last column tells of absent rows
    return [tuple(row)[:-1] for row in quick], [tuple(row)[:-1] for row in full], all(row.is_sure for row in quick)


def test_a_large_rule_becomes_ok_without_counting_every_file(world: World) -> None:
    quick, full, is_sure = counted(world)
    assert is_sure and quick == full
    assert [row[2:4] for row in quick] == [(30, 30), (30, 30)]
    with world.begin() as tx:
        assert tx.scalar("SELECT state FROM rule") == "ok"
    world.check()


@pytest.mark.parametrize("state", ["bad", "lost", "copying", "unverified"])
def test_what_is_out_of_order_is_counted_in_its_column(world: World, state: str) -> None:
    with world.begin() as tx:
        tx.run(
            """UPDATE replica SET state = %(state)s::replica_state
                WHERE storage_id = (SELECT id FROM storage WHERE name = 'a') AND did_id % 3 = 0""".replace("% 3", "%% 3"),
            state=state,
        )
    quick, full, is_sure = counted(world)
    assert is_sure and quick == full
    assert quick[0][3] < 30 and quick[1][3] == 30


def test_what_is_out_of_order_under_other_rules_does_not_count(world: World) -> None:
    world.many("origin", 20, dataset="other", prefix="g")
    world.declare("other", 1, "a")
    world.run(world.judge)
    quick, full, is_sure = counted(world)
    assert is_sure and quick == full
    assert [row[3] for row in quick] == [30, 30]


@pytest.mark.parametrize("act", ["attach", "detach", "swap"])
def test_an_attach_or_detach_that_is_not_folded_makes_it_unsure(world: World, act: str) -> None:
    world.many("origin", 1, dataset="other", prefix="g")
    world.settle()
    if act != "attach":
        world.detach("ds", "f0")
    if act != "detach":
        world.attach("ds", "g0")
    assert not counted(world)[2]
    world.settle()
    quick, full, is_sure = counted(world)
    assert is_sure and quick == full


@pytest.mark.parametrize("kind", ["gone", "harmed"])
def test_a_replica_that_went_and_is_not_folded_makes_it_unsure(world: World, kind: str) -> None:
    with world.begin() as tx:
        tx.run(
            """INSERT INTO change (kind, storage_id, file_ids, created_at)
               SELECT %(kind)s::change_kind, id, '{1}', %(now)s FROM storage WHERE name = 'b'""",
            kind=kind,
        )
    assert not counted(world)[2]


@pytest.mark.parametrize("large_files", [10, 100])
def test_the_resync_counts_every_file_and_makes_what_has_no_replica(
    world: World, monkeypatch: pytest.MonkeyPatch, large_files: int
) -> None:
    monkeypatch.setattr(placing, "LARGE_FILES", large_files)
    with world.begin() as tx:
        tx.run(
            """WITH gone AS (DELETE FROM replica WHERE storage_id = 1 AND did_id % 3 = 0 RETURNING size_bytes)
               UPDATE storage_usage SET used_files = used_files - n, used_bytes = used_bytes - size
                 FROM (SELECT count(*) AS n, sum(size_bytes) AS size FROM gone) g WHERE storage_id = 1""".replace(
                "% 3", "%% 3"
            )
        )
        tx.run("UPDATE rule SET next_judge_at = %(now)s")
    world.judge.run_once()
    with world.begin() as tx:
        assert tx.scalar("SELECT state FROM rule") == "replicating"
    world.settle()
    quick, full, is_sure = counted(world)
    assert is_sure and quick == full and quick[0][3] == 30
    with world.begin() as tx:
        assert tx.scalar("SELECT state FROM rule") == "ok"
    world.check()


@pytest.fixture
def four(world: World) -> World:
    """Four more rules over more files than a chunk, which wait to be counted; their copies are there."""
    for copies, on in ((1, "a"), (1, "b"), (1, "a|b"), (2, "a|b|c&a|b")):
        world.declare("ds", copies, on)
    world.settle()
    with world.begin() as tx:
        tx.run("UPDATE rule SET state = 'replicating', next_judge_at = %(now)s WHERE id > 1")
    return world


def test_large_rules_that_are_told_by_what_is_out_of_order_are_judged_together(four: World) -> None:
    with four.begin() as tx:
        judged = placing.judge_due(tx, Limits(chunk_files=30))
    assert (judged.rules, judged.states, judged.is_full) == (4, {"ok": 4}, False)
    four.check()


def test_large_rules_whose_files_must_be_counted_are_judged_one_by_one(four: World) -> None:
    with four.begin() as tx:
        changes.add(tx, ChangeKind.HARMED, storage_id=2, file_ids=[1])
    seen = []
    for _ in range(3):
        with four.begin() as tx:
            judged = placing.judge_due(tx, Limits(chunk_files=30))
        seen.append((judged.rules, judged.is_full))
    assert seen == [(2, True), (1, True), (1, False)]  # the first one beside the rule at `a`, of which nothing is said
    with four.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM rule WHERE state = 'ok'") == 5
    four.settle()
    four.check()
