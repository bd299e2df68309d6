"""The reaper's SQL: races with two connections, fences, and statements that do not grow with the rows."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dlm.db import reaper
from dlm.db.engine import Database
from shelves import Shelves


@pytest.fixture
def shelves(database: Database, tmp_path: Path) -> Shelves:
    return Shelves(database, tmp_path)


def test_the_copies_of_a_file_are_one_workers_until_it_commits(shelves: Shelves) -> None:
    """Two reapers, each with another copy as its candidate: the second gets none of them, and does not wait."""
    a, b = shelves.storage("a"), shelves.storage("b")
    files = shelves.files(2)
    shelves.put(files, a)
    shelves.put(files, b)
    with shelves.database.begin("one") as one, shelves.database.begin("two") as two:
        assert reaper.lock_copies(one, files[:1]) == {(files[0], a), (files[0], b)}
        assert reaper.lock_copies(two, files) == {(files[1], a), (files[1], b)}


def test_after_the_locks_a_new_statement_sees_what_committed_before_them(shelves: Shelves) -> None:
    """1. R2 begins; 2. R1 marks A and commits; 3. R2 locks, then counts: A is being deleted and no witness."""
    a, b = shelves.storage("a"), shelves.storage("b")
    (file,) = shelves.files(1)
    shelves.put([file], a)
    shelves.put([file], b)
    with shelves.database.begin("two") as two:
        assert [row.state for row in reaper.load_copies(two, [file])] == ["available", "available"]
        with shelves.database.begin("one") as one:
            reaper.lock_copies(one, [file])
            assert len(reaper.mark(one, [(file, a, 1)], 60)) == 1
        reaper.lock_copies(two, [file])
        assert [row.state for row in reaper.load_copies(two, [file])] == ["deleting", "available"]


def test_a_replica_that_changed_hands_is_not_marked(shelves: Shelves) -> None:
    a = shelves.storage("a")
    (file,) = shelves.files(1)
    shelves.put([file], a)
    shelves.run("UPDATE replica SET fence = 3")
    with shelves.database.begin("test") as tx:
        assert reaper.mark(tx, [(file, a, 1)], 60) == []
        (claim,) = reaper.mark(tx, [(file, a, 4)], 60)
    assert (claim.fence, claim.scope, claim.path, claim.was_verified) == (4, "demo", None, True)


def test_a_late_worker_neither_removes_nor_reverts(shelves: Shelves) -> None:
    a = shelves.storage("a")
    (file,) = shelves.files(1)
    shelves.put([file], a, due_s=0)
    with shelves.database.begin("test") as tx:
        claims = reaper.mark(tx, [(file, a, 1)], 60)
    shelves.advance(60)
    with shelves.database.begin("test") as tx:
        assert len(reaper.release_expired(tx, 10, 900)) == 1
    with shelves.database.begin("test") as tx:
        assert reaper.finish(tx, claims) == []
        assert reaper.revert(tx, [(claims[0], None, False)]) == []
    assert shelves.state(file, a) == "unverified"


def test_lanes_are_marked_by_one_reaper_at_a_time(shelves: Shelves) -> None:
    a, b = shelves.storage("a"), shelves.storage("b")
    files = shelves.files(1)
    shelves.put(files, a, due_s=0)
    with shelves.database.begin("one") as one, shelves.database.begin("two") as two:
        assert [lane.id for lane in reaper.lanes(one)] == [a]
        assert reaper.lanes(two) == []
        shelves.put(files, b, due_s=0)
        assert [lane.id for lane in reaper.lanes(two)] == [b]


def test_a_judge_that_locks_before_the_mark_commits_is_seen_by_the_recheck(shelves: Shelves) -> None:
    """Real threads: the judge's transaction is open while the mark commits, and commits before the recheck."""
    a = shelves.storage("a")
    (file,) = shelves.files(1)
    shelves.put([file], a, due_s=0)
    rule = shelves.rule(file, state="declared")
    written, marked = threading.Barrier(2, timeout=10), threading.Barrier(2, timeout=10)

    def judge() -> None:
        with shelves.database.begin("judge") as tx:
            tx.run(
                """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at)
                   VALUES (%(file)s, %(a)s, %(rule)s, 1, 10, %(now)s)""",
                file=file,
                a=a,
                rule=rule,
            )
            written.wait()
            marked.wait()

    thread = threading.Thread(target=judge)
    thread.start()
    written.wait()
    with shelves.database.begin("reaper.mark") as tx:
        reaper.lock_copies(tx, [file])
        assert [row.is_locked for row in reaper.load_copies(tx, [file])] == [False]
        reaper.mark(tx, [(file, a, 1)], 60)
    marked.wait()
    thread.join()
    with shelves.database.begin("reaper.recheck") as tx:
        assert [row.is_locked for row in reaper.load_copies(tx, [file])] == [True]


def test_the_oldest_tombstones_come_first_up_to_each_lanes_limit(shelves: Shelves) -> None:
    a, b = shelves.storage("a"), shelves.storage("b")
    files = shelves.files(4)
    for age, file in enumerate(files):
        shelves.put([file], a, due_s=-age)
    shelves.put(files, b, due_s=-1)
    with shelves.database.begin("test") as tx:
        due = [(row.did_id, row.storage_id) for row in reaper.claim_due(tx, {a: 2, b: 1})]
    assert due[:2] == [(files[3], a), (files[2], a)] and len(due) == 3


def test_what_is_wanted_is_the_most_that_any_rule_above_asks(shelves: Shelves) -> None:
    files = shelves.files(3)
    dataset = shelves.dataset(files[:2])
    container = shelves.dataset([shelves.dataset([dataset], "container")], "container")
    shelves.rule(files[0], copies=2)
    shelves.rule(container, copies=3, state="suspended")
    shelves.rule(dataset, copies=9, state="letting_go")
    with shelves.database.begin("test") as tx:
        assert reaper.load_wanted(tx, files) == {files[0]: 3, files[1]: 3}
        assert tx.statements == 1


def test_the_next_due_time_is_that_of_the_earliest_thing(shelves: Shelves) -> None:
    a = shelves.storage("a")
    shelf = shelves.storage("off", can_delete=False)
    first, second = shelves.files(2)
    with shelves.database.begin("test") as tx:
        assert reaper.next_due(tx) is None
    shelves.put([first], a, due_s=300)
    shelves.put([second], shelf, due_s=100)
    with shelves.database.begin("test") as tx:
        assert (reaper.next_due(tx) - tx.now).total_seconds() == 300  # type: ignore[operator]
        reaper.mark(tx, [(second, shelf, 1)], 60)
        assert (reaper.next_due(tx) - tx.now).total_seconds() == 60  # type: ignore[operator]


def test_deleted_rows_go_when_their_path_has_rested(shelves: Shelves) -> None:
    a = shelves.storage("a")
    files = shelves.files(2)
    shelves.put(files, a)
    shelves.run("UPDATE replica SET state = 'deleted', quiet_until = %(now)s + make_interval(mins => did_id::int)")
    shelves.advance(60)
    with shelves.database.begin("test") as tx:
        assert [row.did_id for row in reaper.purge(tx, 10)] == files[:1]
