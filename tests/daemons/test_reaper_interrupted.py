"""The reaper when a storage hangs in the middle of a batch, or a person stops deletions there."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dlm.daemons.reaper import Reaper
from dlm.db import breakers
from dlm.db.engine import Database
from dlm.errors import Transient
from shelves import SETTINGS, Shelves

At = Callable[[str, Callable[[], None]], None]


def test_a_worker_that_hung_in_one_deletion_beyond_its_lease_begins_no_other(
    shelves: Shelves, database: Database, at: At
) -> None:
    """It wakes when the lease is long over: what it has not begun is not its to delete any more."""
    here = shelves.storage("here")
    files = shelves.files(5)
    shelves.put(files, here, due_s=0)
    is_late = threading.Event()
    at("posix.unlink:after", is_late.set)

    def timer() -> float:
        """Time passes for the worker alone, so that what it did is recorded and can be looked at."""
        is_worker = threading.current_thread() is not threading.main_thread()
        return SETTINGS.reaper_lease_s if is_worker and is_late.is_set() else 0.0

    done = Reaper(database, SETTINGS, timer=timer).run_once()
    assert done.counts == {"marked": 5, "deleted": 1, "postponed": 4}
    assert [shelves.path(file, here).exists() for file in files].count(True) == 4


@pytest.mark.parametrize("switch", ["everything", "storage"])
def test_deletions_that_a_person_stops_after_the_mark_do_not_happen(
    shelves: Shelves, database: Database, at: At, switch: str
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, due_s=0)

    def stop() -> None:
        with database.begin("person") as tx:
            if switch == "everything":
                breakers.hold(tx, "wait")
            else:
                tx.run("UPDATE storage SET can_delete = false, switch_reason = 'wait'")

    at("reaper.mark:after-commit", stop)
    assert Reaper(database, SETTINGS).run_once().counts == {"marked": 1, "reverted": 1}
    assert shelves.path(file, here).exists()
    assert shelves.replica(file, here)["state"] == "available"
    assert shelves.one("SELECT tombstone_at <= %(now)s FROM replica")


@pytest.mark.parametrize(("moment", "counted"), [("before", "deleted"), ("after", "late")])
def test_a_record_that_the_database_did_not_take_or_answer_is_tried_again(
    shelves: Shelves, database: Database, at: At, moment: str, counted: str
) -> None:
    here = shelves.storage("here")
    files = shelves.files(3)
    shelves.put(files, here, due_s=0)
    failures = [Transient("the database is busy")]

    def fail() -> None:
        if failures:
            raise failures.pop()

    at(f"reaper.record:{moment}-commit", fail)
    assert Reaper(database, SETTINGS).run_once().counts == {"marked": 3, counted: 3}
    assert shelves.one("SELECT count(*) FROM replica") == 0
    assert shelves.one("SELECT used_files FROM storage_usage") == 0
