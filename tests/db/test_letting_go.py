"""Letting go beside a conveyor, and of replicas whose path rests."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from catalogue import Beside, wait_until_blocked
from dlm.clock import ManualClock
from dlm.core import consequences, placing, recording
from dlm.core.placing import Limits
from dlm.daemons import conveyor as conveyor_daemon
from dlm.db import letting_go
from dlm.db.engine import Database, Tx
from dlm.db.usage import StorageDelta
from world import World


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    """A dataset of one file on `origin`, and an empty storage `there`."""
    world = World(database, clock, tmp_path)
    world.add_storage("origin", type="source")
    world.add_storage("there")
    world.many("origin", 1)
    return world


def tombstoned(world: World) -> bool:
    with world.begin() as tx:
        found = tx.one("SELECT tombstone_at FROM replica r JOIN storage s ON s.id = r.storage_id WHERE s.name = 'there'")
    assert found is not None
    return found.tombstone_at is not None


def test_a_replica_that_arrives_while_its_lock_is_let_go_gets_its_tombstone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. the copy is made; 2. the rule ends and its lock is released; 3. the conveyor records the arrival; 4. the judge
    lets go, and waits for the request; 5. the conveyor commits."""
    rule = world.declare("ds", 1, "there")
    world.run(world.judge)
    judges: list[Beside] = []

    def let_go() -> None:
        with world.database.begin("judge.let-go") as tx:
            consequences.let_go_small(tx, Limits(), undo_window_s=60)

    def record(tx: Tx, results: list[recording.Result], cycle_s: float) -> object:
        world.cancel(rule)
        with world.database.begin("judge.place") as other:
            placing.judge_due(other, Limits())
        counts = recording.record_results(tx, results, cycle_s)
        judges.append(Beside(let_go))
        wait_until_blocked(world.database)
        return counts

    monkeypatch.setattr(conveyor_daemon, "record_results", record)
    world.conveyor.run_once()
    assert judges[0].finish() == []
    assert world.where("f0")["there"] == "available" and tombstoned(world)
    world.check()


def test_a_path_rests_to_the_end_though_the_replica_is_wanted_let_go_and_wanted_again(world: World) -> None:
    """A reaper that lost its lease may still unlink what stands there: no new copy may be written before the rest ends."""
    with world.begin() as tx:
        tx.run(
            """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, quiet_until)
               SELECT d.id, s.id, 'deleted', d.size_bytes, %(now)s, %(until)s
                 FROM did d, storage s WHERE d.kind = 'file' AND s.name = 'there'""",
            until=tx.now + timedelta(seconds=900),
        )
    rule = world.declare("ds", 1, "there")
    world.run(world.judge, world.conveyor)
    assert world.where("f0")["there"] == "copying"
    world.cancel(rule)
    world.run(world.judge, world.conveyor)
    assert world.where("f0")["there"] == "deleted"
    again = world.declare("ds", 1, "there")
    world.run(world.judge, world.conveyor)
    assert not world.path("there", "f0").exists()
    world.check()
    world.later(901)
    assert world.state(again) == "ok" and world.path("there", "f0").exists()
    world.check()


def tombstone(world: World) -> datetime:
    with world.begin() as tx:
        moment = tx.scalar("SELECT tombstone_at FROM replica r JOIN storage s ON s.id = r.storage_id WHERE s.name = 'there'")
    assert isinstance(moment, datetime)
    return moment


def test_the_window_is_counted_from_the_last_rule_that_ended_and_written_once_for_those_that_end_together(
    world: World, clock: ManualClock
) -> None:
    rules = [world.declare("ds", 1, wish) for wish in ("there", "there|there", "there|there|there")]
    world.run(world.judge, world.conveyor, world.judge)
    with world.begin() as tx:
        tx.run("UPDATE storage SET undo_window_s = 1000")
    world.cancel(rules[0])
    world.cancel(rules[1])
    clock.advance(5)
    world.run(world.judge)
    assert not tombstoned(world)  # the third rule holds it
    world.cancel(rules[2])
    clock.advance(10)
    world.run(world.judge)
    first = tombstone(world)

    again = [world.declare("ds", 1, wish) for wish in ("there", "there|there")]
    world.run(world.judge)
    clock.advance(100)
    world.cancel(again[0])
    world.run(world.judge)
    world.cancel(again[1])
    world.run(world.judge)
    assert tombstone(world) == first + timedelta(seconds=100)
    clock.advance(7)
    with world.begin() as tx:
        ended = [row.id for row in tx.rows("SELECT id FROM rule")]
        tx.run("UPDATE rule SET state = 'letting_go'")
        place = {"dids": [world.did_id("f0")], "storages": [world.storage_id("there")], "undo_window_s": 1000}
        assert letting_go.let_go(tx, letting_go.PAIRS, StorageDelta(), rule_ids=ended, **place) == 0
        assert letting_go.let_go(tx, letting_go.PAIRS, StorageDelta(), **place) == 1
        tx.connection.rollback()
    world.check()
