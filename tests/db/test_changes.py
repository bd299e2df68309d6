"""The queue of changes: what a judge takes at once is bounded by rows and by the files they tell of."""

from __future__ import annotations

from dlm.db import changes
from dlm.db.engine import Database
from dlm.types import ChangeKind


def test_changes_are_taken_oldest_first_until_they_tell_of_enough_files(database: Database) -> None:
    with database.begin("test") as tx:
        for start in (1, 11, 21, 31):
            changes.add(tx, ChangeKind.ARRIVED, storage_id=1, file_ids=range(start, start + 10))
        changes.add(tx, ChangeKind.STORAGES)
        taken = [sorted(row.file_ids or () for row in changes.claim(tx, 10, 15)) for _ in range(3)]
    assert [[ids[:1] for ids in some] for some in taken] == [[[1], [11]], [[21], [31]], [()]]


def test_one_change_is_taken_however_many_files_it_tells_of(database: Database) -> None:
    with database.begin("test") as tx:
        changes.add(tx, ChangeKind.ARRIVED, storage_id=1, file_ids=range(1, 100))
        changes.add(tx, ChangeKind.STORAGES)
        assert [len(row.file_ids or ()) for row in changes.claim(tx, 10, 1)] == [99]
        assert len(changes.claim(tx, 10, 1)) == 1


def test_no_more_rows_are_taken_than_asked_for(database: Database) -> None:
    with database.begin("test") as tx:
        changes.add_dids(tx, ChangeKind.DID_ENDED, range(1, 8))
        assert [len(changes.claim(tx, 5, 1000)) for _ in range(3)] == [5, 2, 0]
