"""The conveyor: every due request moves. Claim and plan; act with no transaction open; record what came of it.

    conveyor.claim    expired leases come back, lanes are read, requests taken under a lease, sources chosen
    (effects)         markers are looked at, then one flight per destination copies
    conveyor.record   outcomes as they come, some hundreds at a time, where the fence still stands

A destination that does not answer keeps its flight, not the pass: after a quiet moment the pass ends, the next one
takes work for other storages, and the outcomes are recorded whenever they come.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy.engine import Row

from dlm import effects
from dlm.config import Settings
from dlm.core import conveyor as planner
from dlm.core import mover
from dlm.core.audit import note_availability
from dlm.core.conveying import Batch, Item, load_batch
from dlm.core.recording import record_results
from dlm.daemons.loop import Pass, insist
from dlm.db import changes, requests
from dlm.db.attempts import Result, Verdict
from dlm.db.engine import Database, Tx
from dlm.transfertools import Copy, Outcome
from dlm.types import ChangeKind, Checksums, ErrorClass, Identity, ReplicaState, RequestState

log = logging.getLogger("dlm.conveyor")

ACTOR = Identity(account_id=None, account="dlm:conveyor", roles=frozenset({"daemon"}))
RATE_BYTES_S = 10e6  # a transfer slower than this is ended at its deadline, and gets more time at the next attempt
BATCH_BYTES = 20 * 10**9
MARGIN_SHARE, MARGIN_MOST_S = 0.1, 10.0  # effects end this much before the lease
AGE_AFTER_S, AGE_LIMIT = 900.0, 50
RECORD_MOST = 500
LINGER_S = 0.02  # outcomes that come this close together are recorded together
QUIET_S = 10.0  # the pass leaves flights of which nothing was heard for so long
MARKER_TIMEOUT_S = 10.0
FLIGHTS_PER_STORAGE = 2  # in the air at once to one destination, from this process
BATCHES_ALOFT = 4
OVERDUE_S = 5.0  # a flight that did not end so long after its deadline is given up; its leases run out
LEAST_SLEEP_S = 0.5
RELEASED_S = 1.0  # what found no time before the deadline pauses, so that a lease too short is no hot loop


class Conveyor:
    name = "conveyor"

    def __init__(self, database: Database, settings: Settings, stop: Callable[[], bool] = lambda: False) -> None:
        self.database = database
        self.settings = settings
        self.stop = stop
        self.interval_s = settings.conveyor_interval_s
        self.quiet_s = QUIET_S
        self.overdue_s = OVERDUE_S
        self.patience = planner.Patience(
            max_attempts=settings.conveyor_max_attempts,
            backoff_base_s=settings.conveyor_backoff_base_s,
            backoff_max_s=settings.conveyor_backoff_max_s,
            parked_retry_s=settings.conveyor_parked_retry_s,
        )
        self._reports: SimpleQueue[mover.Report] = SimpleQueue()
        self._flights: set[mover.Flight] = set()
        self._aloft: dict[int, Item] = {}

    def run_once(self, *, dry_run: bool = False) -> Pass:
        """Take one batch and carry it out; a batch that stalls is left in the air for the next pass."""
        done = Pass()
        started = time.monotonic()
        batch = Batch() if self.stop() else self._claim(done, dry_run)
        if dry_run:
            _count_plan(done, batch)
            return done
        results = self._depart(batch, started)
        self._gather(results, done)
        done.is_full = done.is_full or bool(self._flights)
        return done

    def finish(self) -> Pass:
        """Wait for what is in the air, at most until its deadlines, and record it. For the end of the process."""
        done = Pass()
        while self._flights:
            self._gather([], done)
        return done

    # -- claim --------------------------------------------------------------------------------------------------

    def _claim(self, done: Pass, dry_run: bool) -> Batch:
        with self.database.begin("conveyor.claim", ACTOR, commit=not dry_run) as tx:
            self._tidy_queue(tx, done)
            rows = self._take(tx, done)
            if not rows:
                due_s = requests.next_due(tx)
                done.next_due_s = None if due_s is None else max(due_s, LEAST_SLEEP_S)
                return Batch()
            batch = load_batch(tx, rows, self.patience)
            sources = {action.request_id: action.source_id for action in batch.transfers()}
            requests.set_sources(tx, sources)
            return batch

    def _tidy_queue(self, tx: Tx, done: Pass) -> None:
        """Bring back what a dead worker holds, what was parked long enough, and raise what is long due."""
        settings, limit = self.settings, self.settings.conveyor_batch
        back = requests.recover(
            tx,
            limit,
            max_attempts=settings.conveyor_max_attempts,
            backoff_s=settings.conveyor_backoff_base_s,
            parked_retry_s=settings.conveyor_parked_retry_s,
        )
        done.count("recovered", len(back))
        parked = [(row.did_id, row.storage_id) for row in back if row.state == RequestState.PARKED]
        if parked:
            changes.add_by_storage(tx, ChangeKind.PARKED, parked)
        # A tenth of a batch: what failed often must not crowd out what was never tried.
        done.count("unparked", requests.retry_parked(tx, max(1, limit // 10), settings.conveyor_max_attempts))
        requests.age(tx, AGE_AFTER_S, AGE_LIMIT)

    def _take(self, tx: Tx, done: Pass) -> list[Row[Any]]:
        limit = min(self.settings.conveyor_batch, BATCHES_ALOFT * self.settings.conveyor_batch - len(self._aloft))
        if limit <= 0:
            return []
        lease = requests.Lease(self.settings.conveyor_lease_s, RATE_BYTES_S, BATCH_BYTES)
        crowded = self._crowded()
        lanes = [
            planner.Lane(row.storage_id, row.priority, row.waiting, row.room)
            for row in requests.lanes(tx, self.settings.conveyor_max_active_per_storage, limit)
            if row.storage_id not in crowded
        ]
        takes = planner.shares(lanes, limit)
        rows = [*requests.claim_cancelled(tx, limit, lease)]
        rows += requests.claim(tx, takes, lease)
        requests.lease_replicas(tx, rows)
        done.count("claimed", len(rows))
        done.is_full = len(rows) >= limit or bool(rows) and sum(lane.waiting for lane in lanes) > len(rows)
        return rows

    def _crowded(self) -> set[int]:
        """Destinations to which enough flights are in the air."""
        flights: dict[int, int] = defaultdict(int)
        for flight in self._flights:
            flights[flight.destination.storage_id] += 1
        return {storage for storage, number in flights.items() if number >= FLIGHTS_PER_STORAGE}

    # -- act ----------------------------------------------------------------------------------------------------

    def _depart(self, batch: Batch, started: float) -> list[Result]:
        """Start a flight for each destination; the results of what needs none."""
        results = [result for item in batch.items.values() if (result := self._without_effect(item)) is not None]
        flying = [item for item in batch.items.values() if self._without_effect(item) is None]
        if not flying:
            return results
        lease_s = batch.lease_s
        deadline = started + lease_s - min(MARGIN_SHARE * lease_s, MARGIN_MOST_S)
        absent = self._absent(batch, flying)
        grounded = [item for item in flying if item.storage_ids() & absent.keys()]
        results += [self._grounded(item, absent) for item in grounded]
        left = [item for item in flying if not item.storage_ids() & absent.keys()]
        for flight in self._flights_for(batch, left, deadline):
            self._flights.add(flight)
            flight.start()
        self._aloft.update((item.request_id, item) for item in left)
        return results

    def _without_effect(self, item: Item) -> Result | None:
        """The result of an action that touches no storage; None for those that do."""
        action, base = item.action, Result(item.request_id, item.fence, Verdict.RETRY, is_tried=False)
        match action:
            case planner.Wait():
                return item.changed(
                    base, delay_s=action.delay_s, is_counted=False, error=action.reason, error_class=action.error_class
                )
            case planner.Park():
                delay_s = self.patience.parked_retry_s
                return item.changed(
                    base,
                    verdict=Verdict.PARKED,
                    delay_s=delay_s,
                    is_tried=True,
                    error=action.reason,
                    error_class=action.error_class,
                )
            case planner.Cancel() if item.is_untouched:
                return item.changed(base, verdict=Verdict.CANCELLED, is_tried=True, error=action.reason)
        return None

    def _absent(self, batch: Batch, items: Sequence[Item]) -> dict[int, str]:
        """Why storages of these items cannot be used, after it was written down for everybody."""
        ids: set[int] = set().union(*(item.storage_ids() for item in items))
        reasons = mover.absent([batch.refs[storage] for storage in ids if storage in batch.refs], MARKER_TIMEOUT_S)
        reasons |= dict.fromkeys(ids - batch.refs.keys(), "it has no protocol")
        for storage_id in sorted(reasons):
            with self.database.begin("conveyor.unavailable", ACTOR) as tx:
                note_availability(tx, storage_id, reasons[storage_id])
        return reasons

    def _flights_for(self, batch: Batch, items: Sequence[Item], deadline: float) -> list[mover.Flight]:
        by_destination: dict[int, list[Item]] = defaultdict(list)
        for item in items:
            by_destination[item.storage_id].append(item)
        threads = max(1, self.settings.conveyor_threads // max(1, len(by_destination)))
        flights = []
        for storage_id, cargo in by_destination.items():
            flight = mover.Flight(batch.refs[storage_id], deadline, self.stop, self._reports, threads)
            for item in cargo:
                flight.earlier += mover.earlier_attempts(item.request_id, item.fence)
                if isinstance(item.action, planner.Transfer):
                    flight.copies.append(_copy(item, batch))
                else:
                    flight.looks.append(
                        mover.Look(item.request_id, batch.refs[storage_id], item.path, item.size_bytes, item.checksums)
                    )
            flights.append(flight)
        return flights

    def _grounded(self, item: Item, absent: dict[int, str]) -> Result:
        """The result of an item that met an absent storage.

        A transfer is due at once: from another source, or when the lane of its destination opens again.
        A cancelled one waits, as it is taken from no lane.
        """
        at = item.storage_id if item.storage_id in absent else item.source_id
        is_source = at != item.storage_id
        error_class = ErrorClass.SOURCE_UNAVAILABLE if is_source else ErrorClass.DESTINATION_UNAVAILABLE
        reason = f"the {'source' if is_source else 'destination'} is unavailable: {absent[at or 0]}"
        delay_s = 0.0 if item.source_id is not None else self._wait_s(item)
        return item.changed(_released(item), delay_s=delay_s, error_class=error_class, error=reason)

    def _wait_s(self, item: Item) -> float:
        return planner.after_failure(ErrorClass.UNAVAILABLE, item.wish, item.attempts, False, self.patience).delay_s

    # -- record -------------------------------------------------------------------------------------------------

    def _gather(self, results: list[Result], done: Pass) -> None:
        """Record results, and reports as they come, until all flights ended or nothing was heard for long."""
        heard = time.monotonic()
        while self._flights:
            try:
                report = self._reports.get(timeout=LINGER_S)
            except Empty:
                self._record(results, done)
                results = []
                self._give_up_overdue()
                if time.monotonic() - heard > self.quiet_s and not self.stop():
                    break
                continue
            heard = time.monotonic()
            if report.flight in self._flights:  # else it was given up, and others may be at work already
                results += self._landed(report) if report.what is None else self._reported(report.what)
            if len(results) >= RECORD_MOST:
                self._record(results, done)
                results = []
        self._record(results, done)

    def _landed(self, report: mover.Report) -> list[Result]:
        """End a flight; what it did not report was not started, and is released."""
        self._flights.discard(report.flight)
        if report.failure is not None:
            raise report.failure
        left = [self._aloft.pop(request_id) for request_id in report.flight.request_ids() if request_id in self._aloft]
        return [_released(item) for item in left]

    def _reported(self, report: Outcome | mover.Looked) -> list[Result]:
        item = self._aloft.pop(report.request_id)
        if isinstance(report, mover.Looked):
            return [self._cancelled(item, report)]
        return [_arrived(item, report)] if _is_right(item, report) else [self._failed(item, report)]

    def _cancelled(self, item: Item, looked: mover.Looked) -> Result:
        if looked.error_class is None:
            reason = getattr(item.action, "reason", None)
            # Wrong bytes where the attempts were refused for just that are somebody else's: to own them is to reap them.
            is_foreign = item.is_taken and not item.is_repair and looked.leftover is ReplicaState.BAD
            leftover = None if is_foreign else looked.leftover
            return Result(item.request_id, item.fence, Verdict.CANCELLED, leftover=leftover, error=reason)
        error_class = ErrorClass(looked.error_class)
        base = Result(item.request_id, item.fence, Verdict.RETRY, is_counted=False, error_class=error_class)
        return item.changed(base, delay_s=self._wait_s(item), error=looked.error)

    def _failed(self, item: Item, outcome: Outcome) -> Result:
        error_class = ErrorClass(outcome.error_class or ErrorClass.CHECKSUM_MISMATCH)
        if error_class is ErrorClass.INTERRUPTED and (self.stop() or not outcome.bytes_moved):
            return replace(_released(item), delay_s=RELEASED_S)
        has_other = isinstance(item.action, planner.Transfer) and item.action.has_other
        following = planner.after_failure(error_class, item.wish, item.attempts, has_other, self.patience)
        return Result(
            item.request_id,
            item.fence,
            Verdict.PARKED if following.is_parked else Verdict.RETRY,
            source_id=item.source_id,
            delay_s=following.delay_s,
            is_counted=following.is_counted,
            is_wanted=item.is_flagged,
            error_class=error_class,
            error=outcome.error or "what arrived is not what the catalogue knows",
            may_replace=outcome.ok,
            suspicion=planner.SUSPICIONS.get(error_class),
            duration_s=outcome.duration_s,
        )

    def _give_up_overdue(self) -> None:
        """Forget flights that do not end: their leases run out, and the next owner asks the world first."""
        for flight in [flight for flight in self._flights if time.monotonic() > flight.deadline + self.overdue_s]:
            log.warning(
                "%s does not answer; %d requests wait for their leases",
                flight.destination.storage_name,
                len(flight.request_ids()),
            )
            self._flights.discard(flight)
            for request_id in flight.request_ids():
                self._aloft.pop(request_id, None)

    def _record(self, results: list[Result], done: Pass) -> None:
        for start in range(0, len(results), RECORD_MOST):
            part = results[start : start + RECORD_MOST]
            effects.point("conveyor.copied:before-record")
            for name, number in insist(partial(self._record_part, part)).items():
                done.count(name, number)

    def _record_part(self, results: Sequence[Result]) -> dict[str, int]:
        with self.database.begin("conveyor.record", ACTOR) as tx:
            return record_results(tx, results, self.settings.auditor_cycle_s)


def _count_plan(done: Pass, batch: Batch) -> None:
    for item in batch.items.values():
        done.count(f"would_{type(item.action).__name__.lower()}")
        if isinstance(item.action, planner.Transfer):
            done.count("would_move_bytes", item.size_bytes)


def _copy(item: Item, batch: Batch) -> Copy:
    assert item.source_id is not None
    return Copy(
        item.request_id,
        mover.attempt_name(item.request_id, item.fence),
        batch.refs[item.source_id],
        item.source_path,
        batch.refs[item.storage_id],
        item.path,
        item.size_bytes,
        item.checksums,
        replace=item.is_repair,
    )


def _released(item: Item) -> Result:
    return Result(item.request_id, item.fence, Verdict.RELEASED, is_counted=False, is_tried=False)


def _is_right(item: Item, outcome: Outcome) -> bool:
    """True when what the storage holds now is what the catalogue knows: the tool's word alone is not enough."""
    if not outcome.ok or outcome.size_bytes != item.size_bytes:
        return False
    return outcome.checksums.agrees(item.checksums) if item.checksums.known() else bool(outcome.checksums.known())


def _arrived(item: Item, outcome: Outcome) -> Result:
    return Result(
        item.request_id,
        item.fence,
        Verdict.DONE,
        source_id=item.source_id,
        checksums=outcome.checksums,
        is_unknown=item.checksums == Checksums(),
        duration_s=outcome.duration_s,
    )
