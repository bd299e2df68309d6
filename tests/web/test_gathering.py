"""What waits for a turn is carried out together, and everyone gets their own answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dlm.errors import InvalidInput, Transient
from dlm.web.gathering import CarryOut, Gathering

WAIT_S = 30


def together(items: Sequence[str], carry_out: CarryOut) -> tuple[list[Future[str]], list[list[str]]]:
    """The outcomes of calls that all came while a first one had its turn, and the turns that were taken."""
    gathering, began, may_end = Gathering(), threading.Event(), threading.Event()
    turns: list[list[str]] = []

    def first(asked: Sequence[str]) -> list[str]:
        began.set()
        assert may_end.wait(WAIT_S)
        return ["first"] * len(asked)

    def counted(asked: Sequence[str]) -> Sequence[str]:
        turns.append(list(asked))
        return list(carry_out(asked))

    with ThreadPoolExecutor(len(items) + 1) as pool:
        alone = pool.submit(gathering.ask, "key", "first", first)
        assert began.wait(WAIT_S)
        outcomes = [pool.submit(gathering.ask, "key", item, counted) for item in items]
        wait_until(lambda: len(gathering._queues["key"].waiting) == len(items))
        may_end.set()
    assert alone.result() == "first" and not gathering._queues
    return outcomes, turns


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(WAIT_S * 100):
        if is_so():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come about")


def refused(item: str) -> str:
    if item == "bad":
        raise InvalidInput("this is bad")
    return item.upper()


def test_what_waits_is_carried_out_together_and_each_gets_its_own_answer() -> None:
    outcomes, turns = together(["a", "b", "c"], lambda asked: [item.upper() for item in asked])
    assert [outcome.result() for outcome in outcomes] == ["A", "B", "C"]
    assert [sorted(turn) for turn in turns] == [["a", "b", "c"]]


def test_one_that_is_refused_spoils_no_other() -> None:
    outcomes, turns = together(["a", "bad", "c"], lambda asked: [refused(item) for item in asked])
    assert outcomes[0].result() == "A" and outcomes[2].result() == "C"
    with pytest.raises(InvalidInput):
        outcomes[1].result()
    assert len(turns) == 4


def test_what_may_pass_is_told_to_all_and_not_tried_for_each() -> None:
    def away(asked: Sequence[str]) -> list[str]:
        raise Transient("the database is busy")

    outcomes, turns = together(["a", "b"], away)
    for outcome in outcomes:
        with pytest.raises(Transient):
            outcome.result()
    assert len(turns) == 1


def test_a_fault_is_met_by_each_alone() -> None:
    def broken(asked: Sequence[str]) -> list[str]:
        if "bad" in asked:
            raise ZeroDivisionError
        return list(asked)

    outcomes, _ = together(["a", "bad"], broken)
    assert isinstance(outcomes[1].exception(), ZeroDivisionError)


def test_other_keys_do_not_wait() -> None:
    gathering = Gathering()

    def asks_another(asked: Sequence[str]) -> list[str]:
        return [gathering.ask("other", item, lambda inner: list(inner)) for item in asked]

    assert gathering.ask("key", "a", asks_another) == "a"
