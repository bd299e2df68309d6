"""A sound world has no finding; each way of breaking an invariant is found."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pytest

from dlm.core import verify
from dlm.db.engine import Database
from shelves import CONTENT, Shelves


@pytest.fixture
def shelves(database: Database, tmp_path: Path) -> Shelves:
    """A dataset of three files at one storage under a rule that is ok; charged, locked, verified."""
    shelves = Shelves(database, tmp_path)
    here, there = shelves.storage("here"), shelves.storage("there")
    assert (here, there) == (1, 2)
    files = shelves.files(3)
    shelves.put(files, here)
    dataset = shelves.dataset(files)
    shelves.lock(dataset, here, shelves.rule(dataset))
    shelves.run("INSERT INTO account_usage (account_id, storage_id, charged_bytes, charged_files) VALUES (1, 1, 30, 3)")
    return shelves


def found(shelves: Shelves) -> list[str]:
    with shelves.database.begin("test") as tx:
        findings = verify.verify(tx)
        assert tx.statements == 2
    return [str(finding) for finding in findings]


def test_a_sound_world_has_no_finding(shelves: Shelves) -> None:
    assert found(shelves) == []
    with shelves.database.begin("test") as tx:
        assert verify.verify_files(tx) == []


@pytest.mark.parametrize(
    ("breakage", "finding"),
    [
        (
            "INSERT INTO proof VALUES (1, 1, %(now)s, 2, '{2}', 'surplus', 1)",
            "I2 a surplus deletion had its witnesses: replica 1 at 1",
        ),
        (
            "INSERT INTO proof VALUES (1, 1, %(now)s, 1, '{}', 'unwanted', 1)",
            "I2 a surplus deletion had its witnesses: replica 1 at 1",
        ),
        ("INSERT INTO attachment VALUES (4, 77, 0)", "I3 every row belongs to rows that are there: attachment 4 77"),
        (
            "INSERT INTO finding (storage_id, did_id, state, found_at) VALUES (2, 1, 'bad', %(now)s)",
            "I3 every row belongs to rows that are there: finding 1 at 2",
        ),
        (
            "UPDATE replica SET state = 'copying' WHERE did_id = 1",
            "I3 a copy is being made exactly where a request says so: replica 1 at 1: copying without a request",
        ),
        (
            """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
               VALUES (1, 1, 10, %(now)s, %(now)s, 3)""",
            "I3 a copy is being made exactly where a request says so: request 1: its replica is available",
        ),
        ("DELETE FROM replica WHERE did_id = 1", "I3 what is locked has a replica: file 1 at 1: locked by rule 1"),
        (
            "UPDATE replica SET state = 'unverified', next_check_at = NULL WHERE did_id = 1",
            "I4 a verified copy says when, and when next: replica 1 at 1",
        ),
        (
            "UPDATE storage_usage SET used_files = 4 WHERE storage_id = 1",
            "I5 what a storage holds is the sum over its replicas: storage 1: reserved 0 B (rows: 0), "
            "used 30 B (rows: 30), used files 4 (rows: 3)",
        ),
        (
            "UPDATE lock SET promised_bytes = 5",
            "I5 what a storage holds is the sum over its replicas: storage 1: reserved 0 B (rows: 5)",
        ),
        (
            "UPDATE account_usage SET charged_bytes = 31",
            "I5 what an account is charged is the sum over its locks: account 1 at 1: charged 31 B (rows: 30)",
        ),
        ("DELETE FROM account_usage", "I5 what an account is charged is the sum over its locks: account 1 at 1"),
        ("UPDATE did SET files = 9 WHERE id = 4", "I5 a dataset is as large as its files: dataset 4: 9 files, 30 B"),
        (
            "UPDATE did SET size_bytes = 11 WHERE id = 1",
            "I5 a dataset is as large as its files: replica 1 at 1: 10 B, the file has 11 B",
        ),
        ("UPDATE lock SET files = 2", "I5 a lock is as large as what it holds: lock 4 at 1 of rule 1: 2 files, 30 B"),
        (
            "UPDATE rule SET state = 'impossible', next_judge_at = NULL",
            "I6 what is not final has a next action: rule 1: impossible and nothing will judge it",
        ),
        (
            "UPDATE lock SET is_released = true",
            "I6 what is not final has a next action: lock 4 at 1 of rule 1: released and not being let go",
        ),
        (
            "UPDATE rule SET state = 'gone'",
            "I6 what is not final has a next action: lock 4 at 1 of rule 1: held for a rule that is gone",
        ),
        (
            "UPDATE replica SET state = 'bad' WHERE did_id = 2",
            "I8 a rule is ok only when all its copies are there: rule 1: ok, and file 2 at 1 is bad",
        ),
        (
            "UPDATE rule SET copies = 2",
            "I8 a rule is ok only when every file has the copies it asks for: rule 1: ok, and file",
        ),
        (
            "UPDATE did SET metadata = '{\"run\": 1}' WHERE id = 1",
            "I3 what filters find is what the metadata says: did 1: its metadata and what filters find differ in run",
        ),
        (
            "INSERT INTO metadatum (did_id, key, scope_id) VALUES (1, 'run', 1)",
            "I3 what filters find is what the metadata says: did 1: its metadata and what filters find differ in run",
        ),
        (
            "UPDATE did SET name = U&'e\\0301' WHERE id = 1",
            "I10 names have their one written form: did 1: its name is not in NFC",
        ),
    ],
)
def test_what_breaks_an_invariant_is_found(shelves: Shelves, breakage: str, finding: str) -> None:
    shelves.run(breakage)
    told = found(shelves)
    assert any(text.startswith(finding) for text in told), told


def test_what_the_judge_has_still_before_it_is_no_finding(shelves: Shelves) -> None:
    shelves.run("DELETE FROM replica WHERE did_id = 1")
    shelves.run("UPDATE storage_usage SET used_files = 2, used_bytes = 20 WHERE storage_id = 1")
    assert len(found(shelves)) == 2
    shelves.run("INSERT INTO change (kind, storage_id, file_ids, created_at) VALUES ('gone', 1, '{1}', %(now)s)")
    assert found(shelves) == []


def test_many_findings_of_a_kind_are_told_by_their_number(shelves: Shelves) -> None:
    shelves.run("UPDATE replica SET state = 'unverified', next_check_at = NULL")
    with shelves.database.begin("test") as tx:
        told = [str(finding) for finding in verify.verify(tx, sample=1)]
    assert len(told) == 2
    assert told[1] == "I4 a verified copy says when, and when next: …: and 2 more"


def test_catalogue_and_disk_are_compared_byte_for_byte(shelves: Shelves) -> None:
    shelves.path(1, 1).unlink()
    shelves.path(2, 1).write_bytes(b"9876543210")
    shelves.path(3, 1).write_bytes(b"short")
    shelves.path(1, 2).parent.mkdir(parents=True)
    shelves.path(1, 2).write_bytes(b"whose?")
    Path(shelves.refs[1].prefix, "stray").write_bytes(b"x")
    with shelves.database.begin("test") as tx:
        told = sorted((finding.invariant, finding.detail) for finding in verify.verify_files(tx))
        quick = verify.verify_files(tx, [1], with_checksum=False)
    right, wrong = (f"{zlib.adler32(content):08x}" for content in (CONTENT, CONTENT[::-1]))
    assert told == [
        ("I3 files are what the catalogue says", "5 bytes instead of 10"),
        ("I3 files are what the catalogue says", f"adler32 {wrong} instead of {right}"),
        ("I3 files are what the catalogue says", "no file is there"),
        ("I3 no dark files", "1 bytes, no row owns it"),
        ("I3 no dark files", "6 bytes, no row owns it"),
    ]
    assert len(quick) == 3


def test_what_an_owner_keeps_on_a_storage_dlm_may_not_write_to_is_not_dark(shelves: Shelves) -> None:
    Path(shelves.refs[1].prefix, "theirs").write_bytes(b"x")
    shelves.run("UPDATE storage SET can_write = false WHERE id = 1")
    with shelves.database.begin("test") as tx:
        assert verify.verify_files(tx) == []


def test_a_storage_whose_root_went_is_said_to_be_so(shelves: Shelves) -> None:
    shelves.unmount(1)
    with shelves.database.begin("test") as tx:
        (finding,) = verify.verify_files(tx, [1])
    assert finding.invariant == "I3 a storage can be compared"


def test_a_storage_that_this_host_cannot_speak_to_hides_no_other(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelves.unmount(2)
    shelves.run("UPDATE protocol SET scheme = 'sftp' WHERE storage_id = 1")
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    for module in ("sftp", "ssh"):
        monkeypatch.delitem(sys.modules, f"dlm.protocols.{module}", raising=False)
    with shelves.database.begin("test") as tx:
        told = {finding.object: finding.detail for finding in verify.verify_files(tx)}
    assert told.keys() == {"storage here", "storage there"}
    assert "needs the package asyncssh" in told["storage here"]
