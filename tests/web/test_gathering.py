"""What waits for a turn is carried out together, and everyone gets their own answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dlm.errors import InvalidInput, Transient
from dlm.web import gathering
from dlm.web.gathering import CarryOut, Gathering

WAIT_S = 30


def together(items: Sequence[str], carry_out: CarryOut) -> tuple[list[Future[str]], list[list[str]]]:
    """The outcomes of calls that all came while a first one had its turn, and the turns that were taken."""
    calls, began, may_end = Gathering(), threading.Event(), threading.Event()
    turns: list[list[str]] = []

    def first(asked: Sequence[str]) -> list[str]:
        began.set()
        assert may_end.wait(WAIT_S)
        return ["first"] * len(asked)

    def counted(asked: Sequence[str]) -> Sequence[str]:
        turns.append(list(asked))
        return list(carry_out(asked))

    with ThreadPoolExecutor(len(items) + 1) as pool:
        alone = pool.submit(calls.ask, "key", "first", first)
        assert began.wait(WAIT_S)
        outcomes = [pool.submit(calls.ask, "key", item, counted) for item in items]
        wait_until(lambda: len(calls._queues["key"].waiting) == len(items))
        may_end.set()
    assert alone.result() == "first" and not calls._queues
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


def test_a_turn_waits_for_as_much_company_as_the_last_one_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LINGER_S", WAIT_S)
    calls, turns = Gathering(), []

    def counted(asked: Sequence[str]) -> list[str]:
        turns.append(sorted(asked))
        return list(asked)

    calls._company["key"] = 3
    with ThreadPoolExecutor(3) as pool:
        outcomes = [pool.submit(calls.ask, "key", item, counted) for item in "abc"]
    assert [outcome.result() for outcome in outcomes] == ["a", "b", "c"] and turns == [["a", "b", "c"]]


def test_who_stays_alone_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Gathering()
    calls._company["key"] = 3
    monkeypatch.setattr(gathering, "LINGER_S", 0.01)
    assert calls.ask("key", "a", list) == "a"
    monkeypatch.setattr(gathering, "LINGER_S", WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(calls.ask, "key", "b", list).result(WAIT_S / 2) == "b"
    assert not calls._company and not calls._queues


def test_the_company_of_few_keys_is_remembered() -> None:
    calls = Gathering()
    for number in range(3 * gathering.MOST_KEYS):
        calls._pass_on(str(number), calls._queues.setdefault(str(number), gathering._Queue(2)))
    assert len(calls._company) <= gathering.MOST_KEYS
