"""Calls that come while another one of their kind is under way are carried out together, in one transaction.

Who comes first goes alone. What comes meanwhile would wait for a processor, or for the disk, anyway; the next turn takes
all of it, so that what a transaction costs is shared by those who wait for it. A turn that had company waits a moment for
as much again, as their clients come back together; one without it never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm.errors import DlmError, Transient

MOST = 100  # calls in one turn
LINGER_S = 0.004  # for the company of the turn before
MOST_KEYS = 1000  # whose company is remembered

CarryOut = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(slots=True, eq=False)
class _Call:
    item: Any
    answer: Any = None
    failure: DlmError | None = None
    had_turn: bool = False
    go: threading.Event = field(default_factory=threading.Event)  # it had its turn, or leads the next


@dataclass(slots=True)
class _Queue:
    company: int  # the calls of the last turn
    waiting: list[_Call] = field(default_factory=list)  # the first of them leads the next turn, or the one at hand began
    is_met: threading.Event = field(default_factory=threading.Event)  # as many wait again


class Gathering:
    """Queues of calls, one for each key: only calls of one key are carried out together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Hashable, _Queue] = {}
        self._company: dict[Hashable, int] = {}  # of keys that had some, while nobody asks

    def ask(self, key: Hashable, item: Any, carry_out: CarryOut) -> Any:
        """The answer to this item. `carry_out` answers each of the items it is given, or does nothing and raises.

        When it refuses several, each is carried out alone, so that it meets its own error and no other's.
        """
        call = _Call(item)
        queue = self._enter(key, call)
        call.go.wait()
        if not call.had_turn:
            self._lead(key, queue, carry_out)
        if call.failure is not None:
            raise call.failure
        return carry_out([item])[0] if call.answer is None else call.answer

    def _enter(self, key: Hashable, call: _Call) -> _Queue:
        with self._lock:
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = _Queue(self._company.pop(key, 1))
                call.go.set()
            queue.waiting.append(call)
            if len(queue.waiting) >= queue.company:
                queue.is_met.set()
        return queue

    def _lead(self, key: Hashable, queue: _Queue, carry_out: CarryOut) -> None:
        """Carry out what waits, the leader's own call among it, and let the next one lead."""
        queue.is_met.wait(LINGER_S)
        with self._lock:
            taken, queue.waiting = queue.waiting[:MOST], queue.waiting[MOST:]
            queue.company = len(taken)
            queue.is_met.clear()
        try:
            _turn(taken, carry_out)
        finally:
            for call in taken:
                call.go.set()
            self._pass_on(key, queue)

    def _pass_on(self, key: Hashable, queue: _Queue) -> None:
        with self._lock:
            if queue.waiting:
                queue.waiting[0].go.set()
                return
            del self._queues[key]
            if queue.company > 1:
                if len(self._company) >= MOST_KEYS:
                    self._company.clear()
                self._company[key] = queue.company


def _turn(calls: Sequence[_Call], carry_out: CarryOut) -> None:
    """Carry out these calls together; those without answer and failure afterwards are for their callers."""
    for call in calls:
        call.had_turn = True
    try:
        answers = carry_out([call.item for call in calls])
    except DlmError as error:
        if len(calls) == 1 or isinstance(error, Transient):  # what may pass is not tried again for each
            for call in calls:
                call.failure = error
        return
    for call, answer in zip(calls, answers, strict=True):
        call.answer = answer
