"""The conveyor on real PostgreSQL and real files: it moves, verifies, waits, and gives up where people see it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conveying import Yard
from dlm import effects
from dlm.clock import ManualClock
from dlm.core import mover
from dlm.db import requests, storages
from dlm.db.engine import Database
from dlm.db.requests import Filters
from dlm.did import derived_path


@pytest.fixture
def yard(database: Database, tmp_path: Path) -> Yard:
    return Yard(database, tmp_path)


@pytest.fixture
def handler() -> Iterator[Callable[[Callable[[str], None]], None]]:
    """Installs a handler of effects for the test."""
    yield effects.install
    effects.install(None)


def contents(number: int) -> list[bytes]:
    return [b"file %d" % (index + 1) for index in range(number)]


def test_due_requests_become_verified_replicas(yard: Yard, clock: ManualClock) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored(contents(20), here)
    yard.wish(dids, there)
    done = yard.conveyor().run_once()
    assert done.counts == {"claimed": 20, "done": 20}
    found = yard.rows(
        "SELECT DISTINCT state, verified_at, claimed_until FROM replica WHERE storage_id = %(id)s", id=there
    )
    assert found == [("available", clock.moment, None)]
    assert yard.rows("SELECT * FROM request") == []
    tried = yard.row("SELECT count(*), min(outcome), max(outcome), max(source_storage_id) FROM attempt")
    assert tried == (20, "done", "done", here)
    assert yard.path(there, "f7").read_bytes() == b"file 7"
    assert yard.found(there) == 20
    assert yard.row("SELECT kind, storage_id, file_ids FROM change") == ("arrived", there, sorted(dids))
    assert yard.row("SELECT object_id, action, actor, after->>'done' FROM event") == (
        there,
        "conveyed",
        "dlm:conveyor",
        "20",
    )
    yard.check()


def test_the_next_check_is_spread_about_the_cycle(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(contents(30), here), there)
    yard.conveyor(auditor_cycle_s=1000.0).run_once()
    sql = """SELECT extract(epoch FROM min(next_check_at - verified_at))::float, count(DISTINCT next_check_at),
                    extract(epoch FROM max(next_check_at - verified_at))::float
               FROM replica WHERE storage_id = %(id)s"""
    least, different, most = yard.row(sql, id=there)
    assert least >= 900 and most <= 1100 and different > 25


def test_a_checksum_that_nobody_knew_is_learnt(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored([b"abc"], here, checksums=False), there)
    yard.conveyor().run_once()
    assert yard.row("SELECT adler32, md5 FROM did") == ("024d0127", None)


def test_copies_that_teach_different_checksums_are_not_both_believed(yard: Yard) -> None:
    good, other, first, second = (yard.storage(name) for name in ("good", "other", "first", "second"))
    (did,) = yard.stored([b"abc"], good, checksums=False)
    yard.put([did], [b"abd"], other)
    yard.replicas([did], other)
    yard.wish([did], first, source_ids=[good])
    yard.wish([did], second, source_ids=[other])
    done = yard.conveyor().run_once()
    assert (done.counts["done"], done.counts["retry"]) == (1, 1)
    assert yard.row("SELECT error_class, is_repair FROM request") == ("checksum_mismatch", True)
    assert yard.row("SELECT count(*) FROM finding WHERE state = 'bad'") == (1,)


def test_a_dry_run_changes_nothing(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(contents(3), here), there)
    before = yard.rows("SELECT * FROM request ORDER BY id")
    done = yard.conveyor().run_once(dry_run=True)
    assert done.counts == {"claimed": 3, "would_transfer": 3, "would_move_bytes": 18}
    assert yard.rows("SELECT * FROM request ORDER BY id") == before
    assert yard.found(there) == 0


# --- sources that fail


def test_a_corrupt_source_is_suspected_and_the_next_one_serves(yard: Yard) -> None:
    corrupt, good, there = yard.storage("corrupt"), yard.storage("good", "bern", "CH"), yard.storage("there")
    (did,) = yard.stored([b"right"], good)
    yard.put([did], [b"wrong"], corrupt)
    yard.replicas([did], corrupt)
    yard.wish([did], there)
    conveyor = yard.conveyor()
    assert conveyor.run_once().counts["retry"] == 1
    finding = yard.row("SELECT storage_id, did_id, state, probes FROM finding")
    assert finding == (corrupt, did, "bad", 1)
    assert yard.row("SELECT state FROM replica WHERE storage_id = %(id)s", id=corrupt) == ("available",)
    assert conveyor.run_once().counts["done"] == 1
    assert yard.path(there, "f1").read_bytes() == b"right"
    assert yard.rows("SELECT error_class, source_storage_id FROM attempt ORDER BY number") == [
        ("source_corrupt", corrupt),
        (None, good),
    ]
    yard.check()


def test_a_missing_source_is_a_finding_not_a_loss(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    (did,) = yard.stored([b"abc"], here)
    yard.path(here, "f1").unlink()
    yard.wish([did], there)
    yard.conveyor().run_once()
    assert yard.row("SELECT storage_id, state FROM finding") == (here, "lost")
    assert yard.row("SELECT state, error_class FROM request") == ("queued", "source_missing")


def test_after_its_attempts_a_request_is_parked_and_slowly_tried_again(yard: Yard, clock: ManualClock) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    (did,) = yard.stored([b"abc"], here)
    yard.path(here, "f1").unlink()
    yard.wish([did], there)
    conveyor = yard.conveyor(conveyor_max_attempts=3, conveyor_parked_retry_s=5000.0)
    for _ in range(3):
        assert conveyor.run_once().counts["claimed"] == 1
        clock.advance(4000)
    assert yard.row("SELECT state, attempts FROM request") == ("parked", 3)
    assert yard.rows("SELECT kind, storage_id, file_ids FROM change") == [("parked", there, [did])]
    assert conveyor.run_once().counts == {}
    clock.advance(2000)
    assert conveyor.run_once().counts == {"unparked": 1, "claimed": 1, "parked": 1}
    yard.put([did], [b"abc"], here)
    clock.advance(6000)
    assert conveyor.run_once().counts["done"] == 1
    yard.check()


def test_an_arrival_wakes_what_was_parked_for_want_of_a_source(yard: Yard) -> None:
    here, there, third = yard.storage("here"), yard.storage("there"), yard.storage("third")
    (did,) = yard.stored([b"abc"], here)
    yard.wish([did], there)
    yard.wish([did], third, source_ids=[there])
    yard.run(
        """UPDATE request SET state = 'parked', error_class = 'no_source', next_attempt_at = %(now)s + interval '1 day'
            WHERE storage_id = %(id)s""",
        id=third,
    )
    conveyor = yard.conveyor()
    assert conveyor.run_once().counts["done"] == 1
    assert conveyor.run_once().counts["done"] == 1
    assert yard.found(third) == 1


# --- storages that are not there


def test_a_root_without_marker_makes_the_storage_unavailable_and_blames_no_file(yard: Yard, clock: ManualClock) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(contents(3), here), there)
    root = Path(yard.refs[here].prefix)
    shutil.move(root, root.with_name("away"))
    root.mkdir()
    conveyor = yard.conveyor()
    assert conveyor.run_once().counts == {"claimed": 3, "released": 3}
    available, reason = yard.row("SELECT is_available, unavailable_reason FROM storage WHERE id = %(id)s", id=here)
    assert not available and "marker" in reason
    assert conveyor.run_once().counts == {"claimed": 3, "retry": 3}
    waiting = yard.rows("SELECT DISTINCT state, attempts, error_class FROM request")
    assert waiting == [("queued", 0, "source_unavailable")]
    assert "here which is unavailable" in yard.row("SELECT error FROM request LIMIT 1")[0]
    assert yard.rows("SELECT * FROM finding") == []
    assert yard.rows("SELECT * FROM attempt") == []
    root.rmdir()
    shutil.move(root.with_name("away"), root)
    with yard.database.begin("test") as tx:
        storages.set_available(tx, here, None)
    clock.advance(60)
    assert conveyor.run_once().counts["done"] == 3
    yard.check()


def test_requests_for_an_absent_destination_wait_in_their_lane(yard: Yard) -> None:
    here, there, fine = yard.storage("here"), yard.storage("there"), yard.storage("fine")
    dids = yard.stored(contents(3), here)
    yard.wish(dids, there)
    yard.wish(dids, fine)
    shutil.rmtree(yard.refs[there].prefix)
    conveyor = yard.conveyor()
    assert conveyor.run_once().counts == {"claimed": 6, "released": 3, "done": 3}
    assert conveyor.run_once().counts == {}
    assert yard.rows("SELECT DISTINCT storage_id, state, attempts FROM request") == [(there, "queued", 0)]
    yard.check()


def test_a_storage_that_never_answers_keeps_nobody_else_waiting(yard: Yard) -> None:
    here, hung, fine = yard.storage("here"), yard.storage("hung"), yard.storage("fine")
    dids = yard.stored(contents(4), here)
    yard.wish(dids, hung)
    yard.wish(dids[:2], fine)
    release = threading.Event()
    conveyor = yard.conveyor()
    conveyor.quiet_s = 0.2

    def hang(name: str) -> None:
        if name == "conveyor.flight:before" and threading.current_thread().name == "dlm-to-hung":
            release.wait(20)

    effects.install(hang)
    try:
        first = conveyor.run_once()
        assert (first.counts["done"], first.is_full) == (2, True)
        yard.wish(dids[2:], fine)
        assert conveyor.run_once().counts["done"] == 2
        release.set()
        assert conveyor.finish().counts["done"] == 4
    finally:
        release.set()
        effects.install(None)
    yard.check()


def test_a_flight_that_never_ends_is_given_up_after_its_deadline(yard: Yard, clock: ManualClock) -> None:
    here, hung = yard.storage("here"), yard.storage("hung")
    yard.wish(yard.stored(contents(4), here), hung)
    release = threading.Event()
    conveyor = yard.conveyor(conveyor_lease_s=4.0)
    conveyor.overdue_s = -3.5
    effects.install(lambda name: release.wait(20) if name == "conveyor.flight:before" else None)
    try:
        assert conveyor.run_once().counts == {"claimed": 4}
    finally:
        release.set()
        effects.install(None)
    clock.advance(60)
    conveyor.overdue_s = 60.0
    assert conveyor.run_once().counts == {"recovered": 4, "claimed": 4, "done": 4}
    yard.check()


def test_a_marker_that_is_not_answered_in_time_means_absent(yard: Yard, tmp_path: Path) -> None:
    here = yard.storage("here")
    marker = Path(yard.refs[here].prefix, ".dlm-storage")
    assert mover.absent([yard.refs[here]], 5.0) == {}
    marker.unlink()
    assert "marker" in mover.absent([yard.refs[here]], 5.0)[here]


# --- one bad item


def test_poisoned_requests_do_not_delay_healthy_ones(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    poisoned = yard.files([b"gone"] * 500, "p")
    yard.wish(poisoned[:250], there)
    yard.replicas(poisoned[250:], here)
    yard.wish(poisoned[250:], there)
    yard.wish(yard.stored(contents(50), here), there)
    conveyor = yard.conveyor(conveyor_batch=200)
    passes = [conveyor.run_once().counts for _ in range(3)]
    assert sum(done.get("done", 0) for done in passes) == 50
    assert yard.rows("SELECT state, error_class, count(*) FROM request GROUP BY 1, 2 ORDER BY 1") == [
        ("queued", "source_missing", 250),
        ("parked", "no_source", 250),
    ]
    assert conveyor.run_once().counts == {}
    yard.check()


def test_a_full_disk_backs_off_and_leaves_nothing_behind(yard: Yard, handler: Callable[..., None]) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored([b"abc"], here), there)

    def full(name: str) -> None:
        if name == "posix.fsync:before":
            raise OSError(28, "No space left on device")

    handler(full)
    assert yard.conveyor().run_once().counts["retry"] == 1
    found = yard.row("SELECT state, error_class, next_attempt_at > %(now)s FROM request")
    assert found == ("queued", "no_space", True)
    assert yard.temporaries(there) == [] and yard.found(there) == 0
    yard.check()


def test_refused_credentials_are_waited_for_and_never_count(
    yard: Yard, clock: ManualClock, handler: Callable[..., None]
) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored([b"abc"], here), there)

    def refuse(name: str) -> None:
        if name == "posix.fsync:before":
            raise PermissionError(13, "Permission denied")

    handler(refuse)
    conveyor = yard.conveyor(conveyor_max_attempts=2)
    for _ in range(5):
        assert conveyor.run_once().counts == {"claimed": 1, "retry": 1}
        clock.advance(3600)
    assert yard.row("SELECT state, attempts, error_class FROM request") == ("queued", 0, "permission")
    effects.install(None)
    assert conveyor.run_once().counts["done"] == 1


def test_other_content_at_the_destination_is_never_replaced(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored([b"abc"], here)
    yard.put(dids, [b"xyz"], there)
    yard.wish(dids, there)
    assert yard.conveyor().run_once().counts["parked"] == 1
    assert yard.path(there, "f1").read_bytes() == b"xyz"
    assert yard.row("SELECT error_class FROM request") == ("destination_exists",)


def test_a_repair_takes_the_place_of_the_bad_file(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored([b"abc"], here)
    yard.put(dids, [b"xyz"], there)
    yard.wish(dids, there)
    yard.run("UPDATE request SET is_repair = true")
    assert yard.conveyor().run_once().counts["done"] == 1
    assert yard.path(there, "f1").read_bytes() == b"abc"


# --- cancelling


def test_a_request_that_no_lock_holds_goes_with_its_replica(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored(contents(3), here)
    yard.request(dids, there)
    assert yard.conveyor().run_once().counts == {"claimed": 3, "cancelled": 3}
    assert yard.row("SELECT count(*) FROM replica WHERE storage_id = %(id)s", id=there) == (0,)
    assert yard.row("SELECT kind, storage_id, file_ids FROM change") == ("gone", there, dids)
    assert yard.row("SELECT DISTINCT outcome, error FROM attempt") == ("cancelled", "no lock holds it any more")
    yard.check()


def test_a_cancelled_request_goes_from_a_storage_that_takes_nothing(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored(contents(3), here)
    yard.request(dids, there)
    yard.run("UPDATE storage SET can_write = false, is_available = false WHERE id = %(id)s", id=there)
    yard.run("UPDATE request SET is_cancelled = true")
    assert yard.conveyor().run_once().counts == {"claimed": 3, "cancelled": 3}
    yard.check()


@pytest.mark.parametrize(("content", "state"), [(b"abc", "available"), (b"abd", "bad")])
def test_what_an_earlier_attempt_left_is_owned_when_its_request_is_cancelled(
    yard: Yard, clock: ManualClock, content: bytes, state: str
) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored([b"abc"], here)
    yard.request(dids, there)
    yard.put(dids, [content], there)
    yard.run("UPDATE request SET fence = 1, attempts = 1, is_cancelled = true")
    assert yard.conveyor().run_once().counts == {"claimed": 1, "cancelled": 1}
    found = yard.row("SELECT state, tombstone_at FROM replica WHERE storage_id = %(id)s", id=there)
    assert found == (state, clock.moment)
    assert yard.rows("SELECT * FROM request") == []
    yard.check()


def test_a_file_that_no_attempt_wrote_is_not_owned_when_its_request_is_cancelled(
    yard: Yard, clock: ManualClock
) -> None:
    """Its producer has not registered it yet. To own it would be to delete it: the only copy, unseen."""
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored([b"abc"], here)
    yard.wish(dids, there)
    yard.put(dids, [b"xyz"], there)
    yard.conveyor().run_once()
    assert yard.row("SELECT error_class FROM attempt") == ("destination_exists",)
    yard.run("UPDATE lock SET is_released = true")
    clock.advance(100_000)
    yard.run("UPDATE request SET attempts = 0, is_cancelled = true, state = 'queued', next_attempt_at = %(now)s")
    assert yard.conveyor().run_once().counts == {"claimed": 1, "cancelled": 1}
    assert yard.rows("SELECT * FROM replica WHERE storage_id = %(id)s", id=there) == []
    assert Path(yard.refs[there].prefix, derived_path("demo", "f1")).read_bytes() == b"xyz"


def test_a_request_that_is_held_again_loses_the_flag(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.stored([b"abc"], here)
    yard.wish(dids, there)
    yard.run("UPDATE request SET is_cancelled = true")
    yard.run("UPDATE storage SET can_write = false WHERE id = %(id)s", id=there)
    assert yard.conveyor().run_once().counts == {"claimed": 1, "retry": 1}
    assert yard.row("SELECT state, is_cancelled FROM request") == ("queued", False)


def test_people_can_send_parked_requests_off_again(yard: Yard) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    dids = yard.files([b"abc"])
    yard.wish(dids, there)
    conveyor = yard.conveyor()
    assert conveyor.run_once().counts["parked"] == 1
    yard.put(dids, [b"abc"], here)
    yard.replicas(dids, here)
    with yard.database.begin("test") as tx:
        assert requests.retry(tx, Filters(storage_id=there)) == (1, 0)
    assert conveyor.run_once().counts["done"] == 1


def test_a_pass_with_nothing_to_do_says_when_there_will_be(yard: Yard, clock: ManualClock) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored([b"abc"], here), there)
    yard.run("UPDATE request SET next_attempt_at = %(at)s", at=clock.moment)
    clock.advance(-40)
    assert yard.conveyor().run_once().next_due_s == pytest.approx(40)
