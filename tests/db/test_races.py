"""Races on the judge's side (architecture 5): what joins, leaves or ends beside a judge at work."""

from __future__ import annotations

import pytest

from catalogue import Beside
from dlm.core import consequences, folding
from dlm.core.placing import Limits
from dlm.daemons.judge import Judge
from dlm.db import changes
from dlm.types import ChangeKind
from gates import Gate, blocked, emptied, placed, settled
from world import DAY, World


@pytest.fixture
def chunked(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world with datasets of more than 3 files counting as large, filled and let go 4 at a time."""
    monkeypatch.setattr(consequences, "SMALL_FILES", 3)
    world.judge.limits = Limits(chunk_files=4)
    return world


# --- attach beside declare, place and fill -----------------------------------------------------------------------

STEPS = ["judge.fold", "judge.place", "judge.fill"]
MOMENTS = [f"{step}:{when}" for step in STEPS for when in ("before-commit", "after-commit")]


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_files_attached_beside_a_judge_are_held_like_the_others(
    world: World, other: Judge, moment: str, grouping: str
) -> None:
    world.many("origin", 5)
    world.declare("ds", 1, "type=disk", grouping=grouping)
    gate = Gate(moment)
    first = gate.stops(lambda: world.run(world.judge))
    world.many("origin", 3, prefix="late")
    second = Beside(lambda: other.run_once())
    gate.open(first, second)
    settled(world)
    placed(world, 8)


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_change_folded_while_a_lock_is_not_committed_reaches_that_lock(
    world: World, other: Judge, moment: str, grouping: str
) -> None:
    """Here the second judge folds the attach before the first one goes on, as far as it need not wait for it."""
    world.many("origin", 5)
    world.declare("ds", 2, "type=disk", grouping=grouping)
    gate = Gate(moment)
    first = gate.stops(lambda: world.run(world.judge))
    world.many("origin", 3, prefix="late")
    with world.begin() as tx:
        tx.run("SET LOCAL lock_timeout = '100ms'")
        savepoint = tx.connection.begin_nested()
        try:
            folding.fold(tx, 100, DAY)
        except Exception as error:  # noqa: BLE001  it waits for the first judge: then the change stands, for later
            assert "lock timeout" in str(error)
            savepoint.rollback()
        else:
            savepoint.commit()
    gate.open(first)
    settled(world)
    placed(world, 8, copies=2)


def test_an_attach_that_commits_after_everything_was_placed_is_folded_then(world: World) -> None:
    world.many("origin", 5)
    world.put("origin", {"spare": b"spare"})
    world.declare("ds", 1, "a")
    with world.begin() as tx:
        tx.run("INSERT INTO attachment (parent_id, child_id, size_bytes) SELECT p.id, c.id, c.size_bytes"
               " FROM did p, did c WHERE p.name = 'ds' AND c.name = 'spare'")  # fmt: skip
        tx.run("UPDATE did SET files = files + 1, size_bytes = size_bytes + 5 WHERE name = 'ds'")
        ids = tx.rows("SELECT id FROM did WHERE name IN ('ds', 'spare') ORDER BY name")
        changes.add(tx, ChangeKind.ATTACHED, did_id=ids[0].id, file_ids=[ids[1].id])
        world.run(world.judge)
    settled(world)
    placed(world, 6)


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
def test_a_dataset_that_leaves_its_container_beside_a_placement_is_not_held(
    world: World, other: Judge, grouping: str
) -> None:
    world.many("origin", 3, dataset="one", prefix="one")
    world.many("origin", 3, dataset="two", prefix="two")
    world.container("box", "one", "two")
    rule = world.declare("box", 1, "a", grouping=grouping)
    gate = Gate("judge.place:before-commit")
    first = gate.stops(lambda: world.run(world.judge))
    world.detach("box", "one")
    second = blocked(world, other.run_once)
    gate.open(first, second)
    emptied(world)
    assert world.state(rule) == "ok"
    assert list(world.where("one0")) == ["origin"] and list(world.where("two0")) == ["a", "origin"]


def test_a_dataset_that_leaves_while_its_lock_is_filled_is_released_all_the_same(world: World, other: Judge) -> None:
    world.many("origin", 3, dataset="one", prefix="one")
    world.container("box", "one")
    world.declare("box", 1, "a")
    gate = Gate("judge.fill:before-commit")
    first = gate.stops(lambda: world.run(world.judge))
    world.detach("box", "one")
    second = blocked(world, other.run_once)
    gate.open(first, second)
    emptied(world)
    assert list(world.where("one0")) == ["origin"]


# --- large datasets, in chunks -----------------------------------------------------------------------------------


def in_the_middle(world: World, files: int = 12) -> str:
    """A rule over a large dataset, of which the first chunk is filled; `first` and `last` are at its two ends."""
    world.put("origin", {"early": b"early"})
    world.many("origin", files)
    rule = world.declare("ds", 1, "a")
    world.judge.run_once()
    assert 0 < world.count("a", "copying") < files
    return rule


@pytest.mark.parametrize("gated", [False, True], ids=["between chunks", "beside a chunk"])
def test_files_attached_on_both_sides_of_the_cursor_are_filled(chunked: World, gated: bool) -> None:
    world = chunked
    in_the_middle(world)
    gate = Gate("judge.fill:before-commit")
    first = [gate.stops(lambda: world.run(world.judge))] if gated else []
    world.attach("ds", "early")
    world.many("origin", 2, prefix="late")
    gate.open(*first)
    settled(world)
    placed(world, 15)


@pytest.mark.parametrize("gated", [False, True], ids=["between chunks", "beside a chunk"])
def test_files_detached_on_both_sides_of_the_cursor_are_let_go(chunked: World, gated: bool) -> None:
    world = chunked
    rule = in_the_middle(world)
    gate = Gate("judge.fill:before-commit")
    first = [gate.stops(lambda: world.run(world.judge))] if gated else []
    world.detach("ds", "f0", "f5", "f11")
    gate.open(*first)
    emptied(world)
    placed(world, 9)
    assert world.state(rule) == "ok" and all(list(world.where(name)) == ["origin"] for name in ("f0", "f5", "f11"))


def test_a_file_that_left_and_came_back_while_a_chunk_was_filled_is_held(chunked: World) -> None:
    world = chunked
    in_the_middle(world)
    gate = Gate("judge.fill:before-commit")
    first = gate.stops(lambda: world.run(world.judge))
    world.detach("ds", "f0", "f6")
    world.attach("ds", "f0", "f6")
    gate.open(first)
    emptied(world)
    placed(world, 12)


@pytest.mark.parametrize("moment", ["judge.fill:before-commit", "judge.fill:after-commit"])
def test_a_rule_cancelled_while_it_is_filled_leaves_nothing(chunked: World, other: Judge, moment: str) -> None:
    world = chunked
    rule = in_the_middle(world)
    gate = Gate(moment)
    first = gate.stops(lambda: world.run(world.judge))
    world.cancel(rule)
    second = Beside(other.run_once)
    gate.open(first, second)
    world.later(2)
    emptied(world)
    assert world.state(rule) == "gone" and world.count("a") == 0 == world.count("a", "copying")
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM lock") == 0
        assert tx.scalar("SELECT sum(reserved_bytes) FROM storage_usage") == 0


@pytest.mark.parametrize("folds", [True, False], ids=["folded in between", "folded afterwards"])
@pytest.mark.parametrize("large", [True, False])
def test_a_file_that_leaves_while_its_datasets_lock_is_let_go_is_let_go_too(
    world: World, monkeypatch: pytest.MonkeyPatch, large: bool, folds: bool
) -> None:
    """The lock is released, and the file gone from the dataset before its turn came."""
    world.many("origin", 12)
    rule = world.declare("ds", 1, "a")
    world.settle()
    world.cancel(rule)
    monkeypatch.setattr(consequences, "SMALL_FILES", 3 if large else 1000)
    limits = Limits(chunk_files=4)
    stop = Gate("judge.fill:before-commit")  # the pass has released the locks by then, and not let anything go
    first = stop.stops(world.judge.run_once)
    world.detach("ds", "f2", "f10")
    if folds:
        with world.begin() as tx:
            folding.fold(tx, 100, DAY)
    step = consequences.let_go_large if large else consequences.let_go_small
    while True:
        with world.begin() as tx:
            if not step(tx, limits, DAY)[0]:
                break
    stop.open(first)
    emptied(world)
    assert world.count("a") == 0


# --- cancelling beside a conveyor --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment", ["conveyor.claim:before-commit", "conveyor.claim:after-commit", "conveyor.record:before-commit"]
)
def test_a_rule_cancelled_beside_its_conveyor_leaves_nothing_that_nobody_reaps(
    world: World, other: Judge, moment: str
) -> None:
    world.many("origin", 4)
    rule = world.declare("ds", 1, "a")
    world.run(world.judge)
    gate = Gate(moment)
    carrying = gate.stops(world.conveyor.run_once)
    world.cancel(rule)
    waits = moment.endswith("before-commit")
    judging = blocked(world, other.run_once) if waits else Beside(other.run_once)
    if not waits:
        assert judging.finish() == []
    gate.open(carrying, judging)
    emptied(world)
    assert world.state(rule) == "gone" and list(world.where("f1")) == ["origin"]
    assert not world.path("a", "f1").exists()


# --- letting go beside others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["judge.place:before-commit", "judge.let-go:before-commit"])
def test_two_rules_on_the_same_files_let_go_at_once_leave_nothing(world: World, other: Judge, moment: str) -> None:
    world.many("origin", 4)
    world.put("origin", {"extra": b"extra"}, "more")
    world.attach("more", "f0", "f1")
    one, two = world.declare("ds", 1, "a"), world.declare("more", 1, "a", comment="two")
    world.settle()
    world.cancel(one)
    gate = Gate(moment)
    first = gate.stops(world.judge.run_once)
    world.cancel(two)
    second = Beside(other.run_once)
    gate.open(first, second)
    emptied(world)
    assert (world.state(one), world.state(two)) == ("gone", "gone")
    assert world.count("a") == 0


@pytest.mark.parametrize("arrived", [False, True], ids=["still copying", "arrived"])
@pytest.mark.parametrize(
    "moment", ["judge.place:before-commit", "judge.let-go:before-commit", "judge.let-go:after-commit"]
)
def test_a_rule_declared_beside_a_let_go_of_the_same_replicas_has_them(
    world: World, other: Judge, moment: str, arrived: bool
) -> None:
    world.many("origin", 4)
    old = world.declare("ds", 1, "a")
    world.settle() if arrived else world.run(world.judge)
    world.cancel(old)
    gate = Gate(moment)
    first = gate.stops(world.judge.run_once)
    new = world.declare("ds", 1, "a", comment="new")
    second = Beside(other.run_once)
    gate.open(first, second)
    emptied(world)
    assert (world.state(old), world.state(new)) == ("gone", "ok")
    assert world.count("a") == 4


def test_a_lock_filled_while_a_let_go_waits_for_the_request_gets_its_replica(world: World, other: Judge) -> None:
    """1. A let-go finds nothing that protects a replica, and waits for its request. 2. A new lock is placed and filled:
    the replica is coming already. 3. The let-go drops both, the replica and the request."""
    world.many("origin", 2)
    old = world.declare("ds", 1, "a")
    world.run(world.judge)
    world.cancel(old)
    with world.begin("holder") as tx:
        tx.run("SELECT FROM request FOR UPDATE")
        first = blocked(world, world.judge.run_once)
        new = world.declare("ds", 1, "a", comment="new")
        world.run(other)
        with world.begin() as look:
            assert look.scalar("SELECT count(*) FROM lock WHERE NOT is_released AND fill_after IS NULL") == 1
    assert first.finish() == []
    settled(world)
    assert world.state(new) == "ok" and world.count("a") == 2
