"""Moving a rule: the old one stays, undiminished, until the new one is ok, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlm import effects
from dlm.clock import ManualClock
from dlm.core import amending, expression, moving, rules, why
from dlm.daemons.judge import Judge
from dlm.db.engine import Database
from dlm.errors import CannotPlace, Conflict, InvalidInput
from gates import Gate, blocked, settled
from world import DAY, World


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> Iterator[World]:
    """Storages a, b and c, and two datasets in a container whose files are at `origin`."""
    world = World(database, clock, tmp_path, breaker_delete_share=1)
    for name, site in (("a", "perth"), ("b", "bern"), ("c", "oslo")):
        world.add_storage(name, site)
    world.add_storage("origin", "perth", type="source")
    world.many("origin", 6, "one")
    world.many("origin", 4, "two", prefix="g")
    world.container("box", "one", "two")
    yield world
    effects.install(None)


def move(world: World, rule: str, to: str, key: str | None = None, **more: Any) -> str:
    with world.begin() as tx:
        return moving.move(tx, rule, {"storages": to, **more}, key).id


def there(world: World) -> dict[str, int]:
    return {name: count for name in "abc" if (count := world.count(name))}


def empty(world: World) -> None:
    world.settle()
    world.later(2 * DAY)
    world.later(2 * DAY)
    world.check()


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
def test_the_new_copies_stand_before_the_old_ones_go(world: World, grouping: str) -> None:
    old = world.declare("box", 1, "a", grouping=grouping, lifetime_s=30 * DAY, priority=4, comment="mine")
    world.settle()
    new = move(world, old, "b")
    world.check()
    facts = world.rule(new)
    assert (facts["moves_from"], world.rule(old)["moves_to"]) == (old, new)
    assert [facts[key] for key in ("copies", "grouping", "priority", "comment")] == [1, grouping, 4, "mine"]
    assert facts["expires_at"] == world.rule(old)["expires_at"]
    world.run(world.judge)
    assert there(world) == {"a": 10} and world.state(old) == "ok"
    world.settle()
    assert world.state(new) == "ok" and world.state(old) == "gone" and there(world) == {"a": 10, "b": 10}
    empty(world)
    assert there(world) == {"b": 10}
    assert world.rule(new)["moves_from"] is None and world.rule(old)["moves_to"] == new
    with world.begin() as tx:
        acts = {event["action"]: event["cause"] for event in (*rules.history(tx, old)[0], *rules.history(tx, new)[0])}
        told = [step["text"] for step in why.rule(tx, old)["chain"]]
    assert acts["moved"] == acts["took over"] == "moved"
    assert f"to be moved to b: it stays until rule {new} is ok" in told and f"rule {new} is ok and takes its place" in told


def test_what_the_new_rule_holds_too_stays_where_it_is(world: World) -> None:
    old = world.declare("one", 2, "a|b")
    world.settle()
    new = move(world, old, "b|c")
    world.settle()
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM attempt WHERE outcome = 'done'") == 18  # b was there
    empty(world)
    assert there(world) == {"b": 6, "c": 6} and world.state(new) == "ok"


def test_while_one_file_cannot_come_nothing_of_the_old_rule_goes(world: World) -> None:
    old = world.declare("one", 1, "a")
    world.settle()
    new = move(world, old, "b")
    blocker = world.path("b", "f3")
    blocker.parent.mkdir(parents=True, exist_ok=True)
    blocker.write_bytes(b"something else")
    world.settle()
    world.later(10 * DAY)
    assert world.state(new) != "ok" and world.state(old) == "ok" and world.count("a") == 6
    blocker.unlink()
    world.later(DAY)
    empty(world)
    assert there(world) == {"b": 6}


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_new_rule_that_ends_before_it_is_ok_takes_the_move_back(world: World, how: str) -> None:
    old = world.declare("one", 1, "a")
    world.settle()
    new = move(world, old, "b")
    world.run(world.judge)
    if how == "expired":
        with world.begin() as tx:
            amending.update(tx, new, {"lifetime_s": 1})
        world.clock.advance(2)
    else:
        world.cancel(new)
    empty(world)
    assert (world.state(old), world.state(new), there(world)) == ("ok", "gone", {"a": 6})
    assert world.rule(old)["moves_to"] is None
    again = move(world, old, "c")
    empty(world)
    assert (world.state(old), world.state(again), there(world)) == ("gone", "ok", {"c": 6})


def test_when_the_old_rule_is_cancelled_meanwhile_the_new_one_goes_on(world: World) -> None:
    old = world.declare("one", 1, "a")
    world.settle()
    new = move(world, old, "b")
    world.cancel(old)
    assert world.rule(new)["moves_from"] is None
    empty(world)
    assert (world.state(old), world.state(new), there(world)) == ("gone", "ok", {"b": 6})


def test_a_rule_that_is_moved_on_before_it_is_ok_passes_its_turn_on(world: World) -> None:
    """B never comes to be ok; A goes when C is."""
    first = world.declare("one", 1, "a")
    world.settle()
    second = move(world, first, "b")
    (world.root / "b").rename(world.root / "b.away")
    third = move(world, second, "c")
    world.run(world.judge)
    assert world.state(first) == "ok"
    world.settle()
    assert [world.state(rule) for rule in (first, second, third)] == ["gone", "gone", "ok"]
    assert [world.rule(rule)["moves_to"] for rule in (first, second)] == [third, third]
    (world.root / "b.away").rename(world.root / "b")
    empty(world)
    assert there(world) == {"c": 6}


def test_of_a_chain_the_first_goes_when_the_second_is_ok_and_the_second_stays_for_the_third(world: World) -> None:
    first = world.declare("one", 1, "a")
    world.settle()
    second = move(world, first, "b")
    (world.root / "c").rename(world.root / "c.away")
    third = move(world, second, "c")
    empty_but(world)
    assert [world.state(rule) for rule in (first, second)] == ["gone", "ok"] and there(world) == {"b": 6}
    world.cancel(third)
    (world.root / "c.away").rename(world.root / "c")
    empty(world)
    assert world.state(second) == "ok" and there(world) == {"b": 6}


def empty_but(world: World) -> None:
    """At rest, with a storage away that cannot be compared."""
    world.settle()
    world.later(2 * DAY)
    world.later(2 * DAY)


def test_a_move_of_what_was_moved_and_cancelled_does_not_reach_further_back(world: World) -> None:
    """A to B, B to C; B is cancelled: C goes on, and A stands: its move was taken back."""
    first = world.declare("one", 1, "a")
    world.settle()
    second = move(world, first, "b")
    third = move(world, second, "c")
    world.cancel(second)
    empty(world)
    assert [world.state(rule) for rule in (first, second, third)] == ["ok", "gone", "ok"]
    assert there(world) == {"a": 6, "c": 6}


def test_a_rule_whose_successor_was_moved_on_can_be_moved_again_when_that_ends(world: World) -> None:
    """A is locked: it stays though C is ok. B has ended; what A moves to is C, and when C is cancelled nothing."""
    first = world.declare("one", 1, "a")
    world.settle()
    second = move(world, first, "b")
    (world.root / "b").rename(world.root / "b.away")
    third = move(world, second, "c")
    with world.begin() as tx:
        amending.update(tx, first, {"locked": True})
    world.settle()
    assert [world.state(rule) for rule in (first, second, third)] == ["ok", "gone", "ok"]
    assert [world.rule(rule)["moves_to"] for rule in (first, second)] == [third, third]
    world.cancel(third)
    assert [world.rule(rule)["moves_to"] for rule in (first, second)] == [None, third]
    with world.begin() as tx:
        amending.update(tx, first, {"locked": False})
    fourth = move(world, first, "c")
    (world.root / "b.away").rename(world.root / "b")
    empty(world)
    assert [world.state(rule) for rule in (first, fourth)] == ["gone", "ok"] and there(world) == {"c": 6}


@pytest.mark.parametrize("switch", ["locked", "suspended"])
def test_a_rule_that_is_locked_or_suspended_on_the_way_stays(world: World, switch: str) -> None:
    old = world.declare("one", 1, "a")
    world.settle()
    new = move(world, old, "b")
    with world.begin() as tx:
        amending.update(tx, old, {switch: True})
    world.settle()
    assert (world.state(old), world.state(new)) == ("suspended" if switch == "suspended" else "ok", "ok")
    assert world.judge.run_once().next_due_s != 0
    with world.begin() as tx:
        amending.update(tx, old, {switch: False})
    empty(world)
    assert there(world) == {"b": 6}


def test_all_but_the_account_and_the_did_can_be_others(world: World) -> None:
    old = world.declare("one", 1, "a", spread="site", sources="origin", weight=None)
    world.settle()
    new = world.rule(move(world, old, "a|b|c", copies=None, grouping="none", spread=None, sources=None))
    assert (new["copies"], new["grouping"], new["spread"], new["sources"]) == ("*", "none", None, None)
    empty(world)
    assert there(world) == {"a": 6, "b": 6, "c": 6}


@pytest.mark.parametrize(
    ("was", "to", "is_same"),
    [
        ("type=disk&country=AU&site=perth", "site=perth&(country=AU&type=disk)", True),
        ("(type=disk|a)&site=perth", "site=perth&(a|type=disk)", True),
        ("a|a", "a", True),
        ("type=disk&(site=perth|site=bern)", "type=disk&site=perth|site=bern", False),
        ("*\\type=disk", "type=disk\\*", False),
        ("a", "name=a", False),  # here they match the same, with other storages they need not
    ],
)
def test_expressions_that_ask_for_the_same_in_another_order_are_known(was: str, to: str, is_same: bool) -> None:
    assert moving.is_same(expression.parse(was), expression.parse(to)) is is_same


def test_moves_that_mean_nothing_or_cannot_be_are_refused_and_nothing_is_changed(world: World) -> None:
    old = world.declare("one", 1, "a|b")
    with pytest.raises(InvalidInput, match="is on a|b already") as same:
        move(world, old, " a | b ", grouping="none")
    assert same.value.field == "storages" and "--copies" in (same.value.hint or "")
    with pytest.raises(InvalidInput, match="is on a|b already"):
        move(world, old, "b|a")
    other = world.declare("one", 1, "c")
    with pytest.raises(Conflict, match="asks for this already") as standing:
        move(world, old, "c")
    assert standing.value.facts["rule"] == other and standing.value.field == "storages"
    with pytest.raises(CannotPlace):
        move(world, old, "nowhere")
    with pytest.raises(InvalidInput, match="cannot be changed"):
        move(world, old, "a", account="eve")
    with pytest.raises(InvalidInput, match="not said where"), world.begin() as tx:
        moving.move(tx, old, {})
    assert world.rule(old)["moves_to"] is None
    new = move(world, old, "b|c")
    with pytest.raises(Conflict, match="is moving to rule") as twice:
        move(world, old, "a")
    assert twice.value.facts["rule"] == new
    with world.begin() as tx:
        amending.update(tx, new, {"locked": True})
    with pytest.raises(Conflict, match="is locked"):
        move(world, new, "a")
    with world.begin() as tx:
        amending.update(tx, new, {"locked": False, "suspended": True})
    with pytest.raises(Conflict, match="is suspended"):
        move(world, new, "a")
    world.cancel(other)
    with pytest.raises(Conflict, match="has ended"):
        move(world, other, "a")


def test_a_retry_with_the_same_key_finds_the_first_move_even_when_it_is_over(world: World) -> None:
    old = world.declare("one", 1, "a")
    world.settle()
    new = move(world, old, "b", "k1")
    assert move(world, old, "b", "k1") == new
    with world.begin() as tx:
        amending.update(tx, old, {"comment": "changed meanwhile"})
    empty(world)
    assert move(world, old, "b", "k1") == new and world.state(old) == "gone"
    with pytest.raises(Conflict, match="used for another"):
        move(world, old, "c", "k1")
    with pytest.raises(Conflict, match="used for another"):
        move(world, old, "b", "k1", copies=None)


def test_many_moves_end_in_pieces(world: World) -> None:
    moves = [(old := world.declare(f"f{n}", 1, "a"), move(world, old, "b")) for n in range(6)]
    world.judge.limits = type(world.judge.limits)(batch_rules=2)
    settled(world)
    assert {(world.state(old), world.state(new)) for old, new in moves} == {("gone", "ok")}


# --- races -------------------------------------------------------------------------------------------------------


def moved_until_ok(world: World) -> tuple[str, str]:
    """A rule and its successor, which is ok; the judge has not looked again yet."""
    old = world.declare("one", 1, "a")
    world.settle()
    new = move(world, old, "b")
    world.judge.run_once()
    world.judge.run_once()
    world.run(world.conveyor)
    world.judge.run_once()
    assert (world.state(old), world.state(new)) == ("ok", "ok")
    return old, new


def test_a_new_rule_that_is_cancelled_first_keeps_the_old_one(world: World) -> None:
    """1. the new rule is being cancelled, not committed; 2. a judge looks for moves that are over; 3. it is committed."""
    old, new = moved_until_ok(world)
    gate = Gate("user:before-commit")

    def cancel() -> None:
        with world.begin("user") as tx:
            rules.cancel(tx, new)

    cancelling = gate.stops(cancel)
    world.judge.run_once()
    gate.open(cancelling)
    empty(world)
    assert (world.state(old), world.state(new), there(world)) == ("ok", "gone", {"a": 6})


def test_a_cancel_that_comes_while_the_old_rule_is_let_go_waits_and_ends_the_new_one(world: World) -> None:
    """Both end: the move was over when the new one was cancelled. All stays in the undo window."""
    old, new = moved_until_ok(world)
    gate = Gate("judge.end:before-commit")
    judging = gate.stops(world.judge.run_once)
    cancelling = blocked(world, lambda: world.cancel(new))
    gate.open(judging, cancelling)
    settled(world)
    assert (world.state(old), world.state(new), there(world)) == ("gone", "gone", {"a": 6, "b": 6})
    again = world.declare("one", 2, "a|b")
    settled(world)
    assert world.state(again) == "ok"


def test_two_judges_end_a_move_once(world: World) -> None:
    old, new = moved_until_ok(world)
    gate = Gate("judge.end:before-commit")
    first = gate.stops(world.judge.run_once)
    Judge(world.database, world.settings).run_once()
    gate.open(first)
    settled(world)
    with world.begin() as tx:
        assert [event["action"] for event in rules.history(tx, old)[0]].count("moved") == 1
        assert [event["action"] for event in rules.history(tx, new)[0]].count("took over") == 1
        assert tx.scalar("SELECT count(*) FROM change") == 0


def test_two_moves_of_one_rule_at_once_make_one(world: World) -> None:
    old = world.declare("one", 1, "a")
    world.settle()
    gate = Gate("user:before-commit")

    def first() -> None:
        with world.begin("user") as tx:
            moving.move(tx, old, {"storages": "b"})

    made = gate.stops(first)
    second = blocked(world, lambda: move(world, old, "c"))
    gate.open(made)
    assert second.finish() == [Conflict]
    empty(world)
    assert there(world) == {"b": 6}
