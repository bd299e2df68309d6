"""The auditor beside others who write about the same files."""

from __future__ import annotations

import threading
from collections.abc import Callable

from catalogue import Beside, wait_until_blocked
from dlm.daemons.auditor import Auditor
from dlm.db.engine import Database
from shelves import SETTINGS, Shelves


def test_what_is_declared_and_what_is_good_are_locked_in_one_order(
    shelves: Shelves, database: Database, at: Callable[[str, Callable[[], None]], None]
) -> None:
    here, there = shelves.storage("here"), shelves.storage("there")
    wrong, right = shelves.files(2)
    shelves.put([wrong, right], here)
    shelves.put([wrong, right], there)
    shelves.path(wrong, here).write_bytes(b"9876543210")
    shelves.run("UPDATE replica SET next_check_at = %(now)s WHERE storage_id = %(id)s", id=here)
    held = threading.Event()

    def write_both() -> None:
        with shelves.database.begin("beside") as tx:
            tx.run("SELECT FROM replica WHERE did_id = %(id)s FOR UPDATE", id=wrong)
            held.set()
            wait_until_blocked(shelves.database)
            tx.run("SELECT FROM replica WHERE did_id = %(id)s FOR UPDATE", id=right)

    beside: list[Beside] = []

    def start() -> None:
        beside.append(Beside(write_both))
        assert held.wait(30)

    at("auditor.examine:after", start)
    Auditor(database, SETTINGS).run_once()
    assert beside[0].finish() == []
    assert shelves.state(wrong, here) == "bad" and shelves.state(right, here) == "available"
