"""The auditor on real files: what it believes, what it declares, and what it leaves to a person."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from dlm.config import Settings
from dlm.core import audit
from dlm.daemons import auditor as module
from dlm.daemons.abreast import Abreast
from dlm.daemons.auditor import LOOK_S, PROBE_PAUSE_S, Auditor
from dlm.db import audits, breakers
from dlm.db.engine import Database
from dlm.errors import Conflict, NotFound
from shelves import SETTINGS, Killed, Shelves

WRONG = b"9876543210"


@pytest.fixture
def auditor(database: Database) -> Auditor:
    return Auditor(database, SETTINGS)


def check(shelves: Shelves, auditor: Auditor, storage: int, **how: bool) -> dict[str, object]:
    """Start a check, run it to its end, and return its row."""
    with shelves.database.begin("test") as tx:
        audit_id = audit.start_check(tx, storage, **how)
    return finish(shelves, auditor, audit_id)


def finish(shelves: Shelves, auditor: Auditor, audit_id: int) -> dict[str, object]:
    for _ in range(50):
        auditor.run_once()
        with shelves.database.begin("test") as tx:
            row = audits.get(tx, audit_id)
        assert row is not None
        if row.state != "running":
            return row._asdict()
    raise AssertionError("the check does not end")


def two_copies(shelves: Shelves, number: int) -> tuple[int, int, list[int]]:
    here, there = shelves.storage("here"), shelves.storage("there")
    files = shelves.files(number)
    shelves.put(files, here)
    shelves.put(files, there)
    return here, there, files


# -- checks -----------------------------------------------------------------------------------------------------


def test_a_check_of_a_good_storage_verifies_everything(shelves: Shelves, auditor: Auditor) -> None:
    here = shelves.storage("here")
    files = shelves.files(5)
    shelves.put(files, here, "unverified")
    row = check(shelves, auditor, here)
    assert (row["state"], row["message"]) == ("done", "5 files looked at, 0 missing, 0 corrupt")
    assert [shelves.state(file, here) for file in files] == ["available"] * 5
    assert shelves.changes("arrived") == [(here, files)]


def test_missing_and_corrupt_files_are_declared_and_the_judge_is_told(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 10)
    shelves.path(files[2], here).unlink()
    shelves.path(files[4], here).write_bytes(WRONG)
    shelves.path(files[6], here).write_bytes(WRONG + b"!")
    row = check(shelves, auditor, here)
    assert (row["state"], row["missing"], row["corrupt"], row["files"]) == ("done", 1, 2, 10)
    assert [shelves.state(files[n], here) for n in (2, 4, 6, 0)] == ["lost", "bad", "bad", "available"]
    assert shelves.changes("harmed") == [(here, [files[2], files[4], files[6]])]
    assert shelves.used(here) == (9, 90)
    assert shelves.one("SELECT sum(files) FROM harm WHERE act = 'loss'") == 3
    (event,) = shelves.events("harmed")
    assert (event["lost"], event["bad"]) == (1, 2)
    assert shelves.rows("SELECT * FROM finding") == []


def test_without_checksums_only_presence_and_size_are_looked_at(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 4)
    shelves.path(files[0], here).unlink()
    shelves.path(files[1], here).write_bytes(WRONG)
    row = check(shelves, auditor, here, with_checksum=False)
    assert (row["missing"], row["corrupt"]) == (1, 0)
    assert [shelves.state(file, here) for file in files] == ["lost", "available", "available", "available"]


def test_a_digest_nobody_knew_is_learnt_from_the_first_read(shelves: Shelves, auditor: Auditor) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1, known=False)
    shelves.put([file], here, "unverified")
    check(shelves, auditor, here)
    assert shelves.one("SELECT adler32 FROM did WHERE id = %(id)s", id=file) is not None
    shelves.path(file, here).write_bytes(WRONG)
    check(shelves, auditor, here, confirm_lost=True)
    assert shelves.state(file, here) == "bad"


def test_losses_above_the_share_open_the_breaker_and_nothing_is_declared(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 10)
    for file in files[:6]:
        shelves.path(file, here).unlink()
    row = check(shelves, auditor, here)
    assert row["state"] == "stopped"
    message = str(row["message"])
    assert "6 of 10 files bad or lost within 3,600 s (60.0 %); 5 are allowed (50 % of the storage)" in message
    assert message.endswith("dlm-admin storage check here --confirm-lost")
    assert {shelves.state(file, here) for file in files} == {"available"}
    assert shelves.rows("SELECT act, storage_id FROM breaker WHERE closed_at IS NULL") == [("loss", here)]
    assert shelves.changes("harmed") == []


def test_files_that_were_never_seen_open_no_breaker(shelves: Shelves, auditor: Auditor) -> None:
    here, there = shelves.storage("here"), shelves.storage("there")
    files = shelves.files(10)
    shelves.put(files, here, "unverified")
    shelves.put(files, there)
    for file in files:
        shelves.path(file, here).unlink()
    row = check(shelves, auditor, here)
    assert (row["state"], row["missing"], row["proven"]) == ("done", 10, 0)
    assert {shelves.state(file, here) for file in files} == {"lost"}
    assert shelves.rows("SELECT * FROM breaker") == [] and shelves.rows("SELECT * FROM harm") == []


def test_the_share_is_recognised_before_the_end(shelves: Shelves, database: Database) -> None:
    auditor = Auditor(database, Settings(breaker_loss_share=0.5, breaker_floor_files=2, auditor_batch=2))
    here, _, files = two_copies(shelves, 10)
    for file in files:
        shelves.path(file, here).unlink()
    row = check(shelves, auditor, here)
    assert (row["state"], row["files"]) == ("stopped", 6)


def test_a_confirmed_check_declares_what_it_had_found(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 10)
    for file in files[:6]:
        shelves.path(file, here).unlink()
    stopped = check(shelves, auditor, here)
    with shelves.database.begin("test") as tx:
        audit.confirm(tx, int(str(stopped["id"])))
    row = finish(shelves, auditor, int(str(stopped["id"])))
    assert row["state"] == "done"
    assert [shelves.state(file, here) for file in files] == ["lost"] * 6 + ["available"] * 4
    assert shelves.rows("SELECT id FROM breaker WHERE closed_at IS NULL") == []


def test_a_check_asked_for_with_confirmed_losses_declares_at_once(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 10)
    for file in files:
        shelves.path(file, here).unlink()
    assert check(shelves, auditor, here, confirm_lost=True)["state"] == "done"
    assert {shelves.state(file, here) for file in files} == {"lost"}
    assert shelves.used(here) == (0, 0)


def test_a_file_that_came_back_before_the_last_look_is_not_declared(
    shelves: Shelves, auditor: Auditor, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here, _, files = two_copies(shelves, 4)
    path = shelves.path(files[0], here)
    content = path.read_bytes()
    path.unlink()
    at(
        "auditor.record:after-commit",
        lambda: (path.parent.mkdir(parents=True, exist_ok=True), path.write_bytes(content)),
    )
    assert check(shelves, auditor, here)["state"] == "done"
    assert shelves.state(files[0], here) == "available"
    assert shelves.rows("SELECT * FROM finding") == []


def test_a_lost_file_that_is_back_and_right_heals(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 4)
    path = shelves.path(files[0], here)
    content = path.read_bytes()
    path.unlink()
    check(shelves, auditor, here)
    assert shelves.state(files[0], here) == "lost"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    check(shelves, auditor, here, with_checksum=False)  # a lost or bad copy is read whatever was asked
    assert shelves.state(files[0], here) == "available"
    assert shelves.used(here) == (4, 40)
    assert shelves.changes("arrived") == [(here, [files[0]])]


def test_a_lost_file_that_is_back_and_wrong_is_bad(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 4)
    path = shelves.path(files[0], here)
    path.unlink()
    check(shelves, auditor, here)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(WRONG)
    check(shelves, auditor, here)
    assert shelves.state(files[0], here) == "bad"
    assert shelves.used(here) == (4, 40)


def test_without_its_root_a_storage_is_unavailable_and_nothing_is_lost(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 3)
    shelves.unmount(here)
    row = check(shelves, auditor, here, confirm_lost=True)
    assert row["state"] == "unavailable"
    assert {shelves.state(file, here) for file in files} == {"available"}
    assert shelves.one("SELECT is_available FROM storage WHERE id = %(id)s", id=here) is False


def test_a_root_that_goes_away_during_a_chunk_blames_no_file(
    shelves: Shelves, auditor: Auditor, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here, _, files = two_copies(shelves, 3)
    at("auditor.claim:after-commit", lambda: (shelves.unmount(here), None)[1])
    assert check(shelves, auditor, here, confirm_lost=True)["state"] == "unavailable"
    assert {shelves.state(file, here) for file in files} == {"available"}


def test_the_last_copy_is_never_demoted_without_a_person(shelves: Shelves, auditor: Auditor) -> None:
    here = shelves.storage("here")
    files = shelves.files(10)
    shelves.put(files, here)
    shelves.path(files[0], here).write_bytes(WRONG)
    assert check(shelves, auditor, here)["state"] == "done"
    assert shelves.state(files[0], here) == "available"
    assert shelves.rows("SELECT did_id, state FROM finding") == [(files[0], "bad")]
    assert shelves.events("last_copy_in_doubt") == [{"files": 1, "examples": [files[0]]}]
    check(shelves, auditor, here, confirm_lost=True)
    assert shelves.state(files[0], here) == "bad"
    assert shelves.rows("SELECT * FROM finding") == []


def test_when_every_copy_looks_bad_one_is_left(shelves: Shelves, auditor: Auditor) -> None:
    here, there, files = two_copies(shelves, 10)
    for storage in (here, there):
        shelves.path(files[0], storage).write_bytes(WRONG)
        check(shelves, auditor, storage)
    assert (shelves.state(files[0], here), shelves.state(files[0], there)) == ("bad", "available")


def test_only_one_check_of_a_storage_runs(shelves: Shelves) -> None:
    here = shelves.storage("here")
    with shelves.database.begin("test") as tx:
        audit.start_check(tx, here)
        with pytest.raises(Conflict) as refused:
            audit.start_check(tx, here)
        assert refused.value.field == "storage"
        with pytest.raises(NotFound):
            audit.start_check(tx, 99)
        with pytest.raises(NotFound):
            audit.confirm(tx, 99)


def test_only_a_stopped_check_can_be_confirmed(shelves: Shelves, auditor: Auditor) -> None:
    here = shelves.storage("here")
    done = check(shelves, auditor, here)
    with shelves.database.begin("test") as tx, pytest.raises(Conflict):
        audit.confirm(tx, int(str(done["id"])))


def test_progress_can_be_read_while_it_runs(shelves: Shelves, database: Database) -> None:
    auditor = Auditor(database, Settings(auditor_batch=3))
    here = shelves.storage("here")
    shelves.put(shelves.files(8), here)
    with database.begin("test") as tx:
        audit_id = audit.start_check(tx, here)
    auditor.run_once()
    with database.begin("test") as tx:
        row = audits.get(tx, audit_id)
    assert row is not None and (row.files, row.total, row.state) == (3, 8, "running")


@pytest.mark.parametrize(
    "point", ["auditor.claim:after-commit", "auditor.examine:after", "auditor.record:before-commit"]
)
def test_a_check_killed_in_the_middle_goes_on(
    shelves: Shelves, auditor: Auditor, at: Callable[[str, Callable[[], None]], None], point: str
) -> None:
    here, _, files = two_copies(shelves, 4)
    shelves.path(files[0], here).unlink()
    with shelves.database.begin("test") as tx:
        audit_id = audit.start_check(tx, here)

    def kill() -> None:
        raise Killed

    at(point, kill)
    with pytest.raises(Killed):
        auditor.run_once()
    shelves.advance(SETTINGS.auditor_lease_s + 1)
    row = finish(shelves, auditor, audit_id)
    assert (row["state"], row["files"], row["missing"]) == ("done", 4, 1)
    assert shelves.state(files[0], here) == "lost"


def test_a_worker_that_lost_its_check_writes_nothing(
    shelves: Shelves, auditor: Auditor, database: Database, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here, _, files = two_copies(shelves, 4)
    with database.begin("test") as tx:
        audit_id = audit.start_check(tx, here)
    other = Auditor(database, SETTINGS)

    def overtake() -> None:
        shelves.advance(SETTINGS.auditor_lease_s + 1)
        other.run_once()

    at("auditor.examine:after", overtake)
    assert auditor.run_once().counts["late"] == 1
    assert finish(shelves, auditor, audit_id)["files"] == 4


# -- due verifications and reports ------------------------------------------------------------------------------


def due_now(shelves: Shelves) -> None:
    shelves.run("UPDATE replica SET next_check_at = %(now)s WHERE next_check_at IS NOT NULL")


def test_a_due_verification_reads_the_file_and_plans_the_next(shelves: Shelves, auditor: Auditor) -> None:
    here = shelves.storage("here")
    shelves.put(shelves.files(3), here, "unverified")
    assert auditor.run_once().counts == {}
    due_now(shelves)
    assert auditor.run_once().counts == {"verified": 3}
    assert shelves.rows("SELECT DISTINCT state, verified_at = %(now)s FROM replica") == [("available", True)]
    days = shelves.rows("SELECT extract(epoch FROM next_check_at - %(now)s) / 86400 FROM replica")
    assert all(22 <= day[0] <= 30 for day in days)


def test_wrong_bytes_are_declared_at_once(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 3)
    shelves.path(files[1], here).write_bytes(WRONG)
    due_now(shelves)
    assert auditor.run_once().counts == {"verified": 5, "bad": 1}
    assert shelves.state(files[1], here) == "bad"
    assert shelves.changes("harmed") == [(here, [files[1]])]


def test_a_missing_file_is_declared_only_when_missed_again_later(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 3)
    shelves.path(files[1], here).unlink()
    due_now(shelves)
    auditor.run_once()
    assert shelves.state(files[1], here) == "available"
    assert shelves.rows("SELECT did_id, state, probes FROM finding") == [(files[1], "lost", 1)]
    assert auditor.run_once().counts == {}
    shelves.advance(PROBE_PAUSE_S)
    assert auditor.run_once().counts == {"lost": 1}
    assert shelves.state(files[1], here) == "lost"


def test_a_flapping_file_is_not_lost(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 3)
    path = shelves.path(files[1], here)
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    due_now(shelves)
    auditor.run_once()
    hidden.rename(path)
    shelves.advance(PROBE_PAUSE_S)
    assert auditor.run_once().counts == {"verified": 1}
    assert shelves.rows("SELECT * FROM finding") == []


def test_what_a_conveyor_reported_is_believed_only_after_a_look(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 3)
    shelves.path(files[1], here).write_bytes(WRONG)
    with shelves.database.begin("test") as tx:
        audits.report(
            tx, [(files[0], here, "bad", "mismatch on arrival"), (files[1], here, "bad", "mismatch on arrival")]
        )
    shelves.advance(PROBE_PAUSE_S)
    assert auditor.run_once().counts == {"verified": 1, "bad": 1}
    assert [shelves.state(file, here) for file in files[:2]] == ["available", "bad"]
    assert shelves.rows("SELECT * FROM finding") == []


def test_an_open_breaker_keeps_findings_undeclared_until_it_is_closed(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 4)
    for file in files[:3]:
        shelves.path(file, here).write_bytes(WRONG)
    due_now(shelves)
    assert auditor.run_once().counts["held_by_breaker"] == 3
    assert {shelves.state(file, here) for file in files} == {"available"}
    with shelves.database.begin("test") as tx:
        breakers.close(tx, shelves.one("SELECT id FROM breaker"))
    shelves.advance(PROBE_PAUSE_S)
    for file in files[1:3]:
        shelves.path(file, here).write_bytes(b"0123456789")
    assert auditor.run_once().counts == {"verified": 2, "bad": 1}


def test_an_unavailable_storage_does_not_stand_in_the_way(shelves: Shelves, database: Database) -> None:
    auditor = Auditor(database, Settings(auditor_batch=2))
    gone, here = shelves.storage("gone"), shelves.storage("here")
    files = shelves.files(2)
    shelves.put(files, gone)
    shelves.put(files, here, "unverified")
    shelves.unmount(gone)
    due_now(shelves)
    shelves.run("UPDATE replica SET next_check_at = %(now)s - interval '1 day' WHERE storage_id = %(g)s", g=gone)
    auditor.run_once()
    auditor.run_once()
    assert [shelves.state(file, here) for file in files] == ["available"] * 2
    assert [shelves.state(file, gone) for file in files] == ["available"] * 2


def test_a_file_that_cannot_be_read_for_now_is_not_blamed(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 2)
    shelves.run("UPDATE replica SET path = '../out' WHERE did_id = %(f)s AND storage_id = %(h)s", f=files[0], h=here)
    due_now(shelves)
    assert auditor.run_once().counts == {"verified": 3, "unreadable": 1}
    assert shelves.state(files[0], here) == "available"
    assert shelves.rows("SELECT * FROM finding") == []


# -- availability -----------------------------------------------------------------------------------------------


def test_a_storage_that_went_and_came_back_is_noticed(shelves: Shelves, auditor: Auditor) -> None:
    here = shelves.storage("here")
    shelves.unmount(here)
    assert auditor.run_once().counts == {"availability_changed": 1}
    assert shelves.rows("SELECT is_available FROM storage") == [(False,)]
    shelves.mount(here)
    assert auditor.run_once().counts == {}
    shelves.advance(LOOK_S)
    assert auditor.run_once().counts == {"availability_changed": 1}
    assert shelves.rows("SELECT is_available, unavailable_reason FROM storage") == [(True, None)]
    assert shelves.one("SELECT count(*) FROM change WHERE kind = 'storages'") == 2


def test_a_storage_that_hangs_holds_up_no_other_and_gets_no_further_task() -> None:
    let_go = threading.Event()
    abreast = Abreast()
    assert abreast.run({1: let_go.wait, 2: lambda: True}, 0.1) == {2: True}
    assert abreast.hanging() == [1]
    let_go.set()
    while abreast.hanging():
        threading.Event().wait(0.001)


def test_what_fails_beside_others_is_raised_after_all_have_ended() -> None:
    ended: list[int] = []

    def fail() -> None:
        raise Killed

    with pytest.raises(Killed):
        Abreast().run({1: fail, 2: lambda: ended.append(2)}, 10)
    assert ended == [2]


def test_a_storage_that_does_not_answer_is_unavailable(
    shelves: Shelves, auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = shelves.storage("here"), shelves.storage("there")
    monkeypatch.setattr(module, "LOOK_TIMEOUT_S", 0.0)
    monkeypatch.setattr(auditor, "_abreast", Mute(here))
    auditor.run_once()
    states = shelves.rows("SELECT id, is_available, unavailable_reason FROM storage ORDER BY id")
    assert states == [(here, False, "no answer within 0 s"), (there, True, None)]


class Mute(Abreast):
    """One storage never answers."""

    def __init__(self, storage_id: int) -> None:
        super().__init__()
        self._mute = storage_id

    def run(self, tasks: Any, timeout_s: float) -> Any:
        return super().run({storage: task for storage, task in tasks.items() if storage != self._mute}, 10)


def test_a_dry_run_changes_nothing(shelves: Shelves, auditor: Auditor) -> None:
    here, _, files = two_copies(shelves, 2)
    shelves.path(files[0], here).unlink()
    due_now(shelves)
    with shelves.database.begin("test") as tx:
        audit.start_check(tx, here)
    auditor.run_once(dry_run=True)
    assert shelves.rows("SELECT files, claimed_until FROM audit") == [(0, None)]
    assert shelves.rows("SELECT looked_at FROM storage WHERE looked_at IS NOT NULL") == []
