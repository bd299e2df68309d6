"""Items are worked on by several threads at once, and answered in order."""

from __future__ import annotations

import threading

import pytest

from dlm.daemons.abreast import spread


def test_answers_come_in_the_order_of_the_items() -> None:
    assert spread(lambda item: item * 2, list(range(10)), 3) == [item * 2 for item in range(10)]
    assert spread(str, [1], 4) == ["1"]
    assert spread(str, [], 4) == []


def test_as_many_are_worked_on_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(3, timeout=30)
    assert spread(lambda item: together.wait() >= 0 and item, ["a", "b", "c"], 3) == ["a", "b", "c"]


def test_the_first_exception_is_raised_and_ends_the_rest() -> None:
    seen = []

    def act(item: int) -> None:
        seen.append(item)
        raise ValueError(item)

    with pytest.raises(ValueError):
        spread(act, list(range(1000)), 2)
    assert len(seen) <= 2
