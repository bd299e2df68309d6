"""The auditor's SQL: leases, fences, demotions that see each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dlm.core import audit
from dlm.core.audit import Answer, Verdict
from dlm.db import audits
from dlm.db.engine import Database
from dlm.db.usage import StorageDelta, change_storages
from shelves import Shelves


@pytest.fixture
def shelves(database: Database, tmp_path: Path) -> Shelves:
    return Shelves(database, tmp_path)


def items(shelves: Shelves, storage: int) -> list[audits.Item]:
    with shelves.database.begin("test") as tx:
        return audits.load_chunk(tx, storage, 0, 100)


def test_a_check_is_one_workers_until_its_lease_ends(shelves: Shelves) -> None:
    here = shelves.storage("here")
    with shelves.database.begin("test") as tx:
        audits.insert(tx, here, with_checksum=True, confirm_lost=False)
    with shelves.database.begin("test") as tx:
        first = audits.claim(tx, 60)
        assert first is not None and audits.claim(tx, 60) is None
    shelves.advance(60)
    with shelves.database.begin("test") as tx:
        second = audits.claim(tx, 60)
        assert second is not None
        assert audits.advance(tx, first.id, first.fence, 5, (1, 0, 0, 0)) is None
        assert audits.advance(tx, first.id, second.fence, 5, (1, 0, 0, 0)) is not None


def test_chunks_go_by_file_and_pass_over_paths_at_rest(shelves: Shelves) -> None:
    here = shelves.storage("here")
    files = shelves.files(4)
    shelves.put(files, here)
    shelves.run("UPDATE replica SET quiet_until = %(now)s + interval '1 hour' WHERE did_id = %(f)s", f=files[1])
    shelves.run("UPDATE replica SET state = 'deleting', claimed_until = %(now)s WHERE did_id = %(f)s", f=files[2])
    assert [item.did_id for item in items(shelves, here)] == [files[0], files[3]]
    with shelves.database.begin("test") as tx:
        assert [item.did_id for item in audits.load_chunk(tx, here, files[0], 10)] == [files[3]]


def test_a_due_verification_is_leased_by_its_next_due_time(shelves: Shelves) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here, "unverified")
    shelves.run("UPDATE replica SET next_check_at = %(now)s")
    with shelves.database.begin("test") as tx:
        ((item, token),) = audits.claim_due(tx, 10, 60, 1e6)
        assert audits.claim_due(tx, 10, 60, 1e6) == []
    shelves.advance(61)
    with shelves.database.begin("test") as tx:
        ((_, newer),) = audits.claim_due(tx, 10, 60, 1e6)
        assert audits.mark_good(tx, [item], [token], 3600) == []
        assert len(audits.mark_good(tx, [item], [newer], 3600)) == 1


def test_what_was_repaired_meanwhile_is_neither_good_nor_bad_by_an_old_look(shelves: Shelves) -> None:
    a, b = shelves.storage("a"), shelves.storage("b")
    (file,) = shelves.files(1)
    shelves.put([file], a)
    shelves.put([file], b)
    (item,) = items(shelves, a)
    shelves.advance(5)
    shelves.run("UPDATE replica SET verified_at = %(now)s")
    with shelves.database.begin("test") as tx:
        assert audits.mark_good(tx, [item], [None], 3600) == []
        assert audit.declare(tx, a, [Answer(item, Verdict.BAD)], StorageDelta()) == audit.Declared()
    assert shelves.state(file, a) == "available"


def test_two_auditors_do_not_demote_the_last_two_copies(shelves: Shelves) -> None:
    """Each finds its copy bad and the other's good. Whoever comes second waits, then sees that it has the last one."""
    a, b = shelves.storage("a"), shelves.storage("b")
    (file,) = shelves.files(1)
    shelves.put([file], a)
    shelves.put([file], b)
    answers = {storage: Answer(items(shelves, storage)[0], Verdict.BAD) for storage in (a, b)}
    start = threading.Barrier(2, timeout=10)
    declared: list[audit.Declared] = []

    def demote(storage: int) -> None:
        with shelves.database.begin("test") as tx:
            start.wait()
            delta = StorageDelta()
            declared.append(audit.declare(tx, storage, [answers[storage]], delta))
            change_storages(tx, delta)

    threads = [threading.Thread(target=demote, args=(storage,)) for storage in (a, b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((d.bad, len(d.in_doubt)) for d in declared) == [(0, 1), (1, 0)]
    assert sorted([shelves.state(file, a) or "", shelves.state(file, b) or ""]) == ["available", "bad"]


@pytest.mark.parametrize("number", [1, 30])
def test_the_statements_do_not_depend_on_the_number_of_files(shelves: Shelves, number: int) -> None:
    a, b = shelves.storage("a"), shelves.storage("b")
    files = shelves.files(number)
    shelves.put(files, a)
    shelves.put(files, b)
    wrong = [Answer(item, Verdict.LOST) for item in items(shelves, a)]
    with shelves.database.begin("test") as tx:
        assert audit.declare(tx, a, wrong, StorageDelta()).lost == number
        assert tx.statements == 8


def test_a_finding_counts_its_probes_and_waits_longer_each_time(shelves: Shelves) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here)
    (item,) = items(shelves, here)

    def called_after(seconds: float) -> int:
        shelves.advance(seconds)
        with shelves.database.begin("test") as tx:
            return audits.call_reported(tx, 10, 30, 100)

    for pause in (30, 60, 100, 100):
        with shelves.database.begin("test") as tx:
            audits.add_findings(tx, [(item, "lost", "not there")], None)
            tx.run("UPDATE replica SET next_check_at = %(now)s + interval '30 days'")
        assert called_after(pause - 1) == 0
        assert called_after(1) == 1
    assert shelves.one("SELECT probes FROM finding") == 4


def test_a_report_does_not_take_over_a_finding(shelves: Shelves) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here)
    with shelves.database.begin("test") as tx:
        audits.report(tx, [(file, here, "bad", "first")])
        audits.report(tx, [(file, here, "lost", "second")])
        (row,) = audits.list_findings(tx, here)
    assert (row.state, row.detail, row.probes, row.name) == ("bad", "first", 1, "f1")


def test_nothing_is_found_about_a_replica_that_is_gone_or_going(shelves: Shelves) -> None:
    here = shelves.storage("here")
    stays, goes = shelves.files(2)
    shelves.put([stays], here)
    with shelves.database.begin("test") as tx:
        audits.report(tx, [(stays, here, "lost", ""), (goes, here, "lost", "")])
        assert [row.did_id for row in audits.list_findings(tx, here)] == [stays]
        tx.run("DELETE FROM replica WHERE did_id = %(id)s", id=stays)
        assert audits.forget_gone(tx, 10) == 1
        assert not audits.list_findings(tx, here)


def test_findings_of_a_check_about_replicas_that_went_are_dropped(shelves: Shelves) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here)
    (item,) = items(shelves, here)
    with shelves.database.begin("test") as tx:
        audits.add_findings(tx, [(item, "lost", "")], 1)
        assert len(audits.load_findings(tx, 1, 10)) == 1
        tx.run("DELETE FROM replica")
        assert audits.load_findings(tx, 1, 10) == []
    assert shelves.rows("SELECT * FROM finding") == []
