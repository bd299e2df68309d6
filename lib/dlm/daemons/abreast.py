"""Work on several storages side by side, so that one that hangs holds up no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Abreast:
    """Runs one task a storage, each in a thread of its own, and remembers which of them still hang.

    A thread in a system call cannot be ended. It is left behind, ends with the process, and its storage gets no
    further task here until it has come back.
    """

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._hanging: dict[int, threading.Thread] = {}

    def hanging(self) -> list[int]:
        """The storages whose last task has not come back yet."""
        self._hanging = {storage: thread for storage, thread in self._hanging.items() if thread.is_alive()}
        return list(self._hanging)

    def run(self, tasks: Mapping[int, Callable[[], Result]], timeout_s: float) -> dict[int, Result]:
        """The results by storage; those that did not end within `timeout_s` of now are left out.

        The first exception of a task is raised here, after all have ended.
        """
        results: dict[int, Result] = {}
        failures: list[BaseException] = []

        def work(storage_id: int, task: Callable[[], Result]) -> None:
            try:
                results[storage_id] = task()
            except BaseException as failure:  # noqa: BLE001 - a thread's boundary: raised again below
                failures.append(failure)

        limit = self._timer() + timeout_s
        threads = {
            storage: threading.Thread(target=work, args=(storage, task), daemon=True) for storage, task in tasks.items()
        }
        for thread in threads.values():
            thread.start()
        for storage_id, thread in threads.items():
            thread.join(max(0.0, limit - self._timer()))
            if thread.is_alive():
                self._hanging[storage_id] = thread
        if failures:
            raise failures[0]
        return dict(results)


def spread(act: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """What `act` returns for each item, in order, from so many threads; the first exception, after all have ended.

    Threads that do not hold the process when it ends, unlike those of a ThreadPoolExecutor: a storage may hang them.
    """
    results: dict[int, Result] = {}
    failures: list[BaseException] = []

    def work(first: int) -> None:
        for index in range(first, len(items), threads):
            if failures:
                return
            try:
                results[index] = act(items[index])
            except BaseException as failure:  # noqa: BLE001 - a thread's boundary: raised again below
                failures.append(failure)

    at_work = [threading.Thread(target=work, args=(first,), daemon=True) for first in range(min(threads, len(items)))]
    for thread in at_work:
        thread.start()
    for thread in at_work:
        thread.join()
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(items))]
