"""What nobody foresaw below an adapter: one file, or one storage, fails, and the daemon goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conveying import Yard
from dlm import effects
from dlm.daemons.auditor import Auditor
from dlm.daemons.reaper import Reaper
from dlm.db.engine import Database
from dlm.protocols.posix import PosixProtocol
from shelves import SETTINGS, Shelves

CONTENTS = [b"one", b"two", b"three"]


def surprise(*_: object, **__: object) -> Any:
    raise RuntimeError("nobody foresaw this")


@pytest.fixture
def yard(database: Database, tmp_path: Path) -> Yard:
    return Yard(database, tmp_path)


@pytest.fixture
def once() -> Iterator[Callable[[str], None]]:
    """Have something unforeseen happen at the first time a point is reached."""

    def install(point: str) -> None:
        def handler(reached: str) -> None:
            if reached == point:
                effects.install(None)
                surprise()

        effects.install(handler)

    yield install
    effects.install(None)


def test_a_copy_that_ends_so_is_tried_again(
    yard: Yard, once: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(CONTENTS, here), there)
    once("posix.write:before")
    yard.conveyor().run_once()
    assert yard.rows("SELECT DISTINCT error_class FROM request") == [("io",)]
    assert "RuntimeError" in caplog.text and "Traceback" in caplog.text
    yard.run("UPDATE request SET next_attempt_at = %(now)s")
    yard.conveyor().run_once()
    assert yard.rows("SELECT * FROM request") == [] and yard.found(there) == 3
    assert yard.temporaries(there) == []
    yard.check()


def test_a_storage_whose_marker_is_read_so_is_unavailable(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.wish(yard.stored(CONTENTS, here), there)
    monkeypatch.setattr(PosixProtocol, "require_marker", surprise)
    yard.conveyor().run_once()
    assert yard.rows("SELECT DISTINCT is_available FROM storage") == [(False,)]


def test_a_leftover_that_is_looked_at_so_is_looked_at_again(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = yard.storage("here"), yard.storage("there")
    yard.request(yard.stored(CONTENTS, here), there)
    yard.run("UPDATE request SET is_cancelled = true, attempts = 1, fence = 1")
    monkeypatch.setattr(PosixProtocol, "stat", surprise)
    yard.conveyor().run_once()
    assert yard.rows("SELECT DISTINCT state, error_class FROM request") == [("queued", "io")]


def test_a_file_that_cannot_be_looked_at_so_is_neither_good_nor_lost(
    shelves: Shelves, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shelves.storage("here")
    (file,) = shelves.files(1)
    shelves.put([file], here)
    shelves.run("UPDATE replica SET next_check_at = %(now)s")
    monkeypatch.setattr(PosixProtocol, "checksum", surprise)
    assert Auditor(database, SETTINGS).run_once().counts == {"unreadable": 1}
    assert shelves.state(file, here) == "available"


def test_a_marker_that_the_auditor_reads_so_makes_the_storage_unavailable(
    shelves: Shelves, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shelves.storage("here")
    monkeypatch.setattr(PosixProtocol, "require_marker", surprise)
    Auditor(database, SETTINGS).run_once()
    assert shelves.one("SELECT is_available FROM storage WHERE id = %(id)s", id=here) is False


def test_a_deletion_that_ends_so_leaves_its_files_in_doubt(
    shelves: Shelves, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shelves.storage("here")
    files = shelves.files(2)
    shelves.put(files, here, due_s=0)
    monkeypatch.setattr(PosixProtocol, "delete_many", surprise)
    assert Reaper(database, SETTINGS).run_once().counts == {"marked": 2, "failed": 2}
    assert {shelves.state(file, here) for file in files} == {"unverified"}
