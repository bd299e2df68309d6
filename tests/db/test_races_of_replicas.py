"""Races on the judge's side: new locks beside a reaper, and on replicas in every state."""

from __future__ import annotations

from typing import Any

import pytest

from catalogue import Beside
from dlm import effects
from dlm.errors import Transient
from gates import PATIENCE_S, Gate, doomed, emptied, settled, turn
from world import World

# --- beside a reaper ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    ["reaper.mark:before-commit", "reaper.mark:after-commit", "reaper.recheck:before-commit",
     "reaper.recheck:after-commit", "reaper.record:before-commit", "reaper.record:after-commit"],
)  # fmt: skip
def test_a_rule_declared_beside_a_reaper_has_its_replicas_in_the_end(world: World, moment: str) -> None:
    doomed(world)
    gate = Gate(moment)
    reaping = gate.stops(world.reaper.run_once)
    rule = world.declare("ds", 1, "a", comment="again")
    judging = Beside(lambda: world.run(world.judge))
    gate.open(reaping, judging)
    emptied(world)
    assert world.state(rule) == "ok" and world.count("a") == 2


@pytest.mark.parametrize("moment", ["reaper.recheck:before-commit", "reaper.recheck:after-commit"])
def test_a_rule_let_go_again_while_the_reaper_gives_its_replicas_back_leaves_nothing(world: World, moment: str) -> None:
    """1. The reaper sees a lock and brings the replicas back, without a tombstone. 2. The lock is let go: they are
    being deleted, so they are left alone. 3. The reaper commits."""
    doomed(world)
    marked = Gate("reaper.mark:after-commit")
    reaping = marked.stops(world.reaper.run_once)
    rule = world.declare("ds", 1, "a", comment="again")
    world.run(world.judge)
    rechecked = Gate(moment)
    marked._opened.set()
    assert rechecked._reached.wait(PATIENCE_S)
    world.cancel(rule)
    world.run(world.judge)
    rechecked.open(reaping)
    emptied(world)
    assert world.count("a") == 0 and not world.path("a", "f0").exists()


def test_a_second_look_after_a_lost_answer_deletes_nothing_that_the_first_gave_back(world: World) -> None:
    """1. The look finds a lock and gives the replicas back; the answer to its commit is lost. 2. The rule is cancelled.
    3. The look is tried again: nothing holds them, and they are not ours any more."""
    doomed(world)
    seen: list[str] = []

    def at(moment: str) -> None:
        if moment in seen or moment not in ("reaper.mark:after-commit", "reaper.recheck:after-commit"):
            return
        seen.append(moment)
        if moment == "reaper.mark:after-commit":
            rules.append(world.declare("ds", 1, "a", comment="again"))
            world.judge.run_once()
            return
        world.cancel(rules[0])
        world.judge.run_once()
        raise Transient("the answer is lost")

    rules: list[str] = []
    effects.install(at)
    world.reaper.run_once()
    assert len(seen) == 2 and world.path("a", "f0").exists()
    effects.install(None)
    world.check()
    emptied(world)
    assert world.count("a") == 0


# --- a new lock on a replica in each state -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "then", "request_"),
    [
        ("available", "available", None),
        ("unverified", "unverified", None),
        ("bad", "copying", {"is_repair": True, "waits_s": 0}),
        ("lost", "copying", {"is_repair": True, "waits_s": 0}),
        ("deleted", "copying", {"is_repair": False, "waits_s": 600}),
    ],
)
def test_a_new_lock_has_its_way_with_a_replica_in_any_state(
    world: World, state: str, then: str, request_: dict[str, Any] | None
) -> None:
    world.put("origin", {"f0": b"f 0 "}, "ds", verified=True)
    world.put("a", {"f0": b"f 0 "}, verified=True)
    turn(world, state)
    world.check()
    rule = world.declare("ds", 1, "a")
    world.run(world.judge)
    world.check()
    assert world.where("f0")["a"] == then
    with world.begin() as tx:
        row = tx.one("SELECT is_repair, extract(epoch FROM next_attempt_at - %(now)s)::int AS waits_s FROM request")
    assert (None if row is None else row._asdict()) == request_
    world.settle()
    world.later(601)
    assert world.state(rule) == "ok" and world.where("f0")["a"] == "available"
    assert world.path("a", "f0").read_bytes() == b"f 0 "
    emptied(world)
    assert world.where("f0")["a"] == "available"


def test_a_new_lock_on_a_copying_replica_joins_its_request_and_raises_it(world: World) -> None:
    world.many("origin", 2)
    world.declare("ds", 1, "a", priority=2)
    world.run(world.judge)
    world.declare("ds", 1, "type=disk&a", priority=5)
    world.run(world.judge)
    with world.begin() as tx:
        assert [row.priority for row in tx.rows("SELECT priority FROM request")] == [5, 5]
    settled(world)


def test_a_bad_replica_without_a_good_one_waits_for_it(world: World) -> None:
    world.put("a", {"f0": b"f 0 "}, "ds", verified=True)
    turn(world, "bad")
    rule = world.declare("ds", 1, "a")
    world.settle()
    world.later(31)
    world.check()
    assert world.state(rule) == "stuck" and "no good copy is left" in world.rule(rule)["reason"]
    world.put("origin", {"f0": b"f 0 "}, verified=True)
    settled(world)
    assert world.state(rule) == "ok" and world.path("a", "f0").read_bytes() == b"f 0 "


def test_a_new_lock_on_a_replica_that_is_being_deleted_makes_it_again(world: World) -> None:
    doomed(world)
    gate = Gate("reaper.recheck:after-commit")
    reaping = gate.stops(world.reaper.run_once)
    rule = world.declare("ds", 1, "a", comment="again")
    world.run(world.judge)
    assert world.where("f0")["a"] == "deleting"
    gate.open(reaping)
    assert "a" not in world.where("f0")
    world.run(world.judge)
    assert world.where("f0")["a"] == "copying"
    settled(world)
    assert world.state(rule) == "ok"
