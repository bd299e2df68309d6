"""Breakers and the harm they count."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm.db import breakers
from dlm.db.engine import Database
from dlm.errors import Conflict, NotFound
from shelves import Shelves


@pytest.fixture
def shelves(database: Database, tmp_path: Path) -> Shelves:
    shelves = Shelves(database, tmp_path)
    shelves.storage("here")
    shelves.storage("there")
    return shelves


def test_a_breaker_opens_once_and_stops_one_act_on_one_storage(shelves: Shelves) -> None:
    with shelves.database.begin("test") as tx:
        assert breakers.open_(tx, "delete", 1, "too many", {"files": 9}) is not None
        assert breakers.open_(tx, "delete", 1, "again") is None
        assert breakers.is_open(tx, "delete", 1)
        assert not breakers.is_open(tx, "delete", 2)
        assert not breakers.is_open(tx, "loss", 1)
        (row,) = breakers.list_all(tx)
    assert (row.storage, row.reason, row.facts, row.opened_by) == ("here", "too many", {"files": 9}, "dlm")


def test_two_transactions_that_open_it_make_one(shelves: Shelves) -> None:
    with shelves.database.begin("one") as one:
        breakers.open_(one, "loss", 1, "first")
    with shelves.database.begin("two") as two:
        assert breakers.open_(two, "loss", 1, "second") is None
    assert shelves.one("SELECT count(*) FROM breaker") == 1


def test_a_hold_stops_deletions_everywhere_and_nothing_else(shelves: Shelves) -> None:
    with shelves.database.begin("test") as tx:
        held = breakers.hold(tx, "the tapes are moving")
        assert breakers.is_open(tx, "delete", 1) and breakers.is_open(tx, "delete", 2)
        assert not breakers.is_open(tx, "loss", 1)
        with pytest.raises(Conflict) as refused:
            breakers.hold(tx, "again")
        assert refused.value.facts == {"breaker": held}
        breakers.close(tx, held)
        assert not breakers.is_open(tx, "delete", 1)
        assert [row.closed_by for row in breakers.list_all(tx, with_closed=True)] == ["dlm"]
        assert not breakers.list_all(tx)


def test_opening_and_closing_are_events(shelves: Shelves) -> None:
    with shelves.database.begin("test") as tx:
        breakers.close(tx, breakers.hold(tx, "why not"))
    assert shelves.rows("SELECT object, action, cause FROM event ORDER BY id") == [
        ("breaker", "opened", "why not"),
        ("breaker", "closed", None),
    ]


def test_what_is_not_open_cannot_be_closed(shelves: Shelves) -> None:
    with shelves.database.begin("test") as tx:
        with pytest.raises(NotFound):
            breakers.close(tx, 99)
        held = breakers.hold(tx, "x")
        breakers.close(tx, held)
        with pytest.raises(Conflict):
            breakers.close(tx, held)


def test_the_window_slides_and_starts_anew_when_a_person_closes(shelves: Shelves) -> None:
    def window() -> dict[int, int]:
        with shelves.database.begin("test") as tx:
            return breakers.in_window(tx, "delete", [1, 2], 3600)

    def harm(**files: int) -> None:
        with shelves.database.begin("test") as tx:
            breakers.add_harm(tx, "delete", {int(key[1:]): number for key, number in files.items()})

    assert window() == {1: 0, 2: 0}
    harm(s1=5, s2=7)
    harm(s1=-2)
    assert window() == {1: 3, 2: 7}
    shelves.advance(1800)
    harm(s1=10)
    shelves.advance(1800)
    assert window() == {1: 10, 2: 0}
    with shelves.database.begin("test") as tx:
        breakers.open_(tx, "delete", 1, "x")
        breakers.close_for(tx, "delete", 1)
        breakers.close_for(tx, "delete", 2)  # nothing is open there
    shelves.advance(1)
    harm(s1=4)
    assert window() == {1: 4, 2: 0}
    with shelves.database.begin("test") as tx:
        assert breakers.forget_harm(tx, 1800) == 4
