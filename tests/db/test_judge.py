"""The judge on a real database and real storages: what rules come to, and what happens when things change under them."""

from __future__ import annotations

import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from catalogue import Beside, wait_until_blocked
from dlm.clock import ManualClock
from dlm.core import amending, files, replicas, rules
from dlm.db.engine import Database
from dlm.errors import CannotPlace, Conflict, InvalidInput, NotFound
from world import DAY, SCOPE, World


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    """Four storages at two sites; 20 files on `origin`, which no expression of these tests matches."""
    world = World(database, clock, tmp_path, breaker_delete_share=1)
    for name, site in (("perth-a", "perth"), ("perth-b", "perth"), ("bern-a", "bern"), ("bern-b", "bern")):
        world.add_storage(name, site, attributes={"tier": "1"})
    world.add_storage("origin", "perth", type="source")
    return world


def test_two_copies_at_two_sites_come_to_ok(world: World) -> None:
    world.many("origin", 20)
    rule = world.declare("ds", 2, "type=disk", spread="site")
    world.settle()
    assert world.state(rule) == "ok"
    where = world.where("f3")
    assert sorted(name.split("-")[0] for name in where if name != "origin") == ["bern", "perth"]
    assert set(where.values()) == {"available"}
    world.check()


def test_a_rule_on_one_file_copies_that_file_only(world: World) -> None:
    world.many("origin", 3)
    world.declare("f1", 1, "perth-a")
    world.settle()
    assert world.where("f1") == {"origin": "available", "perth-a": "available"}
    assert world.where("f2") == {"origin": "available"}
    world.check()


def test_what_stands_there_already_is_preferred_and_not_copied(world: World) -> None:
    world.many("bern-b", 5, verified=True)
    rule = world.declare("ds", 1, "tier=1")
    done = world.settle()
    assert world.state(rule) == "ok"
    assert "replicas" not in done.counts
    assert list(world.where("f0")) == ["bern-b"]
    world.check()


def test_grouping_dataset_chooses_per_dataset_and_all_chooses_once(world: World) -> None:
    for index in range(8):
        world.many("origin", 2, dataset=f"d{index}", prefix=f"p{index}.")
    world.container("box", *[f"d{index}" for index in range(8)])
    together = world.declare("box", 1, "type=disk", grouping="all")
    world.settle()
    assert len({tuple(n for n in world.where(f"p{i}.0") if n != "origin") for i in range(8)}) == 1
    apart = world.declare("box", 2, "type=disk", grouping="dataset")
    world.settle()
    assert (world.state(together), world.state(apart)) == ("ok", "ok")
    world.check()


def test_grouping_none_spreads_the_files_of_a_dataset(world: World) -> None:
    world.many("origin", 60)
    rule = world.declare("ds", 1, "type=disk", grouping="none")
    world.settle()
    assert world.state(rule) == "ok"
    counts = [world.count(name) for name in ("perth-a", "perth-b", "bern-a", "bern-b")]
    assert sum(counts) == 60 and min(counts) > 0
    world.check()


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
def test_files_attached_later_follow_the_rule_and_detached_ones_leave_it(world: World, grouping: str) -> None:
    world.many("origin", 6)
    rule = world.declare("ds", 2, "type=disk", spread="site", grouping=grouping)
    world.settle()
    world.many("origin", 4, prefix="late")
    world.run(world.judge)
    assert world.state(rule) == "replicating"
    world.settle()
    assert world.state(rule) == "ok"
    assert len(world.where("late2")) == 3
    world.check()
    world.detach("ds", "late2", "f0")
    world.settle()
    assert world.state(rule) == "ok"
    world.check()
    world.later(2 * DAY)
    assert list(world.where("late2")) == ["origin"]
    assert len(world.where("f1")) == 3
    world.check()


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
def test_a_dataset_that_joins_or_leaves_a_container_follows_the_containers_rule(world: World, grouping: str) -> None:
    world.many("origin", 4, dataset="one", prefix="one")
    world.many("origin", 4, dataset="two", prefix="two")
    world.container("inner", "one")
    world.container("outer", "inner")
    rule = world.declare("outer", 1, "type=disk", grouping=grouping)
    world.settle()
    assert len(world.where("one0")) == 2 and len(world.where("two0")) == 1
    world.attach("inner", "two")
    world.settle()
    assert len(world.where("two0")) == 2 and world.state(rule) == "ok"
    world.check()
    world.detach("inner", "one")
    world.settle()
    world.later(2 * DAY)
    assert len(world.where("one0")) == 1 and len(world.where("two0")) == 2
    assert world.state(rule) == "ok"
    world.check()


def test_letting_go_waits_in_the_undo_window_and_a_new_rule_takes_the_replica_back(world: World) -> None:
    world.many("origin", 5)
    rule = world.declare("ds", 1, "perth-a")
    world.settle()
    world.cancel(rule)
    world.settle()
    assert world.state(rule) == "gone"
    assert world.count("perth-a") == 5, "the window is a day"
    world.check()
    again = world.declare("ds", 1, "perth-a")
    world.settle()
    assert world.state(again) == "ok"
    world.later(3 * DAY)
    assert world.count("perth-a") == 5
    world.cancel(again)
    world.later(60)
    world.later(2 * DAY)
    assert world.count("perth-a") == 0 and not world.path("perth-a", "f0").exists()
    assert world.path("origin", "f0").exists()
    world.check()


def test_two_rules_on_one_replica_hold_it_until_both_are_gone(world: World) -> None:
    world.many("origin", 5)
    world.put("origin", {"extra": b"extra"}, "other")
    world.attach("other", "f0")
    first = world.declare("ds", 1, "perth-a")
    second = world.declare("other", 1, "perth-a", comment="the other")
    world.settle()
    world.cancel(first)
    world.settle()
    world.later(2 * DAY)
    assert "perth-a" in world.where("f0") and "perth-a" not in world.where("f1")
    world.check()
    world.cancel(second)
    world.settle()
    world.later(2 * DAY)
    assert "perth-a" not in world.where("f0")
    world.check()


def test_a_rule_expires_by_itself_unless_it_is_locked(world: World) -> None:
    world.many("origin", 2)
    mortal = world.declare("ds", 1, "perth-a", lifetime_s=3600)
    kept = world.declare("ds", 1, "bern-a", lifetime_s=3600, locked=True)
    world.settle()
    world.later(3601)
    world.settle()
    assert world.state(mortal) == "gone"
    assert world.state(kept) == "ok"
    with pytest.raises(Conflict, match="locked"):
        world.cancel(kept)
    world.check()


def test_cancelling_before_anything_moved_leaves_no_trace_on_the_storage(world: World) -> None:
    world.many("origin", 5)
    rule = world.declare("ds", 1, "perth-a")
    world.run(world.judge)
    assert world.count("perth-a", "copying") == 5
    world.check()
    world.cancel(rule)
    world.settle()
    assert world.state(rule) == "gone" and list(world.where("f0")) == ["origin"]
    world.check()


def test_a_missing_placement_is_impossible_with_its_arithmetic_and_heals_by_itself(world: World) -> None:
    world.many("origin", 5)
    with world.begin() as tx:
        rules.storages.snapshot(tx)
    world.add_storage("tiny", "oslo", attributes={"small": "1"}, capacity_bytes=10)
    rule = world.declare("ds", 1, "small=1")
    world.settle()
    seen = world.rule(rule)
    assert seen["state"] == "impossible"
    assert "1 of 1" in seen["reason"] and "full" in seen["reason"]
    world.check()
    world.add_storage("roomy", "oslo", attributes={"small": "1"})
    world.settle()
    assert world.state(rule) == "ok"
    world.check()


def test_space_is_promised_once_however_many_rules_fit_alone(world: World) -> None:
    world.add_storage("cup", "oslo", type="cup", capacity_bytes=1000)
    for index in range(6):
        world.put("origin", {f"big{index}": b"x" * 300})
    made = [world.declare(f"big{index}", 1, "type=cup") for index in range(6)]
    world.settle()
    states = sorted(world.state(rule) for rule in made)
    assert states == ["impossible"] * 3 + ["ok"] * 3
    world.check()


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
def test_a_rule_for_all_that_match_follows_when_another_storage_does(world: World, grouping: str) -> None:
    world.many("origin", 5)
    rule = world.declare("ds", None, "tier=1", grouping=grouping)
    world.settle()
    world.add_storage("oslo", "oslo", attributes={"tier": "1"})
    world.settle()
    assert world.state(rule) == "ok" and world.count("oslo") == 5
    world.check()


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
def test_a_rule_that_is_resumed_does_what_it_missed(world: World, grouping: str) -> None:
    world.many("origin", 5)
    rule = world.declare("ds", 1, "perth-a", grouping=grouping)
    world.settle()
    with world.begin() as tx:
        amending.update(tx, rule, {"suspended": True})
    world.settle()
    world.many("origin", 3, prefix="late")
    world.settle()
    with world.begin() as tx:
        amending.update(tx, rule, {"suspended": False})
    world.settle()
    assert world.state(rule) == "ok" and world.count("perth-a") == 8
    world.check()


def test_a_suspended_rule_rests_and_goes_on_when_resumed(world: World) -> None:
    world.many("origin", 3)
    rule = world.declare("ds", 1, "perth-a")
    with world.begin() as tx:
        amending.update(tx, rule, {"suspended": True})
    world.settle()
    assert world.state(rule) == "suspended" and world.count("perth-a") == 0
    with world.begin() as tx:
        amending.update(tx, rule, {"suspended": False})
    world.settle()
    assert world.state(rule) == "ok"
    world.check()


def test_the_same_rule_twice_is_refused_with_the_id_of_the_first(world: World) -> None:
    world.many("origin", 1)
    rule = world.declare("ds", 2, "tier=1 & type=disk")
    with pytest.raises(Conflict, match=rule) as caught:
        world.declare("ds", 2, "tier=1&type=disk")
    assert caught.value.facts["rule"] == rule
    assert world.declare("ds", 1, "tier=1&type=disk") != rule, "other copies, other rule"


def test_an_idempotency_key_makes_a_retry_find_the_first_rule(world: World) -> None:
    world.many("origin", 1)
    rule = world.declare("ds", 1, "tier=1", idempotency_key="k1")
    assert world.declare("ds", 1, "tier=1", idempotency_key="k1") == rule
    with pytest.raises(Conflict, match="another rule"):
        world.declare("ds", 2, "tier=1", idempotency_key="k1")


@pytest.mark.parametrize(
    "other",
    [{"lifetime_s": 60.0}, {"grouping": "none"}, {"spread": "site"}, {"sources": "tier=1"}, {"locked": True}],
)
def test_an_idempotency_key_stands_for_all_of_a_wish(world: World, other: dict[str, Any]) -> None:
    world.many("origin", 1)
    world.declare("ds", 1, "tier=1", idempotency_key="k1")
    with pytest.raises(Conflict, match="another rule"):
        world.declare("ds", 1, "tier=1", idempotency_key="k1", **other)


def test_a_retry_is_answered_when_what_it_asked_for_could_not_be_asked_any_more(world: World) -> None:
    world.many("origin", 1)
    end = world.clock.moment + timedelta(hours=1)
    rule = world.declare("ds", 1, "tier=1", idempotency_key="k1", expires_at=end)
    world.clock.advance(7200.0)
    assert world.declare("ds", 1, "tier=1", idempotency_key="k1", expires_at=end) == rule


def test_one_key_serves_one_call_alone_whether_of_one_rule_or_of_many(world: World) -> None:
    world.many("origin", 1)
    wishes = [rules.Declaration(f"{SCOPE}:ds", n, "tier=1", idempotency_key="k") for n in (1, 2)]
    with world.begin() as tx:
        made = rules.declare(tx, wishes)
    with world.begin() as tx:
        again = rules.declare(tx, wishes)
    assert [(rule.id, rule.is_new) for rule in again] == [(rule.id, False) for rule in made]
    with pytest.raises(Conflict, match="another rule"), world.begin() as tx:
        rules.declare(tx, [*wishes, rules.Declaration(f"{SCOPE}:ds", 3, "tier=1", idempotency_key="k")])
    with pytest.raises(Conflict, match="asks for this already"):
        world.declare("ds", 1, "tier=1", idempotency_key="k")
    assert world.declare("ds", 3, "tier=1", idempotency_key="k"), "alone, the key is another"


def test_a_retry_of_many_rules_takes_a_number_of_statements_that_does_not_grow(world: World) -> None:
    world.many("origin", 1)
    expressions = [f"tier=1|name=x{n}" for n in range(40)]

    def statements(some: list[str]) -> int:
        wishes = [rules.Declaration(f"{SCOPE}:ds", 1, on, idempotency_key=f"k{len(some)}") for on in some]
        with world.begin() as tx:
            rules.declare(tx, wishes)
        with world.begin() as tx:
            rules.declare(tx, wishes)
            return tx.statements

    assert statements(expressions[:2]) == statements(expressions[2:])


def test_a_retry_that_comes_while_the_first_call_is_on_its_way_waits_and_finds_its_rule(world: World) -> None:
    world.many("origin", 1)
    wish = rules.Declaration(f"{SCOPE}:ds", 1, "tier=1", idempotency_key="k")
    again: list[rules.DeclaredRule] = []

    def retry() -> None:
        with world.begin() as tx:
            again.extend(rules.declare(tx, [wish]))

    with world.begin() as tx:
        made = rules.declare(tx, [wish])
        other = Beside(retry)
        wait_until_blocked(world.database)
    assert other.finish() == []
    assert [(rule.id, rule.is_new) for rule in again] == [(made[0].id, False)]


def test_the_same_wish_twice_in_a_call_is_refused(world: World) -> None:
    world.many("origin", 1)
    with pytest.raises(Conflict, match="stands twice") as twice, world.begin() as tx:
        rules.declare(tx, [rules.Declaration(f"{SCOPE}:ds", 1, "tier=1")] * 2)
    assert twice.value.field == "rules[1].did"


def test_declarations_that_cannot_be_kept_are_refused_before_anything_is_written(world: World) -> None:
    world.many("origin", 1)
    with pytest.raises(InvalidInput) as none:
        world.declare("ds", 0, "tier=1")
    assert none.value.field == "copies"
    with pytest.raises(CannotPlace, match="5 copies asked, 4 storages match") as many:
        world.declare("ds", 5, "tier=1")
    assert many.value.field == "copies"
    with pytest.raises(CannotPlace, match="'contry' is no attribute") as typo:
        world.declare("ds", 1, "tier=1&contry=AU")
    assert "Did you mean 'country'?" in typo.value.detail
    with pytest.raises(NotFound) as missing:
        world.declare("nope", 1, "tier=1")
    assert missing.value.field == "did"
    with pytest.raises(InvalidInput) as malformed:
        world.declare("ds", 1, "tier=1&&x")
    assert malformed.value.facts["column"] == 8
    with world.begin() as tx:
        assert rules.list_rules(tx) == ([], None)


def test_many_rules_are_declared_and_judged_in_a_number_of_statements_that_does_not_grow(world: World) -> None:
    names = world.many("origin", 300)

    def cost(some: list[str]) -> int:
        with world.begin() as tx:
            rules.declare(tx, [rules.Declaration(f"{SCOPE}:{name}", 1, "tier=1") for name in some])
            return tx.statements

    first = cost(names[:1])  # makes the expression
    assert cost(names[1:3]) == cost(names[3:200]) <= first
    world.settle()
    assert world.count("perth-a") + world.count("perth-b") + world.count("bern-a") + world.count("bern-b") == 200
    world.check()


def test_copies_that_waited_for_a_storage_go_on_as_soon_as_it_is_back(world: World) -> None:
    world.many("origin", 3)
    (world.root / "origin").rename(world.root / "away")
    rule = world.declare("ds", 1, "perth-a")
    world.settle()
    assert world.state(rule) == "replicating" and world.count("perth-a") == 0
    (world.root / "away").rename(world.root / "origin")
    world.later(61)
    assert world.state(rule) == "ok"
    world.check()


def test_what_joins_a_rule_of_grouping_all_and_finds_no_room_there_holds_up_nobody(world: World) -> None:
    world.add_storage("small", "oslo", capacity_bytes=200)
    world.put("origin", {"a": b"a" * 100}, "d1")
    world.put("origin", {"b": b"b" * 150}, "d2")
    world.container("box", "d1")
    rule = world.declare("box", 1, "small", grouping="all")
    world.settle()
    world.attach("box", "d2")
    other = world.declare("d1", 1, "perth-a")
    world.settle()
    assert (world.state(rule), world.state(other)) == ("impossible", "ok")
    assert world.rule(rule)["reason"] == "1 copy has no room where the rule's others are, as grouping all wants it: small full"
    world.check()


@pytest.mark.parametrize("capacity_bytes", [170, 320, 800])
def test_files_larger_than_the_mean_of_their_class_hold_up_nobody(world: World, capacity_bytes: int) -> None:
    """Files are shared out by the mean size of their class; those taken may need more than there is, each time anew."""
    world.add_storage("small", "oslo", capacity_bytes=capacity_bytes)
    world.put("origin", {f"f{i}": bytes([i]) * (10 if i % 2 else 300) for i in range(12)}, "ds")
    rule = world.declare("ds", 1, "small", grouping="none")
    other = world.declare("f1", 1, "perth-a")
    world.settle()
    assert (world.state(rule), world.state(other)) == ("impossible", "ok")
    world.check()


def test_files_that_join_a_rule_of_grouping_none_and_find_no_room_stop_no_other_change(world: World) -> None:
    world.add_storage("small", "oslo", capacity_bytes=320)
    world.put("origin", {"first": b"1"}, "ds")
    rule = world.declare("ds", 1, "small", grouping="none")
    world.settle()
    world.put("origin", {f"f{i}": bytes([i]) * (10 if i % 2 else 300) for i in range(12)}, "ds")
    world.put("origin", {"other": b"2"}, "elsewhere")
    other = world.declare("elsewhere", 1, "perth-a")
    world.settle()
    assert (world.state(rule), world.state(other)) == ("impossible", "ok")
    world.check()


def test_what_is_registered_anew_at_a_path_that_rests_is_read_only_after_the_rest(world: World) -> None:
    """Before, a paused reaper may still delete it: as `available` it would be a witness for deleting other copies."""
    world.put("origin", {"f": b"bytes"})
    with world.begin() as tx:
        tx.run("UPDATE replica SET state = 'lost', quiet_until = %(now)s + interval '1 hour'")
        tx.run("UPDATE storage_usage SET used_bytes = 0, used_files = 0")
    world.put("origin", {"f": b"bytes"})
    world.settle()
    assert world.where("f") == {"origin": "unverified"}
    world.later(3601)
    assert world.where("f") == {"origin": "available"}
    world.check()


def test_a_file_that_somebody_named_and_that_never_was_the_right_one_is_not_written_over(world: World) -> None:
    world.put("origin", {"f": b"bytes"}, verified=True)
    theirs = world.root / "perth-a" / "theirs"
    theirs.write_bytes(b"other")
    with world.begin() as tx:
        named = {"name": "f", "size_bytes": 5, "adler32": f"{zlib.adler32(b'bytes'):08x}", "path": "theirs"}
        replicas.register(tx, "perth-a", files.read([named], SCOPE))
    rule = world.declare("f", 1, "perth-a")
    world.settle()
    assert world.where("f") == {"origin": "available", "perth-a": "bad"}
    assert world.state(rule) == "stuck"
    assert theirs.read_bytes() == b"other"
