"""One loop for every daemon: a full batch runs again at once, otherwise sleep until NOTIFY, the next due time, or the interval.

Level-triggered: a NOTIFY only wakes, and every pass reads what it needs again. SIGTERM lets the batch finish.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import psycopg

from dlm.db import changes
from dlm.db import daemons as daemon_rows
from dlm.db.engine import Database
from dlm.errors import DlmError, Transient

log = logging.getLogger("dlm.daemon")

DATABASE_PAUSE_S = 2.0
LISTEN_S = 5.0  # a listener notices within this that it is to end; nobody waits for it
END_S = 1.0  # and the process within this that a signal came
RECORD_PAUSES_S = (0.2, 1.0, 3.0)

Recorded = TypeVar("Recorded")


@dataclass(slots=True)
class Pass:
    """What one `run_once` did: counts for people, whether a batch was full, and when the next work is due."""

    counts: dict[str, int] = field(default_factory=dict)
    is_full: bool = False
    next_due_s: float | None = None

    def count(self, name: str, number: int = 1) -> None:
        if number:
            self.counts[name] = self.counts.get(name, 0) + number

    def merge(self, other: "Pass") -> None:
        for name, number in other.counts.items():
            self.count(name, number)
        self.is_full = self.is_full or other.is_full
        dues = [due for due in (self.next_due_s, other.next_due_s) if due is not None]
        self.next_due_s = min(dues, default=None)


def insist(record: Callable[[], Recorded]) -> Recorded:
    """What `record`, a transaction, returns; run again a few times when the database is away or busy.

    For what has happened outside the database already: forgotten, it would wait for the end of its lease.
    """
    for pause_s in RECORD_PAUSES_S:
        try:
            return record()
        except Transient:
            time.sleep(pause_s)
    return record()


class Daemon(Protocol):
    name: str
    interval_s: float

    def run_once(self, *, dry_run: bool = False) -> Pass:
        """Do one bounded batch. A dry run takes the same path, rolls back, and has no effect outside."""


class Loop(threading.Thread):
    """Runs one daemon until asked to stop."""

    def __init__(self, daemon: Daemon, database: Database, stop: threading.Event) -> None:
        super().__init__(name=daemon.name, daemon=True)
        self.work = daemon
        self.database = database
        self.stop = stop
        self.failure: BaseException | None = None
        self._wake = threading.Event()

    def run(self) -> None:
        listener = threading.Thread(target=self._listen, name=f"{self.work.name}-listen", daemon=True)
        listener.start()
        try:
            while not self.stop.is_set():
                self._wake.clear()
                rest_s = self._one_pass()
                if not self.stop.is_set():
                    self._wake.wait(rest_s)
        except BaseException as failure:  # a thread's boundary: the process must learn of it and end
            self.failure = failure
            self.stop.set()
            raise

    def _one_pass(self) -> float:
        """Run one pass and return how long to sleep after it, in seconds."""
        started = time.monotonic()
        try:
            done = self.work.run_once()
            self._seen(done.counts)
        except Transient as error:
            log.warning("%s waits: %s", self.work.name, error)
            return DATABASE_PAUSE_S
        if done.counts:
            spent = time.monotonic() - started
            log.info("%s %s in %.3f s", self.work.name, " ".join(f"{k}={v}" for k, v in done.counts.items()), spent)
        if done.is_full:
            return 0
        return self.work.interval_s if done.next_due_s is None else max(0.0, min(self.work.interval_s, done.next_due_s))

    def _seen(self, counts: Mapping[str, int]) -> None:
        with self.database.begin("daemon.seen") as tx:
            daemon_rows.seen(tx, self.work.name, socket.gethostname(), os.getpid(), counts)

    def wake(self) -> None:
        """End the sleep, for work or for the end."""
        self._wake.set()

    def _listen(self) -> None:
        """Wake the loop at each NOTIFY on the daemon's channel; connect again when the connection is lost."""
        address = self.database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        while not self.stop.is_set():
            try:
                with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
                    connection.execute(f"LISTEN {changes.CHANNEL.format(daemon=self.work.name)}")
                    self._wake.set()  # something may have come while nobody listened
                    poll = select.poll()  # psycopg's own wait looks ten times a second
                    poll.register(connection.fileno(), select.POLLIN)
                    while not self.stop.is_set():
                        poll.poll(LISTEN_S * 1000)
                        for _ in connection.notifies(timeout=0):
                            self._wake.set()
            except psycopg.Error:
                self.stop.wait(DATABASE_PAUSE_S)


def run(daemons: list[Daemon], database: Database, stop: threading.Event) -> None:
    """Run the daemons side by side until `stop` is set; raises what made one of them fail."""
    loops = [Loop(daemon, database, stop) for daemon in daemons]
    for loop in loops:
        loop.start()
    for loop in loops:
        while loop.is_alive():
            loop.join(END_S)
            if stop.is_set():
                for each in loops:
                    each.wake()
    for loop in loops:
        if loop.failure is not None:
            raise DlmError(f"{loop.name} failed: {loop.failure}") from loop.failure
