"""Several processes on the same sockets: Python runs one thread at a time in each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess

log = logging.getLogger("dlm.web")

LOOK_S = 0.5
PAUSE_S = 1.0  # before one that ended is replaced, so that a fault that comes at once does not fill the log

Work = Callable[[Callable[[], bool]], None]  # until it is over


def run(number: int, work: Work, stop: threading.Event, on_stop: Callable[[], None], grace_s: float) -> None:
    """Do `work` in so many processes until `stop` is set, and then, after `on_stop`, end them within `grace_s`.

    One that ends before is replaced. They end with this one, too, however that ends. For a process without other threads,
    as they are forked.
    """
    workers: list[ForkProcess] = []
    try:
        while not stop.is_set():
            _start_missing(workers, number, partial(_start, work, stop))
            wait([worker.sentinel for worker in workers], LOOK_S)
            workers = _without_ended(workers, stop)
    finally:
        on_stop()
        _end(workers, grace_s)


def _start_missing(workers: list[ForkProcess], number: int, start: Callable[[], ForkProcess]) -> None:
    """Start as many as are missing; the rest at the next look, where the system has no room for a process now."""
    while len(workers) < number:
        try:
            workers.append(start())
        except OSError as error:
            log.warning("no process can be started: %s", error)
            time.sleep(PAUSE_S)
            return


def _start(work: Work, stop: threading.Event) -> ForkProcess:
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(work, stop, os.getpid()))
    worker.start()
    return worker


def _without_ended(workers: list[ForkProcess], stop: threading.Event) -> list[ForkProcess]:
    """The workers that are at work; after a pause, where one is not and should be."""
    ended = [worker for worker in workers if not worker.is_alive()]
    for worker in ended:
        if not stop.is_set():
            log.warning("process %s ended with %s and is replaced", worker.pid, worker.exitcode)
    if ended:
        time.sleep(PAUSE_S)
    return [worker for worker in workers if worker not in ended]


def _work(work: Work, stop: threading.Event, parent: int) -> None:
    # The event is this process's copy: the signals come here, too.
    work(lambda: stop.is_set() or os.getppid() != parent)


def _end(workers: list[ForkProcess], grace_s: float) -> None:
    for worker in workers:
        worker.terminate()
    limit = time.monotonic() + grace_s
    for worker in workers:
        worker.join(max(0.0, limit - time.monotonic()))
        if worker.is_alive():
            log.warning("process %s does not end and is killed", worker.pid)
            worker.kill()
            worker.join()
