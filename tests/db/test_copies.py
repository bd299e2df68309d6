"""Asking a standing rule for more copies, or for fewer: nothing goes before what stays is complete."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dlm import effects
from dlm.clock import ManualClock
from dlm.core import accounts, amending, consequences, placing, replicas, rules, storages, why
from dlm.core.placing import Limits
from dlm.daemons.judge import Judge
from dlm.db.engine import Database
from dlm.errors import CannotPlace, Conflict, InvalidInput, QuotaExceeded
from gates import Gate, blocked, settled
from world import DAY, World

GROUPINGS = ("all", "dataset", "none")
PLACES = {"a": "perth", "b": "bern", "c": "oslo"}


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> Iterator[World]:
    """Storages a, b and c; two datasets in a container, their files at `origin`."""
    world = World(database, clock, tmp_path, breaker_delete_share=1)
    for name, site in PLACES.items():
        world.add_storage(name, site)
    world.add_storage("origin", "perth", type="source")
    world.many("origin", 6, "one")
    world.many("origin", 4, "two", prefix="g")
    world.container("box", "one", "two")
    yield world
    effects.install(None)


def ask(world: World, rule: str, copies: int | None) -> dict[str, Any]:
    with world.begin() as tx:
        return amending.update(tx, rule, {"copies": copies})


def released(world: World, rule: str) -> list[dict[str, Any]]:
    """What the surplus events of the rule say, newest first."""
    with world.begin() as tx:
        return [event["after"] for event in rules.history(tx, rule)[0] if event["action"] == "surplus"]


def locks(world: World, rule: str) -> list[tuple[str, str]]:
    with world.begin() as tx:
        return [(lock["did"], lock["storage"]) for lock in rules.locks(tx, rule)[0]]


def spoil(world: World, storage: str, *names: str) -> None:
    """These files' copies are rotten, and an auditor finds it."""
    with world.begin() as tx:
        for name in names:
            world.path(storage, name).write_bytes(b"?" * world.path(storage, name).stat().st_size)
        replicas.declare_bad(tx, [("test", name, storage) for name in names], "rotten")


def empty(world: World) -> None:
    world.settle()
    world.later(2 * DAY)
    world.later(2 * DAY)
    world.check()


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_more_copies_are_placed_beside_those_there_are(world: World, grouping: str) -> None:
    rule = world.declare("box", 1, "type=disk", grouping=grouping)
    world.settle()
    before = set(locks(world, rule))
    assert ask(world, rule, 2)["state"] == "declared"
    world.check()
    world.settle()
    assert world.state(rule) == "ok" and before < set(locks(world, rule))
    assert sum(world.count(name) for name in PLACES) == 20
    ask(world, rule, None)
    settled(world)
    assert [world.count(name) for name in PLACES] == [10, 10, 10]


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("before", [3, None])
def test_of_fewer_copies_the_others_wait_in_the_undo_window_and_go(world: World, grouping: str, before: int | None) -> None:
    rule = world.declare("box", before, "type=disk", grouping=grouping)
    world.settle()
    assert ask(world, rule, 1)["copies"] == 1
    world.check()
    settled(world)
    assert world.state(rule) == "ok" and sum(world.count(name) for name in PLACES) == 30
    empty(world)
    assert world.state(rule) == "ok"
    assert [len(set(world.where(f"f{n}")) & set(PLACES)) for n in range(6)] == [1] * 6
    with world.begin() as tx:
        assert {row.cause for row in tx.rows("SELECT DISTINCT cause FROM proof")} == {"surplus"}
        assert tx.scalar("SELECT charged_files FROM account_usage WHERE charged_files > 0 ORDER BY 1 DESC LIMIT 1") <= 10
    if grouping == "all":
        assert sorted(world.count(name) for name in PLACES) == [0, 0, 10]


def test_files_of_grouping_none_are_given_up_evenly(world: World) -> None:
    world.many("origin", 90, "large", prefix="h")
    rule = world.declare("large", 3, "type=disk", grouping="none")
    world.settle()
    ask(world, rule, 2)
    empty(world)
    assert all(40 <= world.count(name) <= 80 for name in PLACES)
    assert sum(world.count(name) for name in PLACES) == 180


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_nothing_goes_before_what_stays_is_complete(world: World, grouping: str) -> None:
    """One file is rotten at a, another at b: whichever stays has to be mended first."""
    rule = world.declare("one", 3, "type=disk", grouping=grouping)
    world.settle()
    spoil(world, "a", "f0", "f1")
    spoil(world, "b", "f0", "f1")
    ask(world, rule, 2)
    world.run(world.judge)
    held = {did: [storage for each, storage in locks(world, rule) if each == did] for did, _ in locks(world, rule)}
    waiting = ["test:one"] if grouping != "none" else ["test:f0", "test:f1"]
    assert all((len(storages) == 3) == (did in waiting) for did, storages in held.items())
    world.check()
    world.settle()
    world.later(60)
    assert world.state(rule) == "ok" and len(locks(world, rule)) == (2 if grouping != "none" else 12)
    empty(world)
    assert sum(world.count(name) for name in PLACES) == 12


def test_what_no_longer_matches_goes_first_and_the_rule_says_so(world: World) -> None:
    with world.begin() as tx:
        storages.set_attributes(tx, "c", {"tier": "1"})
    rule = world.declare("one", 3, "a|b|tier=1")
    world.settle()
    with world.begin() as tx:
        storages.set_attributes(tx, "c", {"tier": "2"})
    world.settle()
    ask(world, rule, 2)
    world.settle()
    assert released(world, rule) == [{"released": {"c": "no longer matches"}, "kept": ["a", "b"], "locks": 1}]
    with world.begin() as tx:
        told = [step["text"] for step in why.rule(tx, rule)["chain"]]
    assert "surplus released: c (no longer matches); kept a b" in told
    world.check()


def test_what_stays_obeys_the_spread(world: World) -> None:
    world.add_storage("d", "perth")
    rule = world.declare("one", None, "a|b|d")
    world.settle()
    with world.begin() as tx:
        tx.run("UPDATE rule SET spread = 'site'")
    ask(world, rule, 2)
    empty(world)
    assert world.count("b") == 6 and sorted([world.count("a"), world.count("d")]) == [0, 6]


def test_a_copy_that_never_came_is_given_up_at_once(world: World) -> None:
    rule = world.declare("one", 3, "type=disk")
    world.run(world.judge)
    (world.root / "c").rename(world.root / "c.away")
    world.settle()
    world.later(60)
    assert world.state(rule) != "ok"
    ask(world, rule, 2)
    world.settle()
    assert world.state(rule) == "ok" and sorted(storage for _, storage in locks(world, rule)) == ["a", "b"]
    (world.root / "c.away").rename(world.root / "c")
    empty(world)
    assert world.count("c") == 0


def test_a_replica_that_another_rule_holds_stays(world: World) -> None:
    rule = world.declare("one", 3, "type=disk")
    world.declare("box", 1, "c")
    world.settle()
    ask(world, rule, 1)
    empty(world)
    assert world.count("c") == 10


def test_asking_for_more_again_takes_back_what_is_being_let_go(world: World) -> None:
    rule = world.declare("one", 3, "type=disk")
    world.settle()
    ask(world, rule, 2)
    world.settle()
    ask(world, rule, 3)
    done = world.settle()
    assert world.state(rule) == "ok" and not done.counts.get("done")  # nothing moved
    world.later(2 * DAY)
    assert [world.count(name) for name in PLACES] == [6, 6, 6]
    world.check()


def test_many_files_are_trimmed_in_pieces_and_what_waits_holds_up_no_other(world: World) -> None:
    world.many("origin", 40, "large", prefix="h")
    rule = world.declare("large", 3, "type=disk", grouping="none")
    world.settle()
    for storage in PLACES:
        spoil(world, storage, "h0", "h1")  # at each of the three: none of them can be mended but from origin
    world.judge.limits = Limits(chunk_files=7)
    ask(world, rule, 2)
    world.run(world.judge)
    assert len(locks(world, rule)) == 38 * 2 + 2 * 3
    world.check()
    world.settle()
    world.later(3600)
    assert world.state(rule) == "ok"
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM lock WHERE NOT is_released") == 80
        assert tx.scalar("SELECT surplus_after FROM rule") is None
    empty(world)


def test_files_placed_before_do_not_stand_for_those_that_wait_for_their_turn(world: World) -> None:
    """Of two chunks the first has its second copies already, and all are there. The rule is not ok with those."""
    world.judge.limits = Limits(chunk_files=6)
    rule = world.declare("one", 1, "a|b", grouping="none")
    world.settle()
    ask(world, rule, 2)
    with world.begin() as tx:
        placing.judge_due(tx, world.judge.limits)
    with world.begin() as tx:
        consequences.fill_parcels(tx, world.judge.limits)
    world.run(world.conveyor)
    assert len(locks(world, rule)) == 9
    ask(world, rule, 1)
    ask(world, rule, 2)
    settled(world)
    assert world.state(rule) == "ok" and len(locks(world, rule)) == 12


def test_a_rule_that_found_no_room_for_its_last_files_is_not_ok_with_its_first(world: World) -> None:
    world.put("origin", {f"e{number}": b"%04d" % number for number in range(6)}, "even")
    world.settle()
    with world.begin() as tx:
        storages.update_storage(tx, "a", {"capacity_bytes": 12, "min_free_bytes": 0})
    world.judge.limits = Limits(chunk_files=3)
    rule = world.declare("even", 1, "a", grouping="none")
    for _ in range(5):
        world.later(60)
        assert world.state(rule) == "impossible" and world.count("a") == 3
    with world.begin() as tx:
        storages.update_storage(tx, "a", {"capacity_bytes": 24, "min_free_bytes": 0})
    world.later(60)
    assert world.state(rule) == "ok" and world.count("a") == 6


def test_what_cannot_be_asked_is_refused_and_nothing_is_changed(world: World) -> None:
    rule = world.declare("one", 2, "type=disk")
    other = world.declare("one", 1, "type=disk")
    with pytest.raises(Conflict) as refused:
        ask(world, rule, 1)
    assert refused.value.facts["rule"] == other and refused.value.field == "copies"
    with pytest.raises(CannotPlace, match="4 copies asked, 3 storages match") as narrow:
        ask(world, rule, 4)
    assert narrow.value.field == "copies"
    with pytest.raises(InvalidInput, match="copies is 0"):
        ask(world, rule, 0)
    world.settle()
    held = {storage for _, storage in locks(world, rule)}
    (third,) = PLACES.keys() - held
    with world.begin() as tx:
        accounts.set_limit(tx, "root", third, 10)
    with pytest.raises(QuotaExceeded) as poor:
        ask(world, rule, 3)
    assert poor.value.field == "copies" and world.rule(rule)["copies"] == 2
    world.cancel(rule)
    with pytest.raises(Conflict, match="has ended"):
        ask(world, rule, 3)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_of_all_that_match_no_more_can_be_kept_than_match(world: World, grouping: str) -> None:
    """What it holds it may keep, though, of a storage that no longer matches, too."""
    with world.begin() as tx:
        storages.set_attributes(tx, "c", {"tier": "1"})
    rule = world.declare("one", None, "a|b|tier=1", grouping=grouping)
    world.settle()
    with pytest.raises(CannotPlace, match="4 copies asked, 3 storages match"):
        ask(world, rule, 4)
    with world.begin() as tx:
        storages.set_attributes(tx, "c", {"tier": "2"})
    ask(world, rule, 3)
    settled(world)
    assert world.state(rule) == "ok" and [world.count(name) for name in PLACES] == [6, 6, 6]
    with world.begin() as tx:
        changed = next(event for event in rules.history(tx, rule)[0] if event["action"] == "changed")
    assert (changed["before"], changed["after"]) == ({"copies": "*", "state": "ok"}, {"copies": 3, "state": "declared"})


def test_a_suspended_rule_gives_up_nothing_until_it_is_resumed(world: World) -> None:
    rule = world.declare("one", 3, "type=disk")
    world.settle()
    with world.begin() as tx:
        amending.update(tx, rule, {"suspended": True, "copies": 1})
    world.settle()
    assert len(locks(world, rule)) == 3
    with world.begin() as tx:
        amending.update(tx, rule, {"suspended": False})
    empty(world)
    assert len(locks(world, rule)) == 1


# --- races -------------------------------------------------------------------------------------------------------


def test_a_copy_that_goes_bad_before_the_count_is_not_relied_on(world: World) -> None:
    """1. fewer copies are asked; 2. a judge has claimed the rule; 3. a copy of each storage is found bad; 4. it counts."""
    rule = world.declare("one", 3, "type=disk")
    world.settle()
    ask(world, rule, 2)
    with world.begin() as holder:
        holder.run("SELECT FROM rule FOR UPDATE")
        spoil(world, "a", "f0")
        spoil(world, "b", "f1")
        spoil(world, "c", "f2")
    with world.begin() as tx:
        placing.judge_due(tx, Limits())
    assert len(locks(world, rule)) == 3 and not released(world, rule)
    world.settle()
    world.later(60)
    empty(world)
    assert world.state(rule) == "ok" and len(locks(world, rule)) == 2


def test_harm_that_commits_after_the_release_is_mended_from_what_was_released(world: World) -> None:
    """1. a judge sees all complete and releases b; 2. the file's other copies are found bad; 3. the judge commits."""
    with world.begin() as tx:
        storages.set_attributes(tx, "b", {"tier": "1"})
    rule = world.declare("one", 2, "a|tier=1")
    world.settle()
    with world.begin() as tx:
        storages.set_attributes(tx, "b", {"tier": "2"})
    world.settle()
    ask(world, rule, 1)
    gate = Gate("judge.place:before-commit")
    judging = gate.stops(world.judge.run_once)
    spoil(world, "origin", "f0")
    spoil(world, "a", "f0")
    gate.open(judging)
    assert locks(world, rule) == [("test:one", "a")]
    world.settle()
    world.later(60)
    empty(world)
    assert world.state(rule) == "ok" and world.where("f0") == {"a": "available", "origin": "bad"}


def test_two_judges_release_each_lock_once(world: World) -> None:
    rule = world.declare("box", 3, "type=disk")
    world.settle()
    ask(world, rule, 1)
    other = Judge(world.database, world.settings)
    gate = Gate("judge.place:before-commit")
    first = gate.stops(world.judge.run_once)
    other.run_once()
    gate.open(first)
    empty(world)
    assert sum(each["locks"] for each in released(world, rule)) == 4


def test_copies_raised_while_a_judge_releases_wait_for_it_and_are_placed_again(world: World) -> None:
    rule = world.declare("one", 3, "type=disk")
    world.settle()
    ask(world, rule, 1)
    gate = Gate("judge.place:before-commit")
    judging = gate.stops(world.judge.run_once)
    asking = blocked(world, lambda: ask(world, rule, 3))
    gate.open(judging, asking)
    settled(world)
    assert world.state(rule) == "ok" and len(locks(world, rule)) == 3
    world.clock.moment += timedelta(days=3)
    world.settle()
    assert [world.count(name) for name in PLACES] == [6, 6, 6]
    world.check()
