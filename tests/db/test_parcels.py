"""Locks on single files are placed as parcels: filled once, written once, and let go only when nobody fills them."""

from __future__ import annotations

import pytest

from catalogue import Beside
from dlm.core import consequences, folding, rules
from dlm.core.placing import Limits
from dlm.daemons.judge import Judge
from dlm.daemons.loop import Pass
from gates import Gate, blocked, emptied, settled
from world import DAY, World

FILLED = "judge.fill-parcels:before-commit"


def place(world: World) -> None:
    """The locks of the rules that are due, and no replica for them yet."""
    world.judge._place(Pass(), False)


def fill(world: World, limits: Limits | None = None) -> int:
    with world.begin("fill") as tx:
        return consequences.fill_parcels(tx, limits or world.judge.limits)[0]


def let_go(world: World) -> int:
    with world.begin("let go") as tx:
        return consequences.let_go_small(tx, world.judge.limits, DAY)[0]


def test_a_filled_lock_is_as_it_was_placed(world: World) -> None:
    world.many("origin", 5)
    world.declare("ds", 1, "type=disk", grouping="none")
    place(world)
    with world.begin() as tx:
        placed = tx.rows("SELECT did_id, storage_id, xmin::text FROM lock ORDER BY 1, 2")
    assert fill(world) == 5
    with world.begin() as tx:
        assert tx.rows("SELECT did_id, storage_id, xmin::text FROM lock ORDER BY 1, 2") == placed
        assert tx.scalar("SELECT count(*) FROM parcel") == 0
    world.check()


def test_what_a_parcel_promises_is_reserved_until_replicas_reserve_it(world: World) -> None:
    world.many("origin", 5)
    world.declare("ds", 1, "type=disk", grouping="none")
    place(world)
    world.check()
    with world.begin() as tx:
        reserved = tx.scalar("SELECT sum(reserved_bytes) FROM storage_usage")
    assert reserved > 0 and fill(world) == 5
    with world.begin() as tx:
        assert tx.scalar("SELECT sum(reserved_bytes) FROM storage_usage") == reserved
    world.check()


def test_a_rule_tells_that_its_locks_are_not_filled_yet(world: World) -> None:
    world.many("origin", 3)
    rule = world.declare("ds", 1, "type=disk", grouping="none")
    place(world)
    with world.begin() as tx:
        assert rules.get(tx, rule)["progress"]["locks_to_fill"] == 3
        assert [lock["filled"] for lock in rules.locks(tx, rule)[0]] == [False] * 3
    fill(world)
    with world.begin() as tx:
        assert rules.get(tx, rule)["progress"]["locks_to_fill"] == 0
        assert [lock["filled"] for lock in rules.locks(tx, rule)[0]] == [True] * 3


def test_a_rule_whose_files_are_there_is_ok_without_a_copy(world: World) -> None:
    world.many("origin", 4)
    world.settle()
    rule = world.declare("ds", 1, "origin", grouping="none")
    world.run(world.judge)
    assert world.state(rule) == "ok"


def test_many_small_rules_are_filled_together(world: World) -> None:
    for name in world.many("origin", 8):
        world.declare(name, 1, "type=disk", grouping="none")
    place(world)
    assert fill(world) == 8


def test_parcels_of_another_priority_are_filled_by_themselves(world: World) -> None:
    names = world.many("origin", 2)
    world.declare(names[0], 1, "a", grouping="none", priority=1)
    world.declare(names[1], 1, "a", grouping="none", priority=5)
    place(world)
    assert (fill(world), fill(world), fill(world)) == (1, 1, 0)
    with world.begin() as tx:
        assert [row.priority for row in tx.rows("SELECT priority FROM request ORDER BY did_id")] == [1, 5]


def test_what_is_locked_in_a_parcel_is_not_let_go_before_that_is_filled(world: World) -> None:
    world.many("origin", 4)
    rule = world.declare("ds", 1, "type=disk", grouping="none")
    place(world)
    world.cancel(rule)
    place(world)
    with world.begin() as tx:
        assert tx.scalar("SELECT bool_and(is_released) FROM lock")
    assert (let_go(world), fill(world)) == (0, 0)
    let_go(world)
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM lock") == 0 == tx.scalar("SELECT count(*) FROM parcel")
        assert tx.scalar("SELECT sum(reserved_bytes) FROM storage_usage") == 0
    emptied(world)


@pytest.mark.parametrize("moment", [FILLED, FILLED.replace("before", "after")])
def test_a_rule_cancelled_while_its_parcel_is_filled_leaves_nothing(world: World, other: Judge, moment: str) -> None:
    world.many("origin", 6)
    rule = world.declare("ds", 1, "type=disk", grouping="none")
    gate = Gate(moment)
    first = gate.stops(lambda: world.run(world.judge))
    world.cancel(rule)
    second = Beside(lambda: [other.run_once() for _ in range(3)])
    assert second.finish() == []
    gate.open(first)
    world.later(60)
    emptied(world)
    assert world.state(rule) == "gone" and world.count("a") == 0 == world.count("b")
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM lock") == 0 == tx.scalar("SELECT sum(reserved_bytes) FROM storage_usage")


def test_a_file_detached_while_its_parcel_is_filled_is_let_go(world: World, other: Judge) -> None:
    world.many("origin", 6)
    rule = world.declare("ds", 1, "a", grouping="none")
    gate = Gate(FILLED)
    first = gate.stops(lambda: world.run(world.judge))
    world.detach("ds", "f0", "f5")
    second = Beside(lambda: [other.run_once() for _ in range(3)])
    assert second.finish() == []
    gate.open(first)
    emptied(world)
    assert world.state(rule) == "ok" and all(list(world.where(name)) == ["origin"] for name in ("f0", "f5"))


def test_two_judges_fill_parcels_of_one_rule_side_by_side(world: World, other: Judge) -> None:
    world.many("origin", 6)
    rule = world.declare("ds", 1, "type=disk", grouping="none")
    world.judge.limits = Limits(chunk_files=3)
    place(world)
    place(world)
    gate = Gate("fill:before-commit")
    first = gate.stops(lambda: fill(world, Limits(chunk_files=3)))
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM parcel") == 2
    second = Beside(lambda: fill(world, Limits(chunk_files=3)))
    assert second.finish() == []
    gate.open(first)
    settled(world)
    assert world.state(rule) == "ok"


def test_files_that_join_while_a_parcel_waits_are_filled_by_themselves(world: World) -> None:
    world.many("origin", 4)
    rule = world.declare("ds", 1, "type=disk", grouping="none")
    place(world)
    world.many("origin", 2, prefix="late")
    settled(world)
    assert world.state(rule) == "ok" and world.count("a") + world.count("b") == 6


def test_a_rule_is_ok_at_once_when_its_copies_came_before_its_parcel_was_filled(world: World) -> None:
    """1. two rules are placed, and nothing is there; 2. the first is filled, and its copies arrive, while the second's
    parcel waits; 3. that is filled: nothing has to come that would wake its rule."""
    world.many("origin", 4)
    world.settle()
    made = [world.declare("ds", copies, "a", grouping="none") for copies in (1, None)]
    place(world)
    limits = Limits(chunk_files=4)
    assert fill(world, limits) == 4
    world.run(world.conveyor)
    with world.begin("fold") as tx:
        folding.fold(tx, 100, DAY)
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM parcel WHERE NOT has_copies") == 1
    assert fill(world, limits) == 0
    place(world)
    assert [world.state(rule) for rule in made] == ["ok", "ok"]
    settled(world)


def test_a_rule_is_ok_at_once_when_the_rest_of_its_files_left_before_their_parcel_was_filled(world: World) -> None:
    world.many("origin", 4)
    world.settle()
    rule = world.declare("ds", 1, "a", grouping="none")
    world.judge.limits = Limits(chunk_files=2)
    place(world)
    place(world)
    assert fill(world) == 2
    world.run(world.conveyor)
    world.detach("ds", "f2", "f3")
    with world.begin("fold") as tx:
        folding.fold(tx, 100, DAY)
    place(world)
    assert fill(world) == 0
    place(world)
    assert world.state(rule) == "ok"
    emptied(world)


def test_a_file_that_gets_a_copy_while_it_is_placed_is_not_left_out(world: World) -> None:
    """1. a judge has seen where the files stand, and planned for each kind of them; 2. a copy of one comes, so that it is
    of a kind for which nothing was planned; 3. the judge writes the locks."""
    names = world.many("origin", 6)
    world.settle()
    rule = world.declare("ds", 1, "a", grouping="none")
    with world.begin("holder") as tx:
        tx.run("LOCK TABLE lock IN SHARE MODE")  # reading what is locked goes on
        placing = blocked(world, lambda: world.judge._place(Pass(), False))
        world.put("a", {names[0]: world.path("origin", names[0]).read_bytes()}, verified=True)
    assert placing.finish() == []
    settled(world)
    assert world.state(rule) == "ok"
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM lock") == 6


