"""Two judges at once: nothing is done twice, nothing is promised twice, nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from catalogue import Beside
from dlm.core import amending, consequences, folding, rules
from dlm.core.ledger import Ledger
from dlm.core.placing import Limits
from dlm.daemons.judge import Judge
from dlm.db import changes, filling, replicas, usage
from dlm.db import rules as db_rules
from dlm.db.engine import Tx
from dlm.errors import Conflict
from dlm.types import ChangeKind
from gates import PATIENCE_S, Gate, blocked, emptied, settled, turn
from world import DAY, SCOPE, World

# --- two judges --------------------------------------------------------------------------------------------------


def test_two_judges_judge_each_rule_once(world: World, other: Judge) -> None:
    names = world.many("origin", 6)
    made = [world.declare(name, 1, "type=disk") for name in names]
    world.judge.limits = other.limits = Limits(batch_rules=3)
    gate = Gate("judge.place:before-commit")
    first = gate.stops(world.judge.run_once)
    second = blocked(world, other.run_once)
    gate.open(first, second)
    settled(world)
    assert [world.state(rule) for rule in made] == ["ok"] * 6
    with world.begin() as tx:
        rows = tx.rows("SELECT count(*) AS n FROM event WHERE object = 'rule' AND action = 'placed' GROUP BY object_id")
    assert [row.n for row in rows] == [1] * 6


@pytest.mark.parametrize("delay_s", [0, DAY])
def test_a_rule_that_is_declared_while_its_did_ends_ends_with_it(world: World, delay_s: float) -> None:
    """1. a declaration has found its dataset; 2. that expires, and a judge ends the rules that it sees; 3. the rule is made."""
    world.many("origin", 3)
    with world.begin() as tx:
        tx.run("UPDATE did SET expires_at = %(now)s WHERE name = 'ds'")
    with world.begin() as holder:
        db_rules.ensure_expressions(holder, {"a": []})
        declaring = blocked(world, lambda: world.declare("ds", 1, "a", delay_s=delay_s))
        world.run(world.judge)
    assert not declaring.finish()
    settled(world)
    world.later(delay_s)
    with world.begin() as tx:
        (rule,) = rules.list_rules(tx, state="gone")[0]
    assert rule["reason"] == "its DID ended" and world.count("a") == 0
    settled(world)


def test_two_judges_that_fill_locks_of_one_dataset_do_not_wait_for_each_other(world: World, other: Judge) -> None:
    """Both find that the dataset grew. Each brings its own locks to the new size; who touched the other's would
    wait for it for ever."""
    world.many("origin", 3)
    world.declare("ds", 1, "a")
    world.declare("ds", 1, "b")
    with world.begin() as tx:
        world.judge._place(world.judge.run_once(dry_run=True), False)
    limits = Limits(chunk_files=1)  # one lock at a time

    def fill() -> None:
        with world.begin("fill") as tx:
            consequences.fill_small(tx, limits)

    with world.begin("holder") as tx:
        tx.run("INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)"
               " SELECT d.id, s.id, 'copying', 1, %(now)s FROM did d, storage s"
               " WHERE d.name = 'f0' AND s.type = 'disk'")  # fmt: skip
        first = blocked(world, fill)
        second = blocked(world, fill, 2)
        world.many("origin", 2, prefix="late")
        tx.connection.rollback()
    assert (first.finish(), second.finish()) == ([], [])
    settled(world)
    with world.begin() as tx:
        assert [row.files for row in tx.rows("SELECT files FROM lock")] == [5, 5]


def test_placing_and_folding_at_once_take_usage_in_the_same_order(world: World, other: Judge) -> None:
    world.many("origin", 3)
    world.declare("ds", 1, "a")
    world.settle()
    world.many("origin", 2, prefix="late")
    world.declare("f0", 1, "a")
    with world.begin("holder") as tx:
        tx.run("SELECT FROM account_usage FOR UPDATE")
        folds = blocked(world, lambda: _fold(world))
        places = blocked(world, lambda: world.judge._place(world.judge.run_once(dry_run=True), False), 2)
    assert (folds.finish(), places.finish()) == ([], [])
    settled(world)


def _fold(world: World) -> None:
    with world.begin("fold") as tx:
        folding.fold(tx, 100, DAY)


def test_two_judges_never_promise_the_same_space(world: World, other: Judge) -> None:
    world.add_storage("cup", "oslo", type="cup", capacity_bytes=1000)
    world.put("origin", {"one": b"1" * 600, "two": b"2" * 600})
    made = [world.declare("one", 1, "type=cup"), world.declare("two", 1, "type=cup")]
    world.judge.limits = other.limits = Limits(batch_rules=1)
    gate = Gate("judge.place:before-commit")
    first = gate.stops(world.judge.run_once)
    second = blocked(world, other.run_once)
    gate.open(first, second)
    settled(world)
    assert sorted(world.state(rule) for rule in made) == ["impossible", "ok"]


def test_however_two_judges_meet_a_storage_is_never_promised_beyond_its_capacity(world: World, other: Judge) -> None:
    world.add_storage("cup", "oslo", type="cup", capacity_bytes=2500)
    sizes = {f"n{index}": 100 + 37 * index for index in range(30)}
    world.put("origin", {name: b"x" * size for name, size in sizes.items()})
    world.judge.limits = other.limits = Limits(batch_rules=1)
    for name in sizes:
        world.declare(name, 1, "type=cup")
    start = threading.Barrier(2)

    def judge(one: Judge) -> None:
        start.wait(PATIENCE_S)
        for _ in range(40):
            one.run_once()

    both = [Beside(lambda one=one: judge(one)) for one in (world.judge, other)]  # type: ignore[misc]
    assert [each.finish() for each in both] == [[], []]
    settled(world)
    with world.begin() as tx:
        row = tx.one("SELECT u.used_bytes, u.reserved_bytes FROM storage_usage u JOIN storage s ON s.id = u.storage_id"
                     " WHERE s.name = 'cup'")  # fmt: skip
        states = {row.state: row.n for row in tx.rows("SELECT state, count(*) AS n FROM rule GROUP BY state")}
    assert row is not None and row.used_bytes <= 2500 and row.reserved_bytes == 0
    assert set(states) == {"ok", "impossible"} and row.used_bytes > 2500 - max(sizes.values())


def test_a_storage_retired_beside_a_placement_gets_no_lock(world: World) -> None:
    world.put("origin", {"f0": b"f 0 "}, "ds")
    world.add_storage("c", "oslo", type="cup")
    rule = world.declare("ds", 1, "type=cup")
    with world.begin("retire") as tx:
        tx.run("SELECT FROM storage_usage u JOIN storage s ON s.id = u.storage_id WHERE s.name = 'c' FOR UPDATE OF u")
        judging = blocked(world, world.judge.run_once)
        tx.run("UPDATE storage SET deleted_at = %(now)s WHERE name = 'c'")
    assert judging.finish() == []
    world.run(world.judge)
    assert world.state(rule) == "impossible"
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM lock") == 0


def test_changes_are_folded_by_one_judge_at_a_time_and_once(world: World, other: Judge) -> None:
    world.many("origin", 4)
    world.declare("ds", 1, "a")
    world.run(world.judge)
    world.conveyor.run_once()
    gate = Gate("judge.fold:before-commit")
    first = gate.stops(world.judge.run_once)
    world.many("origin", 2, prefix="late")
    assert "changes" not in other.run_once().counts
    gate.open(first)
    settled(world)
    with world.begin() as tx:
        assert [(row.files, row.files_ok) for row in tx.rows("SELECT files, files_ok FROM lock")] == [(6, 6)]


def test_a_rule_found_ok_while_one_of_its_replicas_is_harmed_is_counted_again(world: World, other: Judge) -> None:
    world.many("origin", 2)
    rule = world.declare("ds", 1, "a")
    world.settle()
    with world.begin() as tx:
        amending.update(tx, rule, {"comment": "look again"})
    gate = Gate("judge.place:before-commit")
    first = gate.stops(world.judge.run_once)
    turn(world, "bad")
    with world.begin() as tx:
        row = tx.one("SELECT did_id, storage_id FROM replica WHERE state = 'bad'")
        assert row is not None
        changes.add_by_storage(tx, ChangeKind.HARMED, [(row.did_id, row.storage_id)])
    second = blocked(world, other.run_once)
    gate.open(first, second)
    world.run(world.judge)
    assert world.state(rule) == "replicating"
    settled(world)
    assert world.state(rule) == "ok"


def test_a_rule_found_ok_while_files_join_it_waits_for_them(world: World, other: Judge) -> None:
    world.many("origin", 2)
    rule = world.declare("ds", 1, "a")
    world.run(world.judge, world.conveyor)
    with world.begin() as tx:
        tx.run("UPDATE rule SET state = 'replicating', next_judge_at = %(now)s")
    gate = Gate("judge.place:before-commit")
    first = gate.stops(world.judge.run_once)
    world.many("origin", 2, prefix="late")
    second = blocked(world, other.run_once)
    gate.open(first, second)
    assert world.state(rule) == "replicating"
    world.check()
    settled(world)
    assert world.state(rule) == "ok"


# --- one order of locks ------------------------------------------------------------------------------------------


def test_space_is_held_in_the_order_of_storages_wherever_it_was_placed(world: World) -> None:
    """1. We place at b; 2. a conveyor counts what arrived at a; 3. we write what we gave back at a, and wait; 4. it goes
    on to b."""
    a, b = (world.storage_id(name) for name in "ab")
    ledger = Ledger()
    ledger.place(world.actor.account_id, b, 0, 0, 0)
    ledger.storages.add(a, used_bytes=1)

    def close() -> None:
        with world.begin() as tx:
            ledger.close(tx)

    with world.begin() as tx:
        usage.hold_storages(tx, [a])
        closing = blocked(world, close)
        usage.hold_storages(tx, [b])
    assert closing.finish() == []


def test_a_fold_that_lets_go_and_fills_locks_replicas_in_the_order_of_their_keys(world: World) -> None:
    """1. Who deletes f0 and f1 writes down the first; 2. we let go of f1; 3. we make f0 anew, and wait; 4. f1 is next there."""
    world.many("origin", 2)
    rule = world.declare("ds", 1, "a")
    settled(world)
    first, second = (world.did_id(name) for name in ("f0", "f1"))
    a = world.storage_id("a")
    world.detach("ds", "f1")
    with world.begin() as tx:
        changes.add(tx, ChangeKind.GONE, storage_id=a, file_ids=[first])
    with world.begin() as tx:
        hold = "UPDATE replica SET fence = fence WHERE did_id = %(did)s AND storage_id = %(a)s"
        tx.run(hold, did=first, a=a)
        folding_ = blocked(world, world.judge.run_once)
        tx.run(hold, did=second, a=a)
    assert folding_.finish() == []
    settled(world)
    assert world.state(rule) == "ok"


def test_letting_go_of_what_stands_and_of_what_was_to_come_locks_replicas_in_one_order(world: World) -> None:
    """1. Who looks at f0 and f1 holds the first; 2. we end the request of f1, and its replica with it; 3. we let go of f0,
    and wait; 4. f1 is next there."""
    world.many("origin", 1)
    rule = world.declare("ds", 1, "a")
    settled(world)
    world.put("origin", {"f1": b"f 1 "}, "ds", verified=True)
    world.run(world.judge)
    assert world.where("f1")["a"] == "copying"
    first, second = (world.did_id(name) for name in ("f0", "f1"))
    world.cancel(rule)
    with world.begin() as tx:
        replicas.hold_files(tx, [first])
        letting_go_ = blocked(world, lambda: world.run(world.judge))
        replicas.hold_files(tx, [second])
    assert letting_go_.finish() == []
    emptied(world)
    assert world.count("a") == 0


def test_single_files_are_locked_before_the_replicas_of_others(world: World) -> None:
    """1. Who lets go of f0 and f1 holds their locks, and waits at the replica of f0; 2. we fold f1 that joined again, and
    hold its replica; 3. we lock f1, and wait; 4. its replica is next there."""
    world.many("origin", 2)
    world.many("origin", 1, dataset="else", prefix="x")
    world.declare("ds", 1, "a", grouping="none")
    settled(world)
    f0, x0 = (world.did_id(name) for name in ("f0", "x0"))
    a, b = (world.storage_id(name) for name in "ab")
    world.detach("ds", "f0", "f1")
    with world.begin() as tx:
        folding.fold(tx, 100, 100)
    world.attach("ds", "f1")
    with world.begin() as tx:
        changes.add(tx, ChangeKind.GONE, storage_id=b, file_ids=[x0])
    with world.begin() as tx:
        filling.hold_standing(tx, [(f0, a)], [])
        going = blocked(world, lambda: _in_one(world, lambda tx: consequences.let_go_small(tx, Limits(), 100)))
        folded = blocked(world, lambda: _in_one(world, lambda tx: folding.fold(tx, 100, 100)), 2)
    assert [going.finish(), folded.finish()] == [[], []]
    settled(world)


def _in_one(world: World, act: Callable[[Tx], object]) -> None:
    with world.begin() as tx:
        act(tx)


def test_two_who_declare_the_same_wishes_in_other_orders_do_not_both_wait(world: World) -> None:
    """1. One has f1 and waits for f0, which a third declares; 2. the other has f2 and waits for f1; 3. f2 is next for the one."""
    names = world.many("origin", 3)
    world.declare("ds", 1, "a")  # the expression is known

    def declare(*wanted: str) -> Callable[[], None]:
        wishes = [rules.Declaration(f"{SCOPE}:{name}", 1, "a") for name in wanted]
        return lambda: _in_one(world, lambda tx: rules.declare(tx, wishes))

    with world.begin() as tx:
        rules.declare(tx, [rules.Declaration(f"{SCOPE}:f0", 1, "a")])
        one = blocked(world, declare("f1", "f0", "f2"))
        assert Beside(declare("f2", "f1")).finish() == []
    assert one.finish() == [Conflict]  # f0 is asked for already
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM rule") == 1 + len(names)
