"""A conveyor that is stopped, killed, overtaken, or cut from its database: the next one finishes the work."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from conveying import Yard
from dlm import effects
from dlm.clock import ManualClock
from dlm.db import letting_go, requests
from dlm.db.engine import Database
from dlm.db.usage import StorageDelta, change_storages

SIGKILL = 9


@pytest.fixture
def yard(database: Database, tmp_path: Path) -> Yard:
    return Yard(database, tmp_path)


def contents(number: int) -> list[bytes]:
    return [b"file %d" % (index + 1) for index in range(number)]


def test_a_stop_releases_what_was_not_started(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(contents(10), here), there)
    asked = threading.Event()
    conveyor = yard.conveyor(asked.is_set)
    effects.install(lambda name: asked.set() if name == "conveyor.claim:after-commit" else None)
    try:
        done = conveyor.run_once()
    finally:
        effects.install(None)
    assert done.counts == {"claimed": 10, "released": 10}
    assert yard.rows("SELECT DISTINCT state, attempts, claimed_until FROM request") == [("queued", 0, None)]
    assert yard.rows("SELECT * FROM attempt") == []
    assert conveyor.run_once().counts == {}


@pytest.mark.parametrize(
    "moment",
    [
        "conveyor.claim:before-commit",
        "conveyor.claim:after-commit",
        "posix.write:after",
        "posix.rename:before",
        "posix.link:after",
        "posix.rename:after",
        "conveyor.copied:before-record",
        "conveyor.record:before-commit",
        "conveyor.record:after-commit",
    ],
)
def test_a_killed_conveyor_leaves_nothing_that_the_next_does_not_finish(
    yard: Yard, clock: ManualClock, moment: str
) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(contents(8), here), there)
    assert killed_at(moment, yard, clock) == SIGKILL
    conveyor = yard.conveyor()
    conveyor.run_once()
    clock.advance(3600)
    while conveyor.run_once().counts:
        clock.advance(60)
    states = yard.rows("SELECT state, count(*) FROM replica WHERE storage_id = %(id)s GROUP BY 1", id=there)
    assert states == [("available", 8)]
    assert yard.found(there) == 8 and yard.temporaries(there) == []
    assert [yard.path(there, f"f{number}").read_bytes() for number in range(1, 9)] == contents(8)
    yard.check()


def killed_at(moment: str, yard: Yard, clock: ManualClock) -> int:
    """Run a conveyor in another process that dies at this moment; the signal that ended it."""
    dsn = yard.database.dsn
    yard.database.engine.dispose()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        effects.install(lambda name: os.kill(os.getpid(), SIGKILL) if name == moment else None)
        yard.database = Database(dsn, clock=clock)
        yard.conveyor().run_once()
    finally:
        os._exit(0)


def test_the_world_is_asked_before_a_file_is_copied_again(yard: Yard, clock: ManualClock) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    (did,) = yard.stored([b"abc"], here)
    yard.wish([did], there)
    assert killed_at("conveyor.copied:before-record", yard, clock) == SIGKILL
    yard.path(here, "f1").unlink()
    clock.advance(3600)
    assert yard.conveyor().run_once().counts == {"recovered": 1, "claimed": 1, "done": 1}
    assert yard.rows("SELECT outcome, error_class FROM attempt ORDER BY number") == [
        ("retry", "interrupted"),
        ("done", None),
    ]


def test_a_rule_let_go_after_its_conveyor_died_leaves_no_file_without_owner(yard: Yard, clock: ManualClock) -> None:
    """1. the file gets its name, 2. the conveyor dies, 3. the lease ends, 4. the rule lets go, 5. another looks."""
    here, there = yard.storage("here"), yard.storage("there")
    (did,) = yard.stored([b"abc"], here)
    rule = yard.wish([did], there)
    assert killed_at("conveyor.copied:before-record", yard, clock) == SIGKILL
    clock.advance(3600)
    with yard.database.begin("recovery") as tx:
        requests.recover(tx, 10, max_attempts=6, backoff_s=10, parked_retry_s=5000)
    with yard.database.begin("release") as tx:
        letting_go.release(tx, rule_ids=[rule])
    with yard.database.begin("let-go") as tx:
        delta = StorageDelta()
        letting_go.let_go(tx, letting_go.PAIRS, delta, undo_window_s=0, dids=[did], storages=[there])
        change_storages(tx, delta)
    assert yard.conveyor().run_once().counts == {"claimed": 1, "cancelled": 1}
    found = yard.row("SELECT state, tombstone_at FROM replica WHERE storage_id = %(id)s", id=there)
    assert found == ("available", clock.moment) and yard.found(there) == 1
    yard.check()


def test_a_worker_that_wakes_late_changes_nothing(yard: Yard, clock: ManualClock) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(contents(5), here), there)
    slow, fast = yard.conveyor(), yard.conveyor()
    passed: list[dict[str, int]] = []

    def overtake(name: str) -> None:
        if name == "conveyor.copied:before-record":
            effects.install(None)
            clock.advance(3600)
            passed.append(fast.run_once().counts)

    effects.install(overtake)
    try:
        late = slow.run_once()
    finally:
        effects.install(None)
    assert passed == [{"recovered": 5, "claimed": 5, "done": 5}]
    assert late.counts == {"claimed": 5, "late": 5}
    assert yard.row("SELECT count(*) FILTER (WHERE outcome = 'done') FROM attempt") == (5,)
    yard.check()


def test_the_database_may_go_away_while_files_are_copied(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(contents(3), here), there)

    def cut(name: str) -> None:
        if name == "conveyor.record:before-commit":
            effects.install(None)
            with yard.database.begin("cut") as tx:
                tx.run(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE pid <> pg_backend_pid() AND datname = current_database()"""
                )

    effects.install(cut)
    try:
        done = yard.conveyor().run_once()
    finally:
        effects.install(None)
    assert done.counts["done"] == 3
    yard.check()
