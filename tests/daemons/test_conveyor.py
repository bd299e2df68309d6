"""The conveyor on real PostgreSQL and real files: it moves, verifies, waits, gives up visibly, and survives being killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conveying import Yard

from dlm.clock import ManualClock
from dlm.db.engine import Database


@pytest.fixture
def yard(database: Database, tmp_path: Path) -> Yard:
    return Yard(database, tmp_path)


def test_due_requests_become_verified_replicas(yard: Yard, clock: ManualClock) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    contents = [b"file %d" % number for number in range(20)]
    dids = yard.stored(contents, here)
    yard.wish(dids, there)
    done = yard.conveyor().run_once()
    assert done.counts == {"claimed": 20, "done": 20}
    assert yard.rows("SELECT DISTINCT state, verified_at, claimed_until FROM replica WHERE storage_id = %(id)s", id=there) == [
        ("available", clock.moment, None)
    ]  # fmt: skip
    assert yard.rows("SELECT * FROM request") == []
    assert yard.row("SELECT count(*), min(outcome), max(outcome), max(source_storage_id) FROM attempt") == (
        20,
        "done",
        "done",
        here,
    )
    assert yard.path(there, "f7").read_bytes() == b"file 6"
    assert yard.found(there) == 20
    assert yard.row("SELECT kind, storage_id, file_ids FROM change") == ("arrived", there, sorted(dids))
    yard.check()
