"""`why` has an answer for every state a thing can be in, and for every reason it can be there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dlm.clock import ManualClock
from dlm.core import amending, audit, conveyor, replicas, storages, why
from dlm.db import breakers
from dlm.db.engine import Database
from dlm.types import ReplicaState, RuleState
from world import DAY, SCOPE, World


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    world = World(database, clock, tmp_path)
    for name, site in (("perth-a", "perth"), ("bern-a", "bern")):
        world.add_storage(name, site)
    world.add_storage("origin", "perth", type="source")
    world.many("origin", 3, verified=True)
    return world


def ask(world: World, name: str = "f0", at: str | None = None) -> dict[str, Any]:
    with world.begin() as tx:
        return why.did(tx, SCOPE, name, at)


def ask_rule(world: World, rule: str) -> dict[str, Any]:
    with world.begin() as tx:
        return why.rule(tx, rule)


def following(world: World, at: str, name: str = "f0") -> str:
    (replica,) = ask(world, name, at)["replicas"]
    return replica["next"]["text"]


def put_state(world: World, state: str, storage: str = "perth-a") -> None:
    """Set the stored facts that put f0's replica into a state, whatever brought it there."""
    with world.begin() as tx:
        tx.run(
            """UPDATE replica SET state = %(state)s::replica_state, claimed_until = %(now)s, quiet_until = %(now)s,
                      verified_at = %(now)s, next_check_at = %(now)s, tombstone_at = NULL
                WHERE did_id = (SELECT id FROM did WHERE name = 'f0') AND storage_id = (SELECT id FROM storage WHERE name = %(storage)s)""",
            state=state,
            storage=storage,
        )


def steps(answer: dict[str, Any], kind: str) -> list[str]:
    return [step["text"] for step in answer["chain"] if step["step"] == kind]


def test_a_file_that_nobody_wants_says_so(world: World) -> None:
    answer = ask(world)
    assert answer["chain"] == []
    assert [r["storage"] for r in answer["replicas"]] == ["origin"]
    assert following(world, "origin") == "it is verified again; nothing else is due"


def test_the_chain_goes_from_the_wish_over_the_decision_and_the_attempts_to_what_is_next(world: World) -> None:
    rule = world.declare("ds", 1, "type=disk")
    world.settle()
    answer = ask(world)
    assert rule in steps(answer, "wanted")[0]
    assert "chosen" in steps(answer, "decided")[0]
    assert steps(answer, "tried")[0].startswith("origin → ") and steps(answer, "tried")[0].endswith("done")
    copy = next(r for r in answer["replicas"] if r["storage"] != "origin")
    assert any(rule in step["text"] for step in copy["chain"] if step["step"] == "protected")
    assert copy["verified_elsewhere"] == ["origin"]
    assert answer["next"]["at"] is not None


def test_rejected_storages_are_named_with_their_reasons(world: World) -> None:
    with world.begin() as tx:
        storages.update_storage(tx, "perth-a", {"can_write": False}, "disk replacement")
    rule = world.declare("ds", 1, "type=disk")
    world.settle()
    (decided,) = [text for text in steps(ask_rule(world, rule), "decided") if "chosen" in text]
    assert "perth-a" in decided and "disk replacement" in decided


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("available", "it is verified again"),
        ("unverified", "read and compared for the first time"),
        ("deleting", "a reaper is deleting it"),
        ("deleted", "its path may be used again then"),
        ("bad", "the judge repairs it from a good copy"),
        ("lost", "the judge repairs it from a good copy"),
        ("copying", "its request is missing"),
    ],
)
def test_every_state_of_a_replica_has_its_next_step(world: World, state: str, expected: str) -> None:
    world.declare("ds", 1, "perth-a")
    world.settle()
    put_state(world, state)
    assert expected in following(world, "perth-a")


def test_no_state_of_a_replica_is_forgotten() -> None:
    told = {"available", "unverified", "deleting", "deleted", "bad", "lost", "copying"}
    assert told == set(ReplicaState)


def test_a_bad_copy_without_a_good_one_waits_for_one(world: World) -> None:
    world.declare("ds", 1, "origin")
    world.settle()
    put_state(world, "bad", "origin")
    assert "waits for a good copy" in following(world, "origin")


def test_a_bad_copy_that_no_rule_holds_stays_for_a_person(world: World) -> None:
    put_state(world, "lost", "origin")
    assert "stays for a person" in following(world, "origin")


def test_requests_say_queued_active_and_parked(world: World) -> None:
    world.declare("ds", 1, "perth-a")
    world.run(world.judge)
    assert following(world, "perth-a") == "it is copied"
    with world.begin() as tx:
        tx.run("UPDATE request SET state = 'active', claimed_until = %(now)s")
    assert "it is being copied" in following(world, "perth-a")
    with world.begin() as tx:
        tx.run("UPDATE request SET state = 'queued', is_cancelled = true")
    assert "cancelled" in following(world, "perth-a")


def test_a_parked_request_tells_its_error_and_its_rule_is_stuck_with_it(world: World) -> None:
    rule = world.declare("f0", 1, "perth-a")
    world.run(world.judge)
    world.path("origin", "f0").unlink()
    put_state(world, "bad", "origin")
    world.settle()
    assert world.state(rule) == "stuck"
    assert "tried again" in following(world, "perth-a")
    (waits,) = [s for r in ask(world, at="perth-a")["replicas"] for s in r["chain"] if s["step"] == "waits"]
    assert "no source" in waits["text"]
    answer = ask_rule(world, rule)
    assert "no source" in answer["reason"] and "no source" in steps(answer, "waits")[0]
    with world.begin() as tx:
        asked = why.request(tx, waits["request"])
    assert (asked["state"], asked["error_class"]) == ("parked", "no_source")
    assert rule in steps(asked, "wanted")[0]


def let_go(world: World) -> None:
    rule = world.declare("ds", 1, "perth-a")
    world.settle()
    world.cancel(rule)
    world.run(world.judge)


def test_what_is_let_go_waits_in_its_window(world: World) -> None:
    let_go(world)
    assert "undo window" in following(world, "perth-a")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"can_delete": False}, "deleting is switched off at perth-a (tape swap)"),
        ({"reap": "when_full"}, "when perth-a needs the space"),
    ],
)
def test_what_keeps_a_let_go_replica_is_said(world: World, change: dict[str, Any], expected: str) -> None:
    let_go(world)
    with world.begin() as tx:
        storages.update_storage(tx, "perth-a", change, "tape swap" if "can_delete" in change else None)
    assert expected in following(world, "perth-a")


def test_a_held_deletion_names_who_holds_it_and_why(world: World) -> None:
    let_go(world)
    with world.begin() as tx:
        breakers.hold(tx, "audit week")
    assert "audit week" in following(world, "perth-a")


def test_an_unavailable_storage_is_the_reason(world: World) -> None:
    let_go(world)
    shutil.rmtree(world.root / "perth-a")
    world.later(2 * DAY)
    assert "perth-a is unavailable" in following(world, "perth-a")
    with world.begin() as tx:
        answer = why.storage(tx, "perth-a")
    assert not answer["is_available"] and "unavailable" in steps(answer, "held")[0]


def test_a_replica_taken_back_says_that_a_rule_holds_it_again(world: World) -> None:
    let_go(world)
    world.declare("ds", 1, "perth-a")
    world.run(world.judge)
    assert "a rule holds it again" in following(world, "perth-a")


def test_a_deletion_is_explained_after_it_happened(world: World) -> None:
    let_go(world)
    world.later(2 * DAY)
    answer = ask(world)
    assert [r["storage"] for r in answer["replicas"]] == ["origin"]
    marked, deleted = steps(answer, "deleted")
    assert deleted == "deleted at perth-a"
    assert "perth-a" in marked and "no rule wanted the file" in marked


@pytest.mark.parametrize("state", sorted(RuleState))
def test_every_state_of_a_rule_has_its_next_step(world: World, state: str) -> None:
    rule = world.declare("ds", 1, "perth-a")
    with world.begin() as tx:
        tx.run("UPDATE rule SET state = %(state)s::rule_state", state=state)
    answer = ask_rule(world, rule)
    assert answer["state"] == state and answer["next"]["text"]


def test_a_cancelled_rule_tells_who_cancelled_it(world: World) -> None:
    rule = world.declare("ds", 1, "perth-a")
    world.settle()
    world.cancel(rule)
    world.settle()
    answer = ask_rule(world, rule)
    assert answer["state"] == "gone" and "cancelled by root" in answer["reason"]


def test_a_suspended_rule_tells_how_to_resume_it(world: World) -> None:
    rule = world.declare("ds", 1, "perth-a")
    with world.begin() as tx:
        amending.update(tx, rule, {"suspended": True})
    world.settle()
    assert "--resume" in ask_rule(world, rule)["next"]["text"]


def test_a_storage_tells_its_switches_its_queue_and_its_breakers(world: World) -> None:
    world.declare("ds", 1, "perth-a")
    world.run(world.judge)
    with world.begin() as tx:
        storages.update_storage(tx, "perth-a", {"can_write": False}, "disk replacement")
        breakers.hold(tx, "audit week")
        answer = why.storage(tx, "perth-a")
    assert answer["requests"] == {"queued": 3}
    told = " ".join(steps(answer, "held"))
    assert "disk replacement" in told and "audit week" in told


def test_a_storage_whose_deletions_are_held_says_so_and_tells_no_moment_for_them(world: World) -> None:
    rule = world.declare("ds", 1, "perth-a")
    world.settle()
    world.cancel(rule)
    world.settle()

    def following() -> str:
        with world.begin() as tx:
            return str(why.storage(tx, "perth-a")["next"]["text"])

    assert following() == "the next deletion is due"
    with world.begin() as tx:
        breakers.hold(tx, "audit week")
    assert following() == "nothing is deleted while that is held"


def test_a_request_is_named_by_a_public_id_that_leads_back_to_it() -> None:
    assert conveyor.request_id_from_uuid(conveyor.request_uuid(12345)) == 12345


def test_why_remembers_harm_the_rule_that_was_cancelled_and_the_deletion(world: World, clock: ManualClock) -> None:
    world.many("origin", 30, "many", "m", verified=True)
    rule = world.declare("many", 1, "perth-a")
    world.settle()
    clock.advance(60)
    for number in range(30):
        world.path("perth-a", f"m{number}").unlink()
    with world.begin() as tx:
        audit.start_check(tx, storages.get_storage(tx, "perth-a").id, confirm_lost=True)
    world.settle()
    for name in ("m0", "m29"):  # the event names ten of them
        (text,) = steps(ask(world, name), "checked")
        assert text.startswith("30 lost and 0 bad found at perth-a by dlm, this file among them")
    with world.begin() as tx:
        replicas.declare_bad(tx, [(SCOPE, "m1", "perth-a")], "the disk smells")
    assert "declared bad at perth-a by root: the disk smells" in steps(ask(world, "m1"), "checked")
    world.settle()

    world.cancel(rule)
    world.settle()
    world.later(2 * DAY)
    answer = ask(world, "m0")
    (wanted,) = steps(answer, "wanted")
    assert f"rule {rule}" in wanted and "it ended" in wanted and "cancelled by root" in wanted
    marked, deleted = steps(answer, "deleted")
    assert marked.startswith("marked for deletion at perth-a") and deleted == "deleted at perth-a"
