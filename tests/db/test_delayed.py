"""Rules that begin later: until then they hold nothing, whatever happens around them; then they are any rule."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dlm.clock import ManualClock
from dlm.core import accounts, amending, dids, moving, plan, replicas, rules, storages, why
from dlm.db.engine import Database
from dlm.errors import CannotPlace, Conflict, InvalidInput, QuotaExceeded
from world import DAY, World

GROUPINGS = ("all", "dataset", "none")
HOUR = 3600


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    """Storages a and b; a dataset of six files at `origin`, in a container."""
    world = World(database, clock, tmp_path, breaker_delete_share=1)
    world.add_storage("a", "perth")
    world.add_storage("b", "bern")
    world.add_storage("origin", "perth", type="source")
    world.many("origin", 6, "one")
    world.container("box", "one")
    return world


def change(world: World, rule: str, **wanted: Any) -> dict[str, Any]:
    with world.begin() as tx:
        return amending.update(tx, rule, wanted)


def waits(world: World, rule: str) -> bool:
    """It is as it was declared, holds nothing and will be looked at when it begins."""
    facts = world.rule(rule)
    with world.begin() as tx:
        locks = tx.scalar("SELECT count(*) FROM lock")
    begins = (facts["reason"] or "").startswith("begins at ") and facts["next_judge_at"] == facts["starts_at"]
    return facts["state"] == "declared" and begins and not locks


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_delayed_rule_begins_in_one_pass_when_it_is_due(world: World, grouping: str) -> None:
    rule = world.declare("box", 1, "type=disk", grouping=grouping, delay_s=HOUR)
    assert world.rule(rule)["reason"] == "begins at 2026-01-01T01:00:00Z"
    world.settle()
    assert waits(world, rule)
    assert world.judge.run_once().next_due_s == HOUR  # the loop sleeps till then
    world.later(HOUR - 1)
    assert waits(world, rule)
    world.clock.advance(1)
    world.judge.run_once()
    assert world.rule(rule)["state"] == "replicating" and world.rule(rule)["reason"] is None
    world.settle()
    assert world.state(rule) == "ok"
    world.check()


def attached(world: World) -> None:
    world.many("origin", 3, "one", prefix="late")


def joined(world: World) -> None:
    world.many("origin", 2, "two", prefix="g")
    world.attach("box", "two")


def left(world: World) -> None:
    world.detach("one", "f1")


def other_storages(world: World) -> None:
    world.add_storage("c", "oslo")
    with world.begin() as tx:
        storages.set_attributes(tx, "a", {"tier": "1"})


def harmed(world: World) -> None:
    world.put("a", {"f0": b"f 0 "}, verified=True)
    world.path("a", "f0").write_bytes(b"????")
    with world.begin() as tx:
        replicas.declare_bad(tx, [("test", "f0", "a")], "rotten")


def changed(world: World) -> None:
    with world.begin() as tx:
        (row,) = tx.rows("SELECT uuid FROM rule")
        amending.update(tx, row.uuid, {"comment": "patience", "copies": 2, "priority": 5})


def suspended_and_resumed(world: World) -> None:
    for value in (True, False):
        with world.begin() as tx:
            (row,) = tx.rows("SELECT uuid FROM rule")
            amending.update(tx, row.uuid, {"suspended": value})
        world.settle()


@pytest.mark.parametrize(
    "happens", [attached, joined, left, other_storages, harmed, changed, suspended_and_resumed], ids=lambda act: act.__name__
)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_nothing_makes_it_begin_early(world: World, grouping: str, happens: Callable[[World], None]) -> None:
    rule = world.declare("box", 1, "type=disk", grouping=grouping, delay_s=HOUR)
    world.settle()
    happens(world)
    world.settle()
    assert waits(world, rule)
    world.check()
    world.later(HOUR)
    assert world.state(rule) == "ok"
    world.check()


def test_a_lifetime_counts_from_the_start_and_the_end_comes_after_it(world: World) -> None:
    rule = world.declare("one", 1, "a", delay_s=HOUR, lifetime_s=2 * HOUR)
    assert world.rule(rule)["expires_at"] == world.clock.moment + timedelta(hours=3)
    starts, before = world.clock.moment + timedelta(hours=2), world.clock.moment + timedelta(hours=1)
    with pytest.raises(InvalidInput, match="before it begins") as refused:
        world.declare("one", 1, "b", starts_at=starts, expires_at=before)
    assert refused.value.field == "expires_at"
    with pytest.raises(InvalidInput, match="before it begins"):
        change(world, rule, starts_at=world.clock.moment + timedelta(hours=4))
    with pytest.raises(InvalidInput, match="before it begins"):
        change(world, rule, expires_at=world.clock.moment + timedelta(minutes=30))
    world.settle()
    world.later(HOUR)
    assert world.state(rule) == "ok"
    world.later(2 * HOUR)
    assert world.state(rule) in ("letting_go", "gone")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"delay_s": -1}, "delay_s"),
        ({"delay_s": float("nan")}, "delay_s"),
        ({"delay_s": 1, "starts_at": datetime(2027, 1, 1, tzinfo=UTC)}, "delay_s"),
        ({"starts_at": datetime(2025, 1, 1, tzinfo=UTC)}, "starts_at"),
        ({"starts_at": datetime(2027, 1, 1)}, "starts_at"),
        ({"starts_at": datetime(9999, 12, 1, tzinfo=UTC), "lifetime_s": 90 * DAY}, "starts_at"),
    ],
)
def test_starts_that_mean_nothing_are_refused(world: World, more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        world.declare("one", 1, "a", **more)
    assert refused.value.field == field
    rule = world.declare("one", 1, "a", delay_s=HOUR)
    with pytest.raises(InvalidInput) as again:
        change(world, rule, **more)
    assert again.value.field == field


def test_its_start_can_be_changed_until_it_begins(world: World) -> None:
    rule = world.declare("one", 1, "a", delay_s=HOUR)
    assert change(world, rule, delay_s=2 * HOUR)["reason"] == "begins at 2026-01-01T02:00:00Z"
    world.later(HOUR)
    assert waits(world, rule)
    change(world, rule, lifetime_s=HOUR)
    assert world.rule(rule)["expires_at"] == datetime(2026, 1, 1, 3, tzinfo=UTC)
    assert change(world, rule, starts_at=None)["reason"] is None
    world.settle()
    assert world.state(rule) == "ok"
    for wanted in ({"starts_at": None}, {"delay_s": 5}):
        with pytest.raises(Conflict, match="has begun"):
            change(world, rule, **wanted)


def test_a_delay_of_nothing_is_none(world: World) -> None:
    rule = world.declare("one", 1, "a", delay_s=0)
    assert world.rule(rule)["starts_at"] is None
    world.settle()
    assert world.state(rule) == "ok"


def test_the_accounts_limit_is_asked_when_it_is_declared_and_when_it_begins(world: World) -> None:
    with world.begin() as tx:
        accounts.set_limit(tx, "root", "a", 10)
    with pytest.raises(QuotaExceeded):
        world.declare("one", 1, "a", delay_s=HOUR)
    rule = world.declare("one", 1, "b", delay_s=HOUR)
    with world.begin() as tx:
        accounts.set_limit(tx, "root", "b", 10)
    world.later(HOUR)
    assert world.state(rule) == "impossible" and "over quota" in world.rule(rule)["reason"]
    world.check()


def test_it_can_be_cancelled_before_and_its_did_can_end(world: World) -> None:
    world.many("origin", 2, "two", prefix="g")
    for end in (world.cancel, lambda _: _delete(world)):
        rule = world.declare("two", 1, "a", delay_s=HOUR)
        world.settle()
        end(rule)
        world.settle()
        assert world.state(rule) == "gone"
        world.check()


def _delete(world: World) -> None:
    with world.begin() as tx:
        dids.delete_did(tx, "test", "two")


def test_it_is_a_rule_to_those_who_would_repeat_it_and_cannot_be_moved(world: World) -> None:
    rule = world.declare("one", 1, "a", delay_s=HOUR)
    with pytest.raises(Conflict, match="begins 2026-01-01T01:00:00Z, not at once") as standing:
        world.declare("one", 1, "a")
    assert standing.value.facts["rule"] == rule
    with pytest.raises(Conflict, match="begins at"), world.begin() as tx:
        moving.move(tx, rule, {"storages": "b"})
    with pytest.raises(CannotPlace):
        world.declare("one", 5, "a", delay_s=HOUR)


def test_until_it_begins_it_keeps_one_copy_to_begin_from(world: World) -> None:
    """Of `one` the registered files stay, and the copies that another rule made go; of `two` there is nothing else."""
    world.many("a", 2, "two", prefix="g", verified=True)
    for name in ("one", "two"):
        world.declare(name, 2, "type=disk", lifetime_s=HOUR)
        world.declare(name, 2, "a|b", delay_s=30 * DAY)
    world.settle()
    for _ in range(5):
        world.later(2 * DAY)
    assert world.where("f0") == {"origin": "available"}
    assert set(world.where("g0").values()) == {"available"}
    world.later(20 * DAY)
    assert len(world.where("f0")) == 3 and len(world.where("g0")) == 2
    world.check()


def test_plan_and_why_say_when_it_begins(world: World) -> None:
    with world.begin() as tx:
        told = plan.plan(tx, rules.Declaration("test:one", 1, "a", delay_s=HOUR))
    assert told["starts_at"] == world.clock.moment + timedelta(hours=1) and told["transfers"]["files"] == 6
    rule = world.declare("one", 1, "a", delay_s=HOUR)
    world.settle()
    with world.begin() as tx:
        found = why.rule(tx, rule)
        above = why.did(tx, "test", "f0")["chain"][0]["text"]
    assert found["reason"] == "begins at 2026-01-01T01:00:00Z" and found["next"]["at"] == told["starts_at"]
    assert found["next"]["text"].startswith("it begins") and above.endswith("it is declared: begins at 2026-01-01T01:00:00Z")


def test_many_delayed_rules_cost_a_pass_nothing_until_they_are_due(world: World) -> None:
    for number in range(6):
        world.declare(f"f{number}", 1, "a", delay_s=HOUR)
    world.settle()
    done = world.judge.run_once()
    assert not done.counts and not done.is_full
    world.clock.advance(HOUR)
    assert world.judge.run_once().counts["rules"] == 6
