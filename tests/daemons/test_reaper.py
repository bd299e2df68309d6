"""The reaper on real files: what goes, what is kept, and what happens when something happens in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import pytest

from dlm.clock import DatabaseClock
from dlm.config import Settings
from dlm.daemons.loop import Pass
from dlm.daemons.reaper import LATER_S, REST_S, Reaper
from dlm.db import breakers
from dlm.db.engine import Database
from dlm.rooted import MARKER
from shelves import SETTINGS, Killed, Shelves


@pytest.fixture
def reaper(database: Database) -> Reaper:
    return Reaper(database, SETTINGS)


def kill() -> None:
    raise Killed


# -- the ordinary way -------------------------------------------------------------------------------------------


def test_what_nobody_wants_goes_with_a_proof_and_leaves_no_directory(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    files = shelves.files(5)
    shelves.put(files, here, due_s=0)
    assert reaper.run_once().counts == {"marked": 5, "deleted": 5}
    assert os.listdir(shelves.refs[here].prefix) == [MARKER]
    assert shelves.rows("SELECT * FROM replica") == []
    assert shelves.used(here) == (0, 0)
    proofs = shelves.rows("SELECT did_id, wanted, witnesses, cause, fence FROM proof ORDER BY did_id")
    assert proofs == [(file, 0, [], "unwanted", 1) for file in files]
    assert shelves.events("reaped") == [{"files": 5, "bytes": 50}]
    assert shelves.changes("gone") == [(here, files)]


def test_surplus_goes_and_its_witnesses_are_on_record(shelves: Shelves, reaper: Reaper) -> None:
    stays, goes = shelves.storage("stays"), shelves.storage("goes")
    (file,) = shelves.files(1)
    shelves.put([file], stays)
    shelves.put([file], goes, due_s=0)
    shelves.lock(file, stays, shelves.rule(file))
    reaper.run_once()
    assert shelves.path(file, stays).exists() and not shelves.path(file, goes).exists()
    assert shelves.rows("SELECT wanted, witnesses, cause FROM proof") == [(1, [stays], "surplus")]


def test_nothing_goes_before_its_time(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=60)
    done = reaper.run_once()
    assert done.counts == {} and done.next_due_s == 60
    shelves.advance(60)
    assert reaper.run_once().counts["deleted"] == 1


def test_a_file_that_is_not_there_counts_as_deleted(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    shelves.path(file, here).unlink()
    assert reaper.run_once().counts["deleted"] == 1


def test_a_lost_copy_goes_and_usage_stays_right(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, "lost", due_s=0)
    reaper.run_once()
    assert shelves.state(file, here) is None
    assert not shelves.path(file, here).exists()
    assert shelves.used(here) == (0, 0)


@pytest.mark.parametrize("number", [1, 40])
def test_the_statements_do_not_depend_on_the_number_of_files(shelves: Shelves, reaper: Reaper, number: int) -> None:
    here = shelves.storage("here")
    shelves.put(shelves.files(number), here, due_s=0)
    with shelves.database.begin("reaper.mark", commit=False) as tx:
        assert len(reaper._mark(tx, Pass())) == number
        assert tx.statements == 12


def test_a_dry_run_says_what_would_go_and_deletes_nothing(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    assert reaper.run_once(dry_run=True).counts == {"marked": 1}
    assert shelves.path(file, here).exists()
    assert shelves.state(file, here) == "available"


# -- what protects ----------------------------------------------------------------------------------------------


def test_a_lock_on_the_dataset_keeps_the_replica_and_clears_its_tombstone(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    dataset = shelves.dataset([file])
    shelves.lock(dataset, here, shelves.rule(dataset))
    assert reaper.run_once().counts == {"kept": 1}
    assert shelves.replica(file, here)["tombstone_at"] is None


@pytest.mark.parametrize("state", ["declared", "suspended", "impossible", "waiting_approval"])
def test_a_rule_far_above_that_placed_nothing_yet_keeps_the_last_copy(
    shelves: Shelves, reaper: Reaper, state: str
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    inner = shelves.dataset([shelves.dataset([file])], "container")
    shelves.rule(shelves.dataset([inner], "container"), copies=None, state=state)
    assert reaper.run_once().counts == {"kept": 1}
    due = shelves.one("SELECT tombstone_at - %(now)s FROM replica")
    assert due == timedelta(seconds=LATER_S)


@pytest.mark.parametrize("state", ["letting_go", "gone"])
def test_a_rule_at_its_end_wants_nothing(shelves: Shelves, reaper: Reaper, state: str) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    shelves.rule(file, state=state)
    assert reaper.run_once().counts["deleted"] == 1


def test_a_rule_for_all_storages_wants_as_many_copies_as_it_holds(shelves: Shelves, reaper: Reaper) -> None:
    a, b, c = (shelves.storage(name) for name in "abc")
    (file,) = shelves.files(1)
    rule = shelves.rule(file, copies=None)
    shelves.put([file], a)
    shelves.put([file], c, due_s=0)
    shelves.lock(file, a, rule)
    shelves.lock(file, b, rule)  # nothing there yet
    assert reaper.run_once().counts == {"kept": 1}
    shelves.put([file], b)
    shelves.advance(LATER_S)
    assert reaper.run_once().counts["deleted"] == 1
    assert shelves.rows("SELECT wanted, witnesses FROM proof") == [(2, [a, b])]


def test_a_replica_with_a_request_is_left_alone(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, "bad", due_s=0)
    shelves.run(
        """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
           VALUES (%(file)s, %(here)s, 10, %(now)s, %(now)s, 3)""",
        file=file,
        here=here,
    )
    assert reaper.run_once().counts == {"kept": 1}
    assert shelves.state(file, here) == "bad"


def test_two_due_copies_of_a_wanted_file_are_both_kept(shelves: Shelves, reaper: Reaper) -> None:
    a, b = shelves.storage("a"), shelves.storage("b")
    (file,) = shelves.files(1)
    shelves.put([file], a, due_s=0)
    shelves.put([file], b, due_s=0)
    shelves.rule(file, state="declared")
    assert reaper.run_once().counts == {"kept": 2}


def test_a_copy_under_suspicion_is_no_witness(shelves: Shelves, reaper: Reaper) -> None:
    a, b = shelves.storage("a"), shelves.storage("b")
    (file,) = shelves.files(1)
    shelves.put([file], a)
    shelves.put([file], b, due_s=0)
    shelves.lock(file, a, shelves.rule(file))
    shelves.run(
        "INSERT INTO finding (storage_id, did_id, state, found_at) VALUES (%(a)s, %(file)s, 'lost', %(now)s)",
        a=a,
        file=file,
    )
    assert reaper.run_once().counts == {"kept": 1}


# -- switches, breaker, space -----------------------------------------------------------------------------------


def test_a_hold_stops_everything_until_a_person_closes_it(shelves: Shelves, reaper: Reaper, database: Database) -> None:
    here = shelves.storage("here")
    shelves.put(shelves.files(1), here, due_s=0)
    with database.begin("test") as tx:
        held = breakers.hold(tx, "restored from a backup")
    assert reaper.run_once().counts == {}
    with database.begin("test") as tx:
        breakers.close(tx, held)
    assert reaper.run_once().counts["deleted"] == 1


@pytest.mark.parametrize("switch", [{"can_delete": False}, {"is_available": False}])
def test_a_storage_that_is_off_is_left_alone(shelves: Shelves, reaper: Reaper, switch: dict[str, bool]) -> None:
    here = shelves.storage("here", **switch)
    shelves.put(shelves.files(1), here, due_s=0)
    assert reaper.run_once().counts == {}


def test_the_breaker_opens_at_the_share_and_a_person_lets_it_go_on(shelves: Shelves, database: Database) -> None:
    reaper = Reaper(database, Settings(breaker_delete_share=0.5, breaker_floor_files=2))
    here, there = shelves.storage("here"), shelves.storage("there")
    shelves.put(shelves.files(10), here, due_s=0)
    other = shelves.files(1)
    assert reaper.run_once().counts == {"marked": 5, "breakers_opened": 1, "deleted": 5}
    (opened,) = shelves.rows("SELECT id, storage_id, act, reason FROM breaker")
    assert opened[1:3] == (here, "delete")
    assert opened[3].startswith("5 of 10 files deleted within 3,600 s, all that are allowed (50 % of the storage); 5 or more")
    shelves.put(other, there, due_s=0)
    assert reaper.run_once().counts == {"marked": 1, "deleted": 1}  # nobody else is stopped
    shelves.advance(1)
    with database.begin("test") as tx:
        breakers.close(tx, opened[0])
    shelves.advance(1)
    assert reaper.run_once().counts["deleted"] == 2  # the window starts anew with what is left: 5, of which half


def test_what_is_kept_in_the_end_gives_the_window_its_budget_back(
    shelves: Shelves, reaper: Reaper, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    rule = shelves.rule(file, state="gone")
    at("reaper.mark:after-commit", lambda: shelves.lock(file, here, rule))
    reaper.run_once()
    assert shelves.one("SELECT sum(files) FROM harm") == 0


def test_a_cache_keeps_what_it_can_and_frees_the_oldest_when_full(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here", reap="when_full", capacity_bytes=100)
    shelves.put(shelves.files(9), here, due_s=-60)
    assert reaper.run_once().counts == {}
    (last,) = shelves.files(1)
    shelves.put([last], here, due_s=-30)
    assert reaper.run_once().counts == {"marked": 1, "deleted": 1}
    assert shelves.state(last, here) == "available"
    assert reaper.run_once().counts == {}


def test_a_leap_of_the_databases_clock_stops_deletions(shelves: Shelves, dsn: str) -> None:
    class LeapingClock(DatabaseClock):
        leap = timedelta()

        def now(self, connection):  # type: ignore[no-untyped-def]
            return super().now(connection) + self.leap

    clock = LeapingClock()
    database = Database(dsn, clock=clock)
    here = shelves.storage("here")
    shelves.put(shelves.files(1), here, due_s=20 * 365 * 86400)
    reaper = Reaper(database, SETTINGS)
    assert reaper.run_once().counts == {}
    clock.leap = timedelta(days=30 * 365)
    assert reaper.run_once().counts == {}
    assert "leapt by" in shelves.one("SELECT reason FROM breaker WHERE storage_id IS NULL")
    database.dispose()


# -- in between -------------------------------------------------------------------------------------------------


def test_a_lock_that_comes_between_mark_and_recheck_is_honoured(
    shelves: Shelves, reaper: Reaper, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    rule = shelves.rule(file, state="gone")
    at("reaper.mark:after-commit", lambda: shelves.lock(file, here, rule))
    assert reaper.run_once().counts == {"marked": 1, "reverted": 1}
    assert shelves.path(file, here).exists()
    replica = shelves.replica(file, here)
    assert (replica["state"], replica["tombstone_at"], replica["claimed_until"]) == ("available", None, None)
    assert shelves.changes("gone") == [(here, [file])]
    assert shelves.used(here) == (1, 10)


def test_a_bad_copy_that_is_taken_back_comes_back_unverified_and_due(
    shelves: Shelves, reaper: Reaper, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    shelves.run("UPDATE replica SET state = 'bad'")
    rule = shelves.rule(file, state="gone")
    at("reaper.mark:after-commit", lambda: shelves.lock(file, here, rule))
    reaper.run_once()
    assert shelves.state(file, here) == "unverified"
    assert shelves.one("SELECT next_check_at <= %(now)s FROM replica")


def test_a_witness_that_went_bad_before_the_recheck_saves_the_copy(
    shelves: Shelves, reaper: Reaper, at: Callable[[str, Callable[[], None]], None]
) -> None:
    stays, goes = shelves.storage("stays"), shelves.storage("goes")
    (file,) = shelves.files(1)
    shelves.put([file], stays)
    shelves.put([file], goes, due_s=0)
    shelves.lock(file, stays, shelves.rule(file))
    at(
        "reaper.mark:after-commit",
        lambda: shelves.run("UPDATE replica SET state = 'bad' WHERE storage_id = %(s)s", s=stays),
    )
    assert reaper.run_once().counts == {"marked": 1, "reverted": 1}
    assert shelves.path(file, goes).exists()


def test_without_the_marker_nothing_is_deleted_and_the_storage_is_unavailable(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    shelves.unmount(here)
    assert reaper.run_once().counts == {"marked": 1, "postponed": 1}
    assert shelves.state(file, here) == "available"
    assert shelves.rows("SELECT is_available FROM storage") == [(False,)]
    assert shelves.one("SELECT count(*) FROM change WHERE kind = 'storages'") == 1
    shelves.mount(here)
    assert shelves.path(file, here).exists()


def test_a_deletion_that_fails_is_tried_again_later_and_told(shelves: Shelves, reaper: Reaper) -> None:
    here = shelves.storage("here")
    good, stuck = shelves.files(2)
    shelves.put([good, stuck], here, due_s=0)
    shelves.run("UPDATE replica SET path = '../outside' WHERE did_id = %(id)s", id=stuck)
    assert reaper.run_once().counts == {"marked": 2, "failed": 1, "deleted": 1}
    replica = shelves.replica(stuck, here)
    assert replica["state"] == "available"
    assert shelves.one("SELECT tombstone_at - %(now)s FROM replica") == timedelta(seconds=LATER_S)
    (event,) = shelves.events("delete_failed")
    assert event["files"] == 1 and event["classes"] == {"invalid_path": 1}


def test_past_the_deadline_nothing_more_is_deleted(shelves: Shelves, database: Database) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    moments = iter([0.0, 0.0, 0.0] + [1000.0] * 100)
    reaper = Reaper(database, SETTINGS, timer=lambda: next(moments))
    assert "deleted" not in reaper.run_once().counts
    assert shelves.path(file, here).exists()


# -- killed, late, and two at once ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "reaper.mark:before-commit",
        "reaper.mark:after-commit",
        "reaper.recheck:before-commit",
        "reaper.recheck:after-commit",
        "reaper.delete:before",
        "reaper.delete:after",
        "reaper.record:before-commit",
        "reaper.record:after-commit",
    ],
)
def test_killed_anywhere_the_next_reaper_finishes(
    shelves: Shelves, reaper: Reaper, at: Callable[[str, Callable[[], None]], None], point: str
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    at(point, kill)
    with pytest.raises(Killed):
        reaper.run_once()
    shelves.advance(SETTINGS.reaper_lease_s)
    reaper.run_once()
    assert not shelves.path(file, here).exists()
    assert shelves.used(here) == (0, 0)
    shelves.advance(SETTINGS.reaper_lease_s + REST_S)
    reaper.run_once()
    assert shelves.rows("SELECT * FROM replica") == []


def test_after_a_lost_lease_the_path_rests_before_it_is_used_again(
    shelves: Shelves, reaper: Reaper, at: Callable[[str, Callable[[], None]], None]
) -> None:
    """The worker that lost its lease may wake at any moment and unlink what then stands at the path."""
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    at("reaper.recheck:after-commit", kill)
    with pytest.raises(Killed):
        reaper.run_once()
    shelves.advance(SETTINGS.reaper_lease_s)
    assert reaper.run_once().counts == {"expired": 1, "marked": 1, "deleted": 1}
    assert shelves.state(file, here) == "deleted"
    rest = shelves.one("SELECT quiet_until - %(now)s FROM replica")
    assert rest == timedelta(seconds=SETTINGS.reaper_lease_s + REST_S)
    shelves.advance(rest.total_seconds())
    assert reaper.run_once().counts == {"purged": 1}


def test_a_lock_that_came_while_a_worker_was_dead_keeps_the_file(
    shelves: Shelves, reaper: Reaper, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    at("reaper.mark:after-commit", kill)
    with pytest.raises(Killed):
        reaper.run_once()
    shelves.lock(file, here, shelves.rule(file))
    shelves.advance(SETTINGS.reaper_lease_s)
    assert reaper.run_once().counts == {"expired": 1, "kept": 1}
    assert shelves.path(file, here).exists()
    assert shelves.state(file, here) == "unverified"


def test_a_worker_that_wakes_after_its_lease_writes_nothing(
    shelves: Shelves, reaper: Reaper, database: Database, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)
    other = Reaper(database, SETTINGS)

    def overtake() -> None:
        shelves.advance(SETTINGS.reaper_lease_s)
        assert other.run_once().counts == {"expired": 1, "marked": 1, "deleted": 1}

    at("reaper.delete:after", overtake)
    assert reaper.run_once().counts == {"marked": 1, "late": 1}
    assert shelves.used(here) == (0, 0)
    assert shelves.events("reaped") == [{"files": 1, "bytes": 10}]


def test_two_reapers_share_the_work_of_one_storage(
    shelves: Shelves, reaper: Reaper, database: Database, at: Callable[[str, Callable[[], None]], None]
) -> None:
    """While one has its mark open the other leaves the lane alone, and finds nothing twice."""
    here = shelves.storage("here")
    shelves.put(shelves.files(3), here, due_s=0)
    other = Reaper(database, SETTINGS)
    seen: list[dict[str, int]] = []
    at("reaper.mark:before-commit", lambda: seen.append(other.run_once().counts))
    assert reaper.run_once().counts["deleted"] == 3
    assert seen == [{}]


def test_two_reapers_do_not_delete_each_others_witness(
    shelves: Shelves, reaper: Reaper, database: Database, at: Callable[[str, Callable[[], None]], None]
) -> None:
    """1. R1 looks at A and B, and marks A; 2. before its commit R2 looks at B; 3. nothing wanted goes twice.

    B has no tombstone when R1 counts it; it gets one, committed by a let-go, before R2 comes.
    """
    a, b = shelves.storage("a"), shelves.storage("b")
    (file,) = shelves.files(1)
    shelves.rule(file, state="declared")
    shelves.put([file], a, due_s=0)
    shelves.put([file], b)
    other = Reaper(database, SETTINGS)
    seen: list[dict[str, int]] = []

    def beside() -> None:
        seen.append(other.run_once().counts)

    at("reaper.mark:before-commit", beside)
    reaper.run_once()
    shelves.run("UPDATE replica SET tombstone_at = %(now)s WHERE storage_id = %(b)s", b=b)
    seen.append(other.run_once().counts)
    assert seen == [{}, {"kept": 1}]
    assert shelves.path(file, b).exists()
