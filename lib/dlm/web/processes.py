"""Several processes on the same sockets: Python runs one thread at a time in each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess

log = logging.getLogger("dlm.web")

LOOK_S = 0.5
PAUSE_S = 1.0  # before one that ended is replaced, so that a fault that comes at once does not fill the log

Work = Callable[[Callable[[], bool]], None]  # until it is over


def run(number: int, work: Work, stop: threading.Event, grace_s: float) -> None:
    """Do `work` in so many processes until `stop` is set, and end them within `grace_s`; one that ends before is replaced.

    They end with this one, too, however that ends. For a process without other threads, as they are forked.
    """
    workers = [_start(work, stop) for _ in range(number)]
    while not stop.is_set():
        wait([worker.sentinel for worker in workers], LOOK_S)
        for index, worker in enumerate(workers):
            if not worker.is_alive() and not stop.is_set():
                log.warning("process %s ended with %s and is replaced", worker.pid, worker.exitcode)
                time.sleep(PAUSE_S)
                workers[index] = _start(work, stop)
    _end(workers, grace_s)


def _start(work: Work, stop: threading.Event) -> ForkProcess:
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(work, stop, os.getpid()))
    worker.start()
    return worker


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
